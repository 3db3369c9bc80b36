"""What the tests of fetching work with: stores made of tables, and plain reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import tiledbsoma

EXPERIMENT = "census_data/homo_sapiens"


def plain_read(census: Path, value_filter: str | None = None) -> pa.Table:
    """obs as SOMA reads it, whole."""
    with tiledbsoma.Experiment.open(str(census / EXPERIMENT)) as experiment:
        table = experiment.obs.read(value_filter=value_filter).concat()
        return table.select(experiment.obs.schema.names).sort_by("soma_joinid")


def frame_of(path: Path, *tables: pa.Table, index: Sequence[str] = ("soma_joinid",), domain: object = None) -> Path:
    """A data frame with a fragment for each table."""
    tiledbsoma.DataFrame.create(
        str(path), schema=tables[0].schema, index_column_names=index, domain=domain or [[0, 1_000_000]]
    ).close()
    for table in tables:
        with tiledbsoma.DataFrame.open(str(path), "w") as frame:
            frame.write(table)
    return path


def decoded(table: pa.Table) -> pa.Table:
    """A table without dictionaries, in one piece, its texts large and without metadata."""
    columns = [_plain(column).combine_chunks() for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_string()) if pa.types.is_string(column.type) else column


def listing(folder: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
