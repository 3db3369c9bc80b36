"""Which chunk task's result may stand for another's: the one with the same chunk key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from prefect_cytotable.tasks.core.store import LocalStore, Store
from prefect_cytotable.tasks.core.work import PlanPlace


@dataclass(frozen=True)
class ChunkJob:
    """What a chunk task gets: where its plan lies, how to reach it, which chunk it is, and that chunk's key and name.

    The key is a hash over the program's version, the sources' fingerprints, the slice and the options.
    """

    place: PlanPlace
    number: int
    key: str
    name: str


def results_of(store: Store) -> Path | None:
    """Where Prefect keeps the results of chunk tasks: beside the parts.

    None for parts in object storage, since Prefect wants such a place to be registered with the server. A chunk that is
    done is then found in the store by its task, which ends at once.
    """
    return Path(store.folder) / "results" if isinstance(store, LocalStore) else None


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
