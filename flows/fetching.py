"""Who runs a fetch: this process alone, or Prefect. Decided as for a conversion, without importing Prefect."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect_cytotable.flows.running import (
    Orchestration,
    checked_runner,
    orchestration,
    profiled_if,
)
from prefect_cytotable.tasks.core.progress import Progress, Silent
from prefect_cytotable.tasks.core.runner import Runner
from prefect_cytotable.tasks.core.soma import pipeline
from prefect_cytotable.tasks.core.soma.local import LocalFetcher
from prefect_cytotable.tasks.core.soma.memory import system_memory
from prefect_cytotable.tasks.core.soma.model import Fetched, FetchOptions
from prefect_cytotable.tasks.core.soma.request import make_fetch_options

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner


def fetch(arguments: dict[str, Any], task_runner: str | TaskRunner[Any], progress: Progress | None) -> Fetched:
    """Run `prefect_cytotable.flows.fetch_obs` with its arguments, locally or as a flow run."""
    heard = progress or Silent()
    runner = checked_runner(task_runner)
    profile = arguments.pop("profile")
    options = for_runner(make_fetch_options(**arguments), runner)
    where, connection = orchestration(runner, heard.say)
    if where is not Orchestration.NONE:
        from prefect_cytotable.flows import fetch_flow  # Prefect takes 2 s to import: only where it runs the show

        answer: Fetched = fetch_flow.fetch(arguments | {"profile": profile}, runner, heard, connection)
        return answer
    assert isinstance(runner, str)
    with profiled_if(profile, "fetch", heard.say), system_memory():
        return pipeline.run(options, LocalFetcher(Runner(runner), heard))


def for_runner(options: FetchOptions, runner: str | TaskRunner[Any]) -> FetchOptions:
    """The options with as many workers as the runner has: a worker gets its share of the memory."""
    return replace(options, workers=1) if runner == Runner.SEQUENTIAL else options
