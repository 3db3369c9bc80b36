"""Conversions as Prefect flow runs, against one real server: what it sees, what is done again, what a user is told."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ears import Ear
from plates import database_of, edited, executed, listing, sites_of
from prefect import flow, task
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from servers import Served, senders
from waiting import SECONDS, free_port, until

from prefect_cytotable.flows import convert, plan, runners, running, server, session
from prefect_cytotable.flows.connection import Connection, Origin, ServerUnreachableError
from prefect_cytotable.flows.telling import tell_all
from prefect_cytotable.tasks.core.demo import PlateShape
from prefect_cytotable.tasks.core.errors import ArgumentError, DuplicateKeyError, UnmatchedError, WorkerDiedError
from prefect_cytotable.tasks.core.model import ChunkResult
from prefect_cytotable.tasks.core.sources import sqlite_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")

PLATE = PlateShape(wells=12, sites=2, cells=12)
ROWS = 24
"""Rows of a chunk: two or three images each."""

SQLITE = "cellprofiler_sqlite"
TOLD = ["Flow", "chunks", "rows", "wrote"]
"""How the lines begin that a run tells, before that with the number of chunks."""

STAGES = ["gather", "inspect", "plan", "report", "write"]

# --- a server, and what it knows ----------------------------------------------------------------------------


def chunk_states(served: Served, run: FlowRun, chunks: int) -> dict[str, str]:
    """The states of the chunk tasks, by chunk."""
    found = served.states(run, chunks + len(STAGES))
    return {name: state for name, state in found.items() if name not in STAGES}


@contextmanager
def no_server(served: Served) -> Iterator[None]:
    """No server is found inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(served.folder / "nothing"))
        yield


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plate as a SQLite file."""
    return database_of(tmp_path_factory.mktemp("plate") / "plate.sqlite", PLATE)


@pytest.fixture(scope="module")
def names(plate: Path) -> list[str]:
    """The chunks of the plate."""
    found = [one.name for one in plan(plate, preset=SQLITE, chunk_size=ROWS).chunks]
    assert 10 <= len(found) <= 16
    assert all(re.fullmatch(r"plate\.sqlite, images? [0-9-]+", name) for name in found)
    return found


@pytest.fixture(scope="module")
def undisturbed(plate: Path, served: Served, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of the table that a local run writes."""
    with no_server(served), temporary_settings(restore_defaults={PREFECT_API_URL}):
        ear = Ear()
        path = convert(
            plate, tmp_path_factory.mktemp("local") / "out.parquet", preset=SQLITE, chunk_size=ROWS, progress=ear
        )
    assert running.HOW_TO_SERVE in ear.said
    return Path(str(path)).read_bytes()


def reused(ear: Ear) -> set[str]:
    """The keys of the chunks that a run did not convert."""
    return {one.key for one in ear.results if one.reused}


# --- seen by the server -------------------------------------------------------------------------------------


