"""Conducts a fetch inside a flow run: calls its steps as tasks, the chunks on a task runner."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

import msgspec
from prefect import get_run_logger
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner
from prefect.utilities.annotations import opaque
from prefect.utilities.urls import url_for

from prefect_cytotable.flows.conductor import GIVEN, WINDOW
from prefect_cytotable.flows.connection import without_password
from prefect_cytotable.flows.fetching import for_runner
from prefect_cytotable.flows.runners import started
from prefect_cytotable.flows.running import checked_runner, profiled_if
from prefect_cytotable.flows.session import LOST
from prefect_cytotable.tasks import fetch_stages
from prefect_cytotable.tasks.caching import ChunkJob
from prefect_cytotable.tasks.core.errors import WorkerDiedError
from prefect_cytotable.tasks.core.local import POOL_ATTEMPTS
from prefect_cytotable.tasks.core.memory.tracking import note_flow_run
from prefect_cytotable.tasks.core.model import ChunkResult, OutputFile
from prefect_cytotable.tasks.core.progress import Progress, Silent
from prefect_cytotable.tasks.core.soma import pipeline
from prefect_cytotable.tasks.core.soma.local import streamed
from prefect_cytotable.tasks.core.soma.memory import system_memory
from prefect_cytotable.tasks.core.soma.model import Fetched, FetchOptions, FetchPlan, Range
from prefect_cytotable.tasks.core.soma.request import make_fetch_options
from prefect_cytotable.tasks.core.store import LocalStore
from prefect_cytotable.tasks.core.work import PlanPlace

T = TypeVar("T")


@dataclass
class FetchCall:
    """What a plain function call passes to the flow beside its parameters, and gets back beside its result.

    Attributes:
        answer: What the flow's body gave, known also where the server was lost before the run's last state was told.
    """

    task_runner: str | TaskRunner[Any]
    progress: Progress
    answer: Fetched | None = None

    @property
    def runner_name(self) -> str:
        """The runner for the flow's parameter."""
        return self.task_runner if isinstance(self.task_runner, str) else GIVEN


_call: ContextVar[FetchCall | None] = ContextVar("fetch_call", default=None)


@contextmanager
def passing(call: FetchCall) -> Iterator[None]:
    """Pass a runner and a listener to the flow that is called inside."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def fetch(arguments: dict[str, Any], task_runner: str) -> Fetched:
    """The body of the flow."""
    call = _call.get() or FetchCall(task_runner, Silent())
    if address := url_for("flow-run", obj_id=str(flow_run.id)):
        call.progress.say(f"Flow run: {without_password(address)}")
    runner = checked_runner(call.task_runner if task_runner == GIVEN else task_runner)
    profile = arguments.pop("profile")
    options = for_runner(make_fetch_options(**arguments), runner)
    with profiled_if(profile, "fetch", call.progress.say), system_memory():
        note_flow_run(str(flow_run.id))
        call.answer = pipeline.run(options, PrefectFetcher(runner, call.progress))
    return call.answer


class PrefectFetcher:
    """Calls the steps as tasks; their parameters are opaque, so that Prefect does not search a plan for futures."""

    def __init__(self, runner: str | TaskRunner[Any], progress: Progress) -> None:
        self._runner = runner
        self._progress = progress
        self._logger = get_run_logger()

    def plan(self, options: FetchOptions) -> FetchPlan:
        """Look at the table and decide."""
        return fetch_stages.plan.with_options(task_run_name=f"plan {options.axis.value}")(_opaque(options))

    def stream(self, plan: FetchPlan) -> OutputFile:
        """The whole table to the destination, in this process: there is one reader of the store."""
        told = partial(streamed, progress=self._progress)
        task = fetch_stages.stream.with_options(task_run_name=f"fetch {plan.options.axis.value}")
        return task(_opaque(plan), _opaque(told))

    def fetch(self, plan: FetchPlan, place: PlanPlace) -> list[ChunkResult]:
        """A task for each chunk, on the runner."""
        self._logger.info("%d chunk(s), %d at a time", len(plan.chunks), plan.workers)
        self._progress.start(len(plan.chunks), plan.table.rows)
        results: list[ChunkResult] = []
        try:
            for attempt in range(1, POOL_ATTEMPTS + 1):
                try:
                    self._extend(results, plan, place)
                    break
                except BrokenProcessPool as error:
                    if attempt == POOL_ATTEMPTS or not isinstance(self._runner, str):
                        raise WorkerDiedError.after(attempt) from error
                    self._say(WorkerDiedError.AGAIN)
        finally:
            self._progress.finish()
        return results

    def _extend(self, results: list[ChunkResult], plan: FetchPlan, place: PlanPlace) -> None:
        """Fetch the chunks that have no result yet."""
        with self._started(plan.workers) as runner:
            for result in self._results(plan, plan.chunks[len(results) :], place, runner):
                results.append(result)
                self._progress.advance(result)

    def _started(self, workers: int) -> AbstractContextManager[TaskRunner[Any]]:
        return started(self._runner, workers) if isinstance(self._runner, str) else self._runner

    def _results(
        self, plan: FetchPlan, chunks: Sequence[Range], place: PlanPlace, runner: TaskRunner[Any]
    ) -> Iterator[ChunkResult]:
        """Results in the order of the chunks; a kept one counts only while its part is whole."""
        store = LocalStore(plan.options.work_dir)
        kept = fetch_stages.fetch_chunk.with_options(result_storage=store.results)
        again = kept.with_options(refresh_cache=True)
        waiting: deque[tuple[Range, PrefectFuture[dict[str, Any]]]] = deque()
        for chunk in chunks:
            job = ChunkJob(place, chunk.number, chunk.key, chunk.name)
            done = store.load(chunk.key) is not None
            waiting.append((chunk, runner.submit(kept if done else again, {"job": job})))
            if len(waiting) >= WINDOW * max(plan.workers, 1):
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())

    def assemble(self, plan: FetchPlan, results: Sequence[ChunkResult]) -> OutputFile:
        """The parts to the destination."""
        return fetch_stages.assemble(_opaque(plan), _opaque(results))

    def publish(self, fetched: Fetched) -> None:
        """Tell the summary in the log, and show it as an artifact."""
        for line in pipeline.lines(fetched):
            self._say(line)
        try:
            fetch_stages.publish(fetched)
        except LOST as error:  # the output is whole: that the server has no table of it is no failure
            self._say(f"The server was not told the summary: {error}")

    def _say(self, text: str) -> None:
        self._logger.info(text)
        self._progress.say(text)


def _opaque(value: T) -> T:
    """A parameter that Prefect passes on without looking inside."""
    return cast(T, opaque(value))


def _result(chunk: Range, future: PrefectFuture[dict[str, Any]]) -> ChunkResult:
    """The record of a chunk task, once it is done; a kept one can have the number that an earlier plan gave it."""
    result = replace(msgspec.convert(future.result(), ChunkResult), number=chunk.number)
    return replace(result, reused=True) if future.state.name == "Cached" else result
