"""Check that an AnnData holds what a Parquet file of the same conversion holds, value for value.

    python verify_anndata.py cells.parquet cells.h5ad

Both are of one program and in one order: row by row, every column of the table is looked for in X or obs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyarrow.parquet as pq
import verify

SUFFIXES = (".h5ad", ".zarr")


def read(path: Path) -> Any:
    """The AnnData; of a file X stays there."""
    return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path, backed="r")


def shape(path: Path) -> verify.Shape:
    """Rows and columns, of X and obs together."""
    found = read(path)
    return verify.Shape(found.n_obs, found.n_vars + found.obs.shape[1])


def compare(table: Path, path: Path) -> verify.Agreement:
    """Compare a Parquet file with an AnnData."""
    found, file = read(path), pq.ParquetFile(table)
    x = found.X[:]
    position = {name: number for number, name in enumerate(found.var_names)}
    rows = file.metadata.num_rows, found.n_obs
    if rows[0] != rows[1]:
        return verify.Agreement(rows, (), 0, 0, np.inf, "")
    equal, worst, worst_column, names = 0, 0.0, "", file.schema_arrow.names
    for name in names:
        expected = file.read(columns=[name]).column(name).to_pandas()
        if name in position:
            same, difference = verify.difference(expected.to_numpy(float), x[:, position[name]].astype(float))
        else:
            ours = found.obs[name].astype(object)
            pairs = zip(expected.astype(object), expected.isna(), ours, ours.isna(), strict=True)
            same = sum(a == b if not (no_a or no_b) else no_a == no_b for a, no_a, b, no_b in pairs)
            difference = 0.0 if same == len(expected) else np.inf
        equal += same
        if difference > worst:
            worst, worst_column = difference, name
    return verify.Agreement(rows, tuple(names), rows[0] * len(names), equal, worst, worst_column)


if __name__ == "__main__":
    sys.exit(verify.command("Compare a Parquet file and an AnnData of one conversion.", compare))
