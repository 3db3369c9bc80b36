"""Tables whose joinids lie far apart, such as hashes: ranges that have rows, instead of all that could have some."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.soma import opening
from prefect_cytotable.tasks.core.soma.model import JOINID, Sizes, Table

BINS = 4096
"""Ranges that one look over the joinids tells apart."""

_SPARE = 64
"""Slices without a row that are not worth a look over the joinids: each takes some milliseconds."""

Count = Callable[[int, int, int], NDArray[np.int64]]
"""Rows in each range of a width, from one joinid to another."""


def is_scattered(table: Table, rows: int) -> bool:
    """Whether slices of `rows` joinids would mostly find nothing."""
    return (table.last - table.first) // rows > _SPARE + 4 * (table.rows // rows)


def cuts(table: Table, sizes: Sizes) -> tuple[tuple[int, int], ...]:
    """Ranges (first and last joinid), in order, that have all rows of a table and at most a slice's rows each.

    Memory: one count for each of `BINS` ranges, and the ranges.
    """

    def count(first: int, last: int, width: int) -> NDArray[np.int64]:
        found = np.zeros((last - first) // width + 1, np.int64)
        where = (*[slice(None)] * table.index, slice(first, last)) if table.index >= 0 else ()
        with opening.frame(table.place, sizes) as frame, opening.reading(table.place.uri, sizes):
            for batch in frame.read(where, [JOINID]):
                joinids = batch.column(JOINID).to_numpy()
                joinids = joinids[(joinids >= first) & (joinids <= last)]
                found += np.bincount((joinids - first) // width, minlength=len(found))
        return found

    return tuple(merged(ranges(count, table.first, table.last, sizes.rows), sizes.rows))


def ranges(count: Count, first: int, last: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Ranges that have rows, with their number; a range with more than `rows` of them is looked at more closely.

    >>> joinids = np.array([3, 4, 5, 1_000_000])
    >>> def count(first, last, width):
    ...     inside = joinids[(joinids >= first) & (joinids <= last)]
    ...     return np.bincount((inside - first) // width, minlength=(last - first) // width + 1)
    >>> list(ranges(count, 3, 1_000_000, 2))
    [(3, 3, 1), (4, 4, 1), (5, 5, 1), (999848, 1000000, 1)]
    """
    width = (last - first) // BINS + 1
    counts = count(first, last, width)
    for number in np.flatnonzero(counts).tolist():
        start = first + number * width
        end = min(start + width - 1, last)
        if counts[number] <= rows or width == 1:
            yield start, end, int(counts[number])
        else:
            yield from ranges(count, start, end, rows)


def merged(found: Iterator[tuple[int, int, int]], rows: int) -> Iterator[tuple[int, int]]:
    """Neighbours put together, as long as they have at most `rows` rows.

    >>> list(merged(iter([(3, 4, 2), (9, 9, 1), (20, 29, 2)]), 3))
    [(3, 9), (20, 29)]
    """
    first = last = -1
    held = 0
    for start, end, count in found:
        if held and held + count > rows:
            yield first, last
            held = 0
        first, last, held = (first if held else start), end, held + count
    if held:
        yield first, last
