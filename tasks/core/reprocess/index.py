"""The index of a destination: one row a plate in ``index.parquet``, for DuckDB, pandas and the next run.

It is written anew, whole, whenever a plate's conversion begins or ends, so that a run that was killed loses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.metadata import version
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_cytotable.tasks.core.places import Places, is_remote, join
from prefect_cytotable.tasks.core.report import PRODUCER
from prefect_cytotable.tasks.core.reprocess.errors import IndexFileError
from prefect_cytotable.tasks.core.reprocess.listing import INDEX
from prefect_cytotable.tasks.core.reprocess.model import IndexRow, Status

_INSTANT = pa.timestamp("us", tz="UTC")

COLUMNS: dict[str, tuple[str, pa.DataType]] = {
    "plate": ("plate", pa.string()),
    "status": ("status", pa.string()),
    "rows": ("rows", pa.int64()),
    "columns": ("columns", pa.int64()),
    "rows_dropped": ("rows_dropped", pa.int64()),
    "bytes": ("size", pa.int64()),
    "converted_at": ("converted_at", _INSTANT),
    "seconds": ("seconds", pa.float64()),
    "chunks": ("chunks", pa.int64()),
    "chunks_reused": ("chunks_reused", pa.int64()),
    "tool_version": ("tool_version", pa.string()),
    "path": ("path", pa.string()),
    "source": ("source", pa.string()),
    "source_fingerprint": ("fingerprint", pa.string()),
    "source_files": ("source_files", pa.int64()),
    "source_bytes": ("source_size", pa.int64()),
    "options_fingerprint": ("options", pa.string()),
    "checked_at": ("checked_at", _INSTANT),
    "error": ("error", pa.string()),
}
"""Columns of the table, in order: (field of `IndexRow`, Arrow type). An empty text is null there."""

_TEXTS = {one.name for one in fields(IndexRow) if one.default == ""}


def index_path(destination_root: str) -> str:
    """Where the index of a destination lies."""
    return join(destination_root, INDEX)


def to_table(rows: Iterable[IndexRow]) -> pa.Table:
    """The rows as a table, by plate."""
    ordered = sorted(rows, key=lambda one: one.plate)
    arrays = [pa.array([_value(getattr(row, field)) for row in ordered], type_) for field, type_ in COLUMNS.values()]
    metadata = {"data-producer": PRODUCER, "data-producer-version": version(PRODUCER)}
    return pa.table(arrays, names=list(COLUMNS)).replace_schema_metadata(metadata)


def _value(value: object) -> object:
    return value.value if isinstance(value, Status) else None if value == "" else value


def from_table(table: pa.Table) -> list[IndexRow]:
    """The rows of a table; columns that it lacks are unknown, others are ignored.

    Raises:
        ValueError: It has no column of plates, or a status that is none.
    """
    columns: dict[str, list[Any]] = {}
    for name, (field, type_) in COLUMNS.items():
        if name in table.column_names:
            column = table.column(name).cast(type_)
            columns[field] = (column.cast(pa.int64()) if type_ == _INSTANT else column).to_pylist()
    missing = {"plate", "source", "status"} - set(columns)
    if missing:
        raise ValueError(f"it has no column {sorted(missing)[0]!r}")
    return [_row(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _row(values: Mapping[str, Any]) -> IndexRow:
    known: dict[str, Any] = {name: "" if value is None and name in _TEXTS else value for name, value in values.items()}
    known["status"] = Status(known["status"])
    return IndexRow(**known)


class Index:
    """The index of one destination, shared by the threads of a run."""

    def __init__(self, destination_root: str, places: Places) -> None:
        self._path, self._places = index_path(destination_root), places
        self._lock = threading.Lock()
        self._rows = {row.plate: row for row in read_index(destination_root, places)}

    @property
    def path(self) -> str:
        """Path or URL of the table."""
        return self._path

    @property
    def rows(self) -> dict[str, IndexRow]:
        """What is known now, by plate."""
        with self._lock:
            return dict(self._rows)

    def put(self, *rows: IndexRow) -> None:
        """Remember rows, and write the table anew; it appears whole."""
        with self._lock:
            changed = [row for row in rows if self._rows.get(row.plate) != row]
            self._rows |= {row.plate: row for row in changed}
            if changed or (not self._rows and self._places.entry(self._path) is None):
                buffer = BytesIO()
                pq.write_table(to_table(self._rows.values()), buffer, compression="zstd")
                self._places.write(self._path, buffer.getvalue())


def read_index(destination_root: str, places: Places) -> list[IndexRow]:
    """The rows of a destination's index; none where there is no index yet.

    Raises:
        IndexFileError: There is one that cannot be read.
    """
    path = index_path(destination_root)
    try:
        data = places.read(path)
    except FileNotFoundError as error:
        if is_remote(path) and places.entry(path) is not None:
            raise IndexFileError(f"{path} cannot be read ({error}).") from error
        return []
    try:
        return from_table(pq.read_table(pa.BufferReader(data)))
    except (pa.ArrowException, ValueError, OSError) as error:
        cause = str(error).splitlines()[0]
        raise IndexFileError(
            f"{path} is no index of plates ({cause}). Restore it, or move it away: plates are then converted anew, and "
            f"overwrite=True lets them replace the outputs that are there."
        ) from error
