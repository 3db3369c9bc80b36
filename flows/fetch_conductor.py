"""Conducts a fetch inside a flow run: calls its steps as tasks, the chunks on a task runner."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from prefect import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows.calls import Call, begin, dispensable
from prefect_cytotable.flows.conducting import Conducting, Work, kept_in, opaque
from prefect_cytotable.flows.fetching import for_runner
from prefect_cytotable.flows.limits import within_limits
from prefect_cytotable.flows.running import profiled_if
from prefect_cytotable.flows.session import briefly
from prefect_cytotable.tasks import fetch_stages
from prefect_cytotable.tasks.core.memory.tracking import note_flow_run
from prefect_cytotable.tasks.core.model import ChunkResult, OutputFile
from prefect_cytotable.tasks.core.progress import Progress, Silent
from prefect_cytotable.tasks.core.soma import pipeline
from prefect_cytotable.tasks.core.soma.local import streamed
from prefect_cytotable.tasks.core.soma.memory import system_memory
from prefect_cytotable.tasks.core.soma.model import Fetched, FetchOptions, FetchPlan
from prefect_cytotable.tasks.core.soma.request import make_fetch_options
from prefect_cytotable.tasks.core.store import LocalStore
from prefect_cytotable.tasks.core.work import PlanPlace

CHUNK_BYTES_PER_SECOND = 100e6
"""How fast one worker fetches rows, in bytes of Arrow memory, from a store on a local disk; others are slower."""


class FetchCall(Call[Fetched, ChunkResult]):
    """What a plain function call and this flow tell each other."""


def fetch(arguments: dict[str, Any], task_runner: str) -> Fetched:
    """The body of the flow."""
    call = begin(FetchCall(task_runner, Silent()))
    runner = call.runner(task_runner)
    profile = arguments.pop("profile")
    options = for_runner(make_fetch_options(**arguments), runner)
    with profiled_if(profile, "fetch", call.progress.say), system_memory():
        note_flow_run(str(flow_run.id))
        with within_limits((options.source, options.destination), call.progress.say):
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
        return fetch_stages.plan.with_options(task_run_name=f"plan {options.axis.value}")(opaque(options))

    def stream(self, plan: FetchPlan) -> OutputFile:
        """The whole table to the destination, in this process: there is one reader of the store."""
        told = partial(streamed, progress=self._progress)
        task = fetch_stages.stream.with_options(task_run_name=f"fetch {plan.options.axis.value}")
        return task(opaque(plan), opaque(told))

    def fetch(self, plan: FetchPlan, place: PlanPlace) -> list[ChunkResult]:
        """Tasks of one or more chunks, on the runner."""
        self._logger.info("%d chunk(s), %d at a time", len(plan.chunks), plan.workers)
        kept = kept_in(LocalStore(plan.options.work_dir))
        work = Work(plan.chunks, plan.table.rows, place, kept, plan.workers, chunk_seconds(plan))
        return Conducting(fetch_stages.fetch_chunks, self._runner, work, self._progress, self._say).results()

    def assemble(self, plan: FetchPlan, results: Sequence[ChunkResult]) -> OutputFile:
        """The parts to the destination."""
        return fetch_stages.assemble(opaque(plan), opaque(results))

    def publish(self, fetched: Fetched) -> None:
        """Tell the summary in the log, and show it as an artifact."""
        for line in pipeline.lines(fetched):
            self._say(line)
        with dispensable("the summary", self._say), briefly():
            fetch_stages.publish(fetched)

    def _say(self, text: str) -> None:
        self._logger.info(text)
        self._progress.say(text)


def chunk_seconds(plan: FetchPlan) -> float:
    """What fetching one chunk of a plan takes, roughly, in seconds."""
    rows = sum(chunk.last - chunk.first + 1 for chunk in plan.chunks) / max(len(plan.chunks), 1)
    return rows * plan.table.row_bytes / CHUNK_BYTES_PER_SECOND
