"""SQLite files that are hard to open: too wide, on read-only media, locked at first; and tables of many datasets."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from small import gathered, inspect_source, numbered_tables, scattered, tables, write_numbered, write_sqlite

from prefect_cytotable.tasks.core.errors import BadSourceError, SourceBusyError
from prefect_cytotable.tasks.core.model import ColumnType, Format, Only, Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources import sqlite_file
from prefect_cytotable.tasks.core.sources.base import Keys, Request
from prefect_cytotable.tasks.core.sources.sqlite import SqliteReader
from prefect_cytotable.tasks.core.sources.sqlite_file import fingerprint

READER = SqliteReader(Places())
KEYS = Keys("ImageNumber", "ObjectNumber")
INT, DOUBLE = ColumnType.INT64, ColumnType.DOUBLE
SQLITE = {"preset": "cellprofiler_sqlite"}


def source_of(path: Path, table: str = "Cells", only: Only | None = None) -> Source:
    return Source("cells", str(path), Format.SQLITE, fingerprint(path), table, only)


# Too many columns


def widened(path: Path, table: str, columns: int) -> Path:
    """A file whose table has more columns than SQLite makes: a build with a higher limit has written it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        more = ", ".join(f'"{table}_Feature_{number}" REAL' for number in range(columns))
        head, bracket, rest = sql.partition("(")
        connection.execute("PRAGMA writable_schema = ON")
        made = f"{head}{bracket}{rest.partition(', PRIMARY')[0].rstrip(')')}, {more})"
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (made, table))
    return path


def test_a_table_with_more_columns_than_sqlite_reads_is_told_with_a_remedy(tmp_path: Path, run) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        if connection.getlimit(sqlite3.SQLITE_LIMIT_COLUMN) > 2000:
            pytest.skip("SQLite is built here with a higher limit")
    path = write_sqlite(tmp_path / "wide.sqlite", tables({1: 2}), index=False)
    widened(path, "Per_Cells", 2100)
    for step in (
        lambda: READER.columns(source_of(path, "Per_Cells")),
        lambda: run(path, tmp_path / "out.parquet", on_bad_source="error", **SQLITE),
    ):
        with pytest.raises(BadSourceError, match=r"more than 2,000 columns") as caught:
            step()
        assert "export that table as CSV" in str(caught.value)
        assert str(path) in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["wide.sqlite"]


def test_the_most_columns_that_sqlite_makes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.sqlite"
    names = ["ImageNumber", "ObjectNumber", *(f"Feature_{number}" for number in range(1998))]
    with closing(sqlite3.connect(path)) as connection, connection:
        columns = ", ".join(f"{name} {'REAL' if 'F' in name else 'INTEGER'}" for name in names)
        connection.execute(f"CREATE TABLE Cells ({columns})")
        for number in (1, 2):
            features = [number + one / 2048 for one in range(1998)]
            connection.execute(f"INSERT INTO Cells VALUES (1, {number}, {', '.join(map(repr, features))})")
    source = source_of(path)
    assert READER.columns(source) == tuple(names)
    planned = tuple((name, DOUBLE if "F" in name else INT) for name in names)
    table = READER.read(Request(source, KEYS, planned, (1, 1))).table
    assert table["Feature_1997"].to_pylist() == [number + 1997 / 2048 for number in (1, 2)]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE Cells SET Feature_3 = 'junk' WHERE ObjectNumber = 2")
    answer = READER.read(Request(source, KEYS, planned, (1, 1)))
    assert answer.table["Feature_3"].to_pylist() == [1 + 3 / 2048, None]
    assert [(one.column, one.count) for one in answer.findings] == [("Feature_3", 1)]


# Media that cannot be written


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="modes do not keep root from writing")
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_database_in_a_folder_that_cannot_be_written(tmp_path: Path, run, mode: str) -> None:
    path = write_sqlite(tmp_path / "media" / "plate.sqlite", tables({1: 3}))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
    with read_only(path.parent):
        assert run(path, tmp_path / "out.parquet", **SQLITE).num_rows == 3


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_nothing_is_left_beside_a_database(tmp_path: Path, run, mode: str) -> None:
    path = write_sqlite(tmp_path / "media" / "plate.sqlite", tables({1: 3}))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
    data = path.read_bytes()
    assert run(path, tmp_path / "out.parquet", chunk_size=1, **SQLITE).num_rows == 3
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == {"plate.sqlite": data}


# Locked at the very start

LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
connection.close()
"""


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another program holds the database until it gets a line."""
    command = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        try:
            yield other
        finally:
            other.kill()


