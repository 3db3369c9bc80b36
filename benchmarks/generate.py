"""Make data sets of any size out of one small real export.

    python generate.py sqlite --from nf1.sqlite --copies 1000 nf1_1000.sqlite
    python generate.py sites --from ExampleHuman --count 1000 sites1000
    python generate.py plate --from ExampleHuman --count 1000 plate1000
    python generate.py npz --from A01_5.npz --count 400 npz400

A copy is the source with its ImageNumbers shifted behind those of the copy before, and with every measured
float multiplied by ``1 + r * 1e-6``, where r is a whole number in -999..999. Without that jitter a column of
a thousand copies has no more values than a column of one, and dictionaries and compression make the output
smaller, and the writer faster, than any real plate would.

The r of one value in copy number c is ``c * step mod 1999``, taken around zero. The step is a hash of the
table, the row, the column and a fixed seed. 1999 is prime, so up to 1,999 copies of a value all differ; copy
0 is the source as it is; and the same call gives the same data on each machine.

Integers, text and nulls stay as they are, and so do all columns that count or point at objects (a name with
Number, Parent, Children or Count). An archive has no ImageNumber; each copy is another site of a plate instead,
nine to a well, which its file name and its metadata tell.

The output takes its name only when it is whole. Beside it a small JSON file, OUT.recipe.json, says how it was
made: an output of the same recipe is not made again, and ``--force`` replaces nothing that has no recipe.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20_240_607
MODULUS = 1999  # prime, so that c * step visits each residue once
UNTOUCHED = ("Number", "Parent", "Children", "Count")
SITE_TABLES = ("Image", "Cells", "Cytoplasm", "Nuclei")
RULE = 1  # goes into the recipe; raise it when the same call starts to give other data


class GenerateError(ValueError):
    """The data set cannot be made as asked; the message says what to do."""


# --- the jitter ------------------------------------------------------------------------------------------


def steps(table: str, rows: int, columns: int) -> NDArray[np.int64]:
    """The step of each value of a table, rows x columns, in 1..MODULUS-1 (splitmix64 of its place)."""
    place = np.arange(rows * columns, dtype=np.uint64)
    start = (zlib.crc32(table.encode()) << 32) + SEED
    with np.errstate(over="ignore"):
        z = place * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z % np.uint64(MODULUS - 1)).astype(np.int64).reshape(rows, columns) + 1


def factors(step: NDArray[np.int64], copy: int) -> NDArray[np.float64]:
    """What the values of one copy are multiplied with: ``1 + r * 1e-6``."""
    r = (step * copy) % MODULUS
    r[r > MODULUS // 2] -= MODULUS
    return np.asarray(1 + r * 1e-6, dtype=np.float64)


@dataclass(frozen=True)
class Template:
    """One table of the source, ready to be copied: a list of cells per column."""

    columns: tuple[str, ...]
    cells: tuple[list[Any], ...]
    image: int  # the position of ImageNumber
    measured: tuple[int, ...]  # the positions of the columns that hold a float to jitter
    values: NDArray[np.float64]  # measured columns x rows, NaN where the cell is no float
    step: NDArray[np.int64]  # of the same shape

    def copy(self, number: int, shift: int) -> Iterator[tuple[Any, ...]]:
        """The rows of one copy; its ImageNumbers are `shift` higher than the source's."""
        columns = list(self.cells)
        columns[self.image] = [image + shift for image in self.cells[self.image]]
        jittered = self.values * factors(self.step, number)
        for at, column, known in zip(self.measured, jittered, ~np.isnan(self.values), strict=True):
            fresh = column.tolist()
            if not known.all():
                pairs = zip(known, fresh, self.cells[at], strict=True)
                fresh = [new if is_float else old for is_float, new, old in pairs]
            columns[at] = fresh
        return zip(*columns, strict=True)


