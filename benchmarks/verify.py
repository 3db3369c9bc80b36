"""Check that two outputs of one conversion hold the same cells and the same values.

    python verify.py ours.parquet peer.parquet

Rows are matched by their keys (ImageNumber and the object number of the cytoplasm), never by their place. A
dozen number columns, spread evenly over those that both have, are compared value by value.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

KEY = ("Metadata_ImageNumber", "Cytoplasm_Number_Object_Number")
COLUMNS = 12
TOLERANCE = 1e-12  # relative; a few units in the last place, as another parser of decimal text may give

Loaded = tuple[NDArray[Any], dict[str, NDArray[np.float64]]]
"""The keys of an output in ascending order, and by name the columns in that order."""


@dataclass(frozen=True)
class Shape:
    """Rows and columns of an output."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Agreement:
    """What came out of comparing two outputs."""

    rows: tuple[int, int]
    columns: tuple[str, ...]  # those compared
    values: int
    equal: int  # of the values, to the last bit; null equals null
    worst: float  # the largest relative difference; infinite if a null or a key stands against a value
    worst_column: str

    @property
    def good(self) -> bool:
        """Whether the outputs say the same."""
        return self.rows[0] == self.rows[1] and bool(self.columns) and self.worst <= TOLERANCE

    def line(self) -> str:
        """The finding on one line."""
        if self.rows[0] != self.rows[1]:
            return f"DIFFER: {self.rows[0]:,} rows and {self.rows[1]:,} rows"
        if not self.columns:
            return f"NOT COMPARED: the keys {KEY} and a number column must be in both"
        found = f"{self.equal:,} of {self.values:,} values in {len(self.columns)} columns equal to the last bit"
        if self.worst:
            found += f", largest relative difference {self.worst:.1e} in {self.worst_column}"
        return f"{'agree' if self.good else 'DIFFER'}: {self.rows[0]:,} rows, {found}"


def parts(path: Path) -> list[Path]:
    """The Parquet files of an output: the file itself, or those of a folder in the order of their names."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def shape(path: Path) -> Shape:
    """Rows and columns, from the footers alone."""
    footers = [pq.read_metadata(part) for part in parts(path)]
    return Shape(sum(f.num_rows for f in footers), max((f.num_columns for f in footers), default=0))


def number_columns(path: Path) -> set[str]:
    """The names of the number columns; empty if there is no file."""
    schemas = [pq.read_schema(part) for part in parts(path)[:1]]
    kinds = (pa.types.is_integer, pa.types.is_floating)
    return {field.name for schema in schemas for field in schema if any(kind(field.type) for kind in kinds)}


def load(path: Path, columns: list[str]) -> Loaded:
    """The keys in ascending order, and each column in that order as doubles (null is NaN)."""
    table = pa.concat_tables(
        [pq.read_table(part, columns=[*KEY, *columns]) for part in parts(path)], promote_options="permissive"
    )
    image, number = (table[name].to_numpy().astype(np.int64) for name in KEY)
    key = (image << 32) | number
    order = np.argsort(key, kind="stable")
    return key[order], {name: table[name].to_numpy().astype(np.float64)[order] for name in columns}


def difference(one: NDArray[np.float64], two: NDArray[np.float64]) -> tuple[int, float]:
    """How many values are equal, and the largest relative difference of the others."""
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    left, right = one[~same], two[~same]
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.abs(left - right) / np.maximum(np.abs(left), np.abs(right))
    relative[np.isnan(relative)] = np.inf
    return int(same.sum()), float(relative.max(initial=0.0))


def compare(one: Path, two: Path) -> Agreement:
    """Compare two outputs, each a Parquet file or a folder of parts."""
    rows = shape(one).rows, shape(two).rows
    both = number_columns(one) & number_columns(two)
    common = sorted(both - set(KEY))
    if rows[0] != rows[1] or not common or not both.issuperset(KEY):
        return Agreement(rows, (), 0, 0, np.inf, "")
    chosen = evenly(common)
    return agreement(rows, load(one, chosen), load(two, chosen))


def evenly(common: list[str]) -> list[str]:
    """A dozen of these columns, spread evenly over them."""
    return sorted({common[i * (len(common) - 1) // (COLUMNS - 1)] for i in range(COLUMNS)})


def agreement(rows: tuple[int, int], one: Loaded, two: Loaded) -> Agreement:
    """Compare the values of two outputs; their keys must be unique and the same."""
    (keys, left), (other_keys, right) = one, two
    names, values = tuple(left), len(keys) * len(left)
    if not np.array_equal(keys, other_keys) or len(np.unique(keys)) != len(keys):
        return Agreement(rows, names, values, 0, np.inf, "the keys")
    found = {name: difference(left[name], right[name]) for name in names}
    worst = max(found, key=lambda name: found[name][1])
    return Agreement(rows, names, values, sum(same for same, _ in found.values()), found[worst][1], worst)


def command(description: str, compared: Callable[[Path, Path], Agreement]) -> int:
    """A command that compares two outputs; gives its exit code, which is 1 if they differ."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("one", type=Path)
    parser.add_argument("two", type=Path)
    asked = parser.parse_args()
    found = compared(asked.one, asked.two)
    print(found.line())
    return 0 if found.good else 1


if __name__ == "__main__":
    sys.exit(command("Compare two outputs by keys and values.", compare))
