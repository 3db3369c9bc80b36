"""Copies of objects on this machine: fetched once, whole, with a look at the disk first."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty import Fault, Faulty
from place_servers import Bucket, Server

from prefect_cytotable.tasks.core.errors import DiskSpaceError, SourceChangedError
from prefect_cytotable.tasks.core.places import PlaceDeniedError, Places, base, cache

BLOCK = 256 << 10
DATA = os.urandom(1 << 10) * 700

LOCAL = """
import sys
from prefect_cytotable.tasks.core.places import Places, base
base.BLOCK = 256 << 10
sys.stdin.readline()
print(Places(eval(sys.argv[1])).local(sys.argv[2], int(sys.argv[3]), sys.argv[4]))
"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BLOCK", BLOCK)


@pytest.fixture
def scheme() -> str:
    """One service: the cache is the same for all."""
    return "s3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def left(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] or path.name for path in folder.iterdir())


def test_a_copy_is_fetched_once_and_has_the_name_of_the_object(
    bucket: Bucket, through: Places, proxy: Faulty, folder: Path
) -> None:
    bucket.put("plates/a.sqlite", DATA)
    entry = through.entry(bucket.url("plates/a.sqlite"))
    copy = through.local(entry.path, entry.size, entry.mark)
    assert copy.read_bytes() == DATA
    assert copy.parent == folder
    assert copy.name.endswith("-a.sqlite")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    asked = len(proxy.requests)
    assert through.local(entry.path, entry.size, entry.mark) == copy
    assert len(proxy.requests) == asked
    through.forget([(entry.path, entry.mark), (bucket.url("other"), "x")])
    assert left(folder) == []


def test_two_processes_and_many_threads_fetch_it_once(
    bucket: Bucket, through: Places, proxy: Faulty, folder: Path
) -> None:
    bucket.put("a.sqlite", DATA)
    entry = through.entry(bucket.url("a.sqlite"))
    command = [sys.executable, "-c", LOCAL, repr(through.storage), entry.path, str(entry.size), entry.mark]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    others = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    try:
        for other in others:
            other.stdin.write("\n")
            other.stdin.flush()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: through.local(entry.path, entry.size, entry.mark), range(8)))
        texts = [other.communicate(timeout=120)[0].strip() for other in others]
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert {str(path) for path in found} | set(texts) == {str(found[0])}
    assert found[0].read_bytes() == DATA
    assert proxy.count("GET", "/a.sqlite") == -(-len(DATA) // BLOCK)
    assert left(folder) == ["a.sqlite"]


def test_a_changed_object_is_another_copy_and_the_old_one_is_not_taken_for_it(
    bucket: Bucket, places: Places, folder: Path
) -> None:
    url = bucket.url("a.sqlite")
    bucket.put("a.sqlite", b"first")
    old = places.entry(url)
    first = places.local(url, old.size, old.mark)
    bucket.put("a.sqlite", b"other")
    new = places.entry(url)
    second = places.local(url, new.size, new.mark)
    assert first != second
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"other")
    places.forget([(url, old.mark)])
    assert not first.exists()
    with pytest.raises(SourceChangedError):
        places.local(url, old.size, old.mark)
    Path(f"{second}-wal").write_text("SQLite's")
    places.forget([(url, new.mark)])
    assert left(folder) == []


def test_a_copy_of_the_wrong_size_is_fetched_again(bucket: Bucket, places: Places) -> None:
    bucket.put("a.sqlite", DATA)
    entry = places.entry(bucket.url("a.sqlite"))
    copy = places.local(entry.path, entry.size, entry.mark)
    copy.write_bytes(DATA[:100])
    assert places.local(entry.path, entry.size, entry.mark).read_bytes() == DATA
    with pytest.raises(SourceChangedError, match="bytes that were listed"):
        places.local(entry.path, entry.size - 1, entry.mark)


def test_an_object_that_does_not_come_leaves_nothing(
    bucket: Bucket, through: Places, proxy: Faulty, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "PATIENCE_SECONDS", 0.0)
    bucket.put("a.sqlite", DATA)
    entry = through.entry(bucket.url("a.sqlite"))
    proxy.add(Fault("reset", path="/a.sqlite", after=1000, skip=1, times=10**6))
    with pytest.raises(ConnectionError):
        through.local(entry.path, entry.size, entry.mark)
    assert left(folder) == []
    proxy.clear()
    assert through.local(entry.path, entry.size, entry.mark).read_bytes() == DATA