def template(table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Template:
    """Find what is jittered in a table. A cell is measured if it is a Python float and its column no key."""
    if "ImageNumber" not in columns:
        raise GenerateError(f"{table} has no column ImageNumber, so it cannot be repeated")
    cells = tuple(list(column) for column in zip(*rows, strict=True)) or tuple([] for _ in columns)
    measured = tuple(
        at
        for at, (name, column) in enumerate(zip(columns, cells, strict=True))
        if not any(word in name for word in UNTOUCHED) and any(type(cell) is float for cell in column)
    )
    numbers = [[cell if type(cell) is float else np.nan for cell in cells[at]] for at in measured]
    shape = (len(measured), len(cells[0]))
    return Template(
        columns=tuple(columns),
        cells=cells,
        image=columns.index("ImageNumber"),
        measured=measured,
        values=np.array(numbers, dtype=np.float64).reshape(shape),
        step=steps(table, *shape),
    )


# --- SQLite ----------------------------------------------------------------------------------------------


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def repeat_sqlite(source: Path, out: Path, copies: int) -> None:
    """Write `copies` copies of each table that has an ImageNumber; other tables, keys and indexes stay.

    The file starts as a backup of the source, which is copy 0. Memory holds one copy of one table.
    """
    original = sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)
    with closing(original), closing(sqlite3.connect(out)) as db:
        original.backup(db)  # unlike a copy of the file, this is consistent while another program writes
    with closing(sqlite3.connect(out, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = OFF")  # a file that fails half-way is thrown away
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -65536")
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        templates = {}
        for name in names:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({quoted(name)})")]
            if "ImageNumber" in columns:
                rows = db.execute(f"SELECT * FROM {quoted(name)} ORDER BY rowid")
                templates[name] = template(name, columns, rows)
        if not templates:
            raise GenerateError(f"{source.name} has no table with a column ImageNumber; its tables: {names}")
        shift = max(max(found.cells[found.image], default=0) for found in templates.values())
        db.execute("BEGIN")
        for name, found in templates.items():
            marks = ",".join("?" * len(found.columns))
            insert = f"INSERT INTO {quoted(name)} VALUES ({marks})"
            for number in range(1, copies):
                db.executemany(insert, found.copy(number, number * shift))
        db.execute("COMMIT")


# --- CSV -------------------------------------------------------------------------------------------------


def cell_of(text: str) -> str | float:
    """A cell as it will be written: a number with a point or an exponent is a float, all else stays text."""
    try:
        int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError:
            return text
        return value if np.isfinite(value) else text
    return text


def read_site(folder: Path) -> tuple[dict[str, Template], int]:
    """The tables of one site folder by name, and the highest ImageNumber."""
    templates = {}
    for name in SITE_TABLES:
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise GenerateError(f"the site folder {folder.name} has no {path.name}")
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        image = header.index("ImageNumber")
        cells = [[int(c) if at == image else cell_of(c) for at, c in enumerate(row)] for row in rows]
        templates[name] = template(name, header, cells)
    return templates, max(templates["Image"].cells[templates["Image"].image], default=0)


def write_csv(path: Path, found: Template, copies: Iterable[int], shift: int) -> None:
    """Copies of one table under one header; csv.writer writes floats with repr, the shortest exact text."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(found.columns)
        for number in copies:
            writer.writerows(found.copy(number, number * shift))


def repeat_sites(source: Path, out: Path, count: int) -> None:
    """Write `count` site folders, each with ImageNumbers of its own."""
    templates, shift = read_site(source)
    for number in range(count):
        folder = out / f"site-{number + 1:05d}"
        folder.mkdir(parents=True)
        for name, found in templates.items():
            write_csv(folder / f"{name}.csv", found, [number], shift)


def repeat_plate(source: Path, out: Path, count: int) -> None:
    """Write what `repeat_sites` writes as one folder with one file per table."""
    templates, shift = read_site(source)
    out.mkdir()
    for name, found in templates.items():
        write_csv(out / f"{name}.csv", found, range(count), shift)


# --- NPZ -------------------------------------------------------------------------------------------------

CELLS = 150  # of an archive, at most
SITES, WELL_COLUMNS = 9, 24  # of a well, and of a plate with 384 wells


def site_of(number: int) -> tuple[int, int, int]:
    """(row, column, site) of a copy, all counted from 1."""
    well, site = divmod(number, SITES)
    row, column = divmod(well, WELL_COLUMNS)
    return row + 1, column + 1, site + 1


def site_metadata(metadata: dict[str, Any], row: int, column: int, site: int) -> dict[str, Any]:
    """The metadata of another site: its well, its site, and the names of its images (r01c01f05p01...)."""
    place = f"r{row:02d}c{column:02d}f{site:02d}"
    renamed = {
        key: re.sub(r"r\d\dc\d\df\d\d", place, value) if isinstance(value, str) else value
        for key, value in metadata.items()
    }
    return renamed | {"Metadata_Well": f"{chr(64 + row)}{column:02d}", "Metadata_Site": site}


def repeat_npz(source: Path, out: Path, count: int) -> None:
    """Write `count` archives into the folder of their plate, packed as DeepProfiler packs them.

    The sample's metadata are unpickled, as NumPy does it: take it from somebody you trust.
    """
    with np.load(source, allow_pickle=True) as sample:
        features, locations = sample["features"][:CELLS], sample["locations"][:CELLS]
        metadata = sample["metadata"].item()
    folder = out / str(metadata["Metadata_Plate"])
    folder.mkdir(parents=True)
    by_features, by_locations = steps("features", *features.shape), steps("locations", *locations.shape)
    for number in range(count):
        row, column, site = site_of(number)
        np.savez_compressed(
            folder / f"{chr(64 + row)}{column:02d}_{site}.npz",
            features=(features * factors(by_features, number)).astype(features.dtype),
            metadata=np.array(site_metadata(metadata, row, column, site), dtype=object),
            locations=(locations * factors(by_locations, number)).astype(locations.dtype),
        )


# --- the command -----------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Path, Path, int], None]] = {
    "sqlite": repeat_sqlite,
    "sites": repeat_sites,
    "plate": repeat_plate,
    "npz": repeat_npz,
}


def size_of(path: Path) -> int:
    """Bytes in a file, or in all the files below a folder; 0 where there is nothing."""
    if path.is_dir():
        return sum(size_of(child) for child in path.iterdir())
    return path.stat().st_size if path.exists() else 0


def checksum(path: Path) -> str:
    """CRC-32 of a file, or of the tables of a site folder."""
    files = [path / f"{name}.csv" for name in SITE_TABLES] if path.is_dir() else [path]
    crc = 0
    for file in files:
        crc = zlib.crc32(file.read_bytes() if file.is_file() else b"", crc)
    return f"{crc:08x}"


def recipe_path(out: Path) -> Path:
    """Where the recipe of a data set lies: beside it."""
    return out.with_name(f"{out.name}.recipe.json")


def remove(path: Path) -> None:
    """Take away a file or a folder of ours."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def must_make(out: Path, recipe: dict[str, Any], force: bool) -> bool:
    """Whether there is something to do; an error if `out` is not what it seems to be or not ours."""
    if not out.exists():
        return True
    known = recipe_path(out)
    made = json.loads(known.read_text()) if known.exists() else None
    if force:
        if made is None:
            raise GenerateError(f"{out.name} was not made by this script; remove it yourself, then try again")
        return True
    if made is not None and made != recipe:
        raise GenerateError(f"{out.name} is of another recipe ({made}, not {recipe}); --force replaces it")
    return False


def generate(kind: str, source: Path, out: Path, count: int, *, force: bool = False) -> bool:
    """Make one data set; False if it was there.

    `kind` is a key of MAKERS, `count` the number of copies, 1 to 1,999.
    """
    if not 1 <= count <= MODULUS:
        raise GenerateError(f"{count} copies; there can be 1 to {MODULUS}, for beyond that values repeat")
    if not source.exists():
        raise GenerateError(f"there is no {source}")
    recipe = {"kind": kind, "source": checksum(source), "copies": count, "seed": SEED, "rule": RULE}
    if not must_make(out, recipe, force):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [source / f"{name}.csv" for name in SITE_TABLES] if source.is_dir() else [source]
    needed = int(1.2 * count * sum(size_of(file) for file in files))  # jittered floats have more digits
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise GenerateError(f"about {needed / 1e9:.1f} GB are needed for {out.name}, {free / 1e9:.1f} are free")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        MAKERS[kind](source, partial, count)
        if out.exists():
            remove(out)
        recipe_path(out).write_text(json.dumps(recipe) + "\n")
        partial.replace(out)
    finally:
        remove(partial)
    return True


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make a large data set out of a small one.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, flag, what in (
        ("sqlite", "--copies", "one SQLite file, its tables repeated"),
        ("sites", "--count", "site folders with a CSV file per table"),
        ("plate", "--count", "one folder with a CSV file per table"),
        ("npz", "--count", "one NPZ archive a site"),
    ):
        one = kinds.add_parser(kind, help=what, description=what)
        one.add_argument("--from", dest="source", type=Path, required=True, help="the small one")
        one.add_argument(flag, dest="count", type=int, required=True, help=f"1 to {MODULUS}")
        one.add_argument("--force", action="store_true", help="replace what this script made before")
        one.add_argument("out", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Make what the command line asks for and say how large it is."""
    asked = arguments(argv)
    began = time.perf_counter()
    try:
        made = generate(asked.kind, asked.source, asked.out, asked.count, force=asked.force)
    except GenerateError as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    how = f"made in {time.perf_counter() - began:.0f} s" if made else "was there"
    print(f"{asked.out.name}: {size_of(asked.out) / 1e6:,.1f} MB, {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
