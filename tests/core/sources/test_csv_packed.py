"""Compressed CSV files: read as the plain file is, whole or by stretches of what they unpack to."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources import csv_index
from prefect_cytotable.tasks.core.sources.base import Keys, Request
from prefect_cytotable.tasks.core.sources.csv import CsvReader
from prefect_cytotable.tasks.core.sources.registry import forget

KEYS = Keys("ImageNumber", "ObjectNumber")
INT, DOUBLE, TEXT = ColumnType.INT64, ColumnType.DOUBLE, ColumnType.STRING
PLANNED = (("ImageNumber", INT), ("ObjectNumber", INT), ("Area", DOUBLE), ("Note", TEXT))


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd, ".GZ": gzip.compress}


def rows(images: int = 6, objects: int = 9) -> bytes:
    lines = ["ImageNumber,ObjectNumber,Area,Note"]
    for image in range(1, images + 1):
        lines += [f'{image},{number},{image + number / 8},"n, {number}"' for number in range(1, objects + 1)]
    return "".join(f"{line}\n" for line in lines).encode()


def written(path: Path, data: bytes) -> Source:
    path.write_bytes(data)
    status = path.stat()
    return Source("cells", str(path), Format.CSV, Fingerprint(status.st_size, status.st_mtime_ns))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places((("local_cache_dir", str(tmp_path / "cache")),))


@pytest.fixture
def plain(tmp_path: Path) -> Source:
    return written(tmp_path / "Cells.csv", rows())


@pytest.mark.parametrize("ending", PACKERS)
def test_a_packed_file_is_read_as_the_plain_one(tmp_path: Path, places: Places, plain: Source, ending: str) -> None:
    packed = written(tmp_path / f"Cells.csv{ending}", PACKERS[ending](rows()))
    reader = CsvReader(places)
    assert reader.columns(packed) == reader.columns(plain)
    assert reader.count(packed) == reader.count(plain) == 54
    ours, theirs = (reader.sample([one], 1 << 20, measures=True) for one in (packed, plain))
    assert (ours.types, ours.row_bytes) == (theirs.types, theirs.row_bytes)
    assert 0 < ours.text_bytes < theirs.text_bytes
    assert ours.held_bytes == theirs.held_bytes
    assert reader.index([packed], KEYS, True) == reader.index([plain], KEYS, True)
    assert reader.objects(packed, KEYS, 3) == list(range(1, 10))
    assert reader.read(Request(packed, KEYS, PLANNED)).table.equals(reader.read(Request(plain, KEYS, PLANNED)).table)
    assert not (tmp_path / "cache").exists()  # nothing so far needed a copy


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("block", [40, 1 << 20])
def test_each_image_is_found_in_the_unpacked_copy_which_then_goes(
    tmp_path: Path, places: Places, plain: Source, monkeypatch: pytest.MonkeyPatch, ending: str, block: int
) -> None:
    monkeypatch.setattr(csv_index, "BLOCK_BYTES", block)
    packed = written(tmp_path / f"Cells.csv{ending}", PACKERS[ending](rows()))
    reader = CsvReader(places)
    (index,) = reader.index([packed], KEYS, True)
    for one in index.images:
        table = reader.read(Request(packed, KEYS, PLANNED, (one.image, one.image), spans=one.spans)).table
        alone = reader.read(Request(plain, KEYS, PLANNED, (one.image, one.image), spans=one.spans)).table
        assert table.equals(alone)
        assert table["ImageNumber"].to_pylist() == [one.image] * 9
    (copy,) = (tmp_path / "cache").glob("*.unpacked")
    assert copy.read_bytes() == rows()
    forget([packed], places)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_of_several_members_is_their_sum(tmp_path: Path, places: Places, ending: str) -> None:
    """As `cat a.gz b.gz` makes it, or a program that compresses as it goes."""
    data = rows()
    pieces = [data[:50], data[50:1000], b"", data[1000:]]
    packed = written(tmp_path / f"Cells.csv{ending}", b"".join(map(PACKERS[ending], pieces)))
    reader = CsvReader(places)
    assert reader.count(packed) == 54
    assert reader.read(Request(packed, KEYS, PLANNED)).table.num_rows == 54
    (index,) = reader.index([packed], KEYS, True)
    assert index.rows == 54
    last = index.images[-1]
    assert reader.read(Request(packed, KEYS, PLANNED, (6, 6), spans=last.spans)).table.num_rows == 9


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut off", "not packed", "altered", "another format", "rubbish behind"])
def test_what_cannot_be_unpacked_is_a_bad_source(tmp_path: Path, places: Places, ending: str, damage: str) -> None:
    data = PACKERS[ending](rows())
    middle = len(data) // 2 if ending == ".gz" else 5  # zstd need not have a checksum: its header then
    data = {
        "cut off": data[:-9],
        "not packed": rows(),
        "altered": data[:middle] + bytes(one ^ 0x55 for one in data[middle : middle + 20]) + data[middle + 20 :],
        "another format": (zstd if ending == ".gz" else gzip.compress)(rows()),
        "rubbish behind": data + b"rubbish that is no member of anything",
    }[damage]
    packed = written(tmp_path / f"Cells.csv{ending}", data)
    reader = CsvReader(places)
    name = {".gz": "gzip", ".zst": "zstd"}[ending]
    for step in (
        lambda: reader.index([packed], KEYS, True),
        lambda: reader.read(Request(packed, KEYS, PLANNED)),
    ):
        with pytest.raises(BadSourceError, match=f"cannot be unpacked as {name}") as caught:
            step()
        assert caught.value.source == packed.path
        assert "Compress or copy the file again" in str(caught.value)
    assert reader.count(packed) is None
    if damage in ("not packed", "another format"):
        with pytest.raises(BadSourceError, match=f"cannot be unpacked as {name}"):
            reader.columns(packed)
    assert not list((tmp_path / "cache").glob("*.unpacked"))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_packed_nothing_is_an_empty_file(tmp_path: Path, places: Places, ending: str) -> None:
    packed = written(tmp_path / f"Cells.csv{ending}", PACKERS[ending](b""))
    with pytest.raises(BadSourceError, match="the file is empty"):
        CsvReader(places).columns(packed)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([".gz", ".zst"]))
def test_a_packed_file_cut_off_anywhere_is_bad(tmp_path_factory: pytest.TempPathFactory, cut: int, ending: str) -> None:
    data = PACKERS[ending](rows())
    folder = tmp_path_factory.mktemp("cut")
    packed = written(folder / f"Cells.csv{ending}", data[: cut % len(data)])
    reader = CsvReader(Places((("local_cache_dir", str(folder / "cache")),)))
    with pytest.raises(BadSourceError):
        reader.read(Request(packed, KEYS, PLANNED))
    with pytest.raises(BadSourceError):
        reader.columns(packed)
        reader.index([packed], KEYS, True)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_many_packed_files_are_read_together(tmp_path: Path, places: Places, ending: str) -> None:
    sources = [written(tmp_path / f"{number}.csv{ending}", PACKERS[ending](rows(number, 2))) for number in range(1, 4)]
    together = CsvReader(places).read_together([Request(one, KEYS, PLANNED) for one in sources])
    assert together is not None
    assert together.counts == (2, 4, 6)
    assert together.order.tolist() == [0] * 2 + [1] * 4 + [2] * 6
    assert together.table["ImageNumber"].to_pylist() == [1, 1, *(1, 1, 2, 2), *(1, 1, 2, 2, 3, 3)]
