"""What is remembered of the local server: a state file, and a lock for those who change it.

The file remembers the server's process by number *and* start time, because numbers are used again: no signal ever
goes to a process that we did not start. Nothing here imports Prefect.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prefect_cytotable.tasks.core.errors import CytotableError

if sys.platform != "win32":
    import fcntl

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
_HEALTH_TIMEOUT = 2.0  # seconds; a healthy server answers in a few milliseconds


class ServerError(CytotableError, RuntimeError):
    """The local Prefect server cannot be started, watched or stopped."""


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


def state_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The user's folder for the state, the log and the lock of the local server; it may not exist yet.

    ``PREFECT_CYTOTABLE_HOME`` names it; else it is where the system keeps such things.
    """
    environ = os.environ if environ is None else environ
    if named := environ.get("PREFECT_CYTOTABLE_HOME"):
        return Path(named).expanduser().absolute()
    home = user_home(environ)
    if sys.platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(environ.get("XDG_STATE_HOME") or "")
        if not base.is_absolute():  # unset, or to be ignored by the XDG base directory specification
            base = home / ".local" / "state"
    return base / "prefect-cytotable"


def user_home(environ: Mapping[str, str]) -> Path:
    """The home folder that an environment names, or that of this user."""
    named = environ.get("USERPROFILE" if os.name == "nt" else "HOME")
    return Path(named) if named else Path.home()


def answers(port: int) -> bool:
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


def host_name() -> str:
    """The machine's name for use in file names: a home folder can be shared by many machines."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname()) or "localhost"


def state_file(folder: Path) -> Path:
    """Where the state of this machine's server lies."""
    return folder / f"server-{host_name()}.json"


def running_server(folder: Path) -> ServerState | None:
    """The remembered server, if its process is alive."""
    server = _read_state(folder)
    return server if server is not None and is_alive(server) else None


def _read_state(folder: Path) -> ServerState | None:
    try:
        found = json.loads(state_file(folder).read_text(encoding="utf-8"))
        state = ServerState(int(found["pid"]), str(found["identity"]), str(found["url"]), Path(found["log"]))
        return state if state.pid > 1 and state.port else None  # 0 and 1 would signal us, or everybody
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_state(folder: Path, server: ServerState) -> None:
    """Remember a server; the file appears whole, for the user alone."""
    values = {"pid": server.pid, "identity": server.identity, "url": server.url, "log": str(server.log)}
    temporary = folder / f"{state_file(folder).name}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file)
    temporary.replace(state_file(folder))


def forget_if_gone(folder: Path) -> None:
    """Remove the state of a server that does not run; whoever calls this holds the lock."""
    if running_server(folder) is None:
        state_file(folder).unlink(missing_ok=True)


def is_alive(server: ServerState) -> bool:
    """Whether the very process that was started is there."""
    return process_identity(server.pid) == server.identity


def process_identity(pid: int) -> str | None:
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
def lock(folder: Path, deadline: float) -> Iterator[None]:
    """Hold the right to start or stop the server; threads and processes exclude each other."""
    path = folder / f"server-{host_name()}.lock"
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
