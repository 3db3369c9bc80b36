"""Rows of a SQLite table as Arrow, through the ADBC driver.

The driver asks SQLite itself and therefore uses the key that CellProfiler makes; DuckDB's scanner reads the whole
table for each range. It takes a column's type from the first rows, so each query begins with one row of the planned
types. Where a value of another storage class follows all the same (SQLite lets any column hold any value), the query
is repeated with each such column guarded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import adbc_driver_manager
import adbc_driver_sqlite
import numpy as np
import pyarrow as pa

from prefect_cytotable.tasks.core.arrays import from_numpy
from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.schema import to_arrow
from prefect_cytotable.tasks.core.sources import sqlite_file
from prefect_cytotable.tasks.core.sources.base import Answer, Finding, Request
from prefect_cytotable.tasks.core.sources.sqlite_file import (
    affinity,
    errors,
    quoted,
    reading,
    uri,
)

BATCH_ROWS = 4096
_LITERALS = {
    ColumnType.BOOL: "0",
    ColumnType.INT64: "0",
    ColumnType.DOUBLE: "0.0",
    ColumnType.STRING: "''",
}


def read(request: Request, declared: Mapping[str, str]) -> Answer:
    """The rows that `request` names, in no particular order.

    Args:
        request: Rows and columns.
        declared: The declared type of each column that the table has.
    """
    columns = [(name, type_) for name, type_ in request.columns if name in declared]
    if not columns:
        return Answer(pa.table({}))
    with errors(request.source.where):
        try:
            table = fetch(request, columns, [_plainly(name, type_, declared[name]) for name, type_ in columns])
        except OSError as error:
            if "Type mismatch" not in str(error):
                raise
            table = None
        expected = [to_arrow(_stored(type_)) for _, type_ in columns]
        if table is not None and table.schema.types == expected:
            return Answer(_as_planned(table, columns))
        return _guarded(request, columns)


def _where(request: Request) -> tuple[str, list[int]]:
    """The condition of a request, and the values for its question marks."""
    conditions: list[str] = []
    values: list[int] = []
    for column, bounds in (
        (request.keys.image_number, request.images),
        (request.keys.object_number, request.objects),
    ):
        if bounds is not None:
            conditions.append(f"{quoted(column)} BETWEEN ? AND ? AND {_is_whole(quoted(column))}")
            values.extend(bounds)
    if request.spans:
        conditions.append("rowid BETWEEN ? AND ?")
        values += [min(span.start for span in request.spans), max(span.stop for span in request.spans)]
    return (" WHERE " + " AND ".join(conditions) if conditions else ""), values


def _is_whole(column: str) -> str:
    return f"{column} = CAST({column} AS INTEGER)"


def _plainly(name: str, type_: ColumnType, declared: str) -> str:
    """SQL for a column whose values are of its type; a number is made a text here, as the driver rounds it."""
    if type_ is ColumnType.STRING and affinity(declared) is not ColumnType.STRING:
        return f"CAST({quoted(name)} AS TEXT)"
    return quoted(name)


def _stored(type_: ColumnType) -> ColumnType:
    """What the driver delivers for a planned type: SQLite has no booleans."""
    return ColumnType.INT64 if type_ is ColumnType.BOOL else type_


def fetch(request: Request, columns: list[tuple[str, ColumnType]], expressions: list[str]) -> pa.Table:
    """One query; the result's first row is the row of planned types, which is cut off again.

    The driver's first batch ends with that row's type for each column, wider where its rows need it.
    """
    first = ", ".join(f"{_LITERALS[type_]} AS c{number}" for number, (_, type_) in enumerate(columns))
    where, values = _where(request)
    query = f"SELECT {first} UNION ALL SELECT {', '.join(expressions)} FROM {quoted(request.source.table)}{where}"
    with (
        adbc_driver_sqlite.connect(uri(Path(request.source.path))) as database,
        adbc_driver_manager.AdbcConnection(database) as connection,
        adbc_driver_manager.AdbcStatement(connection) as statement,
    ):
        statement.set_sql_query(f"PRAGMA busy_timeout = {int(sqlite_file.BUSY_SECONDS * 1000)}")
        statement.execute_update()
        statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
        statement.set_sql_query(query)
        if values:
            statement.prepare()
            statement.bind(
                pa.record_batch(
                    [from_numpy(np.array([value])) for value in values], [str(n) for n in range(len(values))]
                )
            )
        stream, _ = statement.execute_query()
        with pa.RecordBatchReader._import_from_c(stream.address) as reader:
            return reader.read_all().slice(1)


def _as_planned(table: pa.Table, columns: list[tuple[str, ColumnType]]) -> pa.Table:
    arrays = [
        column.cast(to_arrow(type_)) if column.type != to_arrow(type_) else column
        for column, (_, type_) in zip(table.columns, columns, strict=True)
    ]
    table = pa.table(arrays, names=[name for name, _ in columns])
    for (name, type_), array in zip(columns, arrays, strict=True):
        if type_ is ColumnType.STRING:
            try:
                array.validate(full=True)
            except pa.ArrowInvalid as error:
                raise UnicodeDecodeError("utf-8", b"", 0, 1, f"column {name}: {error}") from error
    return table


def _guarded(request: Request, columns: list[tuple[str, ColumnType]]) -> Answer:
    """The same rows where some value is not of its column's type: kept, widened or null by rule, and counted.

    A text in a numeric column is never a number, because SQLite's affinity would have made it one: `inf` is kept
    as infinity, `nan` and anything else becomes null. A real in an integer column widens it, unless that numbers
    images or objects: there 3.0 is 3, and what is no whole number becomes null.
    """
    keys = (request.keys.image_number, request.keys.object_number)
    classes = _storage_classes(request, columns)
    widened, findings, expressions = [], [], []
    for (name, type_), counts in zip(columns, classes, strict=True):
        reals, others, nans, infinities = counts
        column = quoted(name)
        if type_ is ColumnType.STRING:
            expressions.append(f"CAST({column} AS TEXT)")
            continue
        if type_ in (ColumnType.INT64, ColumnType.BOOL) and (reals or infinities) and name not in keys:
            widened.append((name, ColumnType.DOUBLE))
        if nans:
            findings.append(Finding(name, "text 'nan' became null", nans))
        if others - nans - infinities:
            findings.append(Finding(name, "a value that is not a number became null", others - nans - infinities))
        expressions.append(_key(column) if name in keys else _number(column, type_) if others else column)
    if widened:
        return Answer(pa.table({}), widened=tuple(widened))
    return Answer(_as_planned(fetch(request, columns, expressions), columns), findings=tuple(findings))


_INFINITE = "('inf', '+inf', 'infinity', '+infinity', '-inf', '-infinity')"


def _storage_classes(request: Request, columns: list[tuple[str, ColumnType]]) -> list[tuple[int, int, int, int]]:
    """For each column the number of reals, of texts and blobs, and among the texts of nan and of infinities.

    A first query finds the columns in which a value is of another class than planned; only these are looked into.
    """
    expected = {ColumnType.INT64: "integer", ColumnType.BOOL: "integer", ColumnType.DOUBLE: "real"}
    numeric = [name for name, type_ in columns if type_ in expected]
    types = dict(columns)
    nothing = (0, 0, 0, 0)
    found = dict.fromkeys((name for name, _ in columns), nothing)
    where, values = _where(request)
    rows = f"FROM {quoted(request.source.table)}{where}"
    with reading(Path(request.source.path)) as connection:
        strange: list[str] = []
        for start in range(0, len(numeric), 500):
            group = numeric[start : start + 500]
            tests = ", ".join(
                f"total(typeof({quoted(name)}) NOT IN ('null', '{expected[types[name]]}'))" for name in group
            )
            counts = connection.execute(f"SELECT {tests} {rows}", values).fetchone()
            strange += [name for name, count in zip(group, counts, strict=True) if count]
        for name in strange:
            column = quoted(name)
            text = f"lower(trim(CASE typeof({column}) WHEN 'text' THEN {column} END))"
            counts = connection.execute(
                f"SELECT total(typeof({column}) = 'real'), total(typeof({column}) IN ('text', 'blob')), "
                f"total({text} IN ('nan', '-nan', '')), total({text} IN {_INFINITE}) {rows}",
                values,
            ).fetchone()
            reals, others, nans, infinities = (int(value) for value in counts)
            found[name] = (reals, others, nans, infinities)
    return [found[name] for name, _ in columns]


def _key(column: str) -> str:
    """SQL for a column that numbers images or objects."""
    number = f"typeof({column}) IN ('integer', 'real') AND {_is_whole(column)}"
    return f"CASE WHEN {number} THEN CAST({column} AS INTEGER) END"


def _number(column: str, type_: ColumnType) -> str:
    """SQL for a numeric column in which texts occur."""
    if type_ is not ColumnType.DOUBLE:
        return f"CASE typeof({column}) WHEN 'integer' THEN {column} END"
    return (
        f"CASE WHEN typeof({column}) IN ('integer', 'real') THEN {column} "
        f"WHEN lower(trim({column})) IN ('inf', '+inf', 'infinity', '+infinity') THEN 9e999 "
        f"WHEN lower(trim({column})) IN ('-inf', '-infinity') THEN -9e999 END"
    )
