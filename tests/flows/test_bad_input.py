"""DESIGN.md, section 8: each row of its table of bad input, by name."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import (
    SMALL,
    converted,
    copy_of,
    database_of,
    edited,
    executed,
    folder_of,
    listing,
    rows_of,
    sites_of,
    without,
)

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.demo import PlateShape, Table, tables, write_csv
from prefect_cytotable.tasks.core.errors import (
    ArgumentError,
    BadSourceError,
    CytotableError,
    DestinationBusyError,
    DiskSpaceError,
    DuplicateKeyError,
    LayoutError,
    PresetError,
    SourceBusyError,
    SourceChangedError,
    SourceNotFoundError,
    UnknownArgumentError,
)
from prefect_cytotable.tasks.core.sources import sqlite_file

pytestmark = pytest.mark.usefixtures("local")

SQLITE = {"preset": "cellprofiler_sqlite"}


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    return sites_of(tmp_path / "sites")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "out.parquet"


def cytoplasms(folder: Path) -> int:
    return sum(rows_of(path) for path in folder.rglob("Cytoplasm.csv"))


# no such path, no files, unknown preset or argument: an error before any work, with the nearest valid name


def test_no_such_path(sites: Path, out: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no such file or folder\. Did you mean 'sites'"):
        convert(sites.with_name("site"), out)
    assert listing(out.parent) == []


def test_no_files(tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFoundError, match="is empty"):
        convert(tmp_path / "empty", out)
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(SourceNotFoundError, match=r"1 file\(s\) \(\.txt\), none that ends with \.csv"):
        convert(tmp_path / "empty", out)
    (tmp_path / "empty" / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceNotFoundError, match="none of them with a table called Image, Cells, Nuclei, Cytoplasm"):
        convert(tmp_path / "empty", out)
    assert listing(out.parent) == []


def test_files_of_another_preset(sites: Path, out: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="There are CSV files: choose a preset for them"):
        convert(sites, out, **SQLITE)


def test_unknown_preset(sites: Path, tmp_path: Path, out: Path) -> None:
    with pytest.raises(PresetError, match="Did you mean 'cellprofiler_sqlite'"):
        convert(sites, out, preset="cellprofiler_sqllite")
    with pytest.raises(PresetError, match="no such preset file"):
        convert(sites, out, preset="mine.toml")
    (tmp_path / "mine.toml").write_text("title = 3")
    with pytest.raises(PresetError, match="title"):
        convert(sites, out, preset="mine.toml")
    assert not out.parent.exists()


def test_unknown_argument(sites: Path, out: Path) -> None:
    with pytest.raises(UnknownArgumentError, match="Did you mean 'chunk_size'"):
        convert(sites, out, chunksize=3)  # type: ignore[call-arg]
    assert not out.parent.exists()


# destination exists: refused, `overwrite=True` replaces it only when the new one is whole


def test_destination_exists(sites: Path, out: Path) -> None:
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(FileExistsError):
        convert(sites, out)
    assert out.read_text() == "mine"
    convert(sites, out, overwrite=True)
    assert pq.read_table(out).num_rows == cytoplasms(sites)


class Meddler(Ear):
    """Does something once, when the first chunk is done."""

    def __init__(self, deed: Callable[[], object]) -> None:
        super().__init__()
        self._deed: Callable[[], object] | None = deed

    def advance(self, result: Any) -> None:
        super().advance(result)
        deed, self._deed = self._deed, None
        if deed:
            deed()


@pytest.mark.parametrize("runner", ["sequential", "concurrent"])
def test_a_run_that_fails_midway_leaves_the_old_destination(sites: Path, out: Path, runner: str) -> None:
    out.parent.mkdir()
    out.write_text("mine")
    last = sorted(sites.rglob("Cells.csv"))

    def grow() -> None:
        for path in last:
            with path.open("a") as file:
                file.write("\n")

    arguments: dict[str, Any] = {"chunk_size": 1, "workers": 1, "overwrite": True}
    with pytest.raises(SourceChangedError, match="was changed while it was being converted"):
        convert(sites, out, task_runner=runner, progress=Meddler(grow), **arguments)
    assert out.read_text() == "mine"


def test_a_destination_that_cannot_be_made(sites: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(CytotableError, match="its folder cannot be made"):
        convert(sites, tmp_path / "file" / "out.parquet")


# empty file, header only, zero bytes, truncated CSV, ragged row, not UTF-8, wrong delimiter


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 12])


def ragged(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].rsplit(",", 3)[0] + "\n"
    path.write_text("".join(lines))


def too_long(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = "1," + lines[1]
    path.write_text("".join(lines))


def not_utf8(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"demo-plate_", b"d\xe9mo-plate_").replace(b"1,1,", b"1,1\xff,", 1))


def header_not_utf8(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"ImageNumber", b"Image\xffNumber", 1))


def header_of_another_delimiter(path: Path) -> None:
    header, rows = path.read_text().split("\n", 1)
    path.write_text(header.replace(",", ";") + "\n" + rows)


def blank(path: Path) -> None:
    path.write_text("\n\n")


def no_key(path: Path) -> None:
    edited(path, lambda rows: [[name.replace("ImageNumber", "Image_No") for name in rows[0]], *rows[1:]])


def header_twice(path: Path) -> None:
    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[0][-1] = rows[0][-2]
        return rows

    edited(path, change)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty file": (emptied, "the file is empty"),
    "blank lines": (blank, "the file is empty"),
    "zero bytes": (zeroed, "zero bytes"),
    "truncated": (truncated, "ends within a row"),
    "ragged row": (ragged, "another number of fields"),
    "row too long": (too_long, "another number of fields"),
    "not UTF-8": (not_utf8, "not UTF-8"),
    "header not UTF-8": (header_not_utf8, "not UTF-8"),
    "wrong delimiter": (header_of_another_delimiter, "another number of fields"),
    "no image number": (no_key, "no column 'ImageNumber'"),
    "a column twice": (header_twice, "more than once"),
}


@pytest.mark.parametrize(
    ("damage", "table"),
    [
        (damage, table)
        for damage in DAMAGES
        for table in ("Cytoplasm", "Cells", "Image")
        if damage != "not UTF-8" or table == "Image"  # no other table holds text
    ],
)
def test_a_bad_csv_is_skipped_and_its_dataset_accounted_for(
    sites: Path, tmp_path: Path, out: Path, ear: Ear, damage: str, table: str
) -> None:
    harm, cause = DAMAGES[damage]
    bad = sorted(sites.iterdir())[1]
    whole = converted(sites, tmp_path / "whole.parquet", add_tablenumber=False)
    rows, lost = cytoplasms(sites), rows_of(bad / "Cytoplasm.csv")
    harm(bad / f"{table}.csv")
    with pytest.raises(BadSourceError, match=re.escape(str(bad / f"{table}.csv"))) as caught:
        convert(sites, out, on_bad_source="error")
    assert re.search(cause, str(caught.value))
    assert listing(out.parent) == []
    result = converted(sites, out, add_tablenumber=False, progress=ear)
    others = whole.filter(pa.compute.not_equal(whole["Metadata_ImageNumber"], image_number(bad)))
    assert without(result).equals(without(others))
    assert any(line.startswith(f"skipped {bad / f'{table}.csv'}: ") and re.search(cause, line) for line in ear.said)
    (account,) = [line for line in ear.said if line.startswith("rows: ")]
    if table == "Cytoplasm":
        known = re.fullmatch(r"rows: (\d+) in, (\d+) out, (\d+) dropped", account)
        assert known
        came, left, dropped = map(int, known.groups())
        assert (left, came) == (rows - lost, left + dropped)
        if damage not in ("empty file", "blank lines", "zero bytes"):
            assert dropped == lost
    else:
        assert account == f"rows: {rows} in, {rows - lost} out, {lost} dropped"


def image_number(folder: Path) -> int:
    """The number of a site's only image: sites are numbered in the order of their names."""
    return sorted(folder.parent.iterdir()).index(folder) + 1


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("table", ["Cytoplasm", "Cells", "Image"])
def test_another_delimiter_is_found_and_reported(
    sites: Path, tmp_path: Path, out: Path, ear: Ear, table: str, delimiter: str
) -> None:
    whole = converted(sites, tmp_path / "whole.parquet", add_tablenumber=False)
    other = sorted(sites.iterdir())[1] / f"{table}.csv"
    other.write_text(other.read_text().replace(",", delimiter))
    result = converted(sites, out, add_tablenumber=False, on_bad_source="error", progress=ear)
    assert without(result).equals(without(whole))
    note = f"note: {table.lower()}: {rows_of(other)} row(s) whose fields are separated by {delimiter!r}"
    assert [line for line in ear.said if "separated" in line] == [note]


