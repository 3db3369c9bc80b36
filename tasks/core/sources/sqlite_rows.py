"""Rows of a SQLite table as Arrow, through the ADBC driver.

The driver asks SQLite itself and therefore uses the key that CellProfiler makes; DuckDB's scanner reads the whole
table for each range. It takes a column's type from the first rows, so each query begins with one row of the planned
types. Where a value of another storage class follows all the same (SQLite lets any column hold any value), the query
is repeated with each such column guarded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import adbc_driver_manager
import adbc_driver_sqlite
import numpy as np
import pyarrow as pa

from prefect_cytotable.tasks.core.arrays import from_numpy, from_texts, one_piece, to_numpy
from prefect_cytotable.tasks.core.model import ColumnType, Only, Source, Span
from prefect_cytotable.tasks.core.schema import to_arrow
from prefect_cytotable.tasks.core.sources import sqlite_file
from prefect_cytotable.tasks.core.sources.base import Answer, Finding, Keys, Request, Together
from prefect_cytotable.tasks.core.sources.sqlite_file import affinity, errors, quoted, reading, uri
from prefect_cytotable.tasks.core.sources.sqlite_index import image_of, is_key

BATCH_ROWS = 4096
ORDER = "wanted order"
"""Name of the column that tells which request a row belongs to; no column of a table is called so by CellProfiler."""

_LITERALS = {
    ColumnType.BOOL: "0",
    ColumnType.INT64: "0",
    ColumnType.DOUBLE: "0.0",
    ColumnType.STRING: "''",
}


COLUMN_LIMIT = 2000
"""Columns of a result in SQLite as it is built for Python and for ADBC."""

SPAN_LIMIT = 4096
"""Stretches of rowids that one query names."""


@dataclass(frozen=True)
class Query:
    """Where a query finds its rows.

    Attributes:
        path: The database's file.
        prologue: What stands before SELECT.
        rows: FROM and WHERE.
        values: For the question marks, in their order.
        order: SQL for the position of the request that a row belongs to.
    """

    path: Path
    prologue: str
    rows: str
    values: tuple[int | str, ...]
    order: str = "0"


def read(path: Path, request: Request, declared: Mapping[str, str]) -> Answer:
    """The rows that `request` names, in no particular order.

    Args:
        path: The database's file.
        request: Rows and columns.
        declared: The declared type of each column that the table has.
    """
    columns = [(name, type_) for name, type_ in request.columns if name in declared]
    if not columns:
        return Answer(pa.table({}))
    answers = []
    with errors(request.source.where):
        for piece in _pieces(request):
            answers.append(_read(_query(path, [piece], declared), request.keys, columns, declared))
    return _together(answers)


def read_together(path: Path, requests: Sequence[Request], declared: Mapping[str, str]) -> Together | None:
    """The rows of several requests that differ in their dataset alone; None where one query cannot read them."""
    columns = [(name, type_) for name, type_ in requests[0].columns if name in declared]
    if not columns or len(columns) >= COLUMN_LIMIT or sum(len(one.spans) for one in requests) > SPAN_LIMIT:
        return None
    kinds = {(bool(one.spans), one.source.only is None or one.source.only.value is None) for one in requests}
    if len(kinds) > 1 or kinds.pop()[1]:
        return None
    with errors(requests[0].source.where):
        query = _query(path, requests, declared)
        answer = _read(query, requests[0].keys, columns, declared, ordered=True)
    if answer.widened:
        return Together(answer.table, np.empty(0, np.int32), (), answer.widened)
    order = to_numpy(one_piece(answer.table.column(ORDER))).astype(np.int32)
    counts = np.bincount(order, minlength=len(requests))
    table = answer.table.drop_columns([ORDER])
    return Together(table, order, tuple(int(count) for count in counts), findings=answer.findings)


def objects(path: Path, source: Source, keys: Keys, image: int, declared: Mapping[str, str]) -> list[int]:
    """The object numbers of one image in ascending order."""
    query = _query(path, [Request(source, Keys(keys.image_number, ""), (), (image, image))], declared)
    number = quoted(keys.object_number)
    text = f"SELECT {number} {query.rows} AND {number} IS NOT NULL ORDER BY {number}"
    with reading(path) as connection:
        found = [image_of(value) for (value,) in connection.execute(text, query.values)]
    return [one for one in found if one is not None]


def _pieces(request: Request) -> list[Request]:
    """The request in parts whose stretches of rowids fit a query."""
    if len(request.spans) <= SPAN_LIMIT:
        return [request]
    starts = range(0, len(request.spans), SPAN_LIMIT)
    return [replace(request, spans=request.spans[start : start + SPAN_LIMIT]) for start in starts]


def _together(answers: list[Answer]) -> Answer:
    if len(answers) == 1:
        return answers[0]
    widened = tuple(one for answer in answers for one in answer.widened)
    if widened:
        return Answer(pa.table({}), widened)
    findings = tuple(one for answer in answers for one in answer.findings)
    return Answer(pa.concat_tables([answer.table for answer in answers]), findings=findings)


def _read(
    query: Query,
    keys: Keys,
    columns: list[tuple[str, ColumnType]],
    declared: Mapping[str, str],
    ordered: bool = False,
) -> Answer:
    wanted = [*columns, (ORDER, ColumnType.INT64)] if ordered else columns
    expressions = [_plainly(name, type_, declared[name]) for name, type_ in columns]
    try:
        table = fetch(query, wanted, [*expressions, query.order] if ordered else expressions)
    except OSError as error:
        if "Type mismatch" not in str(error):
            raise
        table = None
    expected = [to_arrow(_stored(type_)) for _, type_ in wanted]
    if table is not None and table.schema.types == expected:
        return Answer(_as_planned(table, wanted))
    return _guarded(query, keys, columns, ordered)


def _query(path: Path, requests: Sequence[Request], declared: Mapping[str, str]) -> Query:
    """The query for requests on one table that differ in their dataset and spans alone."""
    first = requests[0]
    table = quoted(first.source.table)
    conditions: list[str] = []
    values: list[int | str] = []
    for column, bounds in ((first.keys.image_number, first.images), (first.keys.object_number, first.objects)):
        if bounds is not None:
            conditions.append(f"{quoted(column)} BETWEEN ? AND ? AND {_is_whole(quoted(column))}")
            values.extend(bounds)
    if len(requests) == 1 and len(first.spans) < 2:
        conditions += ["rowid BETWEEN ? AND ?"] if first.spans else []
        values += [first.spans[0].start, first.spans[0].stop] if first.spans else []
        if first.source.only is not None:
            conditions.append(_is_of(first.source.only, declared, "?"))
            values += [] if first.source.only.value is None else [first.source.only.value]
        where = " WHERE " + " AND ".join(conditions) if conditions else ""
        return Query(path, "", f"FROM {table}{where}", tuple(values))
    lines, given = [], []
    for position, request in enumerate(requests):
        spans = request.spans or (Span(0, 0),)
        lines += [f"({position}, ?, {span.start}, {span.stop})" for span in spans]
        given += [(request.source.only.value or "") if request.source.only else ""] * len(spans)
    conditions = (["rowid BETWEEN wanted_first AND wanted_last"] if first.spans else []) + conditions
    if first.source.only is not None:
        conditions.insert(0, _is_of(first.source.only, declared, "wanted_number"))
    prologue = f"WITH wanted(wanted_order, wanted_number, wanted_first, wanted_last) AS (VALUES {', '.join(lines)}) "
    rows = f"FROM wanted CROSS JOIN {table} WHERE {' AND '.join(conditions)}"
    return Query(path, prologue, rows, (*given, *values), "wanted_order")


def _is_of(only: Only, declared: Mapping[str, str], value: str) -> str:
    """SQL that tells whether a row is of a dataset; nothing stands for null, which is a dataset of its own.

    Compared with a text, a column of declared type converts the text to its own type, and its index serves.
    """
    column = quoted(only.column)
    if only.value is None:
        return f"{column} IS NULL"
    if affinity(declared[only.column]) in (ColumnType.INT64, ColumnType.STRING):
        return f"{column} = {value}"
    return f"{as_text(column)} = {value}"


def as_text(column: str) -> str:
    """SQL for a value as text, where 3.0 is 3."""
    whole = f"typeof({column}) = 'real' AND {_is_whole(column)}"
    return f"CAST(CASE WHEN {whole} THEN CAST({column} AS INTEGER) ELSE {column} END AS TEXT)"


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


def fetch(query: Query, columns: list[tuple[str, ColumnType]], expressions: list[str]) -> pa.Table:
    """One query; the result's first row is the row of planned types, which is cut off again.

    The driver's first batch ends with that row's type for each column, wider where its rows need it.
    """
    first = ", ".join(f"{_LITERALS[type_]} AS c{number}" for number, (_, type_) in enumerate(columns))
    text = f"{query.prologue}SELECT {first} UNION ALL SELECT {', '.join(expressions)} {query.rows}"
    with (
        adbc_driver_sqlite.connect(uri(query.path)) as database,
        adbc_driver_manager.AdbcConnection(database) as connection,
        adbc_driver_manager.AdbcStatement(connection) as statement,
    ):
        statement.set_sql_query(f"PRAGMA busy_timeout = {int(sqlite_file.BUSY_SECONDS * 1000)}")
        statement.execute_update()
        statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
        statement.set_sql_query(text)
        if query.values:
            statement.prepare()
            arrays = [
                from_texts([value]) if isinstance(value, str) else from_numpy(np.array([value], np.int64))
                for value in query.values
            ]
            statement.bind(pa.record_batch(arrays, [str(number) for number in range(len(arrays))]))
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


def _guarded(query: Query, keys: Keys, columns: list[tuple[str, ColumnType]], ordered: bool) -> Answer:
    """The same rows where some value is not of its column's type: kept, widened or null by rule, and counted.

    A text in a numeric column is never a number, because SQLite's affinity would have made it one: `inf` is kept
    as infinity, `nan` and anything else becomes null. A real in an integer column widens it, unless that numbers
    images or objects: there 3.0 is 3, and what is no whole number becomes null.
    """
    numbers = keys.names
    classes = _storage_classes(query, columns)
    widened, findings, expressions = [], [], []
    for (name, type_), counts in zip(columns, classes, strict=True):
        reals, others, nans, infinities = counts
        column = quoted(name)
        if type_ is ColumnType.STRING:
            expressions.append(f"CAST({column} AS TEXT)")
            continue
        if type_ in (ColumnType.INT64, ColumnType.BOOL) and (reals or infinities) and name not in numbers:
            widened.append((name, ColumnType.DOUBLE))
        if nans:
            findings.append(Finding(name, "text 'nan' became null", nans))
        if others - nans - infinities:
            findings.append(Finding(name, "a value that is not a number became null", others - nans - infinities))
        expressions.append(_key(column) if name in numbers else _number(column, type_) if others else column)
    if widened:
        return Answer(pa.table({}), widened=tuple(widened))
    if ordered:
        columns, expressions = [*columns, (ORDER, ColumnType.INT64)], [*expressions, query.order]
    return Answer(_as_planned(fetch(query, columns, expressions), columns), findings=tuple(findings))


_INFINITE = "('inf', '+inf', 'infinity', '+infinity', '-inf', '-infinity')"


def _storage_classes(query: Query, columns: list[tuple[str, ColumnType]]) -> list[tuple[int, int, int, int]]:
    """For each column the number of reals, of texts and blobs, and among the texts of nan and of infinities.

    A first query finds the columns in which a value is of another class than planned; only these are looked into.
    """
    expected = {ColumnType.INT64: "integer", ColumnType.BOOL: "integer", ColumnType.DOUBLE: "real"}
    numeric = [name for name, type_ in columns if type_ in expected]
    types = dict(columns)
    nothing = (0, 0, 0, 0)
    found = dict.fromkeys((name for name, _ in columns), nothing)
    with reading(query.path) as connection:
        strange: list[str] = []
        for start in range(0, len(numeric), 500):
            group = numeric[start : start + 500]
            tests = ", ".join(
                f"total(typeof({quoted(name)}) NOT IN ('null', '{expected[types[name]]}'))" for name in group
            )
            counts = connection.execute(f"{query.prologue}SELECT {tests} {query.rows}", query.values).fetchone()
            strange += [name for name, count in zip(group, counts, strict=True) if count]
        for name in strange:
            column = quoted(name)
            text = f"lower(trim(CASE typeof({column}) WHEN 'text' THEN {column} END))"
            counts = connection.execute(
                f"{query.prologue}SELECT total(typeof({column}) = 'real'), "
                f"total(typeof({column}) IN ('text', 'blob')), "
                f"total({text} IN ('nan', '-nan', '')), total({text} IN {_INFINITE}) {query.rows}",
                query.values,
            ).fetchone()
            reals, others, nans, infinities = (int(value) for value in counts)
            found[name] = (reals, others, nans, infinities)
    return [found[name] for name, _ in columns]


def _key(column: str) -> str:
    """SQL for a column that numbers images or objects."""
    return f"CASE WHEN {is_key(column)} THEN CAST({column} AS INTEGER) END"


def _number(column: str, type_: ColumnType) -> str:
    """SQL for a numeric column in which texts occur."""
    if type_ is not ColumnType.DOUBLE:
        return f"CASE typeof({column}) WHEN 'integer' THEN {column} END"
    return (
        f"CASE WHEN typeof({column}) IN ('integer', 'real') THEN {column} "
        f"WHEN lower(trim({column})) IN ('inf', '+inf', 'infinity', '+infinity') THEN 9e999 "
        f"WHEN lower(trim({column})) IN ('-inf', '-infinity') THEN -9e999 END"
    )
