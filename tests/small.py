"""Small plates of known content, as CSV or SQLite, and the stages up to the plan for them."""

from __future__ import annotations

import csv
import inspect
import random
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.gather import gather
from prefect_cytotable.tasks.core.inspection import inspect as inspected
from prefect_cytotable.tasks.core.model import Gathered, Inspected, Options, Plan
from prefect_cytotable.tasks.core.plan import plan
from prefect_cytotable.tasks.core.request import make_options

Row = Sequence[object]
Tables = dict[str, tuple[list[str], list[Row]]]


def tables(images: Mapping[int, int]) -> Tables:
    """Image, Nuclei, Cells and Cytoplasm with so many objects in each image; values tell where they come from."""
    keys = [(image, number) for image, count in images.items() for number in range(1, count + 1)]
    return {
        "Image": (
            ["ImageNumber", "Metadata_Plate", "Metadata_Well", "FileName_DNA"],
            [(image, "P1", f"A{image:02d}", f"{image}.tif") for image in images],
        ),
        "Nuclei": (
            ["ImageNumber", "ObjectNumber", "AreaShape_Area"],
            [(image, number, image + number / 1000) for image, number in keys],
        ),
        "Cells": (
            ["ImageNumber", "ObjectNumber", "Parent_Nuclei", "AreaShape_Area"],
            [(image, number, number, 1000 + image + number / 1000) for image, number in keys],
        ),
        "Cytoplasm": (
            ["ImageNumber", "ObjectNumber", "Parent_Cells", "Parent_Nuclei", "AreaShape_Area"],
            [(image, number, number, number, 2000 + image + number / 1000) for image, number in keys],
        ),
    }


def write_table(path: Path, header: Sequence[str], rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_csv(folder: Path, content: Tables) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (header, rows) in content.items():
        write_table(folder / f"{name}.csv", header, rows)
    return folder


def write_sqlite(path: Path, content: Tables, index: bool = True) -> Path:
    """As ExportToDatabase does; without `index` there is no key, and rows lie as they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        for name, (header, rows) in content.items():
            names = [_database_name(name, column) for column in header]
            key = ["ImageNumber"] if name == "Image" else names[:2]
            columns = ", ".join(f'"{one}" {_declared(one)}' for one in names)
            primary = ", PRIMARY KEY ({})".format(", ".join(f'"{one}"' for one in key)) if index else ""
            connection.execute(f'CREATE TABLE "Per_{name}" ({columns}{primary})')
            connection.executemany(f'INSERT INTO "Per_{name}" VALUES ({", ".join("?" * len(names))})', rows)
    return path


Layout = Mapping[object, Mapping[int, int]]
"""How many objects each image of each dataset has, by TableNumber and ImageNumber."""


def numbered_tables(layout: Layout) -> Tables:
    """What cytominer-database collects from many exports into one file: each table has the rows of all datasets.

    A value tells its dataset's position, its image and its object. Nuclei are numbered against the order of the cells.
    """
    keys = [
        (position, number, image, count)
        for position, (number, images) in enumerate(layout.items(), start=1)
        for image, count in images.items()
    ]
    content: Tables = {
        "Image": (
            ["TableNumber", "ImageNumber", "Image_Metadata_Plate", "Image_Metadata_Well", "Image_FileName_DNA"],
            [(number, image, f"P{at}", f"W{at}-{image}", f"{at}-{image}.tif") for at, number, image, _ in keys],
        )
    }
    for name, lead, parents in (("Nuclei", 1, ()), ("Cells", 2, ("Nuclei",)), ("Cytoplasm", 3, ("Cells", "Nuclei"))):
        header = ["TableNumber", "ImageNumber", "ObjectNumber", f"{name}_AreaShape_Area"]
        content[name] = (
            [*header, *(f"{name}_Parent_{parent}" for parent in parents)],
            [
                (
                    *(number, image, one, lead * 65_536 + at * 1024 + image + one / 1024),
                    *(one if parent == "Cells" else count + 1 - one for parent in parents),
                )
                for at, number, image, count in keys
                for one in range(1, count + 1)
            ],
        )
    return content


def scattered(content: Tables, seed: int = 1) -> Tables:
    """The same rows of each table in another order."""
    shuffled = random.Random(seed)
    return {name: (header, shuffled.sample(rows, len(rows))) for name, (header, rows) in content.items()}


def write_numbered(
    path: Path, content: Tables, number_types: Mapping[str, str] | None = None, index: str = "whole"
) -> Path:
    """As cytominer-database does, which makes a key of nothing.

    Args:
        path: Of the file.
        content: Its tables.
        number_types: The declared type of TableNumber by table, where it is not TEXT.
        index: Over "whole" keys, over the "number" of the dataset alone, or "none".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        for name, (header, rows) in content.items():
            types = {one: "TEXT" if "Metadata" in one or "FileName" in one else "FLOAT" for one in header}
            types |= {one: "BIGINT" for one in header if "Parent" in one or one in ("ImageNumber", "ObjectNumber")}
            types |= {"TableNumber": (number_types or {}).get(name, "TEXT")}
            columns = ", ".join(f'"{one}" {types[one]}' for one in header)
            connection.execute(f'CREATE TABLE "{name}" ({columns})')
            connection.executemany(f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(header))})', rows)
            key = [one for one in header if one in ("TableNumber", "ImageNumber", "ObjectNumber")]
            if index != "none":
                indexed = ", ".join(key if index == "whole" else key[:1])
                connection.execute(f'CREATE INDEX "ix_{name}" ON "{name}" ({indexed})')
    return path


def _database_name(table: str, column: str) -> str:
    if column == "ImageNumber":
        return column
    return f"{table}_Number_Object_Number" if column == "ObjectNumber" else f"{table}_{column}"


def _declared(name: str) -> str:
    if "Number" in name or "Parent" in name:
        return "INTEGER"
    return "REAL" if "Area" in name else "TEXT"


def options(source: Path, **arguments: Any) -> Options:
    """Options with the defaults of `convert`."""
    given = {"source_path": source, "dest_path": source.parent / "out.parquet", **arguments}
    parameters = inspect.signature(convert).parameters
    names = [name for name in inspect.signature(make_options).parameters if name in parameters]
    return make_options(**{name: given.get(name, parameters[name].default) for name in names})


def gathered(source: Path, **arguments: Any) -> Gathered:
    return gather(options(source, **arguments))


def inspect_source(source: Path, **arguments: Any) -> Inspected:
    chosen = options(source, **arguments)
    return inspected(gather(chosen), chosen)


def plan_source(source: Path, **arguments: Any) -> Plan:
    chosen = options(source, **arguments)
    return plan(inspected(gather(chosen), chosen), chosen)


def edited(path: Path, change: Callable[[list[list[str]]], list[list[str]]]) -> None:
    """Change the rows of a CSV file, its header among them; its time is that of the change."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(change(rows))
