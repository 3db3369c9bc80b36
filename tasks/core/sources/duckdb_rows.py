"""Rows of a DuckDB table as Arrow, a few columns at a time.

DuckDB holds a block of 256 KiB of each column that it scans, so a table of 2,000 columns does not fit its memory at
once. The rows of a table come in the same order each time, which is checked; a view is read in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from prefect_cytotable.tasks.core.arrays import to_numpy
from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.sources.base import Answer, Request, Together
from prefect_cytotable.tasks.core.sources.columnar import (
    Kinds,
    as_planned,
    check_present,
    joined,
    number_texts,
    plain,
    side_by_side,
    too_narrow,
)
from prefect_cytotable.tasks.core.sources.columnar_rows import (
    Arrays,
    Codes,
    as_together,
    deciding,
    order_of,
    taken,
    wanted,
)
from prefect_cytotable.tasks.core.sources.columnar_sample import SAMPLE_ROWS
from prefect_cytotable.tasks.core.sources.duckdb_file import Column, Described, quoted
from prefect_cytotable.tasks.core.sources.row_index import Integers

if TYPE_CHECKING:
    import duckdb

GROUP = 64
"""Columns that are read at a time."""

BATCH_ROWS = 8192
ROWID = "rowid"

_ROWID = Column("bigint", ColumnType.INT64, ROWID)

Values = list[int | float | str]


def pieces(
    opened: duckdb.DuckDBPyConnection,
    table: Described,
    columns: Sequence[str],
    where: str,
    condition: str = "",
    values: Values | None = None,
) -> Iterator[dict[str, pa.Array]]:
    """Columns by name, as `columnar.plain` makes them, of the rows of a table.

    Args:
        opened: The database.
        table: In it.
        columns: Of the table; `ROWID` may be among them.
        where: What an error calls it.
        condition: WHERE and what follows, in SQL; empty for all rows.
        values: For the question marks in that.
    """
    own = {name: table.columns.get(name, _ROWID) for name in columns}
    listed = ", ".join(column.sql for column in own.values())
    relation = opened.sql(f"SELECT {listed} FROM {table.sql} {condition}", params=values or [])
    # The second name is that of DuckDB 1.4.
    stream = relation.to_arrow_reader if hasattr(relation, "to_arrow_reader") else relation.fetch_arrow_reader
    for batch in stream(BATCH_ROWS):
        yield {
            name: number_texts(array, column.kind) if column.numeric_text else plain(array, name, where)
            for (name, column), array in zip(own.items(), batch.columns, strict=True)
        }


def read(opened: duckdb.DuckDBPyConnection, table: Described, request: Request) -> Answer:
    """The rows that `request` names, in the order of the table."""

    def order(piece: Arrays) -> Codes:
        mask = wanted(piece, request)
        rows = len(next(iter(piece.values())))
        return np.zeros(rows, np.int32) if mask is None else mask.astype(np.int32) - 1

    answer, _ = _read(opened, table, [request], order)
    return answer


def read_together(opened: duckdb.DuckDBPyConnection, table: Described, requests: Sequence[Request]) -> Together | None:
    """The rows of requests that differ in their dataset alone; None where there is no column to read."""
    answer, order = _read(opened, table, requests, lambda piece: order_of(piece, requests))
    if not answer.table.num_columns and not answer.widened:
        return None
    return as_together(answer, order, len(requests))


def _read(
    opened: duckdb.DuckDBPyConnection, table: Described, requests: Sequence[Request], order: Callable[[Arrays], Codes]
) -> tuple[Answer, Codes]:
    """(the rows that any of the requests names, what `order` says of each: the request's position, -1 for none)."""
    first = requests[0]
    where = first.source.where
    columns = [(name, type_) for name, type_ in first.columns if name in table.columns]
    nothing = np.empty(0, np.int32)
    if not columns:
        return Answer(pa.table({})), nothing
    widened = too_narrow(columns, table.kinds, first.keys)
    if widened:
        return Answer(pa.table({}), widened), nothing
    check_present(deciding(first), table.columns, where)
    before: _Group | None = None
    answers = []
    for names in _groups(table, [name for name, _ in columns]):
        group = _group(opened, table, requests, names, order)
        if before is not None and not np.array_equal(before.rowids, group.rowids):
            raise BadSourceError(where, "its rows come in another order each time", "Export the table again.")
        types = dict(columns)
        answers.append(as_planned(group.arrays, [(name, types[name]) for name in names], first.keys))
        before = replace(group, arrays={})
    assert before is not None
    return side_by_side(answers), before.order


def _groups(table: Described, names: list[str]) -> Iterator[list[str]]:
    step = GROUP if table.rowid else max(len(names), 1)
    return (names[start : start + step] for start in range(0, len(names), step))


@dataclass(frozen=True)
class _Group:
    """A few columns of the rows that are asked for, the position of each row, and the request it is for."""

    arrays: dict[str, pa.Array]
    rowids: Integers
    order: Codes


def _group(
    opened: duckdb.DuckDBPyConnection,
    table: Described,
    requests: Sequence[Request],
    names: list[str],
    order: Callable[[Arrays], Codes],
) -> _Group:
    rows, values = condition(table, requests)
    needed = list(dict.fromkeys([*deciding(requests[0]), *([ROWID] if table.rowid else []), *names]))
    found: dict[str, list[pa.Array]] = {name: [] for name in names}
    rowids, orders = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for piece in pieces(opened, table, needed, requests[0].source.where, rows, values):
        here = order(piece)
        mask = here >= 0
        orders.append(here[mask])
        if table.rowid:
            rowids.append(to_numpy(piece[ROWID])[mask])
        for name in names:
            found[name].append(taken(piece[name], mask))
    arrays = {name: joined(found.pop(name)) for name in names}
    return _Group(arrays, np.concatenate(rowids), np.concatenate(orders))


def condition(table: Described, requests: Sequence[Request]) -> tuple[str, Values]:
    """(WHERE ..., values for its question marks): all rows that are asked for, and as few others as SQL can tell."""
    first = requests[0]
    parts: list[str] = []
    values: Values = []
    for name, bounds in ((first.keys.image_number, first.images), (first.keys.object_number, first.objects)):
        if name and bounds is not None and table.columns[name].is_number:
            parts.append(f"{quoted(name)} BETWEEN ? AND ?")
            values += bounds
    if first.source.only is not None:
        names = {one.source.only.value for one in requests if one.source.only is not None}
        part, more = _of_datasets(first.source.only.column, table.columns[first.source.only.column], names)
        parts += [part] if part else []
        values += more
    if table.rowid and first.spans and not first.keys.image_number:
        parts.append("(" + " OR ".join(["(rowid >= ? AND rowid < ?)"] * len(first.spans)) + ")")
        values += [edge for span in first.spans for edge in (span.start, span.stop)]
    return (f"WHERE {' AND '.join(parts)}" if parts else ""), values


def _of_datasets(name: str, column: Column, datasets: set[str | None]) -> tuple[str, Values]:
    """SQL for the rows of some datasets; empty where SQL would compare otherwise than `dataset_of` names them."""
    sql = quoted(name)
    present = sorted(one for one in datasets if one is not None)
    values: Values
    if column.kind is ColumnType.INT64:
        test, values = f"CAST({sql} AS VARCHAR)", list(present)
    elif column.type == "varchar":
        test, values = sql, list(present)
    elif column.type in ("float", "double"):
        test, values = f"CAST({sql} AS DOUBLE)", [number for one in present for number in _floats(one)]
    else:
        return "", []
    parts = [f"{test} IN ({', '.join('?' * len(values))})"] if values else []
    if None in datasets:
        parts.append(
            f"{sql} IS NULL"
            if column.kind in (ColumnType.INT64, ColumnType.STRING)
            else f"coalesce(isnan({sql}), true)"
        )
    return (f"({' OR '.join(parts)})" if parts else "false"), values


def _floats(text: str) -> list[float]:
    try:
        return [float(text)]
    except ValueError:
        return []


def count(opened: duckdb.DuckDBPyConnection, table: Described) -> int:
    """The rows of a table."""
    return int(opened.execute(f"SELECT count(*) FROM {table.sql}").fetchall()[0][0])


def beyond_int64(opened: duckdb.DuckDBPyConnection, table: Described) -> Kinds:
    """The columns of large whole numbers that have one beyond int64."""
    large = [name for name, column in table.columns.items() if column.type in ("ubigint", "hugeint", "uhugeint")]
    if not large:
        return {}
    ends = ", ".join(f"max({quoted(name)}) > {2**63 - 1} OR min({quoted(name)}) < {-(2**63)}" for name in large)
    found = opened.execute(f"SELECT {ends} FROM {table.sql}").fetchall()[0]
    return {name: ColumnType.DOUBLE for name, beyond in zip(large, found, strict=True) if beyond}


def first_rows(
    opened: duckdb.DuckDBPyConnection, table: Described, names: list[str], where: str
) -> dict[str, pa.Array]:
    """Columns in the first rows, as `columnar.plain` makes them."""
    found: dict[str, list[pa.Array]] = {name: [] for name in names}
    for group in _groups(table, names):
        for piece in pieces(opened, table, group, where, f"LIMIT {SAMPLE_ROWS}"):
            for name, array in piece.items():
                found[name].append(array)
    return {name: joined(arrays) for name, arrays in found.items()}
