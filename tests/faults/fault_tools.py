"""What the tests of faults work with: a plate of many chunks, runs to be killed, and what must hold after a fault."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pyarrow.parquet as pq
import pytest
import servers
from ears import Ear
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from waiting import SECONDS, clear, until

from prefect_cytotable.flows import convert, server
from prefect_cytotable.tasks.core.demo import PlateShape
from prefect_cytotable.tasks.core.store import TEMPORARY, LocalStore

SQLITE = "cellprofiler_sqlite"
FORTY = PlateShape(wells=22, sites=2, cells=8, seed=9)
ROWS = 12
"""Rows of a chunk: with these, the plate is forty chunks of one or two images."""

SEED = os.environ.get("CYTOTABLE_FAULT_SEED", "20")
MOMENTS = int(os.environ.get("CYTOTABLE_FAULT_MOMENTS", "0"))
"""Moments at which each kind of run is killed; 0 is the test suite's own small share."""


# --- a server -----------------------------------------------------------------------------------------------


class Served(servers.Served):
    """A server that can be stopped and started again."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].removesuffix("/api"))

    def start(self) -> None:
        """Start it again."""
        with self.state():
            server.start(self.port, home=self.folder / "server", timeout=SECONDS)

    def stop(self) -> None:
        with self.state():
            server.stop()

    @contextmanager
    def state(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            clear(patch, "PREFECT_")
            patch.setenv("PREFECT_CYTOTABLE_HOME", str(self.folder / "state"))
            yield

    def chunk_states(self, run: FlowRun, chunks: int) -> dict[str, str]:
        """The states of the tasks that did so many chunks, by their names; they are recorded after the run's own."""

        def recorded() -> dict[str, str] | None:
            of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            found: list[TaskRun] = self.client.read_task_runs(flow_run_filter=of_run, limit=200)
            states = {
                one.name: one.state.name or ""
                for one in found
                if "images" in one.name or "image " in one.name
                if one.state
            }
            ended = all(state in ("Completed", "Cached") for state in states.values())
            return states if ended and sum(map(chunks_named, states)) == chunks else None

        states: dict[str, str] = until(recorded, pause=0.3)
        return states


def chunks_named(name: str) -> int:
    """How many chunks the task of that name does."""
    several = re.search(r" \.\.\. \((\d+) chunks\)$", name)
    return int(several[1]) if several else 1


def environment(folder: Path, url: str | None) -> dict[str, str]:
    """An environment that names that server or none, with nothing of the person who runs the tests."""
    kept = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(("PREFECT_", "CYTOTABLE_"))
    }
    own = {"PREFECT_HOME": str(folder / "home"), "PREFECT_CYTOTABLE_HOME": str(folder / "nothing")}
    own |= {"PYTHONFAULTHANDLER": "1", "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    return kept | own | ({"PREFECT_API_URL": url} if url else {})


@contextmanager
def connected_to(served: Served | None, folder: Path) -> Iterator[None]:
    """This process finds that server inside as our own, by its state file, or none."""
    with pytest.MonkeyPatch.context() as patch:
        clear(patch, "PREFECT_", "CYTOTABLE_")
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(served.folder / "state" if served else folder / "nothing"))
        home = served.folder / "user" if served else folder / "home"
        with temporary_settings({PREFECT_HOME: home}, restore_defaults={PREFECT_API_URL}):
            yield


def copy_database(served: Served, home: Path) -> None:
    """The database of a server as that of another PREFECT_HOME; to make one takes Prefect 10 s."""
    home.mkdir()
    with (
        closing(sqlite3.connect(served.folder / "server" / "prefect.db")) as old,
        closing(sqlite3.connect(home / "prefect.db")) as new,
    ):
        old.backup(new)


# --- runs ---------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.progress import Lines
if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], preset=sys.argv[3], chunk_size=int(sys.argv[4]), task_runner=sys.argv[5],
            workers=2, overwrite=True, progress=Lines())
"""


@dataclass(frozen=True)
class Place:
    """A run's source and destination, in a folder of its own, with a server or without."""

    plate: Path
    folder: Path
    runner: str
    served: Served | None

    @property
    def out(self) -> Path:
        return self.folder / "out" / "cells.parquet"

    @property
    def work(self) -> Path:
        return self.folder / "out" / ".cells.parquet.prefect-cytotable"

    @property
    def log(self) -> Path:
        return self.folder / "run.log"

    def begun(self) -> subprocess.Popen[bytes]:
        """The conversion, begun in a process of its own."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(self.plate), str(self.out), SQLITE, str(ROWS), self.runner],
                cwd=self.folder,
                env=environment(self.folder, self.served.url if self.served else None),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def again(self, ear: Ear, **arguments: Any) -> bytes:
        """The same conversion in this process; the bytes of its output."""
        chosen: dict[str, Any] = {
            "preset": SQLITE,
            "chunk_size": ROWS,
            "task_runner": self.runner,
            "workers": 2,
            "overwrite": True,
            "progress": ear,
        }
        with connected_to(self.served, self.folder):
            convert(self.plate, self.out, **(chosen | arguments))
        return self.out.read_bytes()

    def records(self) -> set[str]:
        """The keys of the chunks that have a record, whatever it is worth."""
        return {path.stem for path in self.work.glob("records/*.json") if not path.name.startswith(TEMPORARY)}

    def listing(self) -> list[str]:
        """Everything where the output is, hidden things too, but for the page that is written beside it."""
        found = {path.relative_to(self.out.parent).as_posix() for path in self.out.parent.rglob("*")}
        return sorted(found - {"cells.report.html"})


@dataclass(frozen=True)
class Moment:
    """When a run is killed: once so many chunks are done (-1: from the start of the process), and so much later."""

    done: int
    seconds: float


def moments(count: int, *case: object) -> list[Moment]:
    """Moments by chance, the same for the same seed and case: in every stretch of the run alike."""
    chance = random.Random("-".join(map(str, (SEED, *case))))
    stretch = 42 / count
    starts = [int(number * stretch + chance.random() * stretch) - 1 for number in range(count)]
    return [Moment(done, chance.random() * (3.0 if done < 0 else 0.1)) for done in starts]


def kill(place: Place, moment: Moment) -> bool:
    """Begin the conversion and kill it at that moment; whether it still ran. Its workers end with it."""
    process = place.begun()
    try:
        until(lambda: process.poll() is not None or len(place.records()) >= moment.done, pause=0.003)
        time.sleep(moment.seconds)
        running = process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True) if running else []
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(SECONDS)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == [], f"{alive} outlived the run:\n{place.log.read_text()}"
    assert running or process.returncode == 0, place.log.read_text()
    return running


def whole_chunks(place: Place) -> set[str]:
    """The keys of the chunks that are done. Nothing that looks done is half."""
    store = LocalStore(str(place.work))
    keys = place.records()
    for key in keys:
        assert store.load(key) is not None, f"the record {key} promises parts that are not whole"
    for part in store.parts.glob("*.parquet"):
        if not part.name.startswith(TEMPORARY):
            assert pq.read_table(part).num_rows > 0, f"{part} is half"
    return keys


def kept_batches(place: Place) -> set[str]:
    """The keys under which Prefect has kept the results of tasks, whole ones."""
    found = set()
    for path in (place.work / "results").glob("*"):
        try:
            msgspec.json.decode(path.read_bytes())
        except msgspec.DecodeError:
            continue
        found.add(path.name)
    return found
