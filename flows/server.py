"""Which Prefect server a run will use, and a local one of our own.

Every start of the command line asks :func:`configured_api_url`, so nothing here imports Prefect (1.5-2 s).
Prefect's documented order is repeated instead, and the tests hold it to what Prefect itself resolves.

The local server (:func:`start`, :func:`status`, :func:`stop`) is a detached ``prefect server start`` on the
loopback interface. A state file remembers its process by number *and* start time, because numbers are used
again: no signal ever goes to a process that we did not start.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect_cytotable.tasks.core.errors import CytotableError

if sys.platform != "win32":
    import fcntl

HOST = "127.0.0.1"
DEFAULT_PORT = 4200

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

# Prefect's profiles for a user who has no profiles file; the others in it name no server.
_BUILT_IN_PROFILES: Mapping[str, Any] = {"local": {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}}
_TEST_MODES = (
    "PREFECT_TEST_MODE",
    "PREFECT_UNIT_TEST_MODE",
    "PREFECT_TESTING_UNIT_TEST_MODE",
    "PREFECT_TESTING_TEST_MODE",
)
_HEALTH_TIMEOUT = 2.0  # seconds; a healthy server answers in a few milliseconds
_LOG_LINES = 15


class ServerError(CytotableError, RuntimeError):
    """The local Prefect server cannot be started, watched or stopped."""


class Origin(StrEnum):
    """What told us the address of a Prefect API, highest precedence first."""

    ENVIRONMENT = "environment"
    DOTENV = "dotenv"
    PREFECT_TOML = "prefect.toml"
    PYPROJECT = "pyproject"
    PROFILE = "profile"
    OWN_SERVER = "own server"


@dataclass(frozen=True)
class Connection:
    """The Prefect API that a run would talk to, and what names it."""

    url: str
    origin: Origin


@dataclass(frozen=True)
class ServerState:
    """A local server that :func:`start` started.

    ``identity`` is the start time of process ``pid`` as the system tells it, compared and never interpreted.
    ``already_running`` says that :func:`start` found this server rather than made it; ``responding``, that it
    answered just now.
    """

    pid: int
    identity: str
    url: str
    log: Path
    already_running: bool = False
    responding: bool = False

    @property
    def port(self) -> int:
        """The TCP port, on the loopback interface."""
        return urlsplit(self.url).port or DEFAULT_PORT

    @property
    def ui_url(self) -> str:
        """Where a browser finds the server's pages."""
        return f"http://{HOST}:{self.port}"


# --- which server a run would use ---------------------------------------------------------------------------


def configured_api_url(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Connection | None:
    """Find the Prefect API that a run of this process would use, as Prefect 3 itself would.

    In this order: the variable PREFECT_API_URL; ``.env``, ``prefect.toml`` and ``pyproject.toml`` in the
    working directory; the active profile. Only where none of them names one: our own server, if it answers.

    Args:
        environ: the environment, that of this process by default.
        cwd: the working directory, that of this process by default.

    Returns:
        The connection, or None: Prefect would then start a temporary server. Files that cannot be read
        count as absent, because Prefect reports them better.

    >>> configured_api_url({"PREFECT_API_URL": "http://example.org/api"}).origin
    <Origin.ENVIRONMENT: 'environment'>
    """
    environ = os.environ if environ is None else environ
    for origin, url in _candidates(environ, Path.cwd() if cwd is None else cwd):
        if isinstance(url, str):
            if url:
                return Connection(url, origin)
            break  # set, but empty: hides what has a lower precedence, as in Prefect
    server = _running(state_folder(environ))
    if server is not None and _answers(server.port):
        return Connection(server.url, Origin.OWN_SERVER)
    return None


def _candidates(environ: Mapping[str, str], cwd: Path) -> Iterator[tuple[Origin, Any]]:
    """Each place that can hold the address, in order; what follows a hit is not read."""
    yield Origin.ENVIRONMENT, _ignoring_case(environ, "PREFECT_API_URL")
    dotenv = _read_dotenv(cwd / ".env")
    yield Origin.DOTENV, _ignoring_case(dotenv, "PREFECT_API_URL")
    own = _read_toml(cwd / "prefect.toml")
    yield Origin.PREFECT_TOML, _dig(own, "api", "url")
    project = _dig(_read_toml(cwd / "pyproject.toml"), "tool", "prefect")
    yield Origin.PYPROJECT, _dig(project, "api", "url")
    if any(environ.get(name) for name in _TEST_MODES):
        return
    named = (
        environ.get("PREFECT_PROFILES_PATH")
        or dotenv.get("PREFECT_PROFILES_PATH")
        or _dig(own, "profiles_path")
        or _dig(project, "profiles_path")
    )
    if isinstance(named, str):
        profiles = _read_toml(cwd / named)
    elif home := environ.get("PREFECT_HOME"):
        profiles = _read_toml(cwd / home / "profiles.toml")
    else:
        path = _user_home(environ) / ".prefect" / "profiles.toml"
        profiles = _read_toml(path) if path.exists() else {"profiles": _BUILT_IN_PROFILES}
    active = environ.get("PREFECT_PROFILE") or _dig(profiles, "active")
    yield Origin.PROFILE, _dig(profiles, "profiles", active, "PREFECT_API_URL")


def _ignoring_case(variables: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in variables.items() if key.upper() == name), None)


