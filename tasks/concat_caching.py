"""Which block task's result may stand for another's: that of the same block of the same output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext


@dataclass(frozen=True)
class BlockJob:
    """What a block's task gets: the folder with its layout, which block it is, the layout's key, and a name."""

    folder: str
    number: int
    key: str
    name: str


@dataclass
class ByBlock(CachePolicy):
    """The key of the layout and the block, and nothing of the run: a later run finds what an earlier one has done."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The key under which a block's record is kept."""
        job: BlockJob = inputs["job"]
        return f"{job.key}-{job.number}"
