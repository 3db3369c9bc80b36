"""The floor for NPZ archives: NumPy reads them, pyarrow writes some at a time as a row group of one file.

    python floor_npz.py npz400 OUT [--archives 16]

It is what a person would write who trusts the archives, in one process and without any checks: `numpy.load`
unpickles the metadata, which can run whatever code an archive brings along. It takes for granted that all
archives have the same features and the same metadata keys, each with one value for all cells.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def table_of(path: Path) -> pa.Table:
    """The cells of one archive, in the columns of the output."""
    with np.load(path, allow_pickle=True) as archive:
        features, locations, metadata = archive["features"], archive["locations"], archive["metadata"].item()
    cells = len(features)
    columns = {"Metadata_TableNumber": pa.nulls(cells, pa.int64()), "Metadata_NPZSource": pa.array([path.name] * cells)}
    columns |= {key: pa.array([value] * cells) for key, value in metadata.items()}
    columns |= {"Location_Center_X": pa.array(locations[:, 0]), "Location_Center_Y": pa.array(locations[:, 1])}
    by_feature = np.ascontiguousarray(features.T)
    model = metadata["Metadata_Model"]
    columns |= {f"{model}_{number}": pa.array(values) for number, values in enumerate(by_feature, 1)}
    return pa.table(columns)


def main() -> int:
    """Convert the archives below SRC to the Parquet file OUT and print the number of rows."""
    parser = argparse.ArgumentParser(description="The hand-written floor for NPZ archives.")
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("out", type=Path, metavar="OUT", help="a file that does not exist yet")
    parser.add_argument("--archives", type=int, default=16, help="of a row group (default: 16)")
    asked = parser.parse_args()
    paths = sorted(asked.source.rglob("*.npz"))
    schema = table_of(paths[0]).schema
    text = [field.name for field in schema if pa.types.is_string(field.type)]
    rows = 0
    with pq.ParquetWriter(asked.out, schema, use_dictionary=text) as writer:
        for start in range(0, len(paths), asked.archives):
            tables = [table_of(path) for path in paths[start : start + asked.archives]]
            table = pa.concat_tables(tables)
            writer.write_table(table, row_group_size=table.num_rows)
            rows += table.num_rows
    print(f"{rows} rows of {len(paths)} archives")
    return 0


if __name__ == "__main__":
    sys.exit(main())
