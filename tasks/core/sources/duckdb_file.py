"""A DuckDB file: what it is, how it is opened (never to write, and nothing but that file), what its errors mean.

What a database holds is not trusted: a view may name any file, address or extension. It is opened with access to these
switched off, and the settings locked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_cytotable.tasks.core.errors import BadSourceError, CytotableError, SourceBusyError
from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.sources.columnar import Kinds, unreadable

if TYPE_CHECKING:
    import duckdb

MAGIC = b"DUCK"
_MAGIC_AT = 8
MEMORY_LIMIT = "256MB"
"""For a database's blocks, in a process; connections to one file share it."""

AT_ONCE = 4
"""Connections that read at the same time in a process: what they hold of a table has to fit `MEMORY_LIMIT`."""

# The same for each connection, since DuckDB opens a file once in a process and refuses other settings for it.
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": "1",
    "memory_limit": MEMORY_LIMIT,
    "temp_directory": "",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}
_opening = threading.Lock()
_turns = threading.BoundedSemaphore(AT_ONCE)

_PLAIN = {
    "boolean": ColumnType.BOOL,
    "tinyint": ColumnType.INT64,
    "smallint": ColumnType.INT64,
    "integer": ColumnType.INT64,
    "bigint": ColumnType.INT64,
    "utinyint": ColumnType.INT64,
    "usmallint": ColumnType.INT64,
    "uinteger": ColumnType.INT64,
    "ubigint": ColumnType.INT64,
    "float": ColumnType.FLOAT,
    "double": ColumnType.DOUBLE,
    "varchar": ColumnType.STRING,
    "blob": ColumnType.STRING,
}
"""Types by DuckDB's name that come as they are."""

_NUMBERS = {"hugeint": ColumnType.INT64, "uhugeint": ColumnType.INT64, "decimal": ColumnType.DOUBLE}
"""Types that come as texts, to be made numbers: Arrow has none for them, or a cast rounds them wrongly."""

_TEXTS = {"enum", "uuid", "bit", "interval", "date", "time", "time_ns", "time with time zone"}
_MOMENTS = {"timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns"}
_INSTANT = "timestamp with time zone"
_NOTHING = "sqlnull"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        sql: What to select, so that Arrow gets a type that it has.
        numeric_text: Whether that is a number as a text.
    """

    type: str
    kind: ColumnType | None
    sql: str
    numeric_text: bool = False

    @property
    def is_number(self) -> bool:
        """Whether values compare as numbers in SQL."""
        return self.type not in ("boolean", _NOTHING) and self.kind is not None and self.kind is not ColumnType.STRING


@dataclass(frozen=True)
class Described:
    """A table or a view.

    Attributes:
        sql: Its name.
        rowid: Whether its rows have a position, `rowid`; those of a view have none.
    """

    sql: str
    columns: Mapping[str, Column]
    rowid: bool

    @property
    def kinds(self) -> Kinds:
        """What each column holds."""
        return {name: column.kind for name, column in self.columns.items()}


def looks_like(path: Path) -> bool:
    """Whether the file begins as a DuckDB database does."""
    with path.open("rb") as file:
        return file.read(_MAGIC_AT + len(MAGIC))[_MAGIC_AT:] == MAGIC


@contextlib.contextmanager
def reading(path: Path, where: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that only reads this file, closed at the end of the block; a block has no other inside.

    Raises:
        BadSourceError: The file is no database of a version that is known, is damaged, or reads something else.
        SourceBusyError: Another program has it open to write.
    """
    if not looks_like(path):
        raise BadSourceError(where, "it is no DuckDB database", "Export it again, or take it away.")
    with _turns, _errors(where):
        opened = _connected(path)
        try:
            yield opened
        finally:
            opened.close()


def _connected(path: Path) -> duckdb.DuckDBPyConnection:
    """A connection whose settings are locked. Nothing that the file holds is run before they are.

    To have no folder for temporary files, lest there is one beside the source, cannot be asked for together with no
    access to files; so that is switched off by whoever opens the file first.
    """
    import duckdb  # see above

    with _opening:
        opened = duckdb.connect(str(path.absolute()), read_only=True, config=_SETTINGS)
        try:
            ((locked,),) = opened.execute("SELECT current_setting('lock_configuration')").fetchall()
            if not locked:
                opened.execute("SET enable_external_access = false")
                opened.execute("SET lock_configuration = true")
        except BaseException:
            opened.close()
            raise
    return opened


