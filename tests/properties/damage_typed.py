"""Damage inside Parquet files and DuckDB databases, and what they say."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from damage_plate import COMPARTMENTS, Files, Site, arrow_table, database_table
from damage_said import Row, Said, Tables, World, grouped_world, split_by_number
from hypothesis import strategies as st


@dataclass(frozen=True)
class TypedHarm:
    """One operation: of which kind, on which file, column and row, each counted around, with what name or type."""

    kind: str
    target: int
    column: int = 0
    row: int = 0
    text: str = ""


NAMES = ("é漢🔬", "a\nb", 'quo"te', "'; DROP TABLE x; --", "", " ", "ImageNumber", "TableNumber", "\x00", "x" * 70_000)
TYPES: dict[str, Callable[[pa.Array], pa.Array]] = {
    "text": lambda one: one.cast(pa.string()),
    "large text": lambda one: one.cast(pa.large_string()),
    "float": lambda one: one.cast(pa.float32(), safe=False),
    "double": lambda one: one.cast(pa.float64()),
    "small": lambda one: one.cast(pa.int8(), safe=False),
    "unsigned": lambda one: one.cast(pa.int64(), safe=False).cast(pa.uint64(), safe=False),
    "decimal": lambda one: one.cast(pa.float64()).cast(pa.decimal128(30, 8), safe=False),
    "dictionary": lambda one: one.dictionary_encode(),
    "bytes": lambda one: one.cast(pa.string()).cast(pa.binary()),
    "bad text": lambda one: pa.array([b"\xff\xfe"] * len(one), pa.binary()).view(pa.string()),
    "moments": lambda one: one.cast(pa.int64(), safe=False).cast(pa.timestamp("us", "UTC")),
    "lists": lambda one: pa.array([[one] for one in one.to_pylist()], pa.list_(one.type)),
    "nulls": lambda one: pa.nulls(len(one), one.type),
    "nothing": lambda one: pa.nulls(len(one)),
    "booleans": lambda one: pa.array([bool(number % 2) for number in range(len(one))]),
}
VALUES: dict[str, Any] = {
    "null": None,
    "nan": float("nan"),
    "inf": float("inf"),
    "half": 0.5,
    "huge": 1e300,
    "minus": -1,
}
KINDS = ("value", "retype", "drop a column", "rename a column", "row again", "delete a row", "reverse", "empty a table")


@st.composite
def typed_harms(draw: st.DrawFn) -> TypedHarm:
    """One operation."""
    kind = draw(st.sampled_from(KINDS))
    texts = {"value": tuple(VALUES), "retype": tuple(TYPES), "rename a column": NAMES}.get(kind, ("",))
    place = st.integers(0, 40)
    return TypedHarm(kind, draw(st.integers(0, 7)), draw(place), draw(place), draw(st.sampled_from(texts)))


def parquet_harmed(files: Files, harm: TypedHarm) -> Files:
    """The files after one operation; one that cannot be done changes nothing."""
    names = sorted(files)
    name = names[harm.target % len(names)] if names else ""
    try:
        table = _changed(pq.ParquetFile(io.BytesIO(files.get(name) or b"")).read(use_threads=False), harm)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=3)
    except (pa.ArrowException, OSError, ValueError, TypeError):  # damaged already, or of no such type
        return files
    return {**files, name: sink.getvalue().to_pybytes()}


def _changed(table: pa.Table, harm: TypedHarm) -> pa.Table:
    if not table.num_columns:
        return table
    at = harm.column % table.num_columns
    row = harm.row % max(table.num_rows, 1)
    match harm.kind:
        case "value" if table.num_rows:
            values = table.column(at).to_pylist()
            values[row] = VALUES[harm.text]
            wide = pa.float64() if pa.types.is_integer(table.schema.types[at]) else table.schema.types[at]
            wide = table.schema.types[at] if values[row] in (None, -1) else wide
            return table.set_column(at, table.column_names[at], pa.array(values, wide))
        case "retype":
            array = TYPES[harm.text](table.column(at).combine_chunks())
            return table.set_column(at, table.column_names[at], array)
        case "drop a column":
            return table.remove_column(at)
        case "rename a column":
            return table.rename_columns([*table.column_names[:at], harm.text, *table.column_names[at + 1 :]])
        case "row again":
            return pa.concat_tables([table, table.slice(row, 1)])
        case "delete a row":
            return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])
        case "reverse":
            return table.take(list(reversed(range(table.num_rows))))
        case _:
            return table.slice(0, 0)


def parquet_said(data: bytes) -> Said | None:
    """What a Parquet file says; None where a column of it is no single value, or the file is damaged."""
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError):
        return None
    return arrow_said(table)


def arrow_said(table: pa.Table) -> Said | None:
    """What a table says whose columns are numbers and texts."""
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_null)
    names = table.column_names
    if len(set(names)) < len(names) or not all(any(test(type_) for test in plain) for type_ in table.schema.types):
        return None
    rows: tuple[Row, ...] = tuple(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return Said(tuple(names), rows if names else (), texts=False)


def parquet_world(files: Files, root: str) -> World:
    """Datasets of Parquet files: those of one folder, and of one TableNumber where they tell it."""

    def said(_: str, data: bytes) -> tuple[Said | None, tuple[Row, ...]]:
        return parquet_said(data), ()

    world: World = {}
    for name, tables in grouped_world(files, (".parquet",), said, root).items():
        world |= split_by_number(name, tables)
    return world


STATEMENTS = (
    "UPDATE {table} SET {column} = NULL WHERE rowid % 3 = 1",
    "DELETE FROM {table} WHERE rowid % 2 = 1",
    "INSERT INTO {table} SELECT * FROM {table} LIMIT 1",
    "DROP TABLE {table}",
    'ALTER TABLE {table} RENAME COLUMN {column} TO "é\'漢"" x"',
    "ALTER TABLE {table} DROP COLUMN {column}",
    "ALTER TABLE {table} ALTER COLUMN {column} TYPE VARCHAR",
    "ALTER TABLE {table} ALTER COLUMN {column} TYPE VARCHAR USING {column} || 'x'",
    "ALTER TABLE {table} ALTER COLUMN {column} TYPE DOUBLE USING try_cast({column} AS DOUBLE) + 0.5",
    "ALTER TABLE {table} ALTER COLUMN {column} TYPE HUGEINT USING try_cast({column} AS HUGEINT)",
    "ALTER TABLE {table} ALTER COLUMN {column} TYPE INTEGER[] USING [1, 2]",
    "CREATE TABLE kept AS FROM {table}; DROP TABLE {table}; CREATE VIEW {table} AS FROM kept",
    "DROP TABLE {table}; CREATE VIEW {table} AS FROM read_csv('/etc/passwd')",
    "CREATE TABLE kept AS FROM {table}; DROP TABLE {table}; CREATE VIEW {table} AS FROM kept; DROP TABLE kept",
)
"""Damage inside a DuckDB database."""

PLATE = (Site(1, "one", (3, 2)), Site(2, "two", (4,)))


@lru_cache(maxsize=256)
def duckdb_file(site: Site, harm: tuple[int, int, int] | None = None) -> bytes:
    """A site as a DuckDB database, after one of `STATEMENTS` on a table and a column where `harm` numbers them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site.duckdb"
        with duckdb.connect(str(path), config={"threads": 1}) as connection:
            for label in COMPARTMENTS:
                table = site.tables[label]
                arrow = arrow_table(table).rename_columns(list(database_table(label, table)))
                connection.register("arrow", arrow)
                connection.execute(f'CREATE TABLE "Per_{label}" AS FROM arrow')
                connection.unregister("arrow")
            if harm is not None:
                _execute(connection, site, harm)
        return path.read_bytes()


def _execute(connection: duckdb.DuckDBPyConnection, site: Site, harm: tuple[int, int, int]) -> None:
    statement, label = STATEMENTS[harm[0] % len(STATEMENTS)], COMPARTMENTS[harm[1] % len(COMPARTMENTS)]
    names = database_table(label, site.tables[label])
    sql = statement.format(table=f'"Per_{label}"', column=f'"{names[harm[2] % len(names)]}"')
    for one in sql.split("; "):
        connection.execute(one)


def duckdb_said(path: Path) -> Tables | None:
    """The tables of a DuckDB database; None where it cannot be opened."""
    found: Tables = {}
    try:
        with duckdb.connect(str(path), read_only=True, config={"threads": 1}) as connection:
            connection.execute("SET enable_external_access = false")
            names = connection.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = 'main'"
            ).fetchall()
            for (name,) in names:
                try:
                    quoted = '"' + name.replace('"', '""') + '"'
                    found[name] = arrow_said(connection.sql(f"FROM {quoted}").to_arrow_table()), ()
                except (duckdb.Error, pa.ArrowException):
                    found[name] = None, ()
    except (duckdb.Error, UnicodeDecodeError):
        return None
    return found
