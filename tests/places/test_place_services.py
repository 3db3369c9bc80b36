"""What reading and writing objects gives, the same for every service."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from place_servers import Bucket

from prefect_cytotable.tasks.core.errors import (
    DestinationExistsError,
    SourceChangedError,
    SourceNotFoundError,
)
from prefect_cytotable.tasks.core.places import Entry, PlaceError, Places, base, clients, remote

BLOCK = 256 << 10
"""Blocks of the tests: what is for objects of gigabytes happens to some of a megabyte."""

AWKWARD = "a b/ü'\"&%+#;=/x,y (1).csv"


def pattern(size: int) -> bytes:
    """Bytes that differ from block to block."""
    return b"".join(number.to_bytes(8, "big") for number in range(size // 8 + 1))[:size]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BLOCK", BLOCK)


def test_a_listing_tells_what_lies_below_and_nothing_beside(bucket: Bucket, places: Places) -> None:
    for key in ("plate/a.csv", "plate/b/c.csv", "plate/b/._c.csv", "plate/.out.prefect-cytotable/parts/x", "plate2/d"):
        bucket.put(key, key.encode())
    bucket.put("plate/folder/", b"")
    found = {entry.path: entry for entry in places.entries(bucket.url("plate"))}
    assert sorted(found) == [bucket.url("plate/a.csv"), bucket.url("plate/b/c.csv")]
    for path, entry in found.items():
        assert entry.size == len(path.removeprefix(bucket.url() + "/"))
        assert entry.mark
        assert entry.modified > 1_600_000_000 * 10**9
        assert places.entry(path) == entry or abs(places.entry(path).modified - entry.modified) < 10**9
        assert places.entry(path).mark == entry.mark
    assert {entry.path for entry in places.entries(bucket.url())} == {*found, bucket.url("plate2/d")}
    assert list(places.entries(bucket.url("pla"))) == []


def test_a_listing_of_one_object_is_that_object(bucket: Bucket, places: Places) -> None:
    bucket.put("plate.sqlite", b"12345")
    (only,) = places.entries(bucket.url("plate.sqlite"))
    assert (only.path, only.size) == (bucket.url("plate.sqlite"), 5)
    assert list(places.entries(bucket.url("plate"))) == []


def test_what_is_not_there_is_told_so(bucket: Bucket, places: Places, tmp_path: Path) -> None:
    assert places.entry(bucket.url("none.csv")) is None
    with pytest.raises(SourceNotFoundError, match=r"none\.csv"):
        places.read(bucket.url("none.csv"))
    with pytest.raises(SourceNotFoundError, match=r"none\.csv"), places.open(bucket.url("none.csv")):
        pass
    with pytest.raises(SourceNotFoundError, match=r"none\.csv"):
        places.download(bucket.url("none.csv"), tmp_path / "x")
    missing = f"{bucket.scheme}://no-such-bucket-here/plate"
    with pytest.raises(SourceNotFoundError, match="no-such-bucket-here"):
        list(places.entries(missing))
    with pytest.raises(SourceNotFoundError, match="no-such-bucket-here"):
        places.write(f"{missing}/x.json", b"{}")
    places.remove(bucket.url("none.csv"))
    assert [path.name for path in tmp_path.iterdir()] == []


def test_ranges_are_the_bytes_that_were_asked_for(bucket: Bucket, places: Places) -> None:
    data = pattern(3 * BLOCK + 17)
    bucket.put("a.bin", data)
    bucket.put("empty", b"")
    url = bucket.url("a.bin")
    mark = places.entry(url).mark
    for start, stop in (
        (0, None),
        (5, None),
        (0, 10),
        (BLOCK - 1, BLOCK + 1),
        (len(data) - 3, len(data) + 100),
        (7, 7),
    ):
        assert places.read(url, start, stop) == data[start:stop], (start, stop)
        assert places.read(url, start, stop, mark) == data[start:stop], (start, stop)
    assert places.read(url, len(data)) == b""
    assert places.read(url, len(data) + 5, len(data) + 9, mark) == b""
    assert places.read(bucket.url("empty")) == b""
    assert places.read(bucket.url("empty"), 0, 10) == b""


def test_many_small_objects_come_in_order(bucket: Bucket, places: Places) -> None:
    for number in range(20):
        bucket.put(f"{number}.csv", f"x\n{number}\n".encode())
    pairs = [(entry.path, entry.mark) for entry in places.entries(bucket.url())]
    expected = [path.rpartition("/")[2].removesuffix(".csv") for path, _ in pairs]
    assert [data.decode().split()[1] for data in places.read_many(pairs)] == expected
    assert len(pairs) == 20


def test_a_stream_gives_every_byte_once(bucket: Bucket, places: Places) -> None:
    data = pattern(5 * BLOCK + 3)
    bucket.put("a.bin", data)
    bucket.put("empty", b"")
    with places.open(bucket.url("a.bin")) as stream:
        assert stream.read(5) == data[:5]
        assert stream.read(BLOCK) == data[5 : BLOCK + 5]
        assert stream.read() == data[BLOCK + 5 :]
        assert stream.read(1) == b""
    with places.open(bucket.url("empty")) as stream:
        assert stream.read() == b""
    bucket.put("lines", b"one\ntwo\nthree")
    with places.open(bucket.url("lines"), places.entry(bucket.url("lines")).mark) as stream:
        assert list(stream) == [b"one\n", b"two\n", b"three"]


def test_downloads_are_whole(bucket: Bucket, places: Places, tmp_path: Path) -> None:
    data = pattern(6 * BLOCK + 1)
    bucket.put("a.bin", data)
    bucket.put("empty", b"")
    places.download(bucket.url("a.bin"), tmp_path / "a")
    places.download(bucket.url("empty"), tmp_path / "empty")
    assert (tmp_path / "a").read_bytes() == data
    assert (tmp_path / "empty").read_bytes() == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


@pytest.mark.parametrize("size", [0, 5, BLOCK, BLOCK + 1, 9 * BLOCK + 11])
def test_what_is_uploaded_is_what_is_there(bucket: Bucket, places: Places, tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(pattern(size))
    entry = places.upload(tmp_path / "a", bucket.url("out/a.parquet"), overwrite=False)
    assert bucket.get("out/a.parquet") == pattern(size)
    assert (entry.path, entry.size) == (bucket.url("out/a.parquet"), size)
    assert places.entry(entry.path) == entry
    assert bucket.keys() == ["out/a.parquet"]
    assert bucket.open_uploads() == 0


@pytest.mark.parametrize("size", [5, 3 * BLOCK])
def test_what_is_there_is_replaced_only_on_demand(bucket: Bucket, places: Places, tmp_path: Path, size: int) -> None:
    (tmp_path / "new").write_bytes(pattern(size))
    bucket.put("a", b"old")
    with pytest.raises(DestinationExistsError, match="overwrite=True"):
        places.upload(tmp_path / "new", bucket.url("a"), overwrite=False)
    assert bucket.get("a") == b"old"
    before = places.entry(bucket.url("a")).mark
    assert places.upload(tmp_path / "new", bucket.url("a"), overwrite=True).mark != before
    assert bucket.get("a") == pattern(size)
    assert bucket.open_uploads() == 0


@pytest.mark.parametrize("size", [5, 3 * BLOCK])
def test_the_service_itself_refuses_to_replace(
    bucket: Bucket, places: Places, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run writes after this one looked: only a condition of the request itself keeps its output."""
    (tmp_path / "new").write_bytes(pattern(size))
    monkeypatch.setattr(remote.Remote, "entry", lambda self, path: bucket.put("a", b"theirs"))
    with pytest.raises(DestinationExistsError, match="overwrite=True"):
        places.upload(tmp_path / "new", bucket.url("a"), overwrite=False)
    assert bucket.get("a") == b"theirs"
    assert bucket.open_uploads() == 0