def test_the_command_line_is_an_ordinary_flow_run(
    served: Served, plate: Path, names: list[str], undisturbed: bytes, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "prefect_cytotable.flows.cli", "convert", str(plate), "out.parquet"]
    done = subprocess.run(
        [*command, "--preset", SQLITE, "--chunk-size", str(ROWS), "--runner", "process"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=served.variables(PREFECT_API_URL=served.url),
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    run = served.flow_run(done.stderr)
    told = done.stderr.splitlines()
    begins = dict.fromkeys(line.split(":")[0].split(" ")[0] for line in told)  # a slow one tells its chunks often
    assert [*begins] == [*TOLD, str(len(names))], told
    assert (tmp_path / "out.parquet").read_bytes() == undisturbed
    assert listing(tmp_path) == ["out.parquet"]

    assert run.name == "plate.sqlite with cellprofiler_sqlite"
    assert run.state is not None
    assert run.state.name == "Completed"
    assert run.parameters["source_path"] == str(plate)
    assert sorted(one.name for one in served.tasks(run, len(names) + len(STAGES))) == sorted([*STAGES, *names])

    artifacts = served.client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    )
    (account,) = [one for one in artifacts if one.key == "row-account"]
    (row,) = json.loads(str(account.data))
    (counts,) = [line for line in told if line.startswith("rows: ")]
    rows = int(counts.split()[1].replace(",", ""))
    assert (row["dataset"], row["rows in"], row["rows out"], row["dropped"]) == ("plate.sqlite", rows, rows, "none")


def test_a_profile_names_the_server(served: Served, plate: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    profiles = f'active = "ours"\n[profiles.ours]\nPREFECT_API_URL = "{served.url}"\n'
    (tmp_path / "home" / "profiles.toml").write_text(profiles)
    program = (
        "import sys; from prefect_cytotable.flows import convert; "
        "from prefect_cytotable.tasks.core.progress import Lines; "
        f"convert(sys.argv[1], 'out.parquet', preset={SQLITE!r}, progress=Lines())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(plate)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=served.variables(PREFECT_HOME=str(tmp_path / "home")),
        timeout=SECONDS,
        check=True,
    )
    state = served.flow_run(done.stderr).state
    assert state is not None
    assert state.is_completed()
    assert "No Prefect server" not in done.stderr


def test_our_own_server_is_found_and_no_setting_stays(here: Served, plate: Path, tmp_path: Path, ear: Ear) -> None:
    before = dict(os.environ)
    convert(plate, "out.parquet", preset=SQLITE, progress=ear)
    assert here.flow_run(ear.text).state_name == "Completed"
    assert running.HOW_TO_SERVE not in ear.said
    assert os.environ == before
    assert PREFECT_API_URL.value() is None
    with no_server(here):  # as after `server stop`, in the same process
        convert(plate, "out.parquet", preset=SQLITE, overwrite=True, progress=(later := Ear()))
    assert running.HOW_TO_SERVE in later.said


def test_settings_of_a_prefect_that_is_imported_already_count(here: Served, plate: Path, ear: Ear) -> None:
    with no_server(here), temporary_settings({PREFECT_API_URL: here.url}):  # as prefect_test_harness does
        convert(plate, "out.parquet", preset=SQLITE, progress=ear)
    assert here.flow_run(ear.text).state_name == "Completed"


# --- the same bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sequential", "concurrent", "process", "dask", "address", "object"])
def test_every_runner_gives_the_bytes_of_a_local_run(
    name: str, here: Served, plate: Path, undisturbed: bytes, ear: Ear, request: pytest.FixtureRequest
) -> None:
    runner: str | TaskRunner[Any] = name
    if name == "address":
        runner = request.getfixturevalue("cluster")
    elif name == "object":
        runner = ThreadPoolTaskRunner(max_workers=3)
    path = convert(plate, "out.parquet", preset=SQLITE, chunk_size=ROWS, task_runner=runner, workers=2, progress=ear)
    assert Path(str(path)).read_bytes() == undisturbed
    assert reused(ear) == set()
    run = here.flow_run(ear.text)
    assert run.state_name == "Completed"
    assert run.parameters["task_runner"] == ("given" if name == "object" else runner)


def test_a_dask_cluster_gives_the_anndata_of_a_local_run(
    here: Served, served: Served, plate: Path, tmp_path: Path, cluster: str
) -> None:
    made = {"preset": SQLITE, "chunk_size": ROWS}
    with no_server(served), temporary_settings(restore_defaults={PREFECT_API_URL}):
        local = convert(plate, tmp_path / "local.h5ad", "anndata_h5ad", **made)
    path = convert(plate, "out.h5ad", "anndata_h5ad", task_runner=cluster, workers=2, **made)
    assert Path(str(path)).read_bytes() == Path(str(local)).read_bytes()


# --- done before --------------------------------------------------------------------------------------------


def damage_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_second_run_converts_only_what_is_missing_or_damaged(
    here: Served, plate: Path, names: list[str], undisturbed: bytes, tmp_path: Path
) -> None:
    work = tmp_path / "work"

    def again() -> tuple[Ear, dict[str, str]]:
        ear = Ear()
        path = convert(
            plate,
            "out.parquet",
            preset=SQLITE,
            chunk_size=ROWS,
            work_dir=work,
            keep_chunks=True,
            overwrite=True,
            progress=ear,
        )
        assert Path(str(path)).read_bytes() == undisturbed
        return ear, chunk_states(here, here.flow_run(ear.text), len(names))

    first, states = again()
    assert set(states.values()) == {"Completed"}
    keys = [one.key for one in first.results]
    assert [one.number for one in first.results] == list(range(len(names)))

    second, states = again()
    assert set(states.values()) == {"Cached"}
    assert reused(second) == set(keys)
    assert second.said[-1].startswith(f"{len(names)} chunk(s), {len(names)} of them done before")

    for number, harm in ((3, damage_a_byte), (5, shorten), (7, Path.unlink)):
        (part,) = work.glob(f"*/parts/{keys[number]}-*.parquet")
        harm(part)
    third, states = again()
    assert {name for name, state in states.items() if state != "Cached"} == {names[number] for number in (3, 5, 7)}
    assert set(keys) - reused(third) == {keys[number] for number in (3, 5, 7)}

    (record,) = work.glob(f"*/results/{keys[2]}")
    record.write_text("{")
    (work_folder,) = work.iterdir()
    (work_folder / "records" / f"{keys[4]}.json").write_text("{")
    fourth, states = again()
    assert {name for name, state in states.items() if state != "Cached"} == {names[2], names[4]}
    assert set(keys) - reused(fourth) == {keys[4]}  # of the other only Prefect's note was lost


@pytest.mark.parametrize("where", ["server", "local"])
def test_new_and_changed_sources_leave_the_other_chunks_done(where: str, here: Served, tmp_path: Path) -> None:
    source = tmp_path / "plates"
    for seed, name in enumerate(("b", "c")):
        database_of(source / f"{name}.sqlite", PlateShape(plate=name, wells=4, cells=12, seed=seed))

    def again(folder: str) -> tuple[Ear, bytes]:
        ear = Ear()
        arguments: dict[str, Any] = {"preset": SQLITE, "chunk_size": ROWS, "keep_chunks": True, "overwrite": True}
        path = convert(source, "out.parquet", work_dir=tmp_path / folder, progress=ear, **arguments)
        return ear, Path(str(path)).read_bytes()

    def steps() -> None:
        first, _ = again("work")
        of_b = {one.key for one in first.results if one.accounts[0].dataset.startswith("b")}
        assert 3 <= len(of_b) < len(first.results)
        executed(source / "c.sqlite", "UPDATE Per_Cells SET Cells_AreaShape_Area = 1 WHERE ImageNumber = 1")
        second, _ = again("work")
        assert reused(second) == of_b
        database_of(source / "a.sqlite", PlateShape(plate="a", wells=4, cells=12, seed=5))
        third, content = again("work")
        assert reused(third) == {one.key for one in second.results}  # and their numbers are others now
        assert len(third.results) > len(second.results)
        assert sorted(one.number for one in third.results) == list(range(len(third.results)))
        assert content == again("fresh")[1]

    if where == "server":
        steps()
    else:
        with no_server(here):
            steps()


# --- killed -------------------------------------------------------------------------------------------------

INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from prefect_cytotable.flows.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""


def test_a_worker_that_is_killed_costs_its_chunks_alone(
    here: Served, plate: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    class Killer(Ear):
        def advance(self, result: ChunkResult) -> None:
            if not self.results:
                for child in psutil.Process().children(recursive=True):
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
                        break
            super().advance(result)

    ear = Killer()
    path = convert(
        plate,
        "out.parquet",
        preset=SQLITE,
        chunk_size=ROWS,
        task_runner="process",
        workers=2,
        work_dir="work",
        progress=ear,
    )
    assert Path(str(path)).read_bytes() == undisturbed
    assert WorkerDiedError.AGAIN in ear.said
    assert here.flow_run(ear.text).state_name == "Completed"


@pytest.mark.parametrize("runner", ["process", "dask"])
def test_an_interrupted_command_says_one_line_and_leaves_no_worker(
    runner: str, here: Served, plate: Path, tmp_path: Path
) -> None:
    log = here.folder / f"interrupted-{runner}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", INTERRUPTIBLE, "convert", str(plate), "out.parquet", "--preset", SQLITE),
                *("--chunk-size", str(ROWS), "--runner", runner, "--work-dir", "work"),
            ],
            cwd=tmp_path,
            env=here.variables(PREFECT_API_URL=here.url),
            stderr=file,
            start_new_session=True,
        )
    until(lambda: [*tmp_path.glob("work/*/records/*.json")] or process.poll() is not None, pause=0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    assert process.wait(timeout=SECONDS) == 130, log.read_text()
    assert psutil.wait_procs(children, timeout=30)[1] == []
    told = log.read_text().splitlines()
    assert told[-1].startswith("Interrupted; what is done is kept")
    assert {line.split(" ")[0] for line in told} <= {"Flow", "chunks", "Interrupted;"}, log.read_text()
    assert not (tmp_path / "out.parquet").exists()


# --- inside something else ----------------------------------------------------------------------------------


def test_inside_a_flow_it_is_a_subflow_run(here: Served, plate: Path, undisturbed: bytes, ear: Ear) -> None:
    @flow(name="parent")
    def parent() -> str:
        return str(convert(plate, "out.parquet", preset=SQLITE, chunk_size=ROWS, progress=ear))

    with no_server(here), temporary_settings({PREFECT_API_URL: here.url}):
        assert Path(parent()).read_bytes() == undisturbed
    run = here.flow_run(ear.text)
    assert run.parent_task_run_id is not None
    (above,) = here.client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["parent"])))
    assert here.client.read_task_run(run.parent_task_run_id).flow_run_id == above.id
    assert run.state_name == "Completed"


