"""The rows of a table in the order of their joinids, slice by slice, a few slices at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_cytotable.tasks.core.arrays import empty, from_numpy, one_piece, to_numpy
from prefect_cytotable.tasks.core.errors import AccountError
from prefect_cytotable.tasks.core.soma import opening
from prefect_cytotable.tasks.core.soma.filters import with_ids
from prefect_cytotable.tasks.core.soma.model import JOINID, Sizes, Table
from prefect_cytotable.tasks.core.soma.sizes import of_any_length, text_room

PARTS = 8
"""What a slice is cut into whose texts are too long to be held all at once."""


def slices(first: int, last: int, rows: int) -> Iterator[tuple[int, int]]:
    """Joinids in slices (first and last of each), cut at multiples of `rows`.

    >>> list(slices(3, 21, 8))
    [(3, 7), (8, 15), (16, 21)]
    """
    while first <= last:
        end = min(first - first % rows + rows - 1, last)
        yield first, end
        first = end + 1


def slices_of(table: Table, first: int, last: int, rows: int) -> Iterator[tuple[int, int]]:
    """The same of a table from `first` to `last`, which where joinids lie far apart are ends of the table's cuts."""
    if not table.cuts:
        return slices(first, last, rows)
    return (cut for cut in table.cuts if first <= cut[0] <= last)


def output_schema(table: Table) -> pa.Schema:
    """The columns of the output with their types as the store has them."""
    with opening.frame(table.place) as frame:
        return pa.schema([frame.schema.field(name).remove_metadata() for name in table.columns])


def tables(
    table: Table, sizes: Sizes, first: int, last: int, heard: Callable[[int], None] | None = None
) -> Iterator[pa.Table]:
    """The rows with joinids from `first` to `last` that the filter lets through, in order.

    Args:
        table: What to read.
        sizes: How much at a time.
        first: Joinid of the first row.
        last: Joinid of the last row.
        heard: Called with the rows of each slice when it is handed on.

    Raises:
        SomaReadError, SomaBudgetError: The store cannot be read.
    """
    waiting: deque[tuple[Future[list[pa.Table] | None], int, int]] = deque()

    def handed_on() -> Iterator[pa.Table]:
        future, start, end = waiting.popleft()
        pieces = future.result()
        del future
        rows = 0
        for some in (pieces,) if pieces is not None else _parts(frame, table, sizes, start, end):
            rows += sum(piece.num_rows for piece in some)
            while some:
                yield some.pop(0)
        if heard is not None:
            heard(rows)

    with (
        opening.frame(table.place, sizes) as frame,
        ThreadPoolExecutor(sizes.readers, thread_name_prefix="soma") as pool,
    ):
        try:
            for start, end in slices_of(table, first, last, sizes.rows):
                waiting.append((pool.submit(_slice, frame, table, sizes, start, end), start, end))
                if len(waiting) > sizes.readers:
                    yield from handed_on()
            while waiting:
                yield from handed_on()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _parts(frame: Any, table: Table, sizes: Sizes, first: int, last: int) -> Iterator[list[pa.Table]]:
    """The rows of a slice that was too large, part by part."""
    for start, end in slices(first, last, max((last - first + 1) // PARTS, 1)):
        pieces = _slice(frame, table, sizes, start, end)
        if pieces is None:
            yield from _parts(frame, table, sizes, start, end)
        else:
            yield pieces


def _slice(frame: Any, table: Table, sizes: Sizes, first: int, last: int) -> list[pa.Table] | None:
    """The rows of one slice in order; None where their texts are longer than there is room for."""
    columns = list(dict.fromkeys((*table.columns, JOINID)))
    where, value_filter = _bounds(table, first, last)
    room = text_room(sizes.rows, table.row_bytes)
    pieces = []
    with opening.reading(table.place.uri, sizes):
        for piece in frame.read(where, columns, value_filter=value_filter or None):
            if piece.num_rows:
                pieces.append(_compact(piece))
                room -= sum(column.nbytes for column in pieces[-1].columns if of_any_length(column.type))
            if room < 0 and first < last:
                return None
    if pieces:
        pieces = _ordered(pieces, first, last)
    return [piece.select(list(table.columns)) for piece in pieces]


def _compact(piece: pa.Table) -> pa.Table:
    """The rows in memory of their own: those that come hold on to SOMA's buffers, however few rows are in them."""
    return pa.table([_copied(column) for column in piece.columns], schema=piece.schema)


def _copied(column: pa.ChunkedArray) -> pa.Array:
    chunks = column.chunks
    if not pa.types.is_dictionary(column.type) or len(chunks) != 1:
        return pa.concat_arrays([*chunks, empty(column.type)])
    codes = pa.concat_arrays([chunks[0].indices, empty(column.type.index_type)])
    return pa.DictionaryArray.from_arrays(codes, chunks[0].dictionary, ordered=column.type.ordered, safe=False)


def _bounds(table: Table, first: int, last: int) -> tuple[tuple[slice, ...], str]:
    """Coordinates and filter for a slice: by the index where joinids are in it, else by the filter."""
    if table.index < 0:
        return (), with_ids(table.value_filter, first, last, JOINID)
    return (*[slice(None)] * table.index, slice(first, last)), table.value_filter


def _ordered(pieces: list[pa.Table], first: int, last: int) -> list[pa.Table]:
    """The pieces in the order of their joinids, which is mostly that of the store."""
    joinids = np.concatenate([to_numpy(one_piece(piece.column(JOINID))) for piece in pieces])
    if (np.diff(joinids) < 0).any():
        order = np.argsort(joinids, kind="stable")
        pieces, joinids = [pa.concat_tables(pieces).take(from_numpy(order))], joinids[order]
    if joinids[0] < first or joinids[-1] > last:
        raise AccountError(
            f"Rows {joinids[0]} to {joinids[-1]} were read where {first} to {last} were asked for. Please report this "
            f"defect."
        )
    return pieces
