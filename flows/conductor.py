"""Conducts a conversion inside a flow run: calls the stages as tasks, the chunks on a task runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows import artifacts
from prefect_cytotable.flows.calls import Call, begin, dispensable
from prefect_cytotable.flows.conducting import Conducting, Work, kept_in, opaque
from prefect_cytotable.flows.limits import within_limits
from prefect_cytotable.flows.runners import clear_on_workers, may_be_elsewhere, started, uses_processes
from prefect_cytotable.flows.running import profiled_if
from prefect_cytotable.flows.session import briefly
from prefect_cytotable.tasks import stages
from prefect_cytotable.tasks.core import pipeline
from prefect_cytotable.tasks.core import report as reports
from prefect_cytotable.tasks.core.local import Runner
from prefect_cytotable.tasks.core.memory.tracking import note_flow_run
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
from prefect_cytotable.tasks.core.places import is_remote
from prefect_cytotable.tasks.core.progress import Progress, Silent
from prefect_cytotable.tasks.core.redact import redact
from prefect_cytotable.tasks.core.request import make_options
from prefect_cytotable.tasks.core.returned import Returned, returned
from prefect_cytotable.tasks.core.store import store_of
from prefect_cytotable.tasks.core.work import PlanPlace, clear_cache

CHUNK_BYTES_PER_SECOND = 160e6
"""How fast one worker does the projected memory of a chunk, in bytes: a wide plate in SQLite (see benchmarks/)."""


@dataclass
class ConvertCall(Call[Returned, ChunkResult]):
    """What a plain function call and this flow tell each other; `report` is the answer in full."""

    report: Report | None = None


def convert(arguments: dict[str, Any], task_runner: str) -> Returned:
    """The body of the flow."""
    call = begin(ConvertCall(task_runner, Silent()))
    profile = arguments.pop("profile")
    runner = call.runner(task_runner)
    options = make_options(**arguments, shared_work=may_be_elsewhere(runner))
    with profiled_if(profile, "convert", call.progress.say):
        note_flow_run(str(flow_run.id))
        places = (options.source, options.destination, options.work_dir)
        with within_limits(places, call.progress.say), artifacts.watched(call.progress, options) as progress:
            report = pipeline.run(options, PrefectCaller(runner, progress))
        call.report, call.answer = report, returned(report, options)
    return call.answer


class PrefectCaller:
    """Calls the stages as tasks.

    Their parameters are made opaque: Prefect else searches every value inside a plan for futures.
    """

    orchestrated = True

    def __init__(self, runner: str | TaskRunner[Any], progress: Progress) -> None:
        self._runner = runner
        self._progress = progress
        self._logger = get_run_logger()
        self.processes = uses_processes(runner)
        self.sequential = runner == Runner.SEQUENTIAL

    def gather(self, options: Options) -> Gathered:
        """Stage 1."""
        return stages.gather(opaque(options))

    def inspect(
        self,
        gathered: Gathered,
        options: Options,
        widened: tuple[tuple[str, str, ColumnType], ...],
        bad: tuple[Skipped, ...],
    ) -> Inspected:
        """Stage 2."""
        return stages.inspect(opaque(gathered), opaque(options), opaque(widened), opaque(bad))

    def plan(self, inspected: Inspected, options: Options) -> Plan:
        """Stage 3."""
        return stages.plan(opaque(inspected), opaque(options))

    def convert(self, plan: Plan, place: PlanPlace) -> list[ChunkResult]:
        """Stage 4: tasks of one or more chunks, on the runner."""
        self._logger.info("%d chunk(s), about %d rows, %d at a time", len(plan.chunks), plan.rows, plan.workers)
        work = Work(plan.chunks, plan.rows, place, kept_in(store_of(plan.options)), plan.workers, chunk_seconds(plan))
        return Conducting(stages.convert_chunks, self._runner, work, self._progress, self.say).results()

    def write(self, plan: Plan, results: Sequence[ChunkResult], report: Report) -> tuple[OutputFile, ...]:
        """Stage 5."""
        return stages.write(opaque(plan), opaque(results), opaque(report))

    def report(self, plan: Plan, results: Sequence[ChunkResult]) -> Report:
        """Stage 6."""
        return stages.report(opaque(plan), opaque(results))

    def clear_cache(self, gathered: Gathered, options: Options) -> None:
        """Remove the copies of remote sources from this machine, and from those of a Dask cluster."""
        clear_cache(gathered, options)
        if is_remote(gathered.root) and may_be_elsewhere(self._runner):
            with started(self._runner, 1) if isinstance(self._runner, str) else self._runner as runner:
                clear_on_workers(runner, gathered, options)

    def publish(self, report: Report) -> None:
        """Tell the report in the log, and show its table as an artifact."""
        for line in artifacts.story(report):
            self._logger.info(line)
        for line in reports.lines(report):
            self._progress.say(line)
        with dispensable("the report", self.say), briefly():
            artifacts.publish(report)

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._logger.info(redact(text))
        self._progress.say(redact(text))


def chunk_seconds(plan: Plan) -> float:
    """What converting one chunk of a plan takes, roughly, in seconds."""
    return sum(chunk.memory for chunk in plan.chunks) / max(len(plan.chunks), 1) / CHUNK_BYTES_PER_SECOND
