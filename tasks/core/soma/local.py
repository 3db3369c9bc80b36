"""A fetch without a server: the steps in this process, the chunks on threads or processes of our own."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_cytotable.tasks.core.model import ChunkResult, OutputFile
from prefect_cytotable.tasks.core.pool import Pool
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.retries import PlanPlace, with_retries
from prefect_cytotable.tasks.core.runner import Runner
from prefect_cytotable.tasks.core.soma import planning, work
from prefect_cytotable.tasks.core.soma.model import Fetched, FetchOptions, FetchPlan
from prefect_cytotable.tasks.core.soma.pipeline import lines
from prefect_cytotable.tasks.core.soma.rows import slices


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
        pool = Pool(plan.workers, self._runner is Runner.PROCESS, self._progress.say)
        try:
            for result in pool.results(fetch_job_with_retries, place, range(len(plan.chunks))):
                results[result.number] = result
                self._progress.advance(result)
        finally:
            self._progress.finish()
        return [results[number] for number in range(len(plan.chunks))]

    def assemble(self, plan: FetchPlan, results: Sequence[ChunkResult]) -> OutputFile:
        """The parts to the destination."""
        return work.assemble(plan, results)

    def publish(self, fetched: Fetched) -> None:
        """Tell the summary."""
        for line in lines(fetched):
            self._progress.say(line)


def streamed(plan: FetchPlan, progress: Progress) -> OutputFile:
    """The whole table to the destination, its slices told as progress."""
    count = sum(1 for _ in slices(plan.table.first, plan.table.last, plan.sizes.rows))
    progress.start(count, plan.table.rows)
    try:
        return work.stream(plan, progress.advance)
    finally:
        progress.finish()


def fetch_job_with_retries(place: PlanPlace, number: int) -> ChunkResult:
    """One chunk, tried up to three times where the error may pass."""
    return with_retries(lambda: work.fetch_job(place, number))
