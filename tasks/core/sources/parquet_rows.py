"""Rows of a Parquet file: which are asked for, then their values, a few columns at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from prefect_cytotable.tasks.core.model import Span
from prefect_cytotable.tasks.core.sources.base import Answer, Keys, Request, Together
from prefect_cytotable.tasks.core.sources.columnar import (
    Columns,
    as_planned,
    check_present,
    joined,
    side_by_side,
    too_narrow,
)
from prefect_cytotable.tasks.core.sources.columnar_rows import Codes, as_together, deciding, order_of, wanted
from prefect_cytotable.tasks.core.sources.columnar_sample import SAMPLE_ROWS
from prefect_cytotable.tasks.core.sources.parquet_file import Opened, column_groups, pieces
from prefect_cytotable.tasks.core.sources.row_index import Integers


def read(opened: Opened, request: Request) -> Answer:
    """The rows that `request` names, in the order of the file."""
    return _read(opened, request, None)


def read_together(opened: Opened, requests: Sequence[Request]) -> Together | None:
    """The rows of requests that differ in their dataset alone; None where there is no column to read."""
    positions, order = _of_datasets(opened, requests)
    answer = _read(opened, requests[0], positions)
    if not answer.table.num_columns and not answer.widened:
        return None
    return as_together(answer, order, len(requests))


def positions_of(opened: Opened, request: Request) -> Integers:
    """The positions of the rows that `request` names, in ascending order."""
    rows = _within(request.spans, opened.rows) if request.spans else None
    names = deciding(request)
    if not names:
        return rows if rows is not None else np.arange(opened.rows)
    check_present(names, opened.kinds, opened.where)
    found = [np.empty(0, np.int64)]
    for here, piece in pieces(opened, names, rows):
        mask = wanted(piece, request)
        found.append(here if mask is None else here[mask])
    return np.concatenate(found)


def beyond_int64(opened: Opened) -> list[str]:
    """Columns of whole numbers that have one beyond int64."""
    names = [field.name for field in opened.file.schema_arrow if field.type == pa.uint64()]
    found = dict.fromkeys(names, False)
    for _, piece in pieces(opened, names) if names else ():
        for name, array in piece.items():
            found[name] |= array.type != pa.int64()
    return [name for name, beyond in found.items() if beyond]


def some_rows(opened: Opened, columns: Sequence[str]) -> dict[str, pa.Array]:
    """Columns in the first rows of the first, a middle and the last row group, as `columnar.plain` makes them."""
    sizes = [opened.file.metadata.row_group(group).num_rows for group in range(opened.file.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    chosen = sorted({0, len(sizes) // 2, len(sizes) - 1}) if sizes else []
    empty = np.empty(0, np.int64)
    rows = np.concatenate(
        [empty, *(np.arange(starts[one], starts[one] + min(SAMPLE_ROWS // 2, sizes[one])) for one in chosen)]
    )
    found: dict[str, pa.Array] = {}
    for names in column_groups(opened, columns):
        found |= _gathered(opened, names, rows)
    return found


def _within(spans: Sequence[Span], rows: int) -> Integers:
    """The positions inside any of the spans."""
    inside: list[Integers] = []
    reached = 0
    for span in sorted(spans, key=lambda one: one.start):
        start, stop = max(span.start, reached), min(span.stop, rows)
        if start < stop:
            inside.append(np.arange(start, stop))
            reached = stop
    return np.concatenate([np.empty(0, np.int64), *inside])


def _of_datasets(opened: Opened, requests: Sequence[Request]) -> tuple[Integers, Codes]:
    """(positions, the request that each row is for) of requests that differ in their dataset alone."""
    spans = [span for one in requests for span in one.spans] if all(one.spans for one in requests) else []
    rows = _within(spans, opened.rows) if spans else None
    names = deciding(requests[0])
    check_present(names, opened.kinds, opened.where)
    positions, orders = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for here, piece in pieces(opened, names, rows):
        order = order_of(piece, requests)
        positions.append(here[order >= 0])
        orders.append(order[order >= 0])
    return np.concatenate(positions), np.concatenate(orders)


def _read(opened: Opened, request: Request, positions: Integers | None) -> Answer:
    """The rows at `positions`, or where that is None those of the request."""
    known = opened.kinds
    columns = [(name, type_) for name, type_ in request.columns if name in known]
    if not columns:
        return Answer(pa.table({}))
    widened = too_narrow(columns, known, request.keys)
    if widened:
        return Answer(pa.table({}), widened)
    if positions is None:
        positions = positions_of(opened, request)
    types = dict(columns)
    answers = [
        _columns(opened, [(name, types[name]) for name in names], request.keys, positions)
        for names in column_groups(opened, [name for name, _ in columns])
    ]
    return side_by_side(answers)


def _columns(opened: Opened, columns: Columns, keys: Keys, positions: Integers) -> Answer:
    """A few columns of the rows at `positions`."""
    return as_planned(_gathered(opened, [name for name, _ in columns], positions), columns, keys)


def _gathered(opened: Opened, names: Sequence[str], positions: Integers) -> dict[str, pa.Array]:
    found: dict[str, list[pa.Array]] = {name: [] for name in names}
    for _, piece in pieces(opened, names, positions):
        for name, array in piece.items():
            found[name].append(array)
    return {name: joined(found.pop(name)) for name in names}