def test_inside_a_task(here: Served, plate: Path, undisturbed: bytes, ear: Ear) -> None:
    @task
    def one(name: str) -> str:
        return str(convert(plate, name, preset=SQLITE, chunk_size=ROWS, progress=ear))

    @flow(name="many")
    def many() -> str:
        return one.submit("out.parquet").result()

    with no_server(here), temporary_settings({PREFECT_API_URL: here.url}):
        assert Path(many()).read_bytes() == undisturbed
    assert here.flow_run(ear.text).state_name == "Completed"


@pytest.mark.parametrize("where", ["server", "local"])
def test_inside_an_event_loop(where: str, here: Served, plate: Path, undisturbed: bytes, ear: Ear) -> None:
    async def main() -> str:
        return str(convert(plate, "out.parquet", preset=SQLITE, chunk_size=ROWS, progress=ear))

    if where == "local":
        with no_server(here):
            assert Path(asyncio.run(main())).read_bytes() == undisturbed
        return
    assert Path(asyncio.run(main())).read_bytes() == undisturbed
    run = here.flow_run(ear.text)
    assert run.state_name == "Completed"
    found = here.client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    )
    assert {one.key for one in found} == {"conversion-progress", "conversion-report", "row-account", "schema"}


# --- failures -----------------------------------------------------------------------------------------------