def test_a_lock_that_passes_while_the_run_begins(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathering waits for it, and is tried again."""
    path = write_sqlite(tmp_path / "plate.sqlite", tables({1: 3}))
    real, calls = sqlite_file.reading, []

    @contextmanager
    def reading(file: Path) -> Iterator[sqlite3.Connection]:
        calls.append(file)
        if len(calls) == 2:  # the first try has been refused
            assert other.stdin is not None
            other.stdin.write("\n")
            other.stdin.flush()
            other.wait(60)
        with real(file) as connection:
            yield connection

    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(sqlite_file, "reading", reading)
    with locked(path) as other:
        assert run(path, tmp_path / "out.parquet", **SQLITE).num_rows == 3
    assert len(calls) >= 2


def test_a_lock_that_stays_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sqlite(tmp_path / "plate.sqlite", tables({1: 3}))
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.1)
    with locked(path), pytest.raises(SourceBusyError, match="another program has locked it") as caught:
        gathered(path, **SQLITE)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_writer_at_work_does_not_keep_a_run_from_beginning(tmp_path: Path, mode: str) -> None:
    """Without a log a writer's reserved lock, with one any writer, leaves readers what was committed."""
    path = write_sqlite(tmp_path / "plate.sqlite", tables({1: 3}))
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute(f"PRAGMA journal_mode = {mode}")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM Per_Cells")
        inspected = inspect_source(path, **SQLITE)
        cells = inspected.schema("cells")
        assert cells is not None
        source = inspected.gathered.datasets[0].source("cells")
        assert source is not None
        keys = Keys("ImageNumber", "Cells_Number_Object_Number")
        (index,) = READER.index([source], keys, True)
        assert index.rows == 3
        writer.execute("ROLLBACK")


# Tables of many datasets


@pytest.mark.parametrize("declared", ["TEXT", "BIGINT", "FLOAT", "", "NUMERIC", "VARCHAR(9)"])
@pytest.mark.parametrize("index", ["whole", "number", "none"])
def test_the_datasets_of_a_table_are_told_apart_whatever_its_numbers_are_declared(
    tmp_path: Path, declared: str, index: str
) -> None:
    layout = {5: {1: 3, 2: 2}, None: {1: 2}, 12: {1: 1}}
    content = scattered(numbered_tables(layout))
    path = write_numbered(tmp_path / "a.sqlite", content, {"Cells": declared}, index)
    table = source_of(path)
    assert set(READER.numbers(table, "TableNumber", "ImageNumber")) == {"5", "12", None}
    sources = [source_of(path, only=Only("TableNumber", one)) for one in ("5", None, "12")]
    planned = (("ImageNumber", INT), ("ObjectNumber", INT), ("Cells_AreaShape_Area", DOUBLE))
    indexes = READER.index(sources, KEYS, True)
    for source, one, images in zip(sources, indexes, layout.values(), strict=True):
        assert {each.image: each.rows for each in one.images} == images
        assert one.unique is True
        mine = sorted(row[1:4] for row in content["Cells"][1] if str(row[0]) == str(source.only.value))
        spans = tuple(span for each in one.images for span in each.spans)
        found = READER.read(Request(source, KEYS, planned, spans=spans)).table
        assert sorted(zip(*(found[name].to_pylist() for name, _ in planned), strict=True)) == mine
        assert READER.objects(source, KEYS, 1) == list(range(1, images[1] + 1))
    spanned = [
        Request(source, KEYS, planned, spans=tuple(span for each in one.images for span in each.spans))
        for source, one in zip(sources, indexes, strict=True)
    ]
    assert READER.read_together(spanned) is None  # null equals nothing, so it is asked for alone
    together = READER.read_together([spanned[2], spanned[0]])
    assert together is not None
    assert together.counts == (1, 5)
    areas = together.table["Cells_AreaShape_Area"].to_pylist()
    alone = [READER.read(one).table["Cells_AreaShape_Area"].to_pylist() for one in (spanned[2], spanned[0])]
    assert [[area for area, at in zip(areas, together.order, strict=True) if at == one] for one in (0, 1)] == [
        sorted(values, key=areas.index) for values in alone
    ]


def test_other_values_in_a_column_are_told_of_each_dataset(tmp_path: Path) -> None:
    """Read together as read alone: widened, null and counted by the same rules."""
    path = write_numbered(tmp_path / "a.sqlite", numbered_tables({"a": {1: 3}, "b": {1: 3}}))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE Cells SET Cells_AreaShape_Area = 'junk' WHERE TableNumber = 'a' AND ObjectNumber = 2"
        )
        connection.execute("UPDATE Cells SET Cells_Parent_Nuclei = 1.5 WHERE TableNumber = 'b' AND ObjectNumber = 3")
    requests = [
        Request(source_of(path, only=Only("TableNumber", one)), KEYS, (("ImageNumber", INT), ("ObjectNumber", INT),
                ("Cells_AreaShape_Area", DOUBLE), ("Cells_Parent_Nuclei", DOUBLE)))
        for one in ("a", "b")
    ]  # fmt: skip
    together = READER.read_together(requests)
    assert together is not None
    assert [(one.column, one.count) for one in together.findings] == [("Cells_AreaShape_Area", 1)]
    assert sorted(together.table["Cells_Parent_Nuclei"].to_pylist()) == [1.0, 1.5, 2.0, 2.0, 3.0, 3.0]
    narrow = [Request(one.source, KEYS, (*one.columns[:3], ("Cells_Parent_Nuclei", INT))) for one in requests]
    found = READER.read_together(narrow)
    assert found is not None
    assert found.widened == (("Cells_Parent_Nuclei", DOUBLE),)
