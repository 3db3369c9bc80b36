"""IN Carta: any CSV file is a table of objects without keys, whose columns and rows keep their order."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import converted

from prefect_cytotable.flows import convert

pytestmark = pytest.mark.usefixtures("local")

PRESET = {"preset": "in-carta"}
NAMES = ("OBJECT ID", "Row", "Column", "WELL LABEL", "Zeta Intensity wv1", "Area (SOI) wv1", "Class Name")


def rows_of(count: int, lead: int = 0) -> list[list[object]]:
    """Rows whose order no column tells: object ids begin again in each well."""
    return [
        [1 + row % 7, "CBA"[row % 3], 9 - row % 4, f"{'CBA'[row % 3]}-{9 - row % 4}", lead + row / 8, (-row) ** 3, ""]
        for row in range(count)
    ]


def written(path: Path, rows: Sequence[Sequence[object]], names: Sequence[str] = NAMES) -> Path:
    """As IN Carta writes: every name and text in quotes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows([names, *rows])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table_rows(table: Any, names: Sequence[str] = NAMES) -> list[list[object]]:
    return [list(row) for row in zip(*(table[name].to_pylist() for name in names), strict=True)]


def as_read(rows: Sequence[Sequence[object]]) -> list[list[object]]:
    return [[None if value == "" else value for value in row] for row in rows]


def provenance(path: Path) -> dict[str, Any]:
    return json.loads(pq.read_schema(path).metadata[b"prefect-cytotable"])


@pytest.mark.parametrize(
    "name",
    ["Day0 Plate_2024_Jan-01.csv", "a.CSV", "ü \"x\" 'y'.csv", "Cells.csv", "Image.csv", "object.csv", "b.csv.gz"],
)
def test_a_file_of_any_name(tmp_path: Path, name: str) -> None:
    source = written(tmp_path / "plate" / name, rows_of(20))
    for given in (source, source.parent):
        table = converted(given, tmp_path / "out.parquet", overwrite=True, **PRESET)
        assert tuple(table.column_names) == NAMES
        assert table_rows(table) == as_read(rows_of(20))


@pytest.mark.parametrize("chunk_size", [1, 600, None])
@pytest.mark.parametrize("runner", ["sequential", "concurrent", "process"])
def test_a_large_file_that_is_cut_keeps_the_order_of_its_rows(
    tmp_path: Path, ear: Ear, runner: str, chunk_size: int | None
) -> None:
    if runner != "sequential" and chunk_size != 600:
        pytest.skip("the other sizes say nothing more about a runner")
    rows = rows_of(2100)
    source = written(tmp_path / "plate.csv", rows)
    table = converted(
        source, tmp_path / "out.parquet", chunk_size=chunk_size, workers=2, task_runner=runner, progress=ear, **PRESET
    )
    assert table_rows(table) == as_read(rows)
    assert len(ear.results) == {None: 1, 600: 4, 1: 5}[chunk_size]  # stretches of 512 rows stay whole
    assert "rows: 2,100 in, 2,100 out, 0 dropped" in ear.said


def test_a_large_compressed_file_is_cut_too(tmp_path: Path, ear: Ear) -> None:
    rows = rows_of(1500)
    source = written(tmp_path / "plate.csv.gz", rows)
    options = {"storage_options": {"local_cache_dir": tmp_path / "cache"}}
    table = converted(source, tmp_path / "out.parquet", chunk_size=600, progress=ear, **options, **PRESET)
    assert table_rows(table) == as_read(rows)
    assert len(ear.results) == 3
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("chunk_size", [None, 10])
def test_files_are_united_whatever_they_are_called(tmp_path: Path, chunk_size: int | None) -> None:
    """Each file is a dataset with a number of its own; a column that one lacks is null there."""
    source = tmp_path / "plates"
    first = written(source / "Day0 x.csv", rows_of(12))
    fewer = [*NAMES[:2], *NAMES[4:6], "Only Here wv2"]
    second_rows = [[*row[:2], *row[4:6], "text"] for row in rows_of(15, lead=1000)]
    second = written(source / "deep" / "other name.csv", second_rows, fewer)
    third = written(source / "third.csv.gz", rows_of(5, lead=5000))
    out = tmp_path / "out.parquet"
    options = {"storage_options": {"local_cache_dir": tmp_path / "cache"}}
    table = converted(source, out, chunk_size=chunk_size, **options, **PRESET)
    assert table.column_names == ["Metadata_TableNumber", *NAMES, "Only Here wv2"]
    assert {one["name"]: one["rows_out"] for one in provenance(out)["datasets"]} == {
        "Day0 x.csv": 12,
        "deep/other name.csv": 15,
        "third.csv.gz": 5,
    }
    by_number: dict[int, list[list[object]]] = {}
    for number, *row in table_rows(table, table.column_names):
        by_number.setdefault(number, []).append(row)
    assert list(by_number) == sorted(by_number)
    expected = [
        [[*row, None] for row in as_read(rows_of(12))],
        [[*row[:2], None, None, *row[2:4], None, row[4]] for row in second_rows],
        [[*row, None] for row in as_read(rows_of(5, lead=5000))],
    ]
    assert len(by_number) == len((first, second, third))
    assert sorted(by_number.values(), key=len) == sorted(expected, key=len)


def test_joined_or_not_is_the_same_table(tmp_path: Path) -> None:
    source = tmp_path / "plates"
    written(source / "one.csv", rows_of(9))
    written(source / "two.csv", rows_of(4, lead=100))
    joined = converted(source, tmp_path / "joined.parquet", **PRESET)
    apart: Any = convert(source, tmp_path / "apart", join=False, task_runner="sequential", **PRESET)
    ((name, (entry,)),) = apart.items()
    assert name == "Objects.csv"
    assert pq.read_table(entry["table"][0]).equals(joined)
    pieces: Any = convert(source, tmp_path / "pieces", join=False, concat=False, task_runner="sequential", **PRESET)
    tables = {entry["source_path"].name: pq.read_table(entry["table"][0]) for entry in pieces["Objects.csv"]}
    assert {name: table.num_rows for name, table in tables.items()} == {"one.csv": 9, "two.csv": 4}


def test_texts_and_numbers_of_a_column_are_kept_as_texts(tmp_path: Path) -> None:
    """Nothing tells a measure from a name here: no value may get lost."""
    rows = rows_of(700)
    rows[-1][4] = "n/a here"
    table = converted(written(tmp_path / "plate.csv", rows), tmp_path / "out.parquet", chunk_size=600, **PRESET)
    column = table["Zeta Intensity wv1"].to_pylist()
    assert column[-1] == "n/a here"
    assert [float(one) for one in column[:-1]] == [row[4] for row in rows[:-1]]
    assert table["Area (SOI) wv1"].to_pylist() == [row[5] for row in rows]
