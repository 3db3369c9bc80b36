"""The floor for SQLite: how fast two processes can be that do the work and nothing else.

    python floor_sqlite.py nf1_200.sqlite OUTDIR [--chunks 16] [--workers 2]

The file is cut into ranges of ImageNumber. For each range a worker reads the cytoplasm, cells, nuclei and
image rows through ADBC (SQLite's own key index finds them), looks up the parents of each cytoplasm by a
binary search over whole-number keys, takes the rows of the cells and nuclei where they do not lie in place
already, and writes one Parquet part. Columns are those of the `cellprofiler_sqlite` preset and the image's
metadata and file names.

No Prefect, no plan, no checks, no final file: a duplicate key, a mixed column or a missing table goes
unnoticed. It is a yardstick, not a tool. It knows the tables of ExportToDatabase (Per_Image, Per_Cells, ...).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import adbc_driver_sqlite.dbapi as adbc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

BATCH_ROWS = 4096  # rows a record batch; a range fits in one, which spares putting chunks together
CHUNK_BYTES = 50_000_000  # of the file, when --chunks is not given
COMPARTMENTS = ("Cytoplasm", "Cells", "Nuclei")
PARENTS = ("Cells", "Nuclei")
IMAGE_KEY = "Metadata_ImageNumber"  # what the output calls it
Positions = NDArray[np.int64]


def keys(images: pa.ChunkedArray, objects: pa.ChunkedArray) -> Positions:
    """One whole number for an image and an object of it."""
    return np.asarray((images.to_numpy().astype(np.int64) << 32) | objects.to_numpy().astype(np.int64))


def positions(wanted: Positions, present: Positions) -> Positions:
    """Where each wanted key lies among the present ones, -1 where it does not."""
    if len(present) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    order = None if (present[1:] > present[:-1]).all() else np.argsort(present, kind="stable")
    ascending = present if order is None else present[order]
    at = np.searchsorted(ascending, wanted).clip(max=len(present) - 1)
    found = ascending[at] == wanted
    return np.where(found, at if order is None else order[at], -1)


def taken(table: pa.Table, rows: Positions) -> pa.Table:
    """Those rows of a table; the table itself, or a slice of it, where they follow one another."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return table.slice(rows[0], len(rows))
    return table.combine_chunks().take(pa.array(rows))


def beside(base: pa.Table, parents: dict[str, tuple[pa.Table, Positions]]) -> pa.Table:
    """The base rows that have all their parents, with the columns of the parents beside them."""
    whole = np.logical_and.reduce([rows >= 0 for _, rows in parents.values()])
    complete = bool(whole.all())
    columns = dict(zip(base.column_names, (base if complete else base.filter(pa.array(whole))).columns, strict=True))
    for table, rows in parents.values():
        side = taken(table, rows if complete else rows[whole])
        columns.update((n, c) for n, c in zip(side.column_names, side.columns, strict=True) if n not in columns)
    return pa.table(columns)


def write(table: pa.Table, path: Path) -> int:
    """One part; only text gets a dictionary. Returns the rows."""
    text = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(table, path, use_dictionary=text or False)
    return int(table.num_rows)


def image_columns(names: list[str]) -> list[str]:
    """What the output keeps of the image table."""
    return [name for name in names if "Metadata_" in name or "FileName_" in name or name == "ImageNumber"]


def convert(file: Path, out: Path, job: tuple[int, int, int]) -> int:
    """Read, join and write the images of one range (part number, first, last); returns the rows."""
    part, first, last = job
    tables = {}
    with adbc.connect(f"{file.resolve().as_uri()}?mode=ro") as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
        cursor.execute("SELECT name FROM pragma_table_info('Per_Image')")
        wanted = image_columns([name for (name,) in cursor.fetchall()])
        picked = ", ".join(f'"{name}"' for name in wanted)
        for name in (*COMPARTMENTS, "Image"):
            what = picked if name == "Image" else "*"
            where = f"ImageNumber BETWEEN {first} AND {last}"
            cursor.execute(f"SELECT {what} FROM Per_{name} WHERE {where}")
            tables[name] = cursor.fetch_arrow_table()
    base = tables["Cytoplasm"]
    parents = {}
    for name in PARENTS:
        present = keys(tables[name]["ImageNumber"], tables[name][f"{name}_Number_Object_Number"])
        parents[name] = (
            tables[name],
            positions(keys(base["ImageNumber"], base[f"Cytoplasm_Parent_{name}"]), present),
        )
    images = tables["Image"]["ImageNumber"].to_numpy()
    parents["Image"] = tables["Image"], positions(base["ImageNumber"].to_numpy(), images)
    joined = beside(base, parents)
    names = [IMAGE_KEY if name == "ImageNumber" else name for name in joined.column_names]
    return write(joined.rename_columns(names), out / f"part-{part:05d}.parquet")


def ranges(file: Path, chunks: int) -> list[tuple[int, int, int]]:
    """The image range of each part, by equal numbers of images."""
    with adbc.connect(f"{file.resolve().as_uri()}?mode=ro") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT min(ImageNumber), max(ImageNumber) FROM Per_Image")
        ((low, high),) = cursor.fetchall()
    step = -(-(high - low + 1) // chunks)
    starts = range(low, high + 1, step)
    return [(part, start, min(high, start + step - 1)) for part, start in enumerate(starts)]


def main() -> int:
    """Convert SRC into parts below OUTDIR and print the number of rows."""
    parser = argparse.ArgumentParser(description="The hand-written floor for a CellProfiler SQLite file.")
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("out", type=Path, metavar="OUTDIR", help="a folder that does not exist yet")
    parser.add_argument("--chunks", type=int, help="number of parts (default: one for each 50 MB of the file)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", choices=("fork", "spawn"), default="fork", help="how workers are started")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    jobs = ranges(asked.source, asked.chunks or -(-asked.source.stat().st_size // CHUNK_BYTES))
    context = multiprocessing.get_context(asked.start)
    with ProcessPoolExecutor(asked.workers, mp_context=context) as pool:
        rows = sum(pool.map(partial(convert, asked.source, asked.out), jobs))
    print(f"{rows} rows in {len(list(asked.out.iterdir()))} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