def test_header_only_is_a_table_without_rows(sites: Path, out: Path, ear: Ear) -> None:
    """CellProfiler writes that for a site without an object, so its rows are counted, not the file skipped."""
    bad = sorted(sites.iterdir())[1]
    lost = rows_of(bad / "Cytoplasm.csv")
    edited(bad / "Cells.csv", lambda rows: rows[:1])
    rows = cytoplasms(sites)
    assert converted(sites, out, progress=ear).num_rows == rows - lost
    assert f"  dropped {lost}: the parent it names does not exist" in ear.said


def test_every_source_bad_is_an_error_that_names_them(sites: Path, out: Path) -> None:
    for path in sites.rglob("*.csv"):
        emptied(path)
    with pytest.raises(LayoutError, match=r"Cytoplasm\.csv: the file is empty|Cells\.csv: the file is empty"):
        convert(sites, out)
    assert listing(out.parent) == []


def test_damage_that_only_the_middle_of_a_large_file_has(tmp_path: Path, out: Path, ear: Ear) -> None:
    """Whole-plate files are indexed, cut and sampled: what none of that sees is found when the chunk is read."""
    source = folder_of(tmp_path / "plate", PlateShape(wells=6, sites=2, cells=10))
    folder_of(tmp_path / "both" / "good", SMALL)
    shutil.move(source, tmp_path / "both" / "bad")
    good, bad = (tmp_path / "both" / name for name in ("good", "bad"))
    lines = (bad / "Cells.csv").read_text().splitlines(keepends=True)
    lines[60] = lines[60].rsplit(",", 2)[0] + "\n"
    (bad / "Cells.csv").write_text("".join(lines))
    table = converted(tmp_path / "both", out, chunk_size=20, progress=ear)
    assert table.num_rows == rows_of(good / "Cytoplasm.csv")
    rows, lost = cytoplasms(tmp_path / "both"), rows_of(bad / "Cytoplasm.csv")
    assert f"rows: {rows} in, {rows - lost} out, {lost} dropped" in ear.said


