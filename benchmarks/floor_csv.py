"""The floor for CSV: how fast two processes can be that do the work and nothing else.

    python floor_csv.py sites1000 OUTDIR [--chunks 40] [--workers 2]
    python floor_csv.py plate1000 OUTDIR [--chunks 40] [--workers 2]

SRC is a folder of site folders, or one folder with whole-plate files. Site folders are dealt out in order,
and the bodies of their files are put together under one header: a chunk costs one parse for each table.
Whole-plate files are cut where the ImageNumber changes: a binary search over the bytes finds each place, so
that no byte is parsed twice and no index pass is needed.

The join, the writing and the lack of all checks are those of floor_sqlite.py. It takes for granted that the
site folders have equal headers, that the rows lie in the order of their images and that no field holds a line
break.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
from floor_sqlite import COMPARTMENTS, PARENTS, beside, image_columns, keys, positions, write

TABLES = (*COMPARTMENTS, "Image")
CHUNK_BYTES = 40_000_000  # of CSV text, when --chunks is not given
BLOCK_BYTES = 1 << 22  # what pyarrow parses at a time

Piece = tuple[Path, int, int]  # a file, the first byte and the end of what is read of it


def read(pieces: Sequence[Piece]) -> pa.Table:
    """The rows of some pieces of CSV files that share the header of the first."""
    text = []
    for number, (path, start, end) in enumerate(pieces):
        with path.open("rb") as file:
            header = file.readline()
            if number == 0:
                text.append(header)
            start = max(start, len(header))
            file.seek(start)
            text.append(file.read(end - start))
    options = pc.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    return pc.read_csv(pa.BufferReader(b"".join(text)), read_options=options)


def convert(out: Path, job: tuple[int, dict[str, list[Piece]]]) -> int:
    """Read, join and write one chunk (part number, pieces of each table); returns the rows."""
    part, pieces = job
    tables = {name: read(found) for name, found in pieces.items()}
    tables["Image"] = tables["Image"].select(image_columns(tables["Image"].column_names))
    base = tables["Cytoplasm"]
    parents = {}
    for name in PARENTS:
        present = keys(tables[name]["ImageNumber"], tables[name]["ObjectNumber"])
        parents[name] = tables[name], positions(keys(base["ImageNumber"], base[f"Parent_{name}"]), present)
    images = tables["Image"]["ImageNumber"].to_numpy()
    parents["Image"] = tables["Image"], positions(base["ImageNumber"].to_numpy(), images)
    named = {name: (prefixed(name, table), rows) for name, (table, rows) in parents.items()}
    return write(beside(prefixed("Cytoplasm", base), named), out / f"part-{part:05d}.parquet")


def prefixed(compartment: str, table: pa.Table) -> pa.Table:
    """The table with the names of the output: the compartment first, the base's keys as metadata."""
    keys_of = {"ImageNumber", "ObjectNumber"} if compartment == "Cytoplasm" else {"ImageNumber"}
    return table.rename_columns([f"Metadata_{n}" if n in keys_of else f"{compartment}_{n}" for n in table.column_names])


def site_jobs(source: Path, chunks: int) -> list[dict[str, list[Piece]]]:
    """The pieces of each chunk: whole files of neighbouring site folders."""
    folders = sorted(path for path in source.iterdir() if path.is_dir())
    step = -(-len(folders) // chunks)
    groups = [folders[start : start + step] for start in range(0, len(folders), step)]
    return [{name: [whole(folder / f"{name}.csv") for folder in group] for name in TABLES} for group in groups]


def whole(path: Path) -> Piece:
    """All of a file."""
    return path, 0, path.stat().st_size


class PlateFile:
    """A CSV file whose rows ascend by ImageNumber.

    It is read, not mapped into memory, so that the search leaves nothing behind that a worker would inherit.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and read its header."""
        self.path = path
        self.file = path.open("rb")
        header = self.file.readline()
        self.start = len(header)
        self.size = path.stat().st_size
        self.column = next(csv.reader([header.decode()])).index("ImageNumber")

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def line(self, at: int) -> int:
        """The start of the first line that begins at byte `at` or behind it."""
        self.file.seek(max(at, self.start) - 1)
        self.file.readline()
        return self.file.tell()

    def image(self, at: int) -> int:
        """The ImageNumber of the line that starts at byte `at`."""
        self.file.seek(at)
        text = self.file.readline().decode()
        fields = text.split(",", self.column + 1) if '"' not in text else next(csv.reader([text]))
        return int(fields[self.column])

    def begin(self, image: int) -> int:
        """Where the rows of this image, or of the next that there is, begin."""
        low, high = self.start, self.size
        while low < high:
            middle = (low + high) // 2
            at = self.line(middle)
            if at < self.size and self.image(at) < image:
                low = at + 1
            else:
                high = middle
        return self.line(low)


def plate_jobs(source: Path, chunks: int) -> list[dict[str, list[Piece]]]:
    """The pieces of each chunk: byte ranges of the plate's files for one range of images."""
    with ExitStack() as stack:
        files = {n: stack.enter_context(closing(PlateFile(source / f"{n}.csv"))) for n in TABLES}
        base = files["Cytoplasm"]
        places = [base.line(base.size * part // chunks) for part in range(1, chunks)]
        firsts = sorted({base.image(at) for at in places if at < base.size})
        cuts = {n: [0, *(f.begin(image) for image in firsts), f.size] for n, f in files.items()}
    return [
        {name: [(files[name].path, cut[part], cut[part + 1])] for name, cut in cuts.items()}
        for part in range(len(firsts) + 1)
    ]


def main() -> int:
    """Convert SRC into parts below OUTDIR and print the number of rows."""
    parser = argparse.ArgumentParser(description="The hand-written floor for CellProfiler CSV files.")
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("out", type=Path, metavar="OUTDIR", help="a folder that does not exist yet")
    parser.add_argument("--chunks", type=int, help="number of parts (default: one for each 40 MB of text)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", choices=("fork", "spawn"), default="fork", help="how workers are started")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    plate = (asked.source / "Cytoplasm.csv").exists()
    files = asked.source.glob("*.csv" if plate else "*/*.csv")
    chunks = asked.chunks or -(-sum(file.stat().st_size for file in files) // CHUNK_BYTES)
    jobs = (plate_jobs if plate else site_jobs)(asked.source, chunks)
    context = multiprocessing.get_context(asked.start)
    with ProcessPoolExecutor(asked.workers, mp_context=context) as pool:
        rows = sum(pool.map(partial(convert, asked.out), enumerate(jobs)))
    print(f"{rows} rows in {len(list(asked.out.iterdir()))} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
