"""Real Prefect servers of the tests, one for a file, and what is asked of them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from waiting import SECONDS, clear, free_port, until

from prefect_cytotable.flows import server
from prefect_cytotable.flows.telling import tell_all


@dataclass(frozen=True)
class Served:
    """A server, the folder with its state, and a client of it."""

    url: str
    folder: Path
    client: SyncPrefectClient

    @property
    def home(self) -> Path:
        """The PREFECT_HOME of those who use it."""
        return self.folder / "user"

    def variables(self, **more: str) -> dict[str, str]:
        """An environment that names no server, with settings of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("PREFECT_")}
        own = {"PREFECT_HOME": str(self.home), "PREFECT_CYTOTABLE_HOME": str(self.folder / "nothing")}
        own["PYTHONFAULTHANDLER"] = "1"
        return kept | own | more

    def flow_run(self, told: str) -> FlowRun:
        """The flow run whose address was told."""
        address = re.search(r"Flow run: (\S+)/runs/flow-run/([0-9a-f-]{36})", told)
        assert address is not None, told
        assert address[1] == self.url.removesuffix("/api")
        return self.client.read_flow_run(UUID(address[2]))

    def tasks(self, run: FlowRun, count: int = 0) -> list[TaskRun]:
        """Its task runs, recorded a little later than the run's own state: once so many have ended, or one failed."""

        def recorded() -> list[TaskRun] | None:
            of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            found = self.client.read_task_runs(flow_run_filter=of_run, limit=200)
            ended = [one for one in found if one.state is not None and one.state.is_final()]
            enough = len(ended) >= count if count else any(one.state_name == "Failed" for one in ended)
            return found if enough else None

        found: list[TaskRun] = until(recorded, f"the tasks of {run.name}")
        return found

    def states(self, run: FlowRun, count: int) -> dict[str, str]:
        """The states of its tasks by name, once so many have ended."""
        return {one.name: one.state_name or "" for one in self.tasks(run, count)}


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """A server that ends with the block; inside, this process finds it in its settings and by its state file.

    The settings and the environment are then what they were, and nobody waits to tell it anything: the workers that
    send events end with the server, for those that outlived it would get the events of later files, and keep them.
    """
    tell_all(5)  # what other files left
    before, state = _addresses(), str(folder / "state")
    with pytest.MonkeyPatch.context() as patch:
        clear(patch, "PREFECT_")
        patch.setenv("PREFECT_CYTOTABLE_HOME", state)
        shutil.copytree(_with_tables(folder.parent), folder / "server")
        started = server.start(free_port(), home=folder / "server", timeout=SECONDS)
        try:
            with temporary_settings({PREFECT_API_URL: started.url, PREFECT_HOME: folder / "user"}):
                with get_client(sync_client=True) as client:
                    yield Served(started.url, folder, client)
                tell_all()
        finally:
            patch.setenv("PREFECT_CYTOTABLE_HOME", state)
            server.stop()
    assert _addresses() == before, "a server that has ended is still named"


def _with_tables(base: Path) -> Path:
    """A PREFECT_HOME whose database has its tables, made once for all test processes: it takes longer than the rest."""
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    home = shared / "prefect-with-tables"
    with (shared / "prefect-with-tables.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            begun = shared / "prefect-begun"
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            environment = {**os.environ, "PREFECT_HOME": str(begun)}
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=SECONDS)
            begun.rename(home)
    return home


def _addresses() -> tuple[str | None, str | None]:
    """The server that the environment names, and that of Prefect's settings."""
    return os.environ.get("PREFECT_API_URL"), PREFECT_API_URL.value()


@contextmanager
def found_by_state(served: Served, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, this process finds the server as our own, by its state file: no setting and no variable names it."""
    clear(patch, "PREFECT_", "CYTOTABLE_")
    patch.setenv("PREFECT_CYTOTABLE_HOME", str(served.folder / "state"))
    with temporary_settings({PREFECT_HOME: served.home}, restore_defaults={PREFECT_API_URL}):
        yield


def senders() -> list[threading.Thread]:
    """The threads that feed Prefect's workers of events."""
    return [thread for thread in threading.enumerate() if thread.name == "EventsWorkerThread"]