# a dataset without one of its compartments: reported; its rows dropped by cause


@pytest.mark.parametrize(
    ("table", "cause"),
    [("Cells", "no readable table of a parent compartment"), ("Image", "no readable image table")],
)
def test_a_dataset_without_one_of_its_compartments(sites: Path, out: Path, ear: Ear, table: str, cause: str) -> None:
    lacking = sorted(sites.iterdir())[2]
    (lacking / f"{table}.csv").unlink()
    rows, lost = cytoplasms(sites), rows_of(lacking / "Cytoplasm.csv")
    assert converted(sites, out, progress=ear).num_rows == rows - lost
    assert any(line == f"  dropped {lost}: its dataset has {cause}" for line in ear.said)
    assert f"no readable table of {table}, for example {lacking.name}" in ear.text


def test_a_dataset_without_its_base(sites: Path, out: Path, ear: Ear) -> None:
    lacking = sorted(sites.iterdir())[2]
    lost = rows_of(lacking / "Cytoplasm.csv")
    rows = cytoplasms(sites)
    (lacking / "Cytoplasm.csv").unlink()
    assert converted(sites, out, progress=ear).num_rows == rows - lost
    assert f"no readable table of Cytoplasm, for example {lacking.name}" in ear.text


# corrupt or locked SQLite, SQLite being written (WAL): a clear error or a consistent read; the source never changed