def test_bad_data_fails_with_our_error_here_and_there_and_is_not_tried_again(
    here: Served, tmp_path: Path, ear: Ear
) -> None:
    source = sites_of(tmp_path / "sites", PlateShape(wells=2, sites=1, cells=8))
    folder = sorted(path for path in source.iterdir() if path.is_dir())[0]
    edited(folder / "Nuclei.csv", lambda rows: [*rows, rows[1]])
    with pytest.raises(DuplicateKeyError, match="Nuclei") as caught:
        convert(source, "out.parquet", progress=ear)
    run = here.flow_run(ear.text)
    assert run.state is not None
    assert run.state.name == "Failed"
    assert str(caught.value) in str(run.state.message)
    failed = [one for one in here.tasks(run) if one.state_name == "Failed"]
    assert failed
    assert all(one.run_count == 1 for one in failed)
    assert all(str(caught.value) in str(one.state.message) for one in failed if one.state)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("runner", ["concurrent", "process"])
def test_orphans_that_are_forbidden_fail_the_run(runner: str, here: Served, tmp_path: Path, ear: Ear) -> None:
    source = database_of(tmp_path / "plate.sqlite", PLATE)
    executed(source, "DELETE FROM Per_Nuclei WHERE ImageNumber = 2")
    with pytest.raises(UnmatchedError, match='unmatched="error" forbids') as caught:
        convert(source, "out.parquet", preset=SQLITE, unmatched="error", task_runner=runner, workers=1, progress=ear)
    run = here.flow_run(ear.text)
    assert run.state is not None
    assert run.state.name == "Failed"
    assert str(caught.value) in str(run.state.message)
    assert {one.run_count for one in here.tasks(run) if one.state_name == "Failed"} == {1}
    assert not (tmp_path / "out.parquet").exists()


HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


