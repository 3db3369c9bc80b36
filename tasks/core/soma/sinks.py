"""Where fetched rows go: one class a format, and the check that what was written can be read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from prefect_cytotable.tasks.core.errors import AccountError
from prefect_cytotable.tasks.core.soma.feather import FeatherSink
from prefect_cytotable.tasks.core.soma.groups import groups, labels_of
from prefect_cytotable.tasks.core.soma.labels import Labels, narrowed
from prefect_cytotable.tasks.core.soma.model import TableFormat

CSV_ROWS = 1 << 14
"""Rows turned to text at a time: texts take several times what labels do."""

ZSTD_LEVEL = 1
"""As fast as Snappy here, and a third smaller (measured on the columns of the Census)."""


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


class ParquetSink:
    """A row group for each group, with just the labels that its rows use."""

    def __init__(self, path: Path, schema: pa.Schema, labels: dict[str, Labels]) -> None:
        self._schema, self._labels, self._path = schema, labels, path
        self.rows = 0
        # Of labels they take a fifth of the time of writing, and tell little: a group's labels stand in its dictionary.
        without = {field.name for field in schema if pa.types.is_floating(field.type)} | labels.keys()
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=list(labels),
            write_statistics=[name for name in schema.names if name not in without],
        )

    def write(self, group: pa.RecordBatch) -> None:
        """Write a row group."""
        columns = [
            narrowed(column, self._labels[name]) if name in self._labels else column
            for name, column in zip(group.schema.names, group.columns, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=group.num_rows)
        self.rows += group.num_rows

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Close the file as it is."""
        self._writer.close()


class CsvSink:
    """A header and lines; nulls are empty, texts quoted."""

    def __init__(self, path: Path, schema: pa.Schema, labels: dict[str, Labels]) -> None:
        self._labels = labels
        self._schema = pa.schema(
            [field.with_type(field.type.value_type) if field.name in labels else field for field in schema]
        )
        self.rows = 0
        self._file = path.open("xb")
        self._writer = pc.CSVWriter(self._file, self._schema)

    def write(self, group: pa.RecordBatch) -> None:
        """Write lines."""
        for start in range(0, group.num_rows, CSV_ROWS):
            piece = group.slice(start, CSV_ROWS)
            columns = [
                self._labels[name].dictionary().take(column) if name in self._labels else column
                for name, column in zip(group.schema.names, piece.columns, strict=True)
            ]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self.rows += group.num_rows

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()


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
        sink = ParquetSink(path, schema, labels)
    else:
        sink = CsvSink(path, schema, labels)
    try:
        for group in groups(tables, schema, labels, group_rows):
            sink.write(group)
        sink.close()
    except BaseException:
        sink.abandon()
        raise
    _check(path, schema, format_, sink.rows, group_rows)
    return sink.rows, path.stat().st_size


def _check(path: Path, schema: pa.Schema, format_: TableFormat, rows: int, group_rows: int) -> None:
    """Open the file as a reader would."""
    if format_ is TableFormat.CSV:
        return
    if format_ is TableFormat.PARQUET:
        found, names = pq.read_metadata(path).num_rows, pq.read_schema(path).names
    else:
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            last = reader.get_batch(reader.num_record_batches - 1).num_rows
            found, names = (reader.num_record_batches - 1) * group_rows + last, reader.schema.names
    if found != rows or names != schema.names:
        raise AccountError(f"{path}: {rows} rows were written, {found} are read. Please report this defect.")
