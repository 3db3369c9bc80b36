"""A SQLite file: what it is, how it is opened (never to write), and what its errors mean."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import adbc_driver_manager

from prefect_cytotable.tasks.core.errors import BadSourceError, CytotableError, SourceBusyError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint

MAGIC = b"SQLite format 3\0"
BUSY_SECONDS = 10.0
"""How long a read waits for another program's lock."""


def looks_like(path: Path) -> bool:
    """Whether the file begins as a SQLite database does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def fingerprint(path: Path) -> Fingerprint:
    """Size, time and change counter of a database, those of its write-ahead log included.

    The change counter is bytes 24-27 of the header (https://www.sqlite.org/fileformat.html#file_change_counter).
    """
    status = path.stat()
    with path.open("rb") as file:
        counter = file.read(28)[24:].hex()
    log = path.with_name(path.name + "-wal")
    with contextlib.suppress(FileNotFoundError):
        log_status = log.stat()
        if log_status.st_size:
            counter += f"+{log_status.st_size}.{log_status.st_mtime_ns}"
    return Fingerprint(status.st_size, status.st_mtime_ns, counter)


def tables(path: Path, where: str) -> tuple[str, ...]:
    """The names of a database's tables.

    Args:
        path: The database's file.
        where: What an error calls it.

    Raises:
        BadSourceError: The file is no database, or a damaged one.
        SourceBusyError: Another program keeps it locked.
    """
    with errors(where), reading(path) as opened:
        rows = opened.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
        return tuple(name for (name,) in rows)


def uri(path: Path) -> str:
    """A read-only URI: SQLite then neither writes to the database nor checkpoints its log.

    A database in WAL mode that has no log is opened as one that does not change, because SQLite else leaves an empty
    log beside it. A program that starts to write all the same is found out by the fingerprint.
    """
    quiet = _in_wal_mode(path) and not _log_size(path)
    return f"file:{quote(str(path.absolute()))}?mode=ro{'&immutable=1' if quiet else ''}"


def _in_wal_mode(path: Path) -> bool:
    """Whether bytes 18 and 19 of the header say so (https://www.sqlite.org/fileformat.html, section 1.3.3)."""
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"


def _log_size(path: Path) -> int:
    try:
        return path.with_name(path.name + "-wal").stat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, closed at the end of the block."""
    opened = sqlite3.connect(uri(path), uri=True, timeout=BUSY_SECONDS)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def errors(where: str) -> Iterator[None]:
    """SQLite's errors as ours: a lock may pass, anything else is a bad source."""
    try:
        yield
    except CytotableError:
        raise
    except UnicodeDecodeError as error:
        raise BadSourceError(where, "a text in it is not UTF-8", f"SQLite says: {error}.") from error
    except (sqlite3.Error, adbc_driver_manager.Error, OSError) as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise SourceBusyError(
                f"{where}: another program has locked it ({text}). Wait until that program is done, then run again."
            ) from error
        if isinstance(error, MemoryError | PermissionError | FileNotFoundError):
            raise
        if "too many columns" in text:
            raise BadSourceError(
                where,
                f"it has a table of more than 2,000 columns, which SQLite as it is built here cannot read: export that "
                f"table as CSV, or with fewer measurements ({text})",
                "Until then no table of the file can be read.",
            ) from error
        raise BadSourceError(
            where,
            f"SQLite cannot read it ({text})",
            "Check the file with `sqlite3 FILE 'pragma integrity_check'` and export or copy it again.",
        ) from error


def quoted(name: str) -> str:
    """A name as SQL, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def affinity(declared: str) -> ColumnType | None:
    """A column's type from its declaration (https://www.sqlite.org/datatype3.html, section 3.1).

    None where the declaration leaves it open (no type, BLOB, NUMERIC): then rows are sampled.
    """
    name = declared.upper()
    if "INT" in name:
        return ColumnType.INT64
    if any(word in name for word in ("CHAR", "CLOB", "TEXT")):
        return ColumnType.STRING
    if any(word in name for word in ("REAL", "FLOA", "DOUB")):
        return ColumnType.DOUBLE
    return None
