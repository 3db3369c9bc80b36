"""Conducts a conversion inside a flow run: calls the stages as tasks, the chunks on a task runner."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import msgspec
from prefect import get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner
from prefect.utilities.annotations import opaque
from prefect.utilities.urls import url_for

from prefect_cytotable.flows.connection import without_password
from prefect_cytotable.flows.runners import clear_on_workers, may_be_elsewhere, started, uses_processes
from prefect_cytotable.flows.running import checked_runner, profiled_if
from prefect_cytotable.flows.session import LOST
from prefect_cytotable.tasks import stages
from prefect_cytotable.tasks.caching import ChunkJob, results_of
from prefect_cytotable.tasks.core import pipeline
from prefect_cytotable.tasks.core import report as reports
from prefect_cytotable.tasks.core.errors import WorkerDiedError
from prefect_cytotable.tasks.core.local import POOL_ATTEMPTS, Runner
from prefect_cytotable.tasks.core.memory.tracking import note_flow_run
from prefect_cytotable.tasks.core.model import (
    Chunk,
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
from prefect_cytotable.tasks.core.request import make_options
from prefect_cytotable.tasks.core.returned import Returned, returned
from prefect_cytotable.tasks.core.store import store_of
from prefect_cytotable.tasks.core.work import PlanPlace, clear_cache

T = TypeVar("T")

GIVEN = "given"
"""The flow parameter's value where the caller passed a TaskRunner object, which no parameter can hold."""

WINDOW = 4
"""Chunk tasks submitted ahead for each worker: enough to keep it busy, few enough to stop soon after a failure."""


@dataclass
class Call:
    """What a plain function call passes to the flow beside its parameters, and gets back beside its result.

    Attributes:
        answer: What the flow's body gave, known also where the server was lost before the run's last state was told.
    """

    task_runner: str | TaskRunner[Any]
    progress: Progress
    answer: Returned | None = None

    @property
    def runner_name(self) -> str:
        """The runner for the flow's parameter."""
        return self.task_runner if isinstance(self.task_runner, str) else GIVEN


_call: ContextVar[Call | None] = ContextVar("call", default=None)


@contextmanager
def passing(call: Call) -> Iterator[None]:
    """Pass a runner and a listener to the flow that is called inside."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def convert(arguments: dict[str, Any], task_runner: str) -> Returned:
    """The body of the flow."""
    call = _call.get() or Call(task_runner, Silent())
    if address := _page():
        call.progress.say(f"Flow run: {address}")
    profile = arguments.pop("profile")
    runner = checked_runner(call.task_runner if task_runner == GIVEN else task_runner)
    options = make_options(**arguments, shared_work=may_be_elsewhere(runner))
    with profiled_if(profile, "convert", call.progress.say):
        note_flow_run(str(flow_run.id))
        report = pipeline.run(options, PrefectCaller(runner, call.progress))
        call.answer = returned(report, options)
    return call.answer


def _page() -> str | None:
    """Where a browser shows this flow run; nowhere for a server that ends with the run."""
    address = url_for("flow-run", obj_id=str(flow_run.id))
    return without_password(address) if address else None


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
        return stages.gather(_opaque(options))

    def inspect(
        self,
        gathered: Gathered,
        options: Options,
        widened: tuple[tuple[str, str, ColumnType], ...],
        bad: tuple[Skipped, ...],
    ) -> Inspected:
        """Stage 2."""
        return stages.inspect(_opaque(gathered), _opaque(options), _opaque(widened), _opaque(bad))

    def plan(self, inspected: Inspected, options: Options) -> Plan:
        """Stage 3."""
        return stages.plan(_opaque(inspected), _opaque(options))

    def convert(self, plan: Plan, place: PlanPlace) -> list[ChunkResult]:
        """Stage 4: a task for each chunk, on the runner."""
        self._logger.info("%d chunk(s), about %d rows, %d at a time", len(plan.chunks), plan.rows, plan.workers)
        self._progress.start(len(plan.chunks), plan.rows)
        results: list[ChunkResult] = []
        try:
            for attempt in range(1, POOL_ATTEMPTS + 1):
                try:
                    self._extend(results, plan, place)
                    break
                except BrokenProcessPool as error:
                    if attempt == POOL_ATTEMPTS or not isinstance(self._runner, str):
                        raise WorkerDiedError.after(attempt) from error
                    self.say(WorkerDiedError.AGAIN)
        finally:
            self._progress.finish()
        return results

    def _extend(self, results: list[ChunkResult], plan: Plan, place: PlanPlace) -> None:
        """Convert the chunks that have no result yet."""
        with self._started(plan.workers) as runner:
            for result in self._results(plan, plan.chunks[len(results) :], place, runner):
                results.append(result)
                self._progress.advance(result)

    def _started(self, workers: int) -> AbstractContextManager[TaskRunner[Any]]:
        return started(self._runner, workers) if isinstance(self._runner, str) else self._runner

    def _results(
        self, plan: Plan, chunks: Sequence[Chunk], place: PlanPlace, runner: TaskRunner[Any]
    ) -> Iterator[ChunkResult]:
        """Results in the order of the chunks; after a failure nothing new is submitted.

        A kept result counts only while its parts are whole: any other chunk is converted again.
        """
        store = store_of(plan.options)
        if (results := results_of(store)) is not None:
            kept = stages.convert_chunk.with_options(result_storage=results)
            again = kept.with_options(refresh_cache=True)
        else:
            kept = again = stages.convert_chunk.with_options(persist_result=False, cache_policy=NO_CACHE)
        waiting: deque[tuple[Chunk, PrefectFuture[dict[str, Any]]]] = deque()
        for chunk in chunks:
            job = ChunkJob(place, chunk.number, chunk.key, chunk.name)
            done = results is not None and store.load(chunk.key) is not None
            waiting.append((chunk, runner.submit(kept if done else again, {"job": job})))
            if len(waiting) >= WINDOW * max(plan.workers, 1):
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())

    def write(self, plan: Plan, results: Sequence[ChunkResult], report: Report) -> tuple[OutputFile, ...]:
        """Stage 5."""
        return stages.write(_opaque(plan), _opaque(results), _opaque(report))

    def report(self, plan: Plan, results: Sequence[ChunkResult]) -> Report:
        """Stage 6."""
        return stages.report(_opaque(plan), _opaque(results))

    def clear_cache(self, gathered: Gathered, options: Options) -> None:
        """Remove the copies of remote sources from this machine, and from those of a Dask cluster."""
        clear_cache(gathered, options)
        if is_remote(gathered.root) and may_be_elsewhere(self._runner):
            with self._started(1) as runner:
                clear_on_workers(runner, gathered, options)

    def publish(self, report: Report) -> None:
        """Tell the report in the log, and show its table as an artifact."""
        for line in reports.lines(report):
            self._logger.info(line)
            self._progress.say(line)
        try:
            stages.publish(report)
        except LOST as error:  # the output is whole: that the server has no table of it is no failure
            self.say(f"The server was not told the row account: {error}")

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._logger.info(text)
        self._progress.say(text)


def _opaque(value: T) -> T:
    """A parameter that Prefect passes on without looking inside."""
    return cast(T, opaque(value))


def _result(chunk: Chunk, future: PrefectFuture[dict[str, Any]]) -> ChunkResult:
    """The record of a chunk task, once it is done; a kept one can have the number that an earlier plan gave it."""
    result = replace(msgspec.convert(future.result(), ChunkResult), number=chunk.number)
    return replace(result, reused=True) if future.state.name == "Cached" else result
