"""Damage inside a SQLite database, by SQL: what a wrong program writes, and a disk does not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass

from damage_plate import Files
from damage_text import HUGE_NAMES
from hypothesis import strategies as st


@dataclass(frozen=True)
class SqlHarm:
    """One operation: of which kind, on which file, table, column and row, each counted around, and with what value."""

    kind: str
    target: int
    table: int = 0
    column: int = 0
    row: int = 0
    value: int | float | str | bytes | None = None


VALUES = st.sampled_from(
    [
        *(
            None,
            "",
            "x",
            "nan",
            "NaN",
            "inf",
            "-inf",
            " 7 ",
            "1e400",
            "0x10",
            "é漢",
            "2024-01-02",
            "\0",
            "a\0b",
            b"",
            b"\xff\xfe",
        ),
        *(
            b"12",
            1,
            2,
            -1,
            0,
            1.0,
            2.0,
            1.5,
            1e300,
            -0.0,
            2**53 + 1,
            2**63 - 1,
            -(2**63),
            0.1 + 0.2,
            9e999,
            *HUGE_NAMES,
        ),
    ]
)

NAMES = st.sampled_from(
    [
        "é漢🔬",
        "a\nb",
        'quo"te',
        "'; DROP TABLE x; --",
        "TableNumber",
        "ImageNumber",
        "rowid",
        " ",
        "%s",
        "wanted order",
        "oid",
    ]
)

KINDS = (
    *("value", "key", "column of values", "delete a row", "row again", "table number", "no index", "drop a table"),
    *("view", "drop a column", "rename a column", "rename a table", "bad text", "empty a table", "without types"),
    *("negative rows", "generated"),
)


@st.composite
def sql_harms(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> SqlHarm:
    """One operation of one of the kinds."""
    kind = draw(st.sampled_from(kinds))
    place = st.integers(0, 60)
    value = draw(NAMES if kind in ("rename a column", "rename a table") else VALUES)
    return SqlHarm(kind, draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(place), draw(place), value)


def sql_harmed(files: Files, harm: SqlHarm) -> Files:
    """The files after one operation; one that cannot be done changes nothing."""
    names = sorted(files)
    name = names[harm.target % len(names)] if names else ""
    data = files.get(name)
    if not data:
        return files
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.deserialize(data)
            _harm(connection, harm)
            connection.commit()
            return {**files, name: connection.serialize()}
        except (sqlite3.Error, UnicodeDecodeError, OverflowError):  # damaged already
            return files


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _harm(connection: sqlite3.Connection, harm: SqlHarm) -> None:
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    if not tables:
        return
    name = tables[harm.table % len(tables)]
    table = _quoted(name)
    known = connection.execute(f"PRAGMA table_info({table})").fetchall()
    columns = [row[1] for row in known]
    keys = [one for one in columns if "Number" in one or "Parent" in one] or columns
    column = _quoted((keys if harm.kind in ("key", "drop a column") else columns)[harm.column % len(keys)])
    rowids = [row[0] for row in connection.execute(f"SELECT rowid FROM {table} ORDER BY rowid")] or [0]
    row = rowids[harm.row % len(rowids)]
    value = HUGE_NAMES.get(harm.value, harm.value) if isinstance(harm.value, str) else harm.value
    match harm.kind:
        case "value" | "key":
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE rowid = ?", (value, row))
        case "column of values":
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (value,))
        case "delete a row":
            connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
        case "row again":
            connection.execute(f"INSERT INTO {table} SELECT * FROM {table} WHERE rowid = ?", (row,))
        case "table number":
            connection.execute(f"UPDATE {table} SET TableNumber = ? WHERE rowid >= ?", (value, row))
        case "no index":
            _written_anew(connection, name, known, typed=True)
        case "without types":
            _written_anew(connection, name, known, typed=False)
        case "drop a table":
            connection.execute(f"DROP TABLE {table}")
        case "view":
            connection.execute(f"ALTER TABLE {table} RENAME TO under_it")
            connection.execute(f"CREATE VIEW {table} AS SELECT * FROM under_it WHERE rowid <> {row}")
        case "drop a column":
            _written_anew(connection, name, [one for one in known if _quoted(one[1]) != column], typed=True)
        case "rename a column":
            connection.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO {_quoted(str(value))}")
        case "rename a table":
            connection.execute(f"ALTER TABLE {table} RENAME TO {_quoted(str(value))}")
        case "bad text":
            connection.execute(
                f"UPDATE OR IGNORE {table} SET {column} = CAST(x'ff41fe' AS TEXT) WHERE rowid = ?", (row,)
            )
        case "empty a table":
            connection.execute(f"DELETE FROM {table}")
        case "negative rows":
            connection.execute(f"UPDATE {table} SET rowid = -rowid")
        case "generated":
            connection.execute(f"ALTER TABLE {table} ADD COLUMN \"Made_Here\" AS ({column} || 'x')")


def _written_anew(connection: sqlite3.Connection, name: str, columns: list[tuple[int, str, str]], typed: bool) -> None:
    """The same rows in a table without an index."""
    definitions = ", ".join(f"{_quoted(one[1])} {one[2] if typed else ''}" for one in columns)
    listed = ", ".join(_quoted(one[1]) for one in columns)
    connection.execute(f"CREATE TABLE anew ({definitions})")
    connection.execute(f"INSERT INTO anew SELECT {listed} FROM {_quoted(name)} ORDER BY rowid")
    connection.execute(f"DROP TABLE {_quoted(name)}")
    connection.execute(f"ALTER TABLE anew RENAME TO {_quoted(name)}")
