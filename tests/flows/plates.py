"""What the tests of the flows work with: plates made, copied and damaged, and runs."""

from __future__ import annotations

import csv
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from small import edited as edited

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv, write_csv_sites, write_sqlite
from prefect_cytotable.tasks.core.report_page import ENDING

SMALL = PlateShape(wells=2, sites=2, cells=10)
"""Four images with about ten nuclei each, of which every tenth has no cell."""

KEYS = ("Metadata_TableNumber", "Metadata_ImageNumber", "Metadata_ObjectNumber")


def converted(source: Path, destination: Path, **arguments: Any) -> pa.Table:
    """The table that a conversion to one file writes, in this process."""
    arguments.setdefault("task_runner", "sequential")
    return pq.read_table(convert(source, destination, **arguments))


def folder_of(path: Path, shape: PlateShape = SMALL) -> Path:
    """A plate as one folder of CSV files."""
    return write_csv(tables(shape), path)


def sites_of(path: Path, shape: PlateShape = SMALL) -> Path:
    """A plate as a folder of CSV files for each image."""
    return write_csv_sites(tables(shape), path)


def database_of(path: Path, shape: PlateShape = SMALL) -> Path:
    """A plate as a SQLite file."""
    return write_sqlite(tables(shape), path)


def copy_of(source: Path, destination: Path) -> Path:
    """A copy that can be written to, of a file or a folder that perhaps cannot."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, destination)
    else:
        shutil.copyfile(source, destination)
    for path in (destination, *destination.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    return destination


def executed(path: Path, *statements: str) -> None:
    """Run SQL statements on a SQLite file."""
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def rows_of(path: Path) -> int:
    """Rows of a CSV file without its header."""
    with path.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def without(table: pa.Table, *columns: str) -> pa.Table:
    """A table without those of the columns that it has, and without metadata."""
    return table.drop_columns([name for name in columns if name in table.column_names]).replace_schema_metadata()


def differences(ours: pa.Table, expected: pa.Table, keys: list[str]) -> list[str]:
    """Where `ours` is not `expected` in the expected columns, both sorted by `keys`; empty where it is.

    Types may be wider, NaN equals NaN, and floats must be equal bit for bit.
    """
    if ours.num_rows != expected.num_rows:
        return [f"{ours.num_rows} rows instead of {expected.num_rows}"]
    order = [(key, "ascending") for key in keys]
    ours, expected = ours.sort_by(order).combine_chunks(), expected.sort_by(order).combine_chunks()
    found = []
    columns = dict(zip(ours.column_names, ours.columns, strict=True))  # a table looks for each name from its beginning
    for name, right in zip(expected.column_names, expected.columns, strict=True):
        left = columns.get(name)
        if left is None:
            found.append(f"{name} is missing")
            continue
        if not as_wide(left.type, right.type):
            found.append(f"{name} is {left.type}, narrower than {right.type}")
        elif not _same(left, right.cast(left.type)):
            found.append(f"{name} has other values")
    return found


def as_wide(ours: pa.DataType, theirs: pa.DataType) -> bool:
    """Whether every value of `theirs` is one of `ours`, in the same kind of type."""
    for of_kind in (pa.types.is_integer, pa.types.is_floating):
        if of_kind(theirs):
            return bool((of_kind(ours) or pa.types.is_floating(ours)) and ours.bit_width >= theirs.bit_width)
    return ours == theirs


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if pa.types.is_floating(one.type):
        nans = [pc.fill_null(pc.is_nan(column), False) for column in (one, other)]
        if not nans[0].equals(nans[1]):
            return False
        one, other = (pc.if_else(nan, 0.0, column) for nan, column in zip(nans, (one, other), strict=True))
    return bool(one.equals(other))


def listing(folder: Path) -> list[str]:
    """Everything below a folder, hidden things too; of reports for a browser other tests tell."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(path for path in found if not path.endswith(ENDING))
