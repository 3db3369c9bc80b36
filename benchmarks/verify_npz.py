"""Check that two outputs of one conversion of NPZ archives hold the same cells and the same values.

    python verify_npz.py ours.parquet peer.parquet

Cells have no numbers: a row is known by its archive and its place in the image, to the last bit. A dozen number
columns, spread evenly over those that both have, are compared value by value.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from verify import Agreement, Loaded, agreement, command, evenly, number_columns, parts, shape

SOURCE = "Metadata_NPZSource"
PLACE = ("Location_Center_X", "Location_Center_Y")


def load(path: Path, columns: list[str]) -> Loaded:
    """The keys in ascending order, and the columns in that order as doubles (null is NaN)."""
    names = [SOURCE, *PLACE, *(name for name in columns if name not in PLACE)]
    table = pa.concat_tables([pq.read_table(part, columns=names) for part in parts(path)], promote_options="permissive")
    places = [map(float.hex, table[name].to_pylist()) for name in PLACE]
    keys = np.array([" ".join(key) for key in zip(table[SOURCE].to_pylist(), *places, strict=True)])
    order = np.argsort(keys, kind="stable")
    return keys[order], {name: table[name].to_numpy().astype(np.float64)[order] for name in columns}


def compare(one: Path, two: Path) -> Agreement:
    """Compare two outputs, each a Parquet file or a folder of parts."""
    rows = shape(one).rows, shape(two).rows
    common = sorted(number_columns(one) & number_columns(two))
    if rows[0] != rows[1] or not set(common).issuperset(PLACE):
        return Agreement(rows, (), 0, 0, np.inf, "")
    chosen = evenly(common)
    return agreement(rows, load(one, chosen), load(two, chosen))


if __name__ == "__main__":
    sys.exit(command("Compare two outputs of NPZ archives by keys and values.", compare))
