"""Conducts a concatenation inside a flow run: calls the stages as tasks, the blocks on a task runner."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows.calls import GIVEN, Call, begin, dispensable
from prefect_cytotable.flows.conducting import Conducting, Kept, Work, opaque
from prefect_cytotable.flows.limits import within_limits
from prefect_cytotable.flows.runners import uses_processes
from prefect_cytotable.tasks import concat_stages as stages
from prefect_cytotable.tasks.core.concat import pipeline
from prefect_cytotable.tasks.core.concat.model import ConcatReport, Input, JobResult, Layout, Options, Plan
from prefect_cytotable.tasks.core.concat.progress import ConcatProgress, SilentBlocks
from prefect_cytotable.tasks.core.concat.request import Merges, make_options
from prefect_cytotable.tasks.core.concat.work import done_before
from prefect_cytotable.tasks.core.retries import PlanPlace

BLOCK_BYTES_PER_SECOND = 600e6
"""How fast one worker writes blocks of a dense array, in bytes; compressed ones are slower, sparse ones faster."""


@dataclass
class ConcatCall(Call[str, JobResult]):
    """What a plain function call and this flow tell each other; `merges` can be functions."""

    merges: Merges = field(kw_only=True)


def concat(arguments: dict[str, Any], task_runner: str) -> str:
    """The body of the flow."""
    given = Merges(arguments["merge"], arguments["uns_merge"])
    call = begin(ConcatCall(task_runner, SilentBlocks(), merges=given))
    merge = {name: getattr(call.merges, name) for name in ("merge", "uns_merge") if arguments[name] == GIVEN}
    options, merges = make_options(**{**arguments, **merge})
    caller = PrefectCaller(call.runner(task_runner), call.progress)
    with within_limits((*options.in_files, options.destination), call.progress.say):
        report = pipeline.run(options, merges, caller)
    call.answer = report.destination
    return call.answer


class PrefectCaller:
    """Calls the stages as tasks.

    Their parameters are made opaque: Prefect else searches every value inside a plan for futures.
    """

    orchestrated = True

    def __init__(self, runner: str | TaskRunner[Any], progress: ConcatProgress) -> None:
        self._runner = runner
        self._progress = progress
        self._logger = get_run_logger()
        self.processes = uses_processes(runner)

    def look(self, options: Options) -> tuple[Input, ...]:
        """Stage 1."""
        return stages.look(opaque(options))

    def plan(self, inputs: tuple[Input, ...], options: Options) -> Plan:
        """Stage 2."""
        return stages.plan(opaque(inputs), opaque(options), self.processes)

    def prepare(self, plan: Plan, merges: Merges, folder: Path) -> Layout:
        """Stage 3."""
        return stages.prepare(opaque(plan), opaque(merges), folder)

    def write(self, layout: Layout, workers: int) -> list[JobResult]:
        """Stage 4: tasks of one or more blocks, on the runner."""
        work = block_work(layout, workers)
        self._logger.info("%d block(s), %d bytes, %d at a time", len(work.chunks), work.size, workers)
        return Conducting(stages.write_blocks, self._runner, work, self._progress, self.say).results()

    def finish(self, plan: Plan, layout: Layout, results: list[JobResult]) -> int:
        """Stage 5."""
        return stages.finish(opaque(plan), opaque(layout), opaque(results))

    def publish(self, plan: Plan, report: ConcatReport) -> None:
        """Tell the report in the log, and show what was put together as an artifact."""
        for line in pipeline.report_lines(report):
            self.say(line)
        with dispensable("what was put together", self.say):
            stages.publish(plan, report)

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._logger.info(text)
        self._progress.say(text)


@dataclass(frozen=True)
class Block:
    """A block as `Conducting` takes it; its key is not that of the same range of any other output."""

    number: int
    key: str
    name: str


def block_work(layout: Layout, workers: int) -> Work[JobResult]:
    """The blocks of an output. One counts as done only while it lies on disk as it was written."""
    blocks = [Block(job.number, f"{layout.key}-{job.number}", job.name) for job in layout.jobs]
    jobs = dict(zip((block.key for block in blocks), layout.jobs, strict=True))
    folder, size = Path(layout.folder), sum(job.size for job in layout.jobs)
    kept = Kept(JobResult, lambda key: done_before(layout, jobs[key]), folder / "results")
    seconds = size / max(len(blocks), 1) / BLOCK_BYTES_PER_SECOND
    return Work(blocks, size, PlanPlace(layout.folder), kept, workers, seconds)
