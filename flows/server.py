"""A local Prefect server of our own: start, status, stop.

It is a detached ``prefect server start`` on the loopback interface, with settings that suit many small task runs.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from prefect_cytotable.flows.remembered import (
    DEFAULT_PORT,
    HOST,
    ServerError,
    ServerState,
    answers,
    forget_if_gone,
    host_name,
    is_alive,
    lock,
    process_identity,
    running_server,
    state_file,
    state_folder,
    write_state,
)

# The recorder writes one task run at a time by default: 34-43 ms of server CPU for a task, 8 ms with these
# (measured, Prefect 3.8.8, SQLite). A user's own values win.
SERVER_SETTINGS: Mapping[str, str] = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}

_LOG_LINES = 15


def start(port: int = DEFAULT_PORT, home: Path | None = None, timeout: float = 120.0) -> ServerState:
    """Start a Prefect server on this machine that outlives this process, and wait until it answers.

    It runs in the state folder, so ``.env``, ``prefect.toml`` and ``pyproject.toml`` of the working directory
    do not reach it; the environment and the user's profile do. Of several calls at once, one starts a server
    and the others return it.

    Args:
        port: the TCP port on 127.0.0.1.
        home: the server's PREFECT_HOME (database, profiles); the user's own by default.
        timeout: seconds to wait for the first answer; the first start in a new home makes a database.

    Returns:
        The server, with ``already_running`` set when it was running before, on whatever port.

    Raises:
        ServerError: the port is taken, the server ended at once or did not answer in time.
    """
    if sys.platform == "win32":
        raise ServerError(
            "a background server is not supported on Windows: run `prefect server start` in a terminal "
            "of its own and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    if not 0 < port < 65536:
        raise ServerError(f"{port} is not a port number: choose one from 1 to 65535 with --port")
    folder = state_folder()
    deadline = time.monotonic() + timeout
    with lock(folder, deadline):
        running = running_server(folder)
        if running is not None:
            _wait_for_answer(running, deadline)
            return replace(running, already_running=True, responding=True)
        _require_free(port)
        server = _launch(folder, port, home)
        try:
            write_state(folder, server)  # at once: if we are killed while waiting, stop() still finds it
            _wait_for_answer(server, deadline)
        except BaseException:
            _end(server, timeout=10.0)
            state_file(folder).unlink(missing_ok=True)
            raise
        return replace(server, responding=True)


def status() -> ServerState | None:
    """The local server, or None when it is not running; the state of one that is gone is removed."""
    folder = state_folder()
    server = running_server(folder)
    if server is not None:
        return replace(server, already_running=True, responding=answers(server.port))
    if state_file(folder).exists():
        # A start that is under way holds the lock and has just written a better state: leave that alone.
        with suppress(ServerError), lock(folder, deadline=0.0):
            forget_if_gone(folder)
    return None


def stop(timeout: float = 30.0) -> ServerState | None:
    """End the local server and remove its state.

    The server is asked first (SIGTERM); what is left of it after the timeout is killed with its children.

    Args:
        timeout: seconds for an orderly end.

    Returns:
        The server that was ended, or None when none was running.

    Raises:
        ServerError: it did not end, or another start or stop is under way.
    """
    folder = state_folder()
    if not state_file(folder).exists():
        return None
    with lock(folder, time.monotonic() + timeout):
        server = running_server(folder)
        if server is None:
            forget_if_gone(folder)
            return None
        _end(server, timeout)
        state_file(folder).unlink(missing_ok=True)
        return server


def _launch(folder: Path, port: int, home: Path | None) -> ServerState:
    log = folder / f"server-{host_name()}.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd=folder,
            env=_server_environment(os.environ, port, home),
            start_new_session=True,
        )
    except OSError as error:
        raise ServerError(f"cannot run {' '.join(command)}: {error}") from error
    finally:
        os.close(descriptor)
    identity = process_identity(process.pid)
    process.returncode = 0  # it outlives us on purpose: without this Python warns about a forgotten child
    return ServerState(process.pid, identity or "", f"http://{HOST}:{port}/api", log)


def _server_environment(environ: Mapping[str, str], port: int, home: Path | None) -> dict[str, str]:
    """The environment of the server: the caller's, our settings where it has none, our address always."""
    url = f"http://{HOST}:{port}/api"
    result = {**SERVER_SETTINGS, **environ}
    if home is not None:
        result["PREFECT_HOME"] = str(home)
    for name in ("PREFECT_HOME", "PREFECT_PROFILES_PATH"):
        if result.get(name):  # the server runs in another folder, where a relative path would be another one
            result[name] = str(Path(result[name]).expanduser().absolute())
    for name in ("PREFECT_UI_API_URL", "PREFECT_SERVER_API_BASE_PATH"):
        result.pop(name, None)  # would send the pages, or our question whether it lives, elsewhere
    return result | {
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": url,
    }


def _require_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            found = f"port {port} on {HOST} cannot be used ({error.strerror})"
            if answers(port):
                found += (
                    ": a Prefect server that prefect-cytotable did not start answers there. To use that one, "
                    f"set PREFECT_API_URL=http://{HOST}:{port}/api"
                )
            raise ServerError(f"{found}. Choose another port with --port, for example {port + 1}") from error


def _wait_for_answer(server: ServerState, deadline: float) -> None:
    while is_alive(server):
        if answers(server.port):
            return
        if time.monotonic() >= deadline:
            raise ServerError(
                f"the Prefect server (process {server.pid}) did not answer at {server.url} in time. If it still "
                f"runs, stop it; then start with a longer timeout. Its log is {server.log}{_last_lines(server.log)}"
            )
        time.sleep(0.1)
    raise ServerError(
        f"the Prefect server ended before it answered at {server.url}; its log is {server.log}{_last_lines(server.log)}"
    )


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    lines = [line.rstrip() for line in lines if line.strip()][-_LOG_LINES:]
    return ", which ends with:\n  " + "\n  ".join(lines) if lines else ", which is empty"


def _end(server: ServerState, timeout: float) -> None:
    """End a server's process and its children, and nobody else's."""
    if sys.platform == "win32":  # pragma: no cover - start() refuses
        return
    if is_alive(server):
        try:
            os.kill(server.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise ServerError(
                f"the Prefect server (process {server.pid}) belongs to another user: let that user stop it"
            ) from error
        _wait_for_end(server, timeout)
    if process_identity(server.pid) in (None, server.identity):
        # start() made it the leader of a process group, whose number is not used again while anyone is in it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
    if not _wait_for_end(server, 5.0):
        raise ServerError(f"the Prefect server (process {server.pid}) could not be ended; its log is {server.log}")
    with suppress(ChildProcessError):  # only where this very process had started it
        os.waitpid(server.pid, os.WNOHANG)


def _wait_for_end(server: ServerState, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while is_alive(server):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True