def test_a_locked_database_is_tried_again(here: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.2)
    source = database_of(tmp_path / "plate.sqlite", PLATE)

    class Holder(Ear):
        process: subprocess.Popen[str] | None = None

        def start(self, chunks: int, rows: int) -> None:
            super().start(chunks, rows)
            self.process = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(source), "1.2"], stdout=subprocess.PIPE, text=True
            )
            assert self.process.stdout is not None
            assert self.process.stdout.readline() == "held\n"

    ear = Holder()
    convert(source, "out.parquet", preset=SQLITE, chunk_size=60, progress=ear)
    assert ear.process is not None
    ear.process.communicate(timeout=SECONDS)
    run = here.flow_run(ear.text)
    assert run.state_name == "Completed"
    counts = [one.run_count for one in here.tasks(run, ear.chunks + len(STAGES)) if one.name not in STAGES]
    assert max(counts) in (2, 3)


def test_wrong_arguments_are_told_before_any_flow_run(here: Served, plate: Path, ear: Ear) -> None:
    with pytest.raises(ArgumentError):
        convert(plate, "out.parquet", preset=SQLITE, unmatched="dorp", progress=ear)
    assert ear.said == []


def test_an_address_without_a_dask_scheduler(here: Served, plate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "CONNECT_SECONDS", 1)
    with pytest.raises(runners.DaskUnreachableError, match=r"tcp://127\.0\.0\.1:1 does not answer"):
        convert(plate, "out.parquet", preset=SQLITE, task_runner="tcp://127.0.0.1:1")


# --- a server that is not there -----------------------------------------------------------------------------


def test_a_server_that_is_down_is_a_clear_error(served: Served, plate: Path, tmp_path: Path) -> None:
    url = f"http://user:secret@{server.HOST}:{free_port()}/team/api"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "prefect_cytotable.flows.cli", "convert", str(plate), "out.parquet", "--preset", SQLITE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=served.variables(PREFECT_API_URL=url),
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert time.monotonic() - started < 20
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: The Prefect server {url.replace('user:secret@', '')} does not answer")
    assert "unset the variable PREFECT_API_URL" in line
    assert "secret" not in line
    assert listing(tmp_path) == []


