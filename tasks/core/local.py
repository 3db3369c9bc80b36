"""A run without a server: the stages in this process, the chunks on threads or processes of our own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count, islice, takewhile
from pathlib import Path

from prefect_cytotable.tasks.core import gather as gathering
from prefect_cytotable.tasks.core import inspection, output
from prefect_cytotable.tasks.core import plan as planning
from prefect_cytotable.tasks.core import report as reports
from prefect_cytotable.tasks.core.formats import Begun
from prefect_cytotable.tasks.core.model import (
    ChunkResult,
    ColumnType,
    Gathered,
    Inspected,
    Options,
    OutputFile,
    Plan,
    Report,
    Skipped,
)
from prefect_cytotable.tasks.core.pool import Pool
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.runner import POOL_ATTEMPTS as POOL_ATTEMPTS
from prefect_cytotable.tasks.core.runner import Runner as Runner
from prefect_cytotable.tasks.core.work import PlanPlace, clear_cache, convert_job_with_retries, with_retries


class LocalCaller:
    """Calls the stages plainly."""

    orchestrated = False

    def __init__(self, runner: Runner, progress: Progress) -> None:
        self._runner = runner
        self._progress = progress
        self._begun: Begun | None = None
        self.processes = runner is Runner.PROCESS
        self.sequential = runner is Runner.SEQUENTIAL

    def gather(self, options: Options) -> Gathered:
        """Stage 1."""
        return with_retries(lambda: gathering.gather(options))

    def inspect(
        self,
        gathered: Gathered,
        options: Options,
        widened: tuple[tuple[str, str, ColumnType], ...],
        bad: tuple[Skipped, ...],
    ) -> Inspected:
        """Stage 2."""
        return with_retries(lambda: inspection.inspect(gathered, options, widened, bad))

    def plan(self, inspected: Inspected, options: Options) -> Plan:
        """Stage 3."""
        return with_retries(lambda: planning.plan(inspected, options))

    def convert(self, plan: Plan, place: PlanPlace) -> list[ChunkResult]:
        """Stage 4 for every chunk."""
        self._progress.start(len(plan.chunks), plan.rows)
        results: dict[int, ChunkResult] = {}
        self._begun = output.begin_output(plan)
        try:
            for result in self._results(plan, place):
                results[result.number] = result
                self._progress.advance(result)
                self._copy_ahead(results)
        except BaseException:
            self._discard_begun()
            raise
        finally:
            self._progress.finish()
        return [results[number] for number in range(len(plan.chunks))]

    def _copy_ahead(self, results: dict[int, ChunkResult]) -> None:
        """Copy the parts whose turn it is into the output, while the workers convert later chunks."""
        if self._begun is None:
            return
        if any(result.amends for result in results.values()):
            self._discard_begun()
            return
        parts = chain.from_iterable(results[number].parts for number in takewhile(results.__contains__, count()))
        for part in islice(parts, len(self._begun.parts), None):
            self._begun.add(Path(part.path))

    def _discard_begun(self) -> None:
        if self._begun is not None:
            self._begun.discard()
        self._begun = None

    def _results(self, plan: Plan, place: PlanPlace) -> Iterator[ChunkResult]:
        if (plan.workers == 1 and not self.processes) or len(plan.chunks) == 1:
            for chunk in plan.chunks:
                yield convert_job_with_retries(place, chunk.number)
            return
        pool = Pool(plan.workers, self.processes, self._progress.say)
        yield from pool.results(convert_job_with_retries, place, range(len(plan.chunks)))

    def write(self, plan: Plan, results: Sequence[ChunkResult], report: Report) -> tuple[OutputFile, ...]:
        """Stage 5."""
        return output.write_output(plan, results, report, self._begun)

    def report(self, plan: Plan, results: Sequence[ChunkResult]) -> Report:
        """Stage 6."""
        try:
            return reports.build(plan, results)
        except BaseException:
            self._discard_begun()
            raise

    def clear_cache(self, gathered: Gathered, options: Options) -> None:
        """Remove the copies of remote sources from this machine."""
        clear_cache(gathered, options)

    def publish(self, report: Report) -> None:
        """Tell the report."""
        for line in reports.lines(report):
            self._progress.say(line)

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._progress.say(text)
