"""Faults under a run: dead workers, servers that stop, start again or crawl, locked databases, damaged parts."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from ears import Ear
from fault_line import Line
from fault_tools import MOMENTS, SQLITE, Place, Served, environment, whole_chunks
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES
from small import plan_source, tables, write_sqlite
from waiting import free_port

from prefect_cytotable.flows import session
from prefect_cytotable.flows.connection import Connection, Origin
from prefect_cytotable.flows.runners import killed_worker
from prefect_cytotable.tasks.core.errors import DiskSpaceError, SourceBusyError
from prefect_cytotable.tasks.core.model import ChunkResult
from prefect_cytotable.tasks.core.sources import sqlite_file
from prefect_cytotable.tasks.core.store import LocalStore
from prefect_cytotable.tasks.core.work import PlanPlace, convert_jobs, may_pass

SLOW = ["process"]
"""The runner whose workers are apart, which stands for the others where not all kills are asked for (MOMENTS)."""


class Meddler(Ear):
    """Does something once so many chunks are done, for each of some numbers."""

    def __init__(self, **actions: Callable[[], None]) -> None:
        super().__init__()
        self._actions = {int(name.removeprefix("at_")): action for name, action in actions.items()}

    def advance(self, result: ChunkResult) -> None:
        super().advance(result)
        if action := self._actions.pop(len(self.results), None):
            action()


# --- workers that die ---------------------------------------------------------------------------------------


def kill_a_child() -> None:
    """Kill a worker process of this one."""
    children = psutil.Process().children(recursive=True)
    victim = next(child for child in children if "spawn_main" in " ".join(child.cmdline()))
    victim.send_signal(signal.SIGKILL)


def test_a_dask_worker_that_is_killed_costs_its_chunks_alone(
    served: Served, plate: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    place = Place(plate, tmp_path, "dask", served)
    ear = Meddler(at_3=kill_a_child)
    assert place.again(ear) == undisturbed
    assert len(ear.results) == 40
    assert ear.reused == set()
    assert served.flow_run(ear.text).state_name == "Completed"
    assert place.listing() == ["cells.parquet"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers, each a process of its own that nobody starts again."""
    address = f"tcp://127.0.0.1:{free_port()}"
    options = ["--nthreads", "1", "--no-dashboard", "--no-nanny"]
    commands = [["scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]]
    commands += [["worker", address, *options]] * 2
    with ExitStack() as stack:
        processes = []
        for command in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]],
                cwd=tmp_path,
                env={**environment(tmp_path, None), "DASK_LOGGING__DISTRIBUTED": "error"},
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 60)
            stack.callback(process.kill)
            processes.append(process)
        yield address, processes


def test_a_cluster_that_loses_a_worker_goes_on_with_the_other(
    served: Served,
    plate: Path,
    undisturbed: bytes,
    cluster: tuple[str, list[subprocess.Popen[bytes]]],
    tmp_path: Path,
) -> None:
    address, (_, _, worker) = cluster
    ear = Meddler(at_5=worker.kill)
    assert Place(plate, tmp_path, address, served).again(ear) == undisturbed
    assert worker.wait(30) == -signal.SIGKILL
    assert served.flow_run(ear.text).state_name == "Completed"


def test_a_task_that_kills_every_worker_is_told() -> None:
    from distributed.core import Status
    from distributed.scheduler import KilledWorker, WorkerState

    state = WorkerState(
        address="tcp://127.0.0.1:1",
        status=Status.running,
        pid=1,
        name="one",
        memory_limit=0,
        local_directory="",
        nanny=None,
        server_id="one",
    )
    assert killed_worker(KilledWorker("task", state, 3)) == 4
    assert killed_worker(RuntimeError("else")) is None


