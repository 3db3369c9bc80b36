"""The connection of an orchestrated run to its server: made, checked before the run begins, and its loss told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import httpx
from prefect import context
from prefect.client.base import ServerType
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from prefect.settings.legacy import Setting

from prefect_cytotable.flows.connection import Connection, ServerUnreachableError
from prefect_cytotable.flows.running import inside_flow
from prefect_cytotable.flows.telling import LOST_SECONDS, is_behind, leave_others, tell_all
from prefect_cytotable.flows.temporary import temporary_server

ANSWER_SECONDS = 8.0
"""How long a server may take to say that it is well; a busy one here took less than one second."""

RETRIES = 4
"""How often a request is repeated, after 2, 4, 8 and 16 s: a server that is started again within half a minute is not
lost. Prefect's own five repetitions make a minute of each request, and a run that ends has some."""

BRIEF_RETRIES = 1
"""The same for what a run can do without."""

EPHEMERAL_SECONDS = 120
"""How long a server for one run may take to start, where Prefect's own 20 s stand: a busy machine takes longer."""

LOST = (httpx.TransportError, PrefectHTTPStatusError)
"""What Prefect raises where a server does not answer, or not as it should, after its own retries."""

_pages: ContextVar[bool] = ContextVar("pages", default=True)

_UNREACHED = "Failed to reach API"  # Prefect's RuntimeError about this has no class of its own


@contextmanager
def connected(connection: Connection | None, elsewhere: bool = False) -> Iterator[None]:
    """Prefect, inside the block, connected to that server; with None, to that of the flow or task around it.

    Where there is none around it, a server is started for the block, which the workers of this machine use too. Those
    of other machines could not reach it, and Prefect starts one in each process that needs one.

    An address that Prefect does not know of itself (our own server's) is a setting for the block alone: later runs
    ask again which server there is.

    Args:
        connection: The server.
        elsewhere: Whether workers may be on other machines.

    Raises:
        ServerUnreachableError: The server does not answer, or was lost on the way.
    """
    timeout = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
    with ExitStack() as stack:
        if connection is not None:
            stack.enter_context(_connected(connection))
        elif elsewhere:
            patient = timeout.value() == timeout.default() and not inside_flow()
            stack.enter_context(_settings({timeout: EPHEMERAL_SECONDS} if patient else {}))
        elif not inside_flow():
            server = stack.enter_context(temporary_server())
            stack.enter_context(_connected(server))
            stack.callback(tell_all)  # while it is there
            stack.callback(_pages.reset, _pages.set(False))
        yield


def has_pages() -> bool:
    """Whether the server shows runs in a browser: one that was started for this run does not."""
    return _pages.get()


@contextmanager
def _connected(connection: Connection) -> Iterator[None]:
    retries = min(PREFECT_CLIENT_MAX_RETRIES.value(), RETRIES)
    with _settings({PREFECT_API_URL: connection.url, PREFECT_CLIENT_MAX_RETRIES: retries}):
        _require_answer(connection)
        leave_others(connection.url)
        try:
            yield
        except LOST as error:
            raise ServerUnreachableError.lost(connection, _cause(error)) from error
        except RuntimeError as error:
            if not str(error).startswith(_UNREACHED):
                raise
            raise ServerUnreachableError.lost(connection, _cause(error.__cause__ or error)) from error
        finally:
            _end_soon(connection)


def _end_soon(connection: Connection) -> None:
    """Give up what a lost server was not told: this process could not end before each event was tried for long."""
    if is_behind():
        try:
            _require_answer(connection)
        except ServerUnreachableError:
            tell_all(LOST_SECONDS)


@contextmanager
def briefly() -> Iterator[None]:
    """Inside, a server that does not answer is given up after seconds: for what a run can do without."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: min(PREFECT_CLIENT_MAX_RETRIES.value(), BRIEF_RETRIES)}):
        yield


@contextmanager
def _settings(changes: dict[Setting, Any]) -> Iterator[None]:
    """Settings with those changes, for every thread: some of Prefect's own ask for them outside the caller's context.

    A process pool's reporter is one; where it found no address, it would start a server of its own.
    """
    everyone = getattr(context, "GLOBAL_SETTINGS_CONTEXT", None)
    everywhere = getattr(context, "_temporary_global_settings_context", None)
    url = changes.get(PREFECT_API_URL)
    known = not changes or (url is not None and everyone is not None and everyone.settings.api.url == url)
    with temporary_settings(changes):
        if known or everywhere is None:
            yield
        else:
            with everywhere(context.get_settings_context()):
                yield


def _require_answer(connection: Connection) -> None:
    """Ask the server once, without the retries with which Prefect would spend minutes on a silent one."""
    once = {"client.max_retries": 0, "client.server_version_check_enabled": False}
    try:
        with (
            temporary_settings(once),
            get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client,
        ):
            cloud = client.server_type is ServerType.CLOUD
            answer = client.request("GET", "/health")
            if not cloud and answer.text.strip() != "true":
                raise ServerUnreachableError.silent(connection, "what answers is no Prefect API")
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if not (cloud and status == httpx.codes.NOT_FOUND):  # the hosted service need not have this page
            raise ServerUnreachableError.silent(connection, f"the answer is HTTP status {status}") from error
    except (httpx.TransportError, httpx.InvalidURL, RuntimeError) as error:
        if isinstance(error, ServerUnreachableError):
            raise
        raise ServerUnreachableError.silent(connection, _cause(error)) from error


def _cause(error: BaseException) -> str:
    """A failed request in few words."""
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, PrefectHTTPStatusError):
        return f"the answer is HTTP status {error.response.status_code}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