def test_what_another_put_in_its_place_is_not_taken_for_ours(
    bucket: Bucket, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = clients.service(bucket.scheme, places.storage)
    real = type(service).put

    def put(self: object, at: object, *rest: object) -> None:
        real(self, at, *rest)
        bucket.put("a", b"theirs")

    monkeypatch.setattr(type(service), "put", put)
    with pytest.raises(PlaceError, match="replaced or removed by somebody else"):
        places.write(bucket.url("a"), b"ours!!")
    assert bucket.get("a") == b"theirs"


def test_small_objects_are_written_replaced_and_removed(bucket: Bucket, places: Places) -> None:
    url = bucket.url("records/a.json")
    first = places.write(url, b'{"a": 1}')
    assert places.read(url) == b'{"a": 1}'
    assert places.write(url, b'{"a": 2}').mark != first.mark
    assert places.read(url) == b'{"a": 2}'
    places.remove(url)
    places.remove(url)
    assert places.entry(url) is None
    assert bucket.keys() == []


def test_a_changed_object_is_noticed_by_every_way_of_reading(bucket: Bucket, places: Places, tmp_path: Path) -> None:
    url = bucket.url("a.bin")
    bucket.put("a.bin", b"first content")
    mark = places.entry(url).mark
    bucket.put("a.bin", b"other content")
    for read in (
        lambda: places.read(url, mark=mark),
        lambda: places.read(url, 2, 5, mark),
        lambda: places.read_many([(url, mark), (url, mark)]),
        lambda: places.open(url, mark).__enter__(),
        lambda: places.download(url, tmp_path / "x", mark),
        lambda: places.local(url, 13, mark),
    ):
        with pytest.raises(SourceChangedError, match="changed"):
            read()
    assert not (tmp_path / "x").exists()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_stream_does_not_mix_two_contents(bucket: Bucket, places: Places) -> None:
    bucket.put("a.bin", pattern(8 * BLOCK))
    with pytest.raises(SourceChangedError), places.open(bucket.url("a.bin")) as stream:
        stream.read(10)
        bucket.put("a.bin", bytes(8 * BLOCK))
        stream.read()


def test_names_are_taken_as_they_are(bucket: Bucket, places: Places) -> None:
    entry = places.write(bucket.url(AWKWARD), b"x")
    assert bucket.keys() == [AWKWARD]
    assert places.read(entry.path) == b"x"
    assert [one.path for one in places.entries(bucket.url("a b"))] == [entry.path]


def test_places_are_small_and_go_to_other_processes(bucket: Bucket, places: Places) -> None:
    places.write(bucket.url("a"), b"x")
    packed = pickle.dumps(places)
    assert len(packed) < 500
    assert pickle.loads(packed).read(bucket.url("a")) == b"x"
    assert pickle.loads(pickle.dumps(Entry("s3://b/k", 1, 2, "m"))) == Entry("s3://b/k", 1, 2, "m")