# --- the server ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["concurrent", *SLOW] if MOMENTS else SLOW)
def test_a_server_that_stops_and_starts_again_under_a_run(
    runner: str, served: Served, plate: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    place = Place(plate, tmp_path, runner, served)
    ear = Meddler(at_6=served.stop, at_22=served.start)
    try:
        assert place.again(ear) == undisturbed
    finally:
        served.start()
    assert served.flow_run(ear.text).state_name == "Completed"
    assert "was not told" not in ear.text
    assert place.listing() == ["cells.parquet"]


def test_a_server_that_stays_away_does_not_cost_the_output(
    served: Served, plate: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RETRIES", 0)
    place = Place(plate, tmp_path, "concurrent", served)
    ear = Meddler(at_6=served.stop)
    try:
        assert place.again(ear) == undisturbed
    finally:
        served.start()
    assert "the server was not told that the run is completed" in ear.said[-1]
    assert served.flow_run(ear.text).state_name == "Running"
    assert place.listing() == ["cells.parquet"]


def test_a_request_is_repeated_for_half_a_minute_at_most(served: Served) -> None:
    connection = Connection(served.url, Origin.OWN_SERVER)
    asked = PREFECT_CLIENT_MAX_RETRIES.value()
    with session.connected(connection):
        retries = PREFECT_CLIENT_MAX_RETRIES.value()
        assert sum(2**number for number in range(1, retries + 1)) == 30
        with session.briefly():
            assert PREFECT_CLIENT_MAX_RETRIES.value() == 1
    assert PREFECT_CLIENT_MAX_RETRIES.value() == asked


def test_a_slow_server(served: Served, plate: Path, undisturbed: bytes, tmp_path: Path) -> None:
    with Line(served.port, delay=0.25) as line:
        slow = Served(f"http://127.0.0.1:{line.port}/api", served.folder, served.client)
        place = Place(plate, tmp_path, "concurrent", slow)
        process = place.begun()
        assert process.wait(240) == 0, place.log.read_text()
        assert line.answers > 5
    assert place.out.read_bytes() == undisturbed
    assert slow.flow_run(place.log.read_text()).state_name == "Completed"


# --- the database -------------------------------------------------------------------------------------------

HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
for _ in range(3):
    connection.execute("BEGIN EXCLUSIVE")
    print("held", flush=True)
    time.sleep(0.7)
    connection.execute("ROLLBACK")
    time.sleep(0.05)
"""


@pytest.mark.parametrize("runner", ["concurrent", *SLOW] if MOMENTS else SLOW)
def test_a_database_that_others_lock_again_and_again(
    runner: str, served: Served, plate: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    holders: list[subprocess.Popen[str]] = []

    def hold() -> None:
        holder = subprocess.Popen([sys.executable, "-c", HOLD, str(plate)], stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

    ear = Meddler(at_2=hold)
    try:
        assert Place(plate, tmp_path, runner, served).again(ear) == undisturbed
    finally:
        for holder in holders:
            holder.communicate(timeout=60)
    assert len(holders) == 1
    assert ear.reused == set()


def test_a_task_that_is_tried_again_does_only_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.1)
    for name, first in (("a", 3), ("b", 4)):
        write_sqlite(tmp_path / "in" / f"{name}.sqlite", tables({1: first, 2: 5}))
    draft = plan_source(tmp_path / "in", preset=SQLITE, chunk_size=5)
    store = LocalStore(draft.options.work_dir)
    store.prepare()
    place = PlanPlace(store.save_plan(draft))
    numbers = tuple(chunk.number for chunk in draft.chunks)
    assert len(numbers) == 4
    holder = sqlite3.connect(tmp_path / "in" / draft.datasets[-1].name, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SourceBusyError) as caught:
        convert_jobs(place, numbers)
    assert may_pass(caught.value)
    holder.execute("ROLLBACK")
    holder.close()
    written = {path: path.stat().st_ino for path in store.parts.iterdir()}
    assert len(written) == 2
    results = convert_jobs(place, numbers)
    assert [one.reused for one in results] == [True, True, False, False]
    assert {path: path.stat().st_ino for path in written} == written


# --- the disk -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["concurrent", *SLOW, "dask"] if MOMENTS else SLOW)
def test_a_disk_that_fills_up(
    runner: str,
    served: Served,
    plate: Path,
    undisturbed: bytes,
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    disk = small_disk(500)
    roomy = shutil.disk_usage(tmp_path)
    place = Place(plate, disk, runner, served)
    place.out.parent.mkdir()
    ear = Ear()
    with monkeypatch.context() as patch, pytest.raises(DiskSpaceError, match="no space left"):
        patch.setattr(shutil, "disk_usage", lambda _: roomy)  # else it is refused before anything is read
        place.again(ear)
    assert served.flow_run(ear.text).state_name == "Failed"
    assert not place.out.exists()
    done = whole_chunks(place)
    assert 0 < len(done) < 40
    small_disk(16_000)
    again = Ear()
    assert place.again(again) == undisturbed
    assert again.reused == done
    assert place.listing() == ["cells.parquet"]