def test_a_server_that_accepts_and_is_silent(
    here: Served, plate: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind((server.HOST, 0))
        silent.listen()
        monkeypatch.setenv("PREFECT_API_URL", f"http://{server.HOST}:{silent.getsockname()[1]}/api")
        with pytest.raises(ServerUnreachableError, match="no answer in time") as caught:
            convert(plate, "out.parquet", preset=SQLITE)
    assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize(("path", "cause"), [("", "404"), ("/docs", "404")])
def test_an_address_that_is_no_api(path: str, cause: str, here: Served) -> None:
    connection = Connection(here.url.removesuffix("/api") + path, Origin.ENVIRONMENT)
    with pytest.raises(ServerUnreachableError, match=cause), session.connected(connection):
        raise AssertionError("not reached")


@contextmanager
def forwarder(url: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Another address of a server, and what cuts the line."""
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    listener = socket.create_server((server.HOST, 0))
    lines: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((server.HOST, port))
                lines.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def cut() -> None:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for line in lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://{server.HOST}:{listener.getsockname()[1]}/api", cut
    cut()


class Cutter(Ear):
    """Cuts the line to the server where the chunks begin."""

    def __init__(self, cut: Callable[[], None]) -> None:
        super().__init__()
        self.cut = cut

    def start(self, chunks: int, rows: int) -> None:
        super().start(chunks, rows)
        self.cut()


NO_PATIENCE = {"client.max_retries": 0}


def test_a_server_that_is_lost_on_the_way_does_not_cost_the_output(
    here: Served, plate: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LOST_SECONDS", 0.2)
    with (
        forwarder(here.url) as (url, cut),
        no_server(here),
        temporary_settings({PREFECT_API_URL: url, **NO_PATIENCE}),
    ):
        ear = Cutter(cut)
        tell_all()  # what earlier tests left: events of this run go over the line
        path = convert(plate, "out.parquet", preset=SQLITE, chunk_size=ROWS, progress=ear)
    assert Path(str(path)).read_bytes() == undisturbed
    until(lambda: not senders(), "the end of what tells the server")  # else this process could not end for minutes
    assert "the server was not told" in ear.said[-1]
    assert listing(tmp_path) == ["out.parquet"]


def test_the_tasks_of_a_run_are_told_to_its_own_server(here: Served, plate: Path, names: list[str], ear: Ear) -> None:
    """Not to that of an earlier run in this process, which is gone."""
    tell_all()
    arguments: dict[str, Any] = {"preset": SQLITE, "chunk_size": ROWS}
    with forwarder(here.url) as (url, cut), no_server(here), temporary_settings({PREFECT_API_URL: url}):
        convert(plate, "first.parquet", **arguments)
        cut()
    convert(plate, "second.parquet", **arguments, progress=ear)
    states = here.states(here.flow_run(ear.text), len(names) + len(STAGES))
    assert set(states) == {*names, *STAGES}
    assert set(states.values()) == {"Completed"}


def test_what_is_left_is_told_where_an_event_loop_runs(here: Served, plate: Path) -> None:
    async def cell() -> bool:
        return tell_all()

    convert(plate, "out.parquet", preset=SQLITE, chunk_size=ROWS)
    assert senders()
    assert asyncio.run(cell())
    until(lambda: not senders())


def test_a_failure_and_a_lost_server_at_once(here: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LOST_SECONDS", 0.2)
    source = database_of(tmp_path / "plate.sqlite", PLATE)
    executed(source, "DELETE FROM Per_Nuclei WHERE ImageNumber = 2")
    with (
        forwarder(here.url) as (url, cut),
        no_server(here),
        temporary_settings({PREFECT_API_URL: url, **NO_PATIENCE}),
        pytest.raises((ServerUnreachableError, UnmatchedError)) as caught,
    ):
        convert(source, "out.parquet", preset=SQLITE, unmatched="error", progress=Cutter(cut))
    assert "forbids that" in str(caught.value) or "was lost during the run" in str(caught.value)


# --- from a deployment, and without a server ----------------------------------------------------------------

SERVE = """
from prefect_cytotable.flows.orchestrated import convert_flow
convert_flow.serve(name="tested")
"""


def test_a_served_deployment_takes_its_parameters_from_json(
    served: Served, plate: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            cwd=tmp_path,
            env=served.variables(PREFECT_API_URL=served.url, PREFECT_RUNNER_POLL_FREQUENCY="1"),
            stdout=file,
            stderr=file,
        )
        try:

            def deployment() -> Any:
                with suppress(Exception):
                    return served.client.read_deployment_by_name("convert/tested")
                return None

            found = until(deployment)
            parameters = {
                "source_path": str(plate),
                "dest_path": str(tmp_path / "out.parquet"),
                "preset": SQLITE,
                "chunk_size": ROWS,
                "task_runner": "process",
            }
            run = served.client.create_flow_run_from_deployment(found.id, parameters=parameters)

            def ended() -> FlowRun | None:
                now = served.client.read_flow_run(run.id)
                return now if now.state and now.state.is_final() else None

            assert until(ended).state_name == "Completed", log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    assert (tmp_path / "out.parquet").read_bytes() == undisturbed


def test_dask_without_a_server_starts_one_for_the_run(
    served: Served, plate: Path, names: list[str], undisturbed: bytes, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    with (  # a database that is there already: to make one is Prefect's business, and takes 10 s
        closing(sqlite3.connect(served.folder / "server" / "prefect.db")) as old,
        closing(sqlite3.connect(tmp_path / "home" / "prefect.db")) as new,
    ):
        old.backup(new)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "prefect_cytotable.flows.cli", "convert", str(plate), "out.parquet"),
            *("--preset", SQLITE, "--chunk-size", str(ROWS), "--runner", "dask", "--workers", "2"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=served.variables(PREFECT_HOME=str(tmp_path / "home")),
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert told[0] == running.EPHEMERAL
    begins = dict.fromkeys(line.split(":")[0].split(" ")[0] for line in told[1:])  # a slow one tells its chunks often
    assert [*begins] == [*TOLD[1:], str(len(names))], told
    assert (tmp_path / "out.parquet").read_bytes() == undisturbed


def test_a_server_for_one_run_has_time_to_start() -> None:
    with session.connected(None, elsewhere=True):
        assert PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value() == session.EPHEMERAL_SECONDS
    with (
        temporary_settings({PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 30}),
        session.connected(None, elsewhere=True),
    ):
        assert PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value() == 30  # what the user says stands