@contextlib.contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Holds that files keep their bytes and times, and that nothing new lies beside them."""

    def state() -> list[Any]:
        found = [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
        return [found, sorted(one.name for one in paths[0].parent.iterdir())]

    before = state()
    yield
    assert state() == before


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    for name, seed in (("a", 1), ("b", 2)):
        shape = PlateShape(plate=name, wells=2, sites=2, cells=8, seed=seed)
        database_of(tmp_path / "plates" / f"{name}.sqlite", shape)
    return tmp_path / "plates"


def no_database(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 99)


def garbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [emptied, no_database, garbled, cut])
def test_corrupt_sqlite(databases: Path, tmp_path: Path, out: Path, ear: Ear, harm: Callable[[Path], None]) -> None:
    bad = databases / "b.sqlite"
    good = converted(databases / "a.sqlite", tmp_path / "good.parquet", **SQLITE)
    harm(bad)
    with unchanged(bad, databases / "a.sqlite"):
        with pytest.raises(BadSourceError, match=re.escape(str(bad))):
            convert(databases, out, on_bad_source="error", **SQLITE)
        assert not out.exists()
        table = converted(databases, out, progress=ear, add_tablenumber=False, **SQLITE)
    assert without(table).equals(without(good))
    assert f"skipped {bad}" in ear.text


def test_locked_sqlite(databases: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.1)
    writer = sqlite3.connect(databases / "a.sqlite", isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SourceBusyError, match=r"a\.sqlite.*another program has locked it"):
        convert(databases, out, **SQLITE)
    writer.execute("ROLLBACK")
    writer.close()
    assert not out.exists()
    assert converted(databases, out, **SQLITE).num_rows > 0


def test_sqlite_being_written_is_read_as_of_its_last_commit(databases: Path, tmp_path: Path, out: Path) -> None:
    source = databases / "a.sqlite"
    (databases / "b.sqlite").unlink()
    writer = sqlite3.connect(source, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("UPDATE Per_Cells SET Cells_AreaShape_Area = 77.5")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE Per_Cells SET Cells_AreaShape_Area = 88.5")
    log = source.with_name("a.sqlite-wal")
    before = (source.read_bytes(), log.read_bytes())
    table = converted(source, out, **SQLITE)
    assert set(table["Cells_AreaShape_Area"].to_pylist()) == {77.5}
    assert (source.read_bytes(), log.read_bytes()) == before
    writer.execute("ROLLBACK")
    writer.close()


def test_a_wal_database_at_rest_is_read_and_left_as_it_is(databases: Path, out: Path) -> None:
    source = databases / "a.sqlite"
    executed(source, "PRAGMA journal_mode=WAL", "UPDATE Per_Cells SET Cells_AreaShape_Area = 77.5")
    with unchanged(source):
        table = converted(source, out, **SQLITE)
    assert set(table["Cells_AreaShape_Area"].to_pylist()) == {77.5}


def test_sqlite_without_a_compartment(databases: Path, out: Path, ear: Ear) -> None:
    executed(databases / "b.sqlite", "DROP TABLE Per_Nuclei")
    table = converted(databases, out, progress=ear, **SQLITE)
    assert set(table["Image_Metadata_Plate"].to_pylist()) == {"a"}
    assert "no readable table of Nuclei, for example b.sqlite" in ear.text


# duplicate object keys: error naming the first duplicates


@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.parametrize("table", ["Cells", "Cytoplasm"])
def test_duplicate_object_keys_csv(tmp_path: Path, out: Path, table: str, chunk_size: int | None) -> None:
    source = folder_of(tmp_path / "plate")
    edited(source / f"{table}.csv", lambda rows: [*rows, rows[5], rows[7]])
    with pytest.raises(DuplicateKeyError, match="image 1, object 5") as caught:
        convert(source, out, chunk_size=chunk_size)
    assert table in str(caught.value)
    assert not out.exists()


def test_duplicate_object_keys_sqlite(databases: Path, out: Path) -> None:
    executed(
        databases / "a.sqlite",
        "CREATE TABLE copied AS SELECT * FROM Per_Cells",
        "DROP TABLE Per_Cells",
        "ALTER TABLE copied RENAME TO Per_Cells",
        "INSERT INTO Per_Cells SELECT * FROM Per_Cells WHERE ImageNumber = 2 AND Cells_Number_Object_Number = 3",
    )
    with pytest.raises(DuplicateKeyError, match=r"a\.sqlite.*Per_Cells") as caught:
        convert(databases, out, **SQLITE)
    assert re.search(r"image 2, object 3", str(caught.value))


def test_duplicate_images(tmp_path: Path, out: Path) -> None:
    source = folder_of(tmp_path / "plate")
    edited(source / "Image.csv", lambda rows: [*rows, rows[2]])
    with pytest.raises(DuplicateKeyError, match="image 2"):
        convert(source, out)


# mixed types, `nan`, `inf`, empty strings: kept or null by rule, counted


def test_mixed_values_csv(tmp_path: Path, out: Path, ear: Ear) -> None:
    source = folder_of(tmp_path / "plate")
    values = ["nan", "NaN", "", "inf", "-Infinity", "1e3", " 5 "]

    def change(rows: list[list[str]]) -> list[list[str]]:
        position = rows[0].index("AreaShape_Area")
        for row, value in zip(rows[1:], values, strict=False):
            row[position] = value
        return rows

    edited(source / "Cytoplasm.csv", change)
    table = converted(source, out, progress=ear)
    assert table["Cytoplasm_AreaShape_Area"].to_pylist()[: len(values)] == [
        None, None, None, math.inf, -math.inf, 1000.0, 5.0,
    ]  # fmt: skip
    assert "output: 3 missing values (null)" in ear.text
    assert "output: 2 infinite values (kept)" in ear.text


@pytest.mark.parametrize("row", [3, -1])
@pytest.mark.parametrize("chunk_size", [None, 20])
def test_a_text_among_measurements_is_null_wherever_it_stands(
    tmp_path: Path, out: Path, ear: Ear, row: int, chunk_size: int | None
) -> None:
    source = folder_of(tmp_path / "plate")

    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[1:][row][rows[0].index("AreaShape_Area")] = "abc"
        return rows

    edited(source / "Cytoplasm.csv", change)
    area = converted(source, out, chunk_size=chunk_size, progress=ear)["Cytoplasm_AreaShape_Area"]
    assert (area.type, area.null_count, area[row].as_py()) == (pa.float64(), 1, None)
    assert "cytoplasm.AreaShape_Area: 1 a value that is not a number became null" in ear.text


def test_a_fraction_late_in_a_whole_number_column_widens_it(tmp_path: Path, out: Path) -> None:
    source = folder_of(tmp_path / "plate", PlateShape(wells=4, sites=2, cells=10))

    def change(rows: list[list[str]]) -> list[list[str]]:
        position = rows[0].index("AreaShape_Area")
        for number, row in enumerate(rows[1:]):
            row[position] = str(number)
        rows[-1][position] = "0.5"
        return rows

    edited(source / "Cytoplasm.csv", change)
    for size in (None, 10):
        area = converted(source, out, chunk_size=size, overwrite=True)["Cytoplasm_AreaShape_Area"]
        assert area.type == pa.float64()
        assert area.to_pylist() == [*map(float, range(len(area) - 1)), 0.5]


def test_mixed_values_sqlite(databases: Path, out: Path, ear: Ear) -> None:
    source = databases / "a.sqlite"
    first = "ImageNumber = 1 AND Cells_Number_Object_Number"
    column = "Cells_AreaShape_Area"
    for number, value in enumerate(("'nan'", "'inf'", "'abc'", "7", "NULL", "''"), start=1):
        executed(source, f"UPDATE Per_Cells SET {column} = {value} WHERE {first} = {number}")
    executed(source, f"UPDATE Per_Cells SET Cells_Parent_Nuclei = 2.5 WHERE {first} = 1")
    table = converted(source, out, progress=ear, **SQLITE)
    assert table[column].to_pylist()[:6] == [None, math.inf, None, 7.0, None, None]
    assert table["Metadata_Cells_Parent_Nuclei" if "Metadata_Cells_Parent_Nuclei" in table.column_names else
                 "Cells_Parent_Nuclei"].to_pylist()[0] == 2.5  # fmt: skip
    assert f"cells.{column}: 2 text 'nan' became null" in ear.text
    assert f"cells.{column}: 1 a value that is not a number became null" in ear.text


def test_empty_strings_in_the_image_table_are_null(tmp_path: Path, out: Path) -> None:
    source = folder_of(tmp_path / "plate")

    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[1][rows[0].index("Metadata_Well")] = ""
        return rows

    edited(source / "Image.csv", change)
    table = converted(source, out)
    wells = dict(zip(table["Metadata_ImageNumber"].to_pylist(), table["Metadata_Well"].to_pylist(), strict=True))
    assert wells[1] is None
    assert None not in (wells[2], wells[3])


def test_keys_that_are_no_numbers_are_dropped_by_cause(tmp_path: Path, out: Path, ear: Ear) -> None:
    source = folder_of(tmp_path / "plate")

    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[1][rows[0].index("ImageNumber")] = ""
        rows[2][rows[0].index("ObjectNumber")] = "nan"
        return rows

    edited(source / "Cytoplasm.csv", change)
    rows = rows_of(source / "Cytoplasm.csv")
    for size in (None, 5):
        heard = Ear()
        assert converted(source, out, progress=heard, chunk_size=size, overwrite=True).num_rows == rows - 2
        assert {"  dropped 1: no image number", "  dropped 1: no object number"} <= set(heard.said)


# no cell pairs at all: a valid, empty output with the full schema, and a warning


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_no_cell_pairs_at_all(tmp_path: Path, out: Path, ear: Ear, chunk_size: int | None) -> None:
    source = folder_of(tmp_path / "plate")
    full = converted(source, tmp_path / "full.parquet")

    def unrelated(rows: list[list[str]]) -> list[list[str]]:
        for row in rows[1:]:
            row[rows[0].index("Parent_Cells")] = "999"
        return rows

    edited(source / "Cytoplasm.csv", unrelated)
    rows = rows_of(source / "Cytoplasm.csv")
    table = converted(source, out, chunk_size=chunk_size, progress=ear)
    assert table.num_rows == 0
    assert table.schema.remove_metadata() == full.schema.remove_metadata()
    assert f"rows: {rows} in, 0 out, {rows} dropped" in ear.said
    assert re.search(r"(?m)^(note|warning): .*(empty|no row)", ear.text), "an empty output is a warning"


# disk full, worker killed, machine rebooted: the run fails or retries; the finished parts serve the next run


DENSE = PlateShape(wells=6, sites=2, cells=200, seed=4)
"""About 2,000 cells of 101 columns that hardly compress: 1.7 MB."""


def test_too_little_disk_is_refused_before_anything_is_read(
    tmp_path: Path, small_disk: Callable[[int], Path], ear: Ear
) -> None:
    source = database_of(tmp_path / "plate.sqlite", DENSE)
    disk = small_disk(256)
    with pytest.raises(DiskSpaceError, match=r"256\.0 KiB free.*Make room"):
        convert(source, disk / "out.parquet", progress=ear, **SQLITE)
    assert (ear.chunks, listing(disk)) == (0, [])


def test_disk_full_midway(tmp_path: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = database_of(tmp_path / "plate.sqlite", DENSE)
    convert(source, tmp_path / "expected.parquet", chunk_size=300, **SQLITE)
    disk = small_disk(900)
    roomy = shutil.disk_usage(tmp_path)
    arguments: dict[str, Any] = {"chunk_size": 300, "task_runner": "sequential", **SQLITE}
    heard = Ear()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: roomy)
        with pytest.raises(DiskSpaceError, match=f"(?i){re.escape(str(disk))}.*no space left"):
            convert(source, disk / "out.parquet", progress=heard, **arguments)
    assert 0 < len(heard.results) < heard.chunks
    assert not (disk / "out.parquet").exists()
    assert not [name for name in listing(disk) if ".tmp-" in name]
    small_disk(16_000)
    again = Ear()
    convert(source, disk / "out.parquet", progress=again, **arguments)
    assert sum(one.reused for one in again.results) == len(heard.results)
    assert (disk / "out.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    assert listing(disk) == ["out.parquet"]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_worker_killed(tmp_path: Path, out: Path) -> None:
    source = folder_of(tmp_path / "plate", PlateShape(wells=12, sites=2, cells=8))
    convert(source, tmp_path / "expected.parquet", chunk_size=8)

    def kill_a_worker() -> None:
        victim = multiprocessing.active_children()[0]
        assert victim.pid
        os.kill(victim.pid, signal.SIGKILL)

    heard = Meddler(kill_a_worker)
    convert(source, out, chunk_size=8, task_runner="process", workers=2, progress=heard)
    assert "A worker process died" in heard.text
    assert out.read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    assert listing(out.parent) == ["out.parquet"]
    assert multiprocessing.active_children() == []


KILLED = """
    import os, signal, sys
    from prefect_cytotable.flows import convert
    from prefect_cytotable.tasks.core.progress import Silent

    class Killer(Silent):
        done = 0

        def advance(self, result):
            self.done += 1
            if self.done == 3:
                os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        convert(sys.argv[1], sys.argv[2], chunk_size=8, task_runner=sys.argv[3], workers=2, progress=Killer())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("runner", ["concurrent", "process"])
