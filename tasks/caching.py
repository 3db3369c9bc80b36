"""Which chunk task's result may stand for another's: the one with the same chunk key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext


@dataclass(frozen=True)
class ChunkJob:
    """What a chunk task gets: where its plan lies, which chunk it is, and that chunk's key and name.

    The key is a hash over the program's version, the sources' fingerprints, the slice and the options.
    """

    plan_path: str
    number: int
    key: str
    name: str


@dataclass
class ByChunkKey(CachePolicy):
    """The key of the chunk, and nothing of the run: a later run finds what an earlier one has done."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The key under which a chunk's record is kept."""
        job: ChunkJob = inputs["job"]
        return job.key
