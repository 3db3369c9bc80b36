"""The widest site known (2,052 columns in Cells.csv), no cell at all, and an Experiment.csv with a giant field."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import converted, database_of, edited, executed, folder_of, rows_of, sites_of

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.demo import Table, Value, write_csv, write_sqlite

pytestmark = pytest.mark.usefixtures("local")

WIDTHS = {"Cells": 2052, "Cytoplasm": 2037, "Nuclei": 1945, "Image": 1840}
CELLS = 3
KEYS: dict[str, tuple[str, ...]] = {
    "Image": ("ImageNumber", "Metadata_Plate", "Metadata_Well"),
    "Nuclei": ("ImageNumber", "ObjectNumber"),
    "Cells": ("ImageNumber", "ObjectNumber", "Parent_Nuclei"),
    "Cytoplasm": ("ImageNumber", "ObjectNumber", "Parent_Cells", "Parent_Nuclei"),
}


def value(name: str, cell: int, feature: int) -> float:
    """A number that no other table, cell or feature has."""
    return 100.0 * list(WIDTHS).index(name) + cell + feature / 4096


def wide_tables() -> dict[str, Table]:
    plate = {}
    for name, width in WIDTHS.items():
        keys = KEYS[name]
        features = tuple(f"Texture_{number}" for number in range(width - len(keys)))
        rows = []
        for cell in range(1, 2 if name == "Image" else CELLS + 1):
            known: tuple[Value, ...] = (1, "P", "A01") if name == "Image" else (1, *[cell] * (len(keys) - 1))
            rows.append((*known, *(value(name, cell, number) for number in range(len(features)))))
        plate[name] = Table((*keys, *features), tuple(rows))
    return plate


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_the_widest_csv(tmp_path: Path, chunk_size: int | None) -> None:
    source = write_csv(wide_tables(), tmp_path / "wide")
    with (source / "Cells.csv").open(newline="") as file:
        assert len(next(csv.reader(file))) == 2052
    table = converted(source, tmp_path / "out.parquet", image_columns="all", chunk_size=chunk_size)
    assert table.num_rows == CELLS
    for name, width in WIDTHS.items():
        features = width - len(KEYS[name])
        assert sum(column.startswith(f"{name}_Texture_") for column in table.column_names) == features
        for feature in (0, 1, features // 2, features - 1):
            cells = [1] * CELLS if name == "Image" else range(1, CELLS + 1)
            expected = [value(name, cell, feature) for cell in cells]
            assert table[f"{name}_Texture_{feature}"].to_pylist() == expected


def test_a_table_of_more_columns_than_an_sqlite_result_may_have(tmp_path: Path) -> None:
    """SQLite itself admits 2,000 columns a table; the widest that fits is read in one query."""
    plate = wide_tables()
    narrow = {}
    for name, table in plate.items():
        width = min(len(table.columns), 1999)
        narrow[name] = Table(table.columns[:width], tuple(row[:width] for row in table.rows))
    source = write_sqlite(narrow, tmp_path / "wide.sqlite")
    table = converted(source, tmp_path / "out.parquet", preset="cellprofiler_sqlite", chunk_size=1)
    assert table.num_rows == CELLS
    last = len(narrow["Cells"].columns) - len(KEYS["Cells"]) - 1
    assert table[f"Cells_Texture_{last}"].to_pylist() == [value("Cells", cell, last) for cell in (1, 2, 3)]


def headers_only(folder: Path) -> Path:
    for path in folder.rglob("*.csv"):
        if path.name != "Image.csv":
            edited(path, lambda rows: rows[:1])
    return folder


@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.parametrize("make", [folder_of, sites_of])
def test_no_cell_at_all_csv(tmp_path: Path, make: Any, chunk_size: int | None) -> None:
    full = converted(make(tmp_path / "full"), tmp_path / "full.parquet")
    heard = Ear()
    source = headers_only(make(tmp_path / "empty"))
    table = converted(source, tmp_path / "out.parquet", chunk_size=chunk_size, progress=heard)
    assert table.num_rows == 0
    assert table.column_names == full.column_names
    measured = [name for name in table.column_names if "AreaShape" in name or "Texture" in name]
    assert {str(table.schema.field(name).type) for name in measured} == {"double"}
    assert "rows: 0 in, 0 out, 0 dropped" in heard.said
    assert "the output is empty" in heard.text


def test_no_cell_at_all_sqlite(tmp_path: Path, ear: Ear) -> None:
    source = database_of(tmp_path / "plate.sqlite")
    full = converted(source, tmp_path / "full.parquet", preset="cellprofiler_sqlite")
    executed(source, *(f"DELETE FROM Per_{name}" for name in ("Cells", "Nuclei", "Cytoplasm")))
    table = converted(source, tmp_path / "out.parquet", preset="cellprofiler_sqlite", progress=ear)
    assert table.num_rows == 0
    assert table.schema.remove_metadata() == full.schema.remove_metadata()
    assert "the output is empty" in ear.text


def test_some_sites_without_a_cell(tmp_path: Path, ear: Ear) -> None:
    """Their columns have no type of their own, and must not change that of the others."""
    source = sites_of(tmp_path / "sites")
    first, *others = sorted(source.iterdir())
    headers_only(first)
    table = converted(source, tmp_path / "out.parquet", progress=ear)
    assert table.num_rows == sum(rows_of(folder / "Cytoplasm.csv") for folder in others)
    types = {str(table.schema.field(name).type) for name in table.column_names if "AreaShape" in name}
    assert types == {"double"}
    assert "dropped 0" not in ear.text


def test_no_cell_at_all_unjoined(tmp_path: Path) -> None:
    result: Any = convert(headers_only(folder_of(tmp_path / "empty")), tmp_path / "out", join=False)
    assert set(result) == {"Image.csv", "Cells.csv", "Nuclei.csv", "Cytoplasm.csv"}
    for name, ((path,),) in {name: [entry["table"] for entry in entries] for name, entries in result.items()}.items():
        assert pq.read_table(path).num_rows == (4 if name == "Image.csv" else 0)


def test_no_cell_at_all_without_concat(tmp_path: Path) -> None:
    (path,) = convert(headers_only(folder_of(tmp_path / "empty")), tmp_path / "out", concat=False)
    assert pq.read_table(path).num_rows == 0


def test_experiment_csv_with_a_giant_field_beside(tmp_path: Path) -> None:
    """Python's csv module refuses fields of more than 131,072 characters."""
    source = folder_of(tmp_path / "plate")
    expected = converted(source, tmp_path / "expected.parquet")
    pipeline = "CellProfiler Pipeline: " + "x" * 200_000 + '\n""quoted""'
    (source / "Experiment.csv").write_text(f'Key,Value\nPipeline_Pipeline,"{pipeline}"\n')
    assert converted(source, tmp_path / "out.parquet").equals(expected)


@pytest.mark.parametrize("chunk_size", [None, 10])
def test_a_giant_field_in_a_table(tmp_path: Path, chunk_size: int | None) -> None:
    source = folder_of(tmp_path / "plate")
    giant = "x" * 200_000
    csv.field_size_limit(1 << 30)

    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[1][rows[0].index("Metadata_Well")] = giant
        return rows

    edited(source / "Image.csv", change)
    table: pa.Table = converted(source, tmp_path / "out.parquet", chunk_size=chunk_size)
    assert set(table["Metadata_Well"].to_pylist()) == {giant, "A01", "A02"}