def test_killed_midway_and_run_again(tmp_path: Path, out: Path, runner: str) -> None:
    source = folder_of(tmp_path / "plate", PlateShape(wells=12, sites=2, cells=8))
    convert(source, tmp_path / "expected.parquet", chunk_size=8)
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    died = subprocess.run([sys.executable, str(script), str(source), str(out), runner], check=False)
    assert died.returncode == -signal.SIGKILL
    assert not out.exists()
    records = list(out.parent.rglob("records/*.json"))
    done = [path for path in records if not path.name.startswith(".tmp-")]
    assert len(done) >= 3
    heard = Ear()
    convert(source, out, chunk_size=8, task_runner=runner, workers=2, progress=heard)
    assert heard.chunks > len(done)
    assert sum(one.reused for one in heard.results) >= len(done)
    assert re.search(rf"{heard.chunks} chunk\(s\), \d+ of them done before", heard.text)
    assert out.read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    assert listing(out.parent) == ["out.parquet"]


def test_a_damaged_part_is_made_again(tmp_path: Path, out: Path) -> None:
    source = folder_of(tmp_path / "plate")
    convert(source, out, chunk_size=10, keep_chunks=True)
    before = out.read_bytes()
    parts = sorted(out.parent.rglob("parts/*.parquet"))
    data = bytearray(parts[0].read_bytes())
    data[100] ^= 0xFF
    parts[0].write_bytes(data)
    parts[1].unlink()
    heard = Ear()
    convert(source, out, chunk_size=10, keep_chunks=True, overwrite=True, progress=heard)
    assert sum(not one.reused for one in heard.results) == 2
    assert out.read_bytes() == before


