"""A small synthetic plate, as CellProfiler would have measured it: for the demo, for tests, for trying things out."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Value = int | float | str | None
CHANNELS = ("DNA", "ER", "AGP")
SHAPES = ("Area", "Eccentricity", "FormFactor", "MeanRadius", "Perimeter", "Solidity")
INTENSITIES = ("IntegratedIntensity", "MaxIntensity", "MeanIntensity", "StdIntensity")
TEXTURES = ("Contrast", "Entropy", "Variance")


@dataclass(frozen=True)
class Table:
    """A table of a plate: column names without their compartment, and rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class PlateShape:
    """How large a synthetic plate is; `seed` makes it reproducible."""

    plate: str = "demo-plate"
    wells: int = 12
    sites: int = 2
    cells: int = 20
    first_image: int = 1
    seed: int = 20


def tables(shape: PlateShape) -> dict[str, Table]:
    """The tables Image, Nuclei, Cells and Cytoplasm of a plate.

    Sites differ in their number of cells. Every tenth nucleus has no cell, so that nuclei and cells are numbered
    differently, as in real exports.
    """
    random = np.random.default_rng(shape.seed)
    images: list[tuple[Value, ...]] = []
    rows: dict[str, list[tuple[Value, ...]]] = {"Nuclei": [], "Cells": [], "Cytoplasm": []}
    number = shape.first_image
    for well in range(shape.wells):
        name = f"{'ABCDEFGHIJKLMNOP'[well // 24 % 16]}{well % 24 + 1:02d}"
        for site in range(1, shape.sites + 1):
            nuclei = max(int(random.poisson(shape.cells)), 1)
            with_cell = [one for one in range(1, nuclei + 1) if one % 10]
            rows["Nuclei"] += [(number, one, *_measured(random)) for one in range(1, nuclei + 1)]
            rows["Cells"] += [
                (number, cell, nucleus, *_measured(random)) for cell, nucleus in enumerate(with_cell, start=1)
            ]
            rows["Cytoplasm"] += [
                (number, cell, cell, nucleus, *_measured(random)) for cell, nucleus in enumerate(with_cell, start=1)
            ]
            files = (f"{shape.plate}_{name}_s{site}_{channel}.tif" for channel in CHANNELS)
            counts = (len(with_cell), len(with_cell), nuclei)
            images.append((number, shape.plate, name, site, *counts, *files, float(random.uniform(90, 110))))
            number += 1
    image: tuple[str, ...] = ("ImageNumber", "Metadata_Plate", "Metadata_Well", "Metadata_Site")
    image += tuple(f"Count_{label}" for label in ("Cells", "Cytoplasm", "Nuclei"))
    image += (*(f"FileName_{channel}" for channel in CHANNELS), "Intensity_MeanIntensity_DNA")
    features = tuple(_features())
    keys = ("ImageNumber", "ObjectNumber")
    return {
        "Image": Table(image, tuple(images)),
        "Nuclei": Table((*keys, *features), tuple(rows["Nuclei"])),
        "Cells": Table((*keys, "Parent_Nuclei", *features), tuple(rows["Cells"])),
        "Cytoplasm": Table((*keys, "Parent_Cells", "Parent_Nuclei", *features), tuple(rows["Cytoplasm"])),
    }


def write_csv(plate: Mapping[str, Table], folder: Path) -> Path:
    """Write a plate as ExportToSpreadsheet does, one file a table; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in plate.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.columns)
            writer.writerows(table.rows)
    return folder


def write_csv_sites(plate: Mapping[str, Table], folder: Path) -> Path:
    """Write a plate as a folder of CSV files for each image; returns the folder."""
    for row in plate["Image"].rows:
        number = row[0]
        site = {
            name: Table(table.columns, tuple(one for one in table.rows if one[0] == number))
            for name, table in plate.items()
        }
        write_csv(site, folder / f"{row[1]}-{row[2]}-{row[3]}")
    return folder


def write_sqlite(plate: Mapping[str, Table], path: Path) -> Path:
    """Write a plate as ExportToDatabase does: Per_Image, Per_Cells, ... with CellProfiler's keys; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as connection:
        for name, table in plate.items():
            names = [_database_name(name, column) for column in table.columns]
            types = [_declared(table.rows, position) for position in range(len(names))]
            definitions = ", ".join(f'"{one}" {type_}' for one, type_ in zip(names, types, strict=True))
            key = '"ImageNumber"' if name == "Image" else f'"ImageNumber", "{names[1]}"'
            connection.execute(f'CREATE TABLE "Per_{name}" ({definitions}, PRIMARY KEY ({key}))')
            marks = ", ".join("?" * len(names))
            connection.executemany(f'INSERT INTO "Per_{name}" VALUES ({marks})', table.rows)
    connection.close()
    return path


def _features() -> Iterator[str]:
    yield from (f"AreaShape_{name}" for name in SHAPES)
    yield from (f"Intensity_{name}_{channel}" for name in INTENSITIES for channel in CHANNELS)
    yield from (f"Texture_{name}_{channel}_3_00_256" for name in TEXTURES for channel in CHANNELS)
    yield from ("Location_Center_X", "Location_Center_Y")


def _measured(random: np.random.Generator) -> list[float]:
    shapes = random.gamma(4.0, 25.0, len(SHAPES))
    intensities = random.beta(2.0, 9.0, len(INTENSITIES) * len(CHANNELS))
    textures = random.normal(6.0, 1.5, len(TEXTURES) * len(CHANNELS))
    return [float(value) for value in (*shapes, *intensities, *textures, *random.uniform(0, 1080, 2))]


def _database_name(table: str, column: str) -> str:
    if column == "ImageNumber":
        return column
    return f"{table}_Number_Object_Number" if column == "ObjectNumber" else f"{table}_{column}"


def _declared(rows: Sequence[Sequence[Value]], position: int) -> str:
    value = next((row[position] for row in rows if row[position] is not None), 0.0)
    return {int: "INTEGER", str: "TEXT"}.get(type(value), "float")