def test_what_a_killed_process_left_is_swept_and_what_another_fetches_is_not(
    bucket: Bucket, places: Places, folder: Path
) -> None:
    folder.mkdir()
    dead, alive, mine = "d" * 32, "a" * 32, {"mine.txt", "mine.part", "mine.lock", "aa-x.part"}
    for digest in (dead, alive):
        (folder / f"{digest}-x.sqlite.part").write_text("half")
        (folder / f"{digest}.lock").touch()
    for name in mine:
        (folder / name).write_text("x")
    with (folder / f"{alive}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        bucket.put("a.sqlite", DATA)
        entry = places.entry(bucket.url("a.sqlite"))
        copy = places.local(entry.path, entry.size, entry.mark)
        assert {path.name for path in folder.iterdir()} == {
            copy.name,
            *mine,
            f"{alive}-x.sqlite.part",
            f"{alive}.lock",
        }
    cache.prepare(folder)
    assert {path.name for path in folder.iterdir()} == {copy.name, *mine}


def test_a_copy_that_does_not_fit_the_disk_is_refused_before_a_byte_comes(
    bucket: Bucket, through: Places, proxy: Faulty, folder: Path
) -> None:
    bucket.put("a.sqlite", b"x")
    url, mark = bucket.url("a.sqlite"), "m"
    with pytest.raises(DiskSpaceError, match=r"needs 909\.5 TiB, and .* are free.*local_cache_dir") as caught:
        through.local(url, 10**15, mark)
    assert str(folder) in str(caught.value)
    assert url in str(caught.value)
    assert left(folder) == []
    assert proxy.requests == []


def test_copies_that_are_under_way_count_as_used(bucket: Bucket, places: Places, folder: Path) -> None:
    bucket.put("a.sqlite", DATA)
    entry = places.entry(bucket.url("a.sqlite"))
    folder.mkdir()
    status = os.statvfs(folder)
    with (folder / f"{'a' * 32}-x.part").open("wb") as other, (folder / f"{'a' * 32}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other.truncate(2 * status.f_bavail * status.f_frsize)
        other.flush()
        with pytest.raises(DiskSpaceError):
            places.local(entry.path, entry.size, entry.mark)
    assert places.local(entry.path, entry.size, entry.mark).read_bytes() == DATA


def test_a_full_disk_is_told_with_the_way_out(
    bucket: Bucket, places: Places, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    bucket.put("a.sqlite", DATA)
    entry = places.entry(bucket.url("a.sqlite"))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskSpaceError, match="local_cache_dir"):
        places.local(entry.path, entry.size, entry.mark)
    assert left(folder) == []


def test_a_folder_of_somebody_else_is_refused(
    bucket: Bucket, places: Places, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(PlaceDeniedError, match=r"belongs to somebody else.*local_cache_dir"):
        places.local(bucket.url("a"), 1, "m")
    assert left(folder) == []


def test_the_folder_of_this_user_is_his_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    own = cache.cache_folder(())
    assert own == tmp_path / f"prefect-cytotable-cache-{os.getuid()}"
    own.mkdir(mode=0o755)
    cache.prepare(own)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    own.rmdir()
    (tmp_path / "trap").mkdir()
    own.symlink_to(tmp_path / "trap")
    with pytest.raises(PlaceDeniedError):
        cache.prepare(own)


def test_names_of_copies_fit_every_file_system(server: Server) -> None:
    names = [
        cache.copy_name(f"s3://b/{key}", "m", ())
        for key in ("ü" * 400 + ".sqlite", "a\nb\\c.sqlite", "x/../.sqlite", "." * 300 + ".sqlite")
    ]
    assert all(len(name.encode()) < 220 and name.endswith(".sqlite") for name in names)
    assert not any(set(name) & {"/", "\n", "\\"} for name in names)
    one = cache.copy_name("s3://b/k", "m", ())
    assert one != cache.copy_name("s3://b/k", "n", ())
    assert one != cache.copy_name("gs://b/k", "m", ())
    assert one != cache.copy_name("s3://b/k", "m", (("endpoint_url", "http://127.0.0.1:1"),))
    assert one == cache.copy_name("s3://b/k", "m", (("local_cache_dir", "/x"), ("region", "y")))