# names with quotes, spaces, unicode, newlines: work

NAMES = {
    "quotes": 'it\'s "quoted"',
    "blanks": " two  words ",
    "unicode": "Zellen-β-細胞-é",
    "newline": "two\nlines",
    "percent and question": "100%?#x&y=1",
    "brackets": "[a-z]*{b}",
    "backslash": "back\\slash",
    "dash": "--help",
    "semicolon": "a; DROP TABLE Per_Cells; --",
}


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_of_folders_and_destinations(tmp_path: Path, name: str) -> None:
    odd = NAMES[name]
    plain = converted(sites_of(tmp_path / "plain"), tmp_path / "plain.parquet")
    source = sites_of(tmp_path / odd / "sites")
    for folder in sorted(source.iterdir()):
        folder.rename(folder.with_name(folder.name + odd))
    destination = tmp_path / f"out {odd}" / f"{odd}.parquet"
    heard = Ear()
    table = converted(source, destination, chunk_size=10, progress=heard)
    assert without(table).equals(without(plain))
    assert listing(destination.parent) == [destination.name]
    result: Any = convert(source, tmp_path / f"tables {odd}", join=False, concat=False)
    assert sum(len(entry["table"]) for entry in result["Cells.csv"]) == 4
    assert all(path.is_file() for entry in result["Cells.csv"] for path in entry["table"])


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_of_databases(tmp_path: Path, name: str) -> None:
    plain = converted(database_of(tmp_path / "plain.sqlite"), tmp_path / "plain.parquet", **SQLITE)
    source = database_of(tmp_path / "odd" / f"{NAMES[name]}.sqlite")
    table = converted(source, tmp_path / "out.parquet", chunk_size=10, **SQLITE)
    assert without(table).equals(without(plain))
    assert without(converted(source.parent, tmp_path / "out2.parquet", **SQLITE)).equals(without(plain))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["csv", "sqlite"])
