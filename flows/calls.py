"""What a plain function call and the flow that it calls tell each other beside the flow's parameters and its result.

Prefect ships a flow to processes and Dask by value, with copies of its module's globals. The variable that holds the
call is therefore one of this module, which travels by reference, as the bodies of the flows do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner
from prefect.utilities.urls import url_for

from prefect_cytotable.flows.connection import Connection, without_password
from prefect_cytotable.flows.runners import may_be_elsewhere
from prefect_cytotable.flows.running import checked_runner
from prefect_cytotable.flows.session import LOST, connected, has_pages
from prefect_cytotable.tasks.core.memory.model import Profiling
from prefect_cytotable.tasks.core.progress import Listener

Answer = TypeVar("Answer")
Result = TypeVar("Result")

GIVEN = "given"
"""A flow parameter's value where the caller passed an object that no parameter can hold: a runner, a function."""


@dataclass
class Call(Generic[Answer, Result]):
    """What a plain function call passes to its flow, and gets back; each flow has a kind of its own.

    Attributes:
        progress: Who hears of the progress, in results of chunks.
        answer: What the flow's body gave, known also where the server was lost before the run's last state was told.
        begun: Called once the flow run has begun.
    """

    task_runner: str | TaskRunner[Any]
    progress: Listener[Result]
    answer: Answer | None = None
    begun: Callable[[], None] | None = None

    @property
    def runner_name(self) -> str:
        """The runner for the flow's parameter."""
        return self.task_runner if isinstance(self.task_runner, str) else GIVEN

    def runner(self, name: str) -> str | TaskRunner[Any]:
        """The runner that the flow's parameter names.

        Raises:
            ArgumentError: It is none.
        """
        return checked_runner(self.task_runner if name == GIVEN else name)


Kind = TypeVar("Kind", bound=Call[Any, Any])

_call: ContextVar[Call[Any, Any] | None] = ContextVar("call", default=None)


def begin(otherwise: Kind) -> Kind:
    """What the body of a flow asks first: what was passed to it, or `otherwise` where nothing was, as by a server.

    The caller is told that the run has begun, and where it is shown.
    """
    passed = _call.get()
    call = passed if isinstance(passed, type(otherwise)) else otherwise
    if call.begun is not None:
        call.begun()
    if address := page():
        call.progress.say(f"Flow run: {address}")
    return call


def page() -> str | None:
    """Where a browser shows this flow run; nowhere for a server that ends with the run."""
    address = url_for("flow-run", obj_id=str(flow_run.id)) if has_pages() else None
    return without_password(address) if address else None


def run(
    call: Call[Answer, Any],
    flow: Callable[..., Answer],
    parameters: dict[str, Any],
    connection: Connection | None,
    done: str = "The output is whole",
) -> Answer:
    """The answer of a flow that is called from a plain function call.

    Args:
        call: What the flow's parameters cannot hold.
        flow: The flow.
        parameters: The others, but for the runner.
        connection: The server to connect to; None where Prefect is connected, or starts a server itself.
        done: What a user is told where the server was lost after the flow's work was done.
    """
    with connected(connection, may_be_elsewhere(call.task_runner)):
        answer, lost = answered(call, flow, parameters)
        if lost is not None:
            call.progress.say(f"{done}, but the server was not told that the run is completed: {lost}")
        return answer


def answered(
    call: Call[Answer, Any], flow: Callable[..., Answer], parameters: dict[str, Any]
) -> tuple[Answer, Exception | None]:
    """The answer of a flow, and by which error the server was lost, where that was after the answer was known."""
    token = _call.set(call)
    try:
        return flow(**parameters, task_runner=call.runner_name), None
    except LOST as error:
        if call.answer is None:
            raise
        return call.answer, error
    finally:
        _call.reset(token)


@contextmanager
def dispensable(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """The block tells a server what the run can do without: where it is lost meanwhile, that is said and no failure."""
    try:
        yield
    except LOST as error:
        say(f"The server was not told {what}: {error}")


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a server can store them."""
    return {name: _plain(value) for name, value in arguments.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Profiling):
        return asdict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
