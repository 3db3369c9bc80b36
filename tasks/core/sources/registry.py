"""The formats that can be read: one line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from prefect_cytotable.tasks.core.model import Fingerprint, Format, Source
from prefect_cytotable.tasks.core.places import Entry, Places, is_remote
from prefect_cytotable.tasks.core.sources import sqlite_file
from prefect_cytotable.tasks.core.sources.base import DatabaseReader, NumberedReader, Reader
from prefect_cytotable.tasks.core.sources.csv import CsvReader
from prefect_cytotable.tasks.core.sources.csv_header import groups_of
from prefect_cytotable.tasks.core.sources.duckdb import DuckdbReader
from prefect_cytotable.tasks.core.sources.npz import NpzReader
from prefect_cytotable.tasks.core.sources.parquet import ParquetReader
from prefect_cytotable.tasks.core.sources.sqlite import SqliteReader
from prefect_cytotable.tasks.core.sources.text import PACKED, Text

READERS: dict[Format, Callable[[Places], Reader]] = {
    Format.CSV: CsvReader,
    Format.SQLITE: SqliteReader,
    Format.NPZ: NpzReader,
    Format.PARQUET: ParquetReader,
    Format.DUCKDB: DuckdbReader,
}

SUFFIXES: dict[Format, tuple[str, ...]] = {
    Format.CSV: tuple(plain + packed for packed in ("", *PACKED) for plain in (".csv", ".tsv")),
    Format.SQLITE: (".sqlite", ".sqlite3", ".db"),
    Format.NPZ: (".npz",),
    Format.PARQUET: (".parquet",),
    Format.DUCKDB: (".duckdb", ".ddb"),
}

DATABASES = (Format.SQLITE, Format.DUCKDB)
"""Formats whose files hold several tables."""


def reader_of(format_: Format, places: Places) -> Reader:
    """The reader of a format, from wherever `places` reach."""
    return READERS[format_](places)


def database_reader(format_: Format, places: Places) -> DatabaseReader:
    """The reader of one of `DATABASES`."""
    return cast(DatabaseReader, READERS[format_](places))


def numbered_reader(format_: Format, places: Places) -> NumberedReader | None:
    """The reader of a format whose tables can hold rows of many datasets; None for any other format."""
    reader = READERS[format_](places)
    return cast(NumberedReader, reader) if hasattr(reader, "numbers") else None


def suffix_of(path: str, formats: tuple[Format, ...]) -> tuple[Format, str] | None:
    """(format, ending) of a file of one of the formats; None for any other."""
    lower = path.lower()
    found = [(format_, suffix) for format_ in formats for suffix in SUFFIXES[format_] if lower.endswith(suffix)]
    return max(found, key=lambda one: len(one[1]), default=None)


def fingerprint_of(format_: Format, entry: Entry) -> Fingerprint:
    """What tells that a file was changed; of an object its mark, whatever its date."""
    if is_remote(entry.path) or format_ not in DATABASES:
        return Fingerprint(entry.size, 0 if entry.mark else entry.modified, entry.mark)
    if format_ is Format.SQLITE:
        return sqlite_file.fingerprint(Path(entry.path))
    return Fingerprint(entry.size, entry.modified, _log(Path(entry.path)))


def _log(path: Path) -> str:
    """The size and time of the log that DuckDB keeps beside a database while what is in it is not in the file."""
    try:
        status = path.with_name(f"{path.name}.wal").stat()
    except FileNotFoundError:
        return ""
    return f"{status.st_size}.{status.st_mtime_ns}"


def is_unchanged(source: Source) -> bool:
    """Whether a source is still what was gathered.

    An object in a store is not asked again: each of its reads already had to find the gathered version.
    """
    if is_remote(source.path):
        return True
    path, known = Path(source.path), source.fingerprint
    try:
        status = path.stat()
        entry = Entry(source.path, status.st_size, status.st_mtime_ns)
        same = (entry.size, entry.modified) == (known.size, known.modified)
        return same and (source.format not in DATABASES or fingerprint_of(source.format, entry) == known)
    except FileNotFoundError:
        return False


def combined_compartments(source: Source, places: Places) -> tuple[str, ...]:
    """The compartments that lie side by side in one CSV file.

    Raises:
        BadSourceError: Its two header rows cannot be read.
    """
    return groups_of(Text(places, source))


def forget(sources: Iterable[Source], places: Places) -> None:
    """Remove this machine's copies of sources: of objects, and of what was unpacked."""
    files = {source.path: source for source in sources}
    places.forget((path, source.fingerprint.mark) for path, source in sorted(files.items()))
    for source in files.values():
        if source.format is Format.CSV:
            Text(places, source).forget()