def test_odd_names_of_columns(tmp_path: Path, name: str, kind: str) -> None:
    odd = NAMES[name]
    if kind == "csv":
        if name == "newline":
            pytest.skip("a header with a line break is the next test")
        source = folder_of(tmp_path / "plate")
        edited(source / "Cells.csv", lambda rows: [[n.replace("AreaShape_Area", odd) for n in rows[0]], *rows[1:]])
        expected = converted(folder_of(tmp_path / "plain"), tmp_path / "plain.parquet")
        arguments = {}
    else:
        source = database_of(tmp_path / "plate.sqlite")
        expected = converted(source, tmp_path / "plain.parquet", **SQLITE)
        quoted = ("Cells_" + odd).replace('"', '""')
        executed(source, f'ALTER TABLE Per_Cells RENAME COLUMN "Cells_AreaShape_Area" TO "{quoted}"')
        arguments = SQLITE
    table = converted(source, tmp_path / "out.parquet", chunk_size=10, **arguments)
    assert table[f"Cells_{odd}"].to_pylist() == expected["Cells_AreaShape_Area"].to_pylist()


def test_a_header_with_a_line_break_in_quotes(tmp_path: Path, out: Path) -> None:
    source = folder_of(tmp_path / "plate")
    expected = converted(source, tmp_path / "plain.parquet")
    edited(source / "Cells.csv", lambda rows: [[n.replace("AreaShape_Area", "a\nb") for n in rows[0]], *rows[1:]])
    for size in (None, 10):
        table = converted(source, out, chunk_size=size, overwrite=True)
        assert table["Cells_a\nb"].to_pylist() == expected["Cells_AreaShape_Area"].to_pylist()


