"""Which chunk task's result may stand for another's: the one whose chunks have the same keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from prefect_cytotable.tasks.core.store import LocalStore, Store
from prefect_cytotable.tasks.core.work import PlanPlace
from prefect_cytotable.tasks.quiet import quieten

quieten()  # here, because every worker process imports this module with the parameters of its first chunk task


class Keyed(Protocol):
    """A chunk: its key is a hash over the program's version, the sources' fingerprints, the slice and the options."""

    @property
    def key(self) -> str:
        """The hash."""
        ...


@dataclass(frozen=True)
class BatchJob:
    """What a chunk task gets: where its plan lies, how to reach it, the numbers of its chunks, their key and name."""

    place: PlanPlace
    numbers: tuple[int, ...]
    key: str
    name: str


def batch_key(chunks: Sequence[Keyed]) -> str:
    """The key of some chunks together; that of a single one is its own."""
    if len(chunks) == 1:
        return chunks[0].key
    return "batch-" + hashlib.sha256("\n".join(chunk.key for chunk in chunks).encode()).hexdigest()[:32]


def results_of(store: Store) -> Path | None:
    """Where Prefect keeps the results of chunk tasks: beside the parts.

    None for parts in object storage, since Prefect wants such a place to be registered with the server. A chunk that is
    done is then found in the store by its task, which passes on to the next.
    """
    return Path(store.folder) / "results" if isinstance(store, LocalStore) else None


@dataclass
class ByChunkKeys(CachePolicy):
    """The keys of the chunks, and nothing of the run: a later run finds what an earlier one has done."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The key under which the chunks' records are kept."""
        job: BatchJob = inputs["job"]
        return job.key
