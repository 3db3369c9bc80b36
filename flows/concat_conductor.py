"""Conducts a concatenation inside a flow run: calls the stages as tasks, the blocks on a task runner."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from prefect import get_run_logger
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner
from prefect.utilities.annotations import opaque
from prefect.utilities.urls import url_for

from prefect_cytotable.flows.connection import without_password
from prefect_cytotable.flows.limits import within_limits
from prefect_cytotable.flows.runners import started, uses_processes
from prefect_cytotable.flows.running import checked_runner
from prefect_cytotable.flows.session import LOST, has_pages
from prefect_cytotable.tasks import concat_stages as stages
from prefect_cytotable.tasks.concat_caching import BlockJob
from prefect_cytotable.tasks.core.concat import pipeline
from prefect_cytotable.tasks.core.concat.model import ConcatReport, Input, Job, JobResult, Layout, Options, Plan
from prefect_cytotable.tasks.core.concat.progress import ConcatProgress, SilentBlocks
from prefect_cytotable.tasks.core.concat.request import Merges, make_options
from prefect_cytotable.tasks.core.concat.work import done_before
from prefect_cytotable.tasks.core.errors import WorkerDiedError
from prefect_cytotable.tasks.core.local import POOL_ATTEMPTS

T = TypeVar("T")

GIVEN = "given"
"""A flow parameter's value where the caller passed an object that no parameter can hold: a runner, a function."""

WINDOW = 4
"""Block tasks submitted ahead for each worker: enough to keep it busy, few enough to stop soon after a failure."""


@dataclass
class Call:
    """What a plain function call passes to the flow beside its parameters, and gets back beside its result.

    Attributes:
        merges: Merge strategies, functions among them.
        answer: What the flow's body gave, known also where the server was lost before the run's last state was told.
    """

    task_runner: str | TaskRunner[Any]
    merges: Merges
    progress: ConcatProgress
    answer: str | None = None

    @property
    def runner_name(self) -> str:
        """The runner for the flow's parameter."""
        return self.task_runner if isinstance(self.task_runner, str) else GIVEN


_call: ContextVar[Call | None] = ContextVar("concat_call", default=None)


@contextmanager
def passing(call: Call) -> Iterator[None]:
    """Pass a runner, merge strategies and a listener to the flow that is called inside."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def concat(arguments: dict[str, Any], task_runner: str) -> str:
    """The body of the flow."""
    given = Merges(arguments["merge"], arguments["uns_merge"])
    call = _call.get() or Call(task_runner, given, SilentBlocks())
    if has_pages() and (address := url_for("flow-run", obj_id=str(flow_run.id))):
        call.progress.say(f"Flow run: {without_password(address)}")
    merge = {name: getattr(call.merges, name) for name in ("merge", "uns_merge") if arguments[name] == GIVEN}
    options, merges = make_options(**{**arguments, **merge})
    runner = call.task_runner if task_runner == GIVEN else task_runner
    caller = PrefectCaller(checked_runner(runner), call.progress)
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
        return stages.look(_opaque(options))

    def plan(self, inputs: tuple[Input, ...], options: Options) -> Plan:
        """Stage 2."""
        return stages.plan(_opaque(inputs), _opaque(options), self.processes)

    def prepare(self, plan: Plan, merges: Merges, folder: Path) -> Layout:
        """Stage 3."""
        return stages.prepare(_opaque(plan), _opaque(merges), folder)

    def write(self, layout: Layout, workers: int) -> list[JobResult]:
        """Stage 4: a task for each block, on the runner."""
        size = sum(job.size for job in layout.jobs)
        self._logger.info("%d block(s), %d bytes, %d at a time", len(layout.jobs), size, workers)
        self._progress.start(len(layout.jobs), size)
        results: list[JobResult] = []
        try:
            for attempt in range(1, POOL_ATTEMPTS + 1):
                try:
                    self._extend(results, layout, workers)
                    break
                except BrokenProcessPool as error:
                    if attempt == POOL_ATTEMPTS or not isinstance(self._runner, str):
                        raise WorkerDiedError.after(attempt) from error
                    self.say(WorkerDiedError.AGAIN)
        finally:
            self._progress.finish()
        return results

    def _extend(self, results: list[JobResult], layout: Layout, workers: int) -> None:
        """Write the blocks that have no result yet."""
        with self._started(workers) as runner:
            for result in self._results(layout, layout.jobs[len(results) :], workers, runner):
                results.append(result)
                self._progress.advance(result)

    def _started(self, workers: int) -> AbstractContextManager[TaskRunner[Any]]:
        return started(self._runner, workers) if isinstance(self._runner, str) else self._runner

    def _results(
        self, layout: Layout, jobs: Sequence[Job], workers: int, runner: TaskRunner[Any]
    ) -> Iterator[JobResult]:
        """Results in the order of the blocks; after a failure nothing new is submitted.

        A kept result counts only while the block lies on disk as it was written: any other is written again.
        """
        kept = stages.write_block.with_options(result_storage=Path(layout.folder) / "results")
        again = kept.with_options(refresh_cache=True)
        waiting: deque[tuple[Job, PrefectFuture[dict[str, Any]]]] = deque()
        for job in jobs:
            task = BlockJob(layout.folder, job.number, layout.key, job.name)
            done = done_before(layout, job) is not None
            waiting.append((job, runner.submit(kept if done else again, {"job": task})))
            if len(waiting) >= WINDOW * max(workers, 1):
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())

    def finish(self, plan: Plan, layout: Layout, results: list[JobResult]) -> int:
        """Stage 5."""
        return stages.finish(_opaque(plan), _opaque(layout), _opaque(results))

    def publish(self, plan: Plan, report: ConcatReport) -> None:
        """Tell the report in the log, and show what was put together as an artifact."""
        for line in pipeline.report_lines(report):
            self.say(line)
        try:
            stages.publish(plan, report)
        except LOST as error:  # the output is whole: that the server has no table of it is no failure
            self.say(f"The server was not told what was put together: {error}")

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._logger.info(text)
        self._progress.say(text)


def _opaque(value: T) -> T:
    """A parameter that Prefect passes on without looking inside."""
    return cast(T, opaque(value))


def _result(job: Job, future: PrefectFuture[dict[str, Any]]) -> JobResult:
    """The record of a block's task, once it is done."""
    result = replace(msgspec.convert(future.result(), JobResult), number=job.number)
    return replace(result, reused=True) if future.state.name == "Cached" else result
