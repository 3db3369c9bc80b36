"""Roots with plates, and changes to them."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from small import edited as edited

from prefect_cytotable.flows import reprocess
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites, write_sqlite
from prefect_cytotable.tasks.core.reprocess.model import Reprocessed

ROWS = 12
"""Rows of a chunk: one or two sites of a plate here."""


def plate_of_sites(path: Path, seed: int = 1, wells: int = 2, sites: int = 2, cells: int = 8) -> Path:
    """A plate as a folder of CSV files for each image."""
    shape = PlateShape(plate=path.name, wells=wells, sites=sites, cells=cells, seed=seed)
    return write_csv_sites(tables(shape), path)


def plate_of_sqlite(path: Path, seed: int = 1, wells: int = 2) -> Path:
    """A plate as a SQLite file."""
    return write_sqlite(tables(PlateShape(plate=path.stem, wells=wells, sites=2, cells=8, seed=seed)), path)


def aged(path: Path, seconds: float = 3600.0) -> Path:
    """The same, with every file last changed so long ago."""
    moment = time.time() - seconds
    for one in [path, *path.rglob("*")]:
        if one.is_file():
            os.utime(one, (moment, moment))
    return path


def set_area(site: Path, value: str) -> None:
    """Give the first cell of a site another area."""

    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[1][rows[0].index("AreaShape_Area")] = value
        return rows

    edited(site / "Cells.csv", change)


def again(root: Path | str, destination: Path | str, **arguments: Any) -> Reprocessed:
    """A run whose plates need not settle, with small chunks."""
    arguments.setdefault("settle", 0)
    arguments.setdefault("options", {"chunk_size": ROWS})
    return reprocess(root, destination, **arguments)


def index_of(destination: Path) -> dict[str, dict[str, Any]]:
    """The index, by plate."""
    return {row["plate"]: row for row in pq.read_table(destination / "index.parquet").to_pylist()}


def cells_of(destination: Path, plate: str) -> pa.Table:
    """The output of a plate, without its metadata."""
    return pq.read_table(destination / f"{plate}.parquet").replace_schema_metadata()


def listing(folder: Path) -> list[str]:
    """What lies directly in a folder, but for the pages that stand beside outputs."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".report.html"))


def kept_parts(destination: Path) -> dict[str, int]:
    """How many parts of each plate are kept."""
    folders = (destination / ".prefect-cytotable").glob("*.prefect-cytotable")
    return {
        folder.name.rpartition(".parquet-")[0]: len(list((folder / "parts").iterdir()))
        for folder in folders
        if (folder / "parts").is_dir()
    }


def executed(path: Path, *statements: str) -> None:
    """Run SQL statements on a SQLite file."""
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
