"""A fetch without a server: the steps in this process, the chunks on threads or processes of our own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from prefect_cytotable.tasks.core.errors import WorkerDiedError
from prefect_cytotable.tasks.core.model import ChunkResult, OutputFile
from prefect_cytotable.tasks.core.processes import end_with_run
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.retries import PlanPlace, with_retries
from prefect_cytotable.tasks.core.runner import POOL_ATTEMPTS, Runner
from prefect_cytotable.tasks.core.soma import planning, work
from prefect_cytotable.tasks.core.soma.model import Fetched, FetchOptions, FetchPlan
from prefect_cytotable.tasks.core.soma.pipeline import lines
from prefect_cytotable.tasks.core.soma.rows import slices_of


class LocalFetcher:
    """Calls the steps plainly."""

    def __init__(self, runner: Runner, progress: Progress) -> None:
        self._runner = runner
        self._progress = progress

    def plan(self, options: FetchOptions) -> FetchPlan:
        """Look at the table and decide."""
        return with_retries(lambda: planning.plan(options))

    def stream(self, plan: FetchPlan) -> OutputFile:
        """The whole table to the destination."""
        return with_retries(lambda: streamed(plan, self._progress))

    def fetch(self, plan: FetchPlan, place: PlanPlace) -> list[ChunkResult]:
        """Every chunk to a part."""
        self._progress.start(len(plan.chunks), plan.table.rows)
        results: dict[int, ChunkResult] = {}
        try:
            for result in self._results(plan, place, results):
                results[result.number] = result
                self._progress.advance(result)
        finally:
            self._progress.finish()
        return [results[number] for number in range(len(plan.chunks))]

    def _results(self, plan: FetchPlan, place: PlanPlace, done: dict[int, ChunkResult]) -> Iterator[ChunkResult]:
        for attempt in range(1, POOL_ATTEMPTS + 1):
            waiting = [chunk.number for chunk in plan.chunks if chunk.number not in done]
            try:
                yield from _pooled(self._pool(plan.workers), place, waiting)
                return
            except BrokenProcessPool as error:
                if attempt == POOL_ATTEMPTS:
                    raise WorkerDiedError.after(attempt) from error
                self._progress.say(WorkerDiedError.AGAIN)

    def _pool(self, workers: int) -> Executor:
        if self._runner is not Runner.PROCESS:
            return ThreadPoolExecutor(workers, thread_name_prefix="chunk")
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_run)

    def assemble(self, plan: FetchPlan, results: Sequence[ChunkResult]) -> OutputFile:
        """The parts to the destination."""
        return work.assemble(plan, results)

    def publish(self, fetched: Fetched) -> None:
        """Tell the summary."""
        for line in lines(fetched):
            self._progress.say(line)


def streamed(plan: FetchPlan, progress: Progress) -> OutputFile:
    """The whole table to the destination, its slices told as progress."""
    count = sum(1 for _ in slices_of(plan.table, plan.table.first, plan.table.last, plan.sizes.rows))
    progress.start(count, plan.table.rows)
    try:
        return work.stream(plan, progress.advance)
    finally:
        progress.finish()


def _pooled(pool: Executor, place: PlanPlace, numbers: list[int]) -> Iterator[ChunkResult]:
    """Results as they are done; after a failure nothing new is begun."""
    try:
        futures: list[Future[ChunkResult]] = [pool.submit(fetch_job_with_retries, place, number) for number in numbers]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def fetch_job_with_retries(place: PlanPlace, number: int) -> ChunkResult:
    """One chunk, tried up to three times where the error may pass."""
    return with_retries(lambda: work.fetch_job(place, number))
