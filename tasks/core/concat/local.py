"""A concatenation without a server: the stages in this process, the blocks on threads or processes of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prefect_cytotable.tasks.core.concat import pipeline
from prefect_cytotable.tasks.core.concat.model import ConcatReport, Input, JobResult, Layout, Options, Plan, StoreFormat
from prefect_cytotable.tasks.core.concat.plan import plan_concat
from prefect_cytotable.tasks.core.concat.prepare import prepare
from prefect_cytotable.tasks.core.concat.progress import ConcatProgress
from prefect_cytotable.tasks.core.concat.request import Merges
from prefect_cytotable.tasks.core.concat.work import write_job_with_retries
from prefect_cytotable.tasks.core.pool import Pool
from prefect_cytotable.tasks.core.runner import Runner

FLUSH = 1 << 25
"""Bytes of blocks after which those go to the disk."""


class LocalCaller:
    """Calls the stages plainly."""

    orchestrated = False

    def __init__(self, runner: Runner, progress: ConcatProgress) -> None:
        self._runner, self._progress = runner, progress
        self.processes = runner is Runner.PROCESS

    def look(self, options: Options) -> tuple[Input, ...]:
        """Stage 1."""
        return pipeline.look_at_all(options)

    def plan(self, inputs: tuple[Input, ...], options: Options) -> Plan:
        """Stage 2."""
        return plan_concat(inputs, options, self.processes, self.orchestrated)

    def prepare(self, plan: Plan, merges: Merges, folder: Path) -> Layout:
        """Stage 3."""
        return prepare(plan, merges, folder)

    def write(self, layout: Layout, workers: int) -> list[JobResult]:
        """Stage 4 for every block."""
        self._progress.start(len(layout.jobs), sum(job.size for job in layout.jobs))
        results: dict[int, JobResult] = {}
        try:
            for result in self._results(layout, workers):
                results[result.number] = result
                self._progress.advance(result)
        finally:
            self._progress.finish()
        return [results[job.number] for job in layout.jobs]

    def _results(self, layout: Layout, workers: int) -> Iterator[JobResult]:
        sequential = self._runner is Runner.SEQUENTIAL or (workers == 1 and not self.processes)
        if sequential or len(layout.jobs) <= 1:
            for job in layout.jobs:
                yield write_job_with_retries(layout.folder, job.number)
            return
        pool = Pool(workers, self.processes, self._progress.say)
        numbers = [job.number for job in layout.jobs]
        yield from _flushed(pool.results(write_job_with_retries, layout.folder, numbers), layout)

    def finish(self, plan: Plan, layout: Layout, results: list[JobResult]) -> int:
        """Stage 5."""
        return pipeline.put_in_place(plan, layout, results)

    def publish(self, plan: Plan, report: ConcatReport) -> None:
        """Tell the report."""
        for line in pipeline.report_lines(report):
            self._progress.say(line)

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._progress.say(text)


def _flushed(results: Iterator[JobResult], layout: Layout) -> Iterator[JobResult]:
    """The same results. What they wrote into an h5ad file goes to the disk meanwhile, not all of it at the end."""
    if layout.format is not StoreFormat.H5AD:
        yield from results
        return
    descriptor, written = os.open(layout.output, os.O_RDONLY), 0
    try:
        for result in results:
            yield result
            written += result.size
            if written >= FLUSH:
                os.fdatasync(descriptor)
                written = 0
    finally:
        os.close(descriptor)
