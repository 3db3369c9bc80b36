"""Servers, workers and databases of the tests: real processes, each with a log, all of them ended by number."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from waiting import free_port, until

ROOT = Path(__file__).resolve().parents[2]


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def variables(**more: str) -> dict[str, str]:
    """An environment that has nothing of the person who runs the tests, and our command in its path."""
    kept = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(("PREFECT_", "CYTOTABLE_"))
    }
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {"DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"} | more


@dataclass
class Processes:
    """Processes that were started, each the leader of a group of its own."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, command: list[str], env: dict[str, str], **more: Any) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=more.pop("cwd", self.folder),
                start_new_session=True,
                **more,
            )
        self.running.append(process)
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, name: str, text: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until a process has written `text`."""

        def written() -> bool:
            assert process.poll() is None, f"{name} ended: {self.log(name)[-3000:]}"
            return text in self.log(name)

        until(written, f"{text!r} of {name}, which wrote: {self.log(name)[-3000:]}")

    def end(self) -> None:
        """End what was started, the last first; groups that do not go by themselves are killed."""
        for process in reversed(self.running):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        for process in reversed(self.running):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=20)


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    folder.mkdir(parents=True, exist_ok=True)
    started = Processes(folder)
    try:
        yield started
    finally:
        started.end()


def postgres_programs() -> Path:
    """The folder with initdb and postgres, or the test is skipped: the database is no part of a Python environment."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not folders:
        pytest.skip("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
    return folders[-1].parent


@contextmanager
def postgres(started: Processes) -> Iterator[str]:
    """A PostgreSQL of our own with an empty database; gives its address for Prefect.

    Its programs refuse to run as root: then they run as nobody, in a folder that nobody has.
    """
    programs, port = postgres_programs(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short, for its socket; pytest's folders are closed to others
    prefix: list[str] = []
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        prefix = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    try:
        data = str(folder / "data")
        make = [str(programs / "initdb"), "--no-sync", "-A", "trust", "-U", "prefect", "-E", "UTF8", "--locale=C", "-D"]
        made = subprocess.run([*prefix, *make, data], capture_output=True, text=True, cwd=folder, check=False)
        assert made.returncode == 0, made.stderr
        options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        server = started.start(
            "postgres", [*prefix, str(programs / "postgres"), "-D", data, *options], variables(), cwd=folder
        )
        started.wait_for("postgres", "ready to accept connections", server)
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        started.end()
        shutil.rmtree(folder, ignore_errors=True)