def test_odd_values_of_texts(tmp_path: Path, out: Path) -> None:
    plate = tables(SMALL)
    image = plate["Image"]
    position = image.columns.index("Metadata_Plate")
    odd = list(NAMES.values())[: len(image.rows)]
    rows = tuple((*row[:position], text, *row[position + 1 :]) for row, text in zip(image.rows, odd, strict=True))
    source = write_csv({**plate, "Image": Table(image.columns, rows)}, tmp_path / "plate")
    for size in (None, 10):
        table = converted(source, out, chunk_size=size, overwrite=True)
        pairs = set(zip(table["Metadata_ImageNumber"].to_pylist(), table["Metadata_Plate"].to_pylist(), strict=True))
        assert pairs == set(enumerate(odd, start=1))


def test_odd_table_names(tmp_path: Path, out: Path) -> None:
    source = database_of(tmp_path / "plate.sqlite")
    expected = converted(source, tmp_path / "plain.parquet", **SQLITE)
    executed(
        source,
        "ALTER TABLE Per_Cells RENAME TO x",
        'ALTER TABLE x RENAME TO "per_CELLS"',
        'CREATE TABLE "it\'s ""odd""; DROP" (a)',
        'CREATE TABLE "two\nlines" (a)',
    )
    assert without(converted(source, out, **SQLITE)).equals(without(expected))


# two runs to one destination: the second is refused


def test_two_runs_to_one_destination(sites: Path, tmp_path: Path, out: Path) -> None:
    refused: list[str] = []

    def second_run() -> None:
        with pytest.raises(DestinationBusyError, match="another run is writing there") as caught:
            convert(sites, out, overwrite=True)
        refused.append(str(caught.value))

    table = converted(sites, out, chunk_size=10, progress=Meddler(second_run))
    assert refused == [refused[0]]
    assert str(out) in refused[0]
    assert table.num_rows == cytoplasms(sites)
    assert listing(out.parent) == ["out.parquet"]
    assert converted(sites, out, overwrite=True).equals(table)


def test_two_runs_to_two_destinations_of_one_folder(sites: Path, out: Path) -> None:
    other = out.with_name("other.parquet")
    table = converted(sites, out, chunk_size=10, progress=Meddler(lambda: convert(sites, other)))
    assert pq.read_table(other).equals(table)
    assert listing(out.parent) == ["other.parquet", "out.parquet"]


def test_the_source_folder_may_hold_the_destination(sites: Path) -> None:
    table = converted(sites, sites / "out.parquet", chunk_size=10)
    assert converted(sites, sites / "again.parquet", chunk_size=10).equals(table)


def test_a_copied_plate_is_no_duplicate(tmp_path: Path, out: Path) -> None:
    folder_of(tmp_path / "plates" / "a")
    copy_of(tmp_path / "plates" / "a", tmp_path / "plates" / "b")
    assert converted(tmp_path / "plates", out).num_rows == 2 * rows_of(tmp_path / "plates" / "a" / "Cytoplasm.csv")


@pytest.mark.parametrize(
    ("destination", "cause"),
    [
        ("s4://bucket/out.parquet", "s4:// is no place that is known. Choose one of: az, gs, s3"),
        ("gcs://bucket/out.parquet", "Did you mean 'gs'"),
        ("s3:/bucket/out.parquet", "one slash too few"),
        ("s3:///out.parquet", "names no bucket"),
        ("s3://key:word@bucket/out.parquet", "credentials belong in the environment"),
    ],
)
def test_a_place_that_is_none(sites: Path, tmp_path: Path, destination: str, cause: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(cause)) as caught:
        convert(sites, destination)
    assert "word" not in str(caught.value)
    assert not (tmp_path / "s3:").exists()
