"""Where fetched rows go: one class a format, and the check that what was written can be read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from prefect_cytotable.tasks.core.errors import AccountError
from prefect_cytotable.tasks.core.soma.feather import FeatherSink
from prefect_cytotable.tasks.core.soma.groups import groups, labels_of
from prefect_cytotable.tasks.core.soma.model import TableFormat


class Sink(Protocol):
    """Writes groups to one file."""

    rows: int

    def write(self, group: pa.RecordBatch) -> None:
        """Write one group, its dictionary columns as codes."""
        ...

    def close(self) -> None:
        """Finish the file; it is on the disk then."""
        ...

    def abandon(self) -> None:
        """Close the file as it is."""
        ...


def write(
    tables: Iterable[pa.Table], schema: pa.Schema, format_: TableFormat, path: Path, group_rows: int
) -> tuple[int, int]:
    """Write tables to a file, which is closed and checked then; (rows, bytes).

    Args:
        tables: With the columns of `schema`, one after the other.
        schema: Of the file, its metadata included.
        format_: Of the file.
        path: A file that is not there yet.
        group_rows: Rows of a record batch or row group.

    Raises:
        AccountError: What was written does not read as what was meant.
    """
    labels = labels_of(schema)
    sink: Sink
    if format_ is TableFormat.FEATHER:
        sink = FeatherSink(path, schema, labels)
    elif format_ is TableFormat.PARQUET:
        from prefect_cytotable.tasks.core.soma.parquet import ParquetSink  # Arrow's part for it, where it is wanted

        sink = ParquetSink(path, schema, labels)
    else:
        from prefect_cytotable.tasks.core.soma.csv import CsvSink  # as above

        sink = CsvSink(path, schema, labels)
    try:
        sizes = []
        for group in groups(tables, schema, labels, group_rows):
            sink.write(group)
            sizes.append(group.num_rows)
        sink.close()
    except BaseException:
        sink.abandon()
        raise
    _check(path, schema, format_, sizes)
    return sink.rows, path.stat().st_size


def _check(path: Path, schema: pa.Schema, format_: TableFormat, sizes: list[int]) -> None:
    """Open the file as a reader would; `sizes` are the rows of its groups."""
    if format_ is TableFormat.CSV:
        return
    if format_ is TableFormat.PARQUET:
        import pyarrow.parquet as pq  # as above

        found, names = [pq.read_metadata(path).num_rows], pq.read_schema(path).names
        sizes = [sum(sizes)]
    else:
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            number = reader.num_record_batches
            found, names = [number, reader.get_batch(number - 1).num_rows], reader.schema.names
            sizes = [len(sizes), sizes[-1]] if sizes else [1, 0]  # without rows there is one batch all the same
    if found != sizes or names != schema.names:
        raise AccountError(f"{path}: {sizes} was written, {found} is read. Please report this defect.")
