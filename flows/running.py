"""Who runs a conversion: this process alone, or Prefect. Decided without importing Prefect."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_cytotable.flows.clusters import RUNNERS
from prefect_cytotable.flows.connection import Connection, Origin, configured_api_url
from prefect_cytotable.tasks.core.errors import ArgumentError, nearest
from prefect_cytotable.tasks.core.memory.model import Profiling
from prefect_cytotable.tasks.core.progress import Progress, Silent
from prefect_cytotable.tasks.core.roots import check_endpoint
from prefect_cytotable.tasks.core.runner import Runner

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

    from prefect_cytotable.tasks.core.model import Plan
    from prefect_cytotable.tasks.core.returned import Returned

Profile = str | Path | Profiling | Mapping[str, Any]
"""What ``profile=`` can be."""

HOW_TO_SERVE = "No Prefect server: running here. `prefect-cytotable server start` shows runs in the UI."
EPHEMERAL = (
    "No Prefect server is configured, so one is started for this run alone: 10-20 s. "
    "`prefect-cytotable server start` keeps one."
)


class Orchestration(StrEnum):
    """Who keeps the state of a run."""

    NONE = "none"
    SERVER = "server"
    EPHEMERAL = "ephemeral"


def convert(arguments: dict[str, Any], task_runner: str | TaskRunner[Any], progress: Progress | None) -> Returned:
    """Run `prefect_cytotable.flows.convert` with its arguments, locally or as a flow run."""
    from prefect_cytotable.tasks.core import pipeline  # what a conversion needs, a fetch does not wait for
    from prefect_cytotable.tasks.core.local import LocalCaller
    from prefect_cytotable.tasks.core.request import make_options
    from prefect_cytotable.tasks.core.returned import returned

    heard = progress or Silent()
    runner = checked_runner(task_runner)
    profile = arguments.pop("profile")
    options = make_options(**arguments)
    where, connection = orchestration(runner, heard.say)
    if where is not Orchestration.NONE:
        from prefect_cytotable.flows import orchestrated  # Prefect takes 2 s to import: only where it runs the show

        answer: Returned = orchestrated.convert(arguments | {"profile": profile}, runner, heard, connection)
        return answer
    assert isinstance(runner, str)
    with profiled_if(profile, "convert", heard.say):
        report = pipeline.run(options, LocalCaller(Runner(runner), heard))
    return returned(report, options)


@contextmanager
def profiled_if(profile: Profile | None, command: str, say: Callable[[str], None]) -> Iterator[None]:
    """The block, its memory profiled where ``profile=`` asks for that."""
    if profile is None:
        yield
        return
    from prefect_cytotable.flows.profile import profiled  # only where it is wanted

    with profiled(profile, command, say):
        yield


def plan(arguments: dict[str, Any]) -> Plan:
    """The plan for the arguments of `prefect_cytotable.flows.convert`."""
    from prefect_cytotable.tasks.core import pipeline  # as above
    from prefect_cytotable.tasks.core.local import LocalCaller
    from prefect_cytotable.tasks.core.request import make_options

    runner = checked_runner(arguments.pop("task_runner"))
    for name in ("progress", "profile"):
        arguments.pop(name)
    options = make_options(**arguments)
    local = Runner(runner) if isinstance(runner, str) and runner in list(Runner) else Runner.PROCESS
    return pipeline.draft(options, LocalCaller(local, Silent()))


def with_defaults(function: Callable[..., object], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a function, with its defaults for those that are not given."""
    parameters = inspect.signature(function).parameters
    return {name: given.get(name, parameter.default) for name, parameter in parameters.items()}


def checked_runner(task_runner: str | TaskRunner[Any]) -> str | TaskRunner[Any]:
    """The runner, if it is one.

    Raises:
        ArgumentError: It is neither a known name nor an address nor a TaskRunner.
    """
    if not isinstance(task_runner, str):
        if hasattr(task_runner, "submit") and hasattr(task_runner, "map"):
            return task_runner
        raise ArgumentError(f"task_runner is {task_runner!r}, neither a name nor a Prefect TaskRunner.")
    if task_runner in RUNNERS:
        return task_runner
    if "://" in task_runner:
        check_endpoint("task_runner", task_runner)  # what a scheduler sends is unpickled
        return task_runner
    raise ArgumentError(
        f"task_runner is {task_runner!r}. {nearest(task_runner, RUNNERS)} A Dask scheduler's address looks "
        f"like 'tcp://127.0.0.1:8786'."
    )


def orchestration(runner: str | TaskRunner[Any], say: Callable[[str], None]) -> tuple[Orchestration, Connection | None]:
    """Who keeps the state, and the server to connect to; where there is none yet, the user is told so.

    A server, where one is configured or runs; the flow that this call is part of, which has its connection already.
    """
    if inside_flow():
        return Orchestration.SERVER, None
    connection = _connection()
    if connection is not None:
        return Orchestration.SERVER, connection
    needs_prefect = not isinstance(runner, str) or runner not in list(Runner)
    say(EPHEMERAL if needs_prefect else HOW_TO_SERVE)
    return (Orchestration.EPHEMERAL if needs_prefect else Orchestration.NONE), None


def _connection() -> Connection | None:
    """The server of a run that begins here.

    Where Prefect is imported already, it has settled its address then, or a program has set one since.
    """
    configured = configured_api_url()
    if "prefect.settings" in sys.modules:
        from prefect.settings import PREFECT_API_URL

        settled = PREFECT_API_URL.value()
        if settled and (configured is None or settled != configured.url):
            return Connection(settled, Origin.SETTINGS)
    return configured


def inside_flow() -> bool:
    """Whether this call is made by a flow or task; without Prefect imported it cannot be."""
    if "prefect.context" not in sys.modules:
        return False
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None or TaskRunContext.get() is not None
