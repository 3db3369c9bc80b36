"""Parts and their records: only what is whole and unaltered counts as done."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from small import plan_source, tables, write_csv

from prefect_cytotable.tasks.core.chunk import convert_chunk
from prefect_cytotable.tasks.core.errors import DestinationBusyError
from prefect_cytotable.tasks.core.locks import lock
from prefect_cytotable.tasks.core.model import ChunkResult, Plan
from prefect_cytotable.tasks.core.places.files import whole
from prefect_cytotable.tasks.core.store import LocalStore, load_plan, neighbour


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_source(write_csv(tmp_path / "plate", tables({1: 3})))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(str(tmp_path / "work"))
    store.prepare()
    return store


@pytest.fixture
def done(plan: Plan, store: LocalStore) -> ChunkResult:
    return convert_chunk(plan, plan.chunks[0], store)


def test_a_chunk_that_is_done_is_not_converted_again(plan: Plan, store: LocalStore, done: ChunkResult) -> None:
    assert not done.reused
    again = convert_chunk(plan, plan.chunks[0], store)
    assert again.reused
    assert replace(again, reused=False) == done


@pytest.mark.parametrize("damage", ["missing", "shorter", "altered", "longer"])
def test_a_record_of_a_damaged_part_is_not_trusted(
    plan: Plan, store: LocalStore, done: ChunkResult, damage: str
) -> None:
    part = Path(done.parts[0].path)
    data = part.read_bytes()
    if damage == "missing":
        part.unlink()
    else:
        middle = len(data) // 2
        changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        part.write_bytes({"shorter": data[:-1], "longer": data + b"x", "altered": changed}[damage])
    assert store.load(done.key) is None
    again = convert_chunk(plan, plan.chunks[0], store)
    assert not again.reused
    assert part.read_bytes() == data


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"key": 5}', b"\xff\xfe"])
def test_a_record_that_is_none_is_not_trusted(store: LocalStore, done: ChunkResult, text: bytes) -> None:
    (store.records / f"{done.key}.json").write_bytes(text)
    assert store.load(done.key) is None


def test_a_record_of_another_chunk_is_not_trusted(store: LocalStore, done: ChunkResult) -> None:
    record = store.records / f"{done.key}.json"
    record.rename(store.records / "other.json")
    assert store.load("other") is None
    assert store.load(done.key) is None


def test_a_plan_comes_back_as_it_was(plan: Plan, store: LocalStore) -> None:
    assert load_plan(store.save_plan(plan)) == plan


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.parquet"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    with whole(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_what_a_killed_run_left_half_done_is_swept_and_nothing_else(
    tmp_path: Path, store: LocalStore, done: ChunkResult
) -> None:
    strangers = [Path(store.folder) / "mine.txt", store.parts / "mine.parquet"]
    left = [
        Path(store.folder) / "plan-0123.json",
        Path(store.folder) / ".tmp-0123",
        store.parts / ".tmp-0123-a.parquet",
        store.records / ".tmp-0123-a.json",
    ]
    for path in (*strangers, *left):
        path.write_text("x")
    (Path(store.folder) / ".tmp-folder").mkdir()
    (Path(store.folder) / ".tmp-folder" / "x").write_text("x")
    store.sweep()
    assert not any(path.exists() for path in (*left, Path(store.folder) / ".tmp-folder"))
    assert all(path.exists() for path in strangers)
    assert store.load(done.key) is not None
    LocalStore(str(tmp_path / "nothing")).sweep()


def test_interrupted_files_beside_the_destination_go_with_the_next_run(tmp_path: Path, run) -> None:
    folder = neighbour(tmp_path / "out.parquet")
    (folder / "parts").mkdir(parents=True)
    (folder / ".tmp-0123").write_text("half an output")
    (folder / "parts" / ".tmp-0123-x.parquet").write_text("half a part")
    run(write_csv(tmp_path / "plate", tables({1: 3})), tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "out.report.html", "plate"]


def test_the_second_run_to_a_destination_is_refused(tmp_path: Path, run) -> None:
    source = write_csv(tmp_path / "plate", tables({1: 3}))
    destination = tmp_path / "out.parquet"
    with (
        lock(neighbour(destination), str(destination)),
        pytest.raises(DestinationBusyError, match=r"out\.parquet: another run is writing there"),
    ):
        run(source, destination)
    assert not destination.exists()
    run(source, destination)
    assert destination.exists()


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    folder = neighbour(tmp_path / "out.parquet")
    code = (
        "import sys; from pathlib import Path; from prefect_cytotable.tasks.core.locks import lock\n"
        "with lock(Path(sys.argv[1]), 'out'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DestinationBusyError), lock(folder, "out"):
            pass
        other.kill()
    with lock(folder, "out"):
        pass


def test_a_lock_that_an_ending_run_takes_away_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened before the other run removes it, and locked after."""
    folder = neighbour(tmp_path / "out.parquet")
    path = folder / "lock"
    real, calls = fcntl.flock, []

    def slow(file: IO[str], operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            path.unlink()
            path.parent.rmdir()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with lock(folder, "out"):
        assert path.exists()
        with pytest.raises(DestinationBusyError), lock(folder, "out"):
            pass


def test_a_long_name_fits_its_temporary_neighbour(tmp_path: Path, run) -> None:
    name = "p" * 200 + ".parquet"
    table = run(write_csv(tmp_path / "plate", tables({1: 3})), tmp_path / name)
    assert table.num_rows == 3


FIRST = """
import sys, threading
from pathlib import Path
import msgspec
from prefect_cytotable.tasks.core import store
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)
def first():
    barrier.wait()
    try:
        store.load_plan(sys.argv[1])
    except msgspec.ValidationError:
        pass
threads = [threading.Thread(target=first) for _ in range(8)]
for one in threads: one.start()
for one in threads: one.join()
"""


def test_threads_that_read_a_plan_at_once_do_not_crash_the_process(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    for _ in range(3):
        subprocess.run([sys.executable, "-c", FIRST, str(tmp_path / "plan.json")], check=True, timeout=60)


def test_records_of_an_earlier_state_go_with_their_parts_and_results(store: LocalStore, done: ChunkResult) -> None:
    old = "0123456789abcdef" * 2
    (store.records / f"{old}.json").write_text("{}")
    (store.parts / f"{old}-0.parquet").write_text("x")
    (store.parts / "mine.parquet").write_text("x")
    (store.records / "mine.json").write_text("x")
    store.results.mkdir()
    (store.results / old).write_text(f'{{"result": [{{"key": "{old}"}}]}}')
    (store.results / "batch-of-two").write_text(f'[{{"key": "{done.key}"}}, {{"key": "{old}"}}]')
    (store.results / "batch-of-one").write_text(f'[{{"key": "{done.key}"}}]')
    store.drop_others({done.key})
    assert store.load(done.key) is not None
    assert sorted(path.name for path in store.results.iterdir()) == ["batch-of-one"]
    assert (store.parts / "mine.parquet").exists()
    assert (store.records / "mine.json").exists()
    assert not list(store.parts.glob(f"{old}*"))
    assert not list(store.records.glob(f"{old}*"))
