"""The one loop that gives chunks to a task runner: batches of them as tasks, results in the order of the chunks.

A task costs the more the farther its runner is: about 20 ms of processor time on threads, 170 ms on processes and
280 ms on Dask (its share of the server included), one more chunk in a task 1 ms. Chunks that take little time travel
together, so that what a task costs stays a small part of what it does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner
from prefect.utilities.annotations import opaque as _opaque

from prefect_cytotable.flows.runners import WorkerKind, killed_worker, kind_of, slots, started
from prefect_cytotable.tasks.caching import BatchJob, batch_key, results_of
from prefect_cytotable.tasks.core.concat.model import JobResult
from prefect_cytotable.tasks.core.errors import WorkerDiedError
from prefect_cytotable.tasks.core.local import POOL_ATTEMPTS
from prefect_cytotable.tasks.core.model import ChunkResult
from prefect_cytotable.tasks.core.progress import Listener
from prefect_cytotable.tasks.core.store import Store
from prefect_cytotable.tasks.core.work import PlanPlace

T = TypeVar("T")
Result = TypeVar("Result", ChunkResult, JobResult)

ChunkTask = Task[[BatchJob], list[dict[str, Any]]]
"""Does the chunks of a job in turn and gives their records (`ChunkResult`, `JobResult`) as plain values."""

WINDOW = 4
"""Tasks submitted ahead for each worker: enough to keep it busy, few enough to stop soon after a failure."""

TASK_SECONDS = {WorkerKind.THREADS: 0.02, WorkerKind.PROCESSES: 0.17, WorkerKind.DASK: 0.28}
"""Processor seconds that one task costs (benchmarks/orchestration.py)."""

SHARE = 0.07
"""What the tasks of a run may cost, as a share of its work; the rest of the 15% that are promised is for the estimate
of the work, which can be wrong by half, and for the start of the workers."""

TASKS_A_WORKER = 4
"""Tasks that every worker gets at least, where there are as many chunks: all then end at about the same time."""

MOST_CHUNKS = 100
"""Chunks of a task: what a worker has done is not told before its task ends."""

MOST_TASKS = 2000
"""Tasks of a run, where batches may be as large as that needs: a server drops what it is told beyond 10,000 events that
wait to be written, and a task is four of them."""


class Piece(Protocol):
    """A chunk, of whatever flow: its number in the plan, the hash of all that it depends on, and a name for people."""

    @property
    def number(self) -> int:
        """Position in the plan."""
        ...

    @property
    def key(self) -> str:
        """Of its record in the store."""
        ...

    @property
    def name(self) -> str:
        """For example "a.sqlite, images 1-640"."""
        ...


@dataclass(frozen=True)
class Kept(Generic[Result]):
    """What is kept of chunks that are done.

    Attributes:
        record: The type of a chunk's record.
        load: The record under a key, where what it tells of is whole and unaltered; None for any other.
        results: Where Prefect keeps the results of tasks, if anywhere.
    """

    record: type[Result]
    load: Callable[[str], Result | None]
    results: Path | None


def kept_in(store: Store) -> Kept[ChunkResult]:
    """What a store keeps."""
    return Kept(ChunkResult, store.load, results_of(store))


@dataclass(frozen=True)
class Work(Generic[Result]):
    """The chunks of a plan, and what doing them needs.

    Attributes:
        chunks: In the order of the results.
        size: Rows (of a concatenation: bytes) of all chunks together, for the progress.
        place: Where tasks find the plan.
        kept: The records of chunks that are done.
        workers: Chunks under way at once.
        seconds: What one chunk is estimated to take, in seconds.
    """

    chunks: Sequence[Piece]
    size: int
    place: PlanPlace
    kept: Kept[Result]
    workers: int
    seconds: float


def batch_size(chunks: int, workers: int, seconds: float, kind: WorkerKind) -> int:
    """How many chunks a task does.

    Args:
        chunks: Of the run.
        workers: Tasks under way at once.
        seconds: What a chunk is estimated to take.
        kind: What the workers are.

    >>> [batch_size(1000, 2, 1.0, kind) for kind in WorkerKind]
    [1, 3, 4]
    >>> batch_size(40, 2, 0.01, WorkerKind.DASK), batch_size(12, 2, 0.01, WorkerKind.DASK)
    (5, 1)
    >>> batch_size(20_000, 2, 1.0, WorkerKind.THREADS)
    10
    """
    worth = math.ceil(TASK_SECONDS[kind] / SHARE / max(seconds, 1e-3))
    wanted = min(max(worth, math.ceil(chunks / MOST_TASKS)), MOST_CHUNKS)
    return max(min(wanted, chunks // (TASKS_A_WORKER * max(workers, 1))), 1)


def batch_name(batch: Sequence[Piece]) -> str:
    """What a task of these chunks is called, for example "a.sqlite, images 1-640 ... (8 chunks)"."""
    return batch[0].name if len(batch) == 1 else f"{batch[0].name} ... ({len(batch)} chunks)"


@dataclass(frozen=True)
class _Submitted(Generic[Result]):
    """A task under way; `done` has the records of its chunks where all were done before."""

    batch: Sequence[Piece]
    done: tuple[Result, ...]
    future: PrefectFuture[list[dict[str, Any]]]


class Conducting(Generic[Result]):
    """Does the chunks of a plan as tasks, each chunk once.

    A chunk that is done when the run begins is not done again, however the batches are cut: its task finds the record
    in the store. Where all chunks of a batch are done, and Prefect has kept that batch's result, its task ends as
    "Cached". A task that is tried again does only what it has not done.
    """

    def __init__(
        self,
        task: ChunkTask,
        runner: str | TaskRunner[Any],
        work: Work[Result],
        progress: Listener[Result],
        say: Callable[[str], None],
    ) -> None:
        """Nothing is done yet; `say` tells the user something."""
        self._runner = runner
        self._work: Work[Result] = work
        self._progress: Listener[Result] = progress
        self._say = say
        self._results: list[Result] = []
        self._left: deque[Sequence[Piece]] | None = None
        self._before: dict[str, bool] = {}
        if work.kept.results is not None:
            self._kept = task.with_options(result_storage=work.kept.results)
            self._again = self._kept.with_options(refresh_cache=True)
        else:
            self._kept = self._again = task.with_options(persist_result=False, cache_policy=NO_CACHE)

    def results(self) -> list[Result]:
        """Records of all chunks, in their order.

        Raises:
            WorkerDiedError: Worker processes were killed, more often than is tried again.
        """
        self._progress.start(len(self._work.chunks), self._work.size)
        try:
            for attempt in range(1, POOL_ATTEMPTS + 1):
                try:
                    self._extend()
                    break
                except BrokenProcessPool as error:
                    if attempt == POOL_ATTEMPTS or not isinstance(self._runner, str):
                        raise WorkerDiedError.after(attempt) from error
                    self._say(WorkerDiedError.AGAIN)
        except Exception as error:
            if (deaths := killed_worker(error)) is not None:
                raise WorkerDiedError.after(deaths) from error
            raise
        finally:
            self._progress.finish()
        return self._results

    def _extend(self) -> None:
        """Do the batches that have no result yet; they are cut once, so that a pool made anew gets the same."""
        with self._started() as runner:
            if self._left is None:
                self._left = deque(self._cut(slots(runner, self._work.workers)))
            for results in self._in_order(tuple(self._left), runner):
                self._left.popleft()
                self._results += results
                for result in results:
                    self._progress.advance(result)

    def _started(self) -> AbstractContextManager[TaskRunner[Any]]:
        return started(self._runner, self._work.workers) if isinstance(self._runner, str) else self._runner

    def _cut(self, workers: int) -> Iterator[Sequence[Piece]]:
        chunks = self._work.chunks
        size = batch_size(len(chunks), workers, self._work.seconds, kind_of(self._runner))
        return (chunks[first : first + size] for first in range(0, len(chunks), size))

    def _in_order(self, batches: Sequence[Sequence[Piece]], runner: TaskRunner[Any]) -> Iterator[list[Result]]:
        """The records of each batch, in order; after a failure nothing new is submitted."""
        waiting: deque[_Submitted[Result]] = deque()
        for batch in batches:
            waiting.append(self._submitted(batch, runner))
            while len(waiting) >= WINDOW * slots(runner, self._work.workers):
                yield self._records(waiting.popleft())
        while waiting:
            yield self._records(waiting.popleft())

    def _submitted(self, batch: Sequence[Piece], runner: TaskRunner[Any]) -> _Submitted[Result]:
        """A batch given to the runner; what Prefect has kept of it counts only while every part of it is whole."""
        kept = self._work.kept
        found = [kept.load(chunk.key) for chunk in batch] if kept.results is not None else []
        for chunk, record in zip(batch, found, strict=kept.results is not None):
            self._before.setdefault(chunk.key, record is not None)
        done = tuple(record for record in found if record is not None)
        whole = len(done) == len(batch)
        job = BatchJob(self._work.place, tuple(chunk.number for chunk in batch), batch_key(batch), batch_name(batch))
        task = self._kept if whole else self._again
        return _Submitted(batch, done if whole else (), runner.submit(task, {"job": job}))

    def _records(self, submitted: _Submitted[Result]) -> list[Result]:
        """What a task gave. Of one that Prefect did not run, the records of the store, which were checked."""
        told = submitted.future.result()
        if submitted.future.state.name == "Cached":
            records: Sequence[Result] = submitted.done
        else:
            records = [msgspec.convert(one, self._work.kept.record) for one in told]
        return [
            replace(record, number=chunk.number, reused=self._before.get(chunk.key, record.reused))
            for chunk, record in zip(submitted.batch, records, strict=True)
        ]


def opaque(value: T) -> T:
    """A parameter that Prefect passes on without looking inside."""
    return cast(T, _opaque(value))
