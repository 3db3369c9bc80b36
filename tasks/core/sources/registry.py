"""The formats that can be read: one line each."""

from __future__ import annotations

from prefect_cytotable.tasks.core.model import Format
from prefect_cytotable.tasks.core.sources.base import Reader
from prefect_cytotable.tasks.core.sources.csv import CsvReader
from prefect_cytotable.tasks.core.sources.sqlite import SqliteReader

READERS: dict[Format, Reader] = {
    Format.CSV: CsvReader(),
    Format.SQLITE: SqliteReader(),
}

SUFFIXES: dict[Format, tuple[str, ...]] = {
    Format.CSV: (".csv",),
    Format.SQLITE: (".sqlite", ".sqlite3", ".db"),
}


def reader_of(format_: Format) -> Reader:
    """The reader of a format."""
    return READERS[format_]