def _dig(value: Any, *keys: Any) -> Any:
    """Follow keys through nested tables; None where one is missing or is no table."""
    for key in keys:
        if not isinstance(value, Mapping) or not isinstance(key, str):
            return None
        value = value.get(key)
    return value


def _read_toml(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        return tomllib.loads(path.read_text(encoding="utf-8"))
    return {}


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    # Here and not on top: rarely needed, and 40 ms. Prefect reads the file with the same library.
    from dotenv import dotenv_values

    with suppress(OSError, ValueError):
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    return {}


def _user_home(environ: Mapping[str, str]) -> Path:
    named = environ.get("USERPROFILE" if os.name == "nt" else "HOME")
    return Path(named) if named else Path.home()


# --- the local server ---------------------------------------------------------------------------------------


def state_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The user's folder for the state, the log and the lock of the local server; it may not exist yet.

    ``PREFECT_CYTOTABLE_HOME`` names it; else it is where the system keeps such things.
    """
    environ = os.environ if environ is None else environ
    if named := environ.get("PREFECT_CYTOTABLE_HOME"):
        return Path(named).expanduser().absolute()
    home = _user_home(environ)
    if sys.platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(environ.get("XDG_STATE_HOME") or "")
        if not base.is_absolute():  # unset, or to be ignored by the XDG base directory specification
            base = home / ".local" / "state"
    return base / "prefect-cytotable"


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
    with _lock(folder, deadline):
        running = _running(folder)
        if running is not None:
            _wait_for_answer(running, deadline)
            return replace(running, already_running=True, responding=True)
        _require_free(port)
        server = _launch(folder, port, home)
        try:
            _write_state(folder, server)  # at once: if we are killed while waiting, stop() still finds it
            _wait_for_answer(server, deadline)
        except BaseException:
            _end(server, timeout=10.0)
            _state_file(folder).unlink(missing_ok=True)
            raise
        return replace(server, responding=True)


def status() -> ServerState | None:
    """The local server, or None when it is not running; the state of one that is gone is removed."""
    folder = state_folder()
    server = _running(folder)
    if server is not None:
        return replace(server, already_running=True, responding=_answers(server.port))
    if _state_file(folder).exists():
        # A start that is under way holds the lock and has just written a better state: leave that alone.
        with suppress(ServerError), _lock(folder, deadline=0.0):
            _forget_if_gone(folder)
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
    if not _state_file(folder).exists():
        return None
    with _lock(folder, time.monotonic() + timeout):
        server = _running(folder)
        if server is None:
            _forget_if_gone(folder)
            return None
        _end(server, timeout)
        _state_file(folder).unlink(missing_ok=True)
        return server


def _launch(folder: Path, port: int, home: Path | None) -> ServerState:
    log = folder / f"server-{_host_name()}.log"
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
    identity = _process_identity(process.pid)
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
            if _answers(port):
                found += (
                    ": a Prefect server that prefect-cytotable did not start answers there. To use that one, "
                    f"set PREFECT_API_URL=http://{HOST}:{port}/api"
                )
            raise ServerError(f"{found}. Choose another port with --port, for example {port + 1}") from error


def _wait_for_answer(server: ServerState, deadline: float) -> None:
    while _is_alive(server):
        if _answers(server.port):
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


def _answers(port: int) -> bool:
    """Whether a Prefect API says on this loopback port that it is well.

    A bare socket: urllib would add 50 ms of imports to every command, and might ask a proxy.
    """
    request = f"GET /api/health HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n"
    answer = b""
    try:
        with socket.create_connection((HOST, port), timeout=_HEALTH_TIMEOUT) as connection:
            connection.sendall(request.encode("ascii"))
            while len(answer) < 65536 and (piece := connection.recv(4096)):
                answer += piece
    except OSError:
        return False
    return re.match(rb"HTTP/1\.\d 200 .*\r\n\r\ntrue\s*\Z", answer, re.DOTALL) is not None


def _end(server: ServerState, timeout: float) -> None:
    """End a server's process and its children, and nobody else's."""
    if sys.platform == "win32":  # pragma: no cover - start() refuses
        return
    if _is_alive(server):
        try:
            os.kill(server.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise ServerError(
                f"the Prefect server (process {server.pid}) belongs to another user: let that user stop it"
            ) from error
        _wait_for_end(server, timeout)
    if _process_identity(server.pid) in (None, server.identity):
        # start() made it the leader of a process group, whose number is not used again while anyone is in it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)
    if not _wait_for_end(server, 5.0):
        raise ServerError(f"the Prefect server (process {server.pid}) could not be ended; its log is {server.log}")
    with suppress(ChildProcessError):  # only where this very process had started it
        os.waitpid(server.pid, os.WNOHANG)


def _wait_for_end(server: ServerState, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while _is_alive(server):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


# --- what is remembered of it -------------------------------------------------------------------------------


def _host_name() -> str:
    """The machine's name for use in file names: a home folder can be shared by many machines."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname()) or "localhost"


def _state_file(folder: Path) -> Path:
    return folder / f"server-{_host_name()}.json"


def _running(folder: Path) -> ServerState | None:
    """The remembered server, if its process is alive."""
    server = _read_state(folder)
    return server if server is not None and _is_alive(server) else None


def _read_state(folder: Path) -> ServerState | None:
    try:
        found = json.loads(_state_file(folder).read_text(encoding="utf-8"))
        state = ServerState(int(found["pid"]), str(found["identity"]), str(found["url"]), Path(found["log"]))
        return state if state.pid > 1 and state.port else None  # 0 and 1 would signal us, or everybody
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_state(folder: Path, server: ServerState) -> None:
    values = {"pid": server.pid, "identity": server.identity, "url": server.url, "log": str(server.log)}
    temporary = folder / f"{_state_file(folder).name}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file)
    temporary.replace(_state_file(folder))


def _forget_if_gone(folder: Path) -> None:
    if _running(folder) is None:
        _state_file(folder).unlink(missing_ok=True)


def _is_alive(server: ServerState) -> bool:
    return _process_identity(server.pid) == server.identity


def _process_identity(pid: int) -> str | None:
    """The start time of a process; None where there is none, or one that ended and waits to be fetched.

    Two processes with one number differ in it; on Linux it counts from the boot, whose name is added.
    """
    if sys.platform == "win32":
        return None
    if sys.platform == "linux":
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else f"{boot}:{fields[19].decode('ascii')}"
    found = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
    ).stdout.split(maxsplit=1)
    return found[1].strip() if len(found) == 2 and not found[0].startswith("Z") else None


@contextmanager
def _lock(folder: Path, deadline: float) -> Iterator[None]:
    """Hold the right to start or stop the server; threads and processes exclude each other."""
    path = folder / f"server-{_host_name()}.lock"
    with ExitStack() as stack:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a", encoding="utf-8"))
            while not _try_lock(file.fileno()):
                if time.monotonic() >= deadline:
                    raise ServerError(
                        f"another start or stop of the Prefect server is under way (lock {path}): "
                        "wait for it, or end it, and try again"
                    )
                time.sleep(0.05)
        except OSError as error:
            raise ServerError(
                f"cannot keep the state of a Prefect server in {folder}: {error}. "
                "Set PREFECT_CYTOTABLE_HOME to a folder that you may write to"
            ) from error
        yield  # closing the file ends the lock; the file stays, removing it would let two processes in


def _try_lock(descriptor: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