@contextlib.contextmanager
def _errors(where: str) -> Iterator[None]:
    """DuckDB's errors as ours."""
    import duckdb  # see above

    try:
        yield
    except CytotableError:
        raise
    except duckdb.Error as error:
        text = " ".join(str(error).split())
        short = text[:200]
        if "lock on file" in text:
            raise SourceBusyError(
                f"{where}: another program has it open to write ({short}). Wait until that program is done, then run "
                f"again."
            ) from error
        if "different configuration" in text:
            raise SourceBusyError(
                f"{where}: this process has it open in another way ({short}). Close that connection, then run again."
            ) from error
        raise BadSourceError(where, *_cause(error, text, short)) from error


def _cause(error: Exception, text: str, short: str) -> tuple[str, str]:
    """(cause, remedy)."""
    import duckdb  # see above

    if "version number" in text or "storage version" in text:
        return f"it is of another version of DuckDB ({short})", "Update the package duckdb, or export the file again."
    if isinstance(error, duckdb.PermissionException):
        return (
            f"it is a view of something outside its file, which is not read ({short})",
            "Make it a table: CREATE TABLE ... AS SELECT * FROM the view.",
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return (
            f"reading it takes DuckDB more than {MEMORY_LIMIT} ({short})",
            "Where it is a view, make it a table: CREATE TABLE ... AS SELECT * FROM the view.",
        )
    return f"DuckDB cannot read it ({short})", "Export or copy the file again, or take it away."


def tables(opened: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    """The names of the tables and views in the schema main."""
    rows = opened.execute(
        "SELECT table_name FROM duckdb_tables() "
        "WHERE database_name = current_database() AND schema_name = 'main' AND NOT internal UNION ALL "
        "SELECT view_name FROM duckdb_views() "
        "WHERE database_name = current_database() AND schema_name = 'main' AND NOT internal ORDER BY 1"
    )
    return tuple(name for (name,) in rows.fetchall())


def described(opened: duckdb.DuckDBPyConnection, table: str, where: str) -> Described:
    """A table's name, columns and kind.

    Raises:
        BadSourceError: There is no such table, or a column holds lists, structs or maps.
    """
    if table not in tables(opened):
        raise BadSourceError(where, "the table does not exist", "Check the table's name.")
    names = opened.execute("SELECT current_database()").fetchall()
    sql = f'{quoted(names[0][0])}."main".{quoted(table)}'
    relation = opened.sql(f"SELECT * FROM {sql}")
    columns = {
        name: _column(name, type_.id, str(type_), where)
        for name, type_ in zip(relation.columns, relation.types, strict=True)
    }
    is_table = opened.execute(
        "SELECT count(*) FROM duckdb_tables() "
        "WHERE database_name = current_database() AND schema_name = 'main' AND table_name = ?",
        [table],
    ).fetchall()[0][0]
    return Described(sql, columns, bool(is_table) and "rowid" not in map(str.lower, columns))


def _column(name: str, type_: str, spelled: str, where: str) -> Column:
    column = quoted(name)
    if type_ in _PLAIN:
        return Column(type_, _PLAIN[type_], column)
    text = f"CAST({column} AS VARCHAR)"
    if type_ in _NUMBERS:
        return Column(type_, _NUMBERS[type_], text, numeric_text=True)
    if type_ in _TEXTS:
        return Column(type_, ColumnType.STRING, text)
    if type_ in _MOMENTS:
        return Column(type_, ColumnType.STRING, f"replace({text}, ' ', 'T')")
    if type_ == _INSTANT:  # as it is in UTC, whatever zone the machine is in
        utc = f"replace(CAST(make_timestamp(epoch_us({column})) AS VARCHAR), ' ', 'T') || 'Z'"
        return Column(type_, ColumnType.STRING, f"CASE WHEN isfinite({column}) THEN {utc} ELSE {text} END")
    if type_ == _NOTHING:
        return Column(type_, None, text)
    raise unreadable(where, name, spelled)


def quoted(name: str) -> str:
    """A name as SQL, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'
