"""Chunks that stay what they are when one site among many changes, comes or goes: for runs that keep their chunks.

Filled one after the other, every chunk behind a site that grew would begin elsewhere and count as new. Here a boundary
is chosen by the name of the dataset that begins there, so that most boundaries are chosen again whatever happens
elsewhere, and estimates are rounded, so that they move only when a plate becomes quite another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from prefect_cytotable.tasks.core.budget import SMALLEST_SHARE
from prefect_cytotable.tasks.core.model import Inspected

LEAST_CHUNKS = 8
"""A plate becomes at least about so many chunks, unless they would be smaller than `SMALLEST_SHARE`."""

_STEPS = 8


def coarse(value: int) -> int:
    """The next number upwards of those with three significant bits after the first: at most an eighth more.

    >>> coarse(1000), coarse(1024), coarse(1025), coarse(7)
    (1024, 1024, 1152, 7)
    """
    shift = max(value.bit_length() - _STEPS.bit_length(), 0)
    return -(-value >> shift) << shift


def coarsened(inspected: Inspected) -> Inspected:
    """The same schemas with rounded estimates: rows a little wider, their text a little shorter than sampled."""
    schemas = tuple(
        replace(one, row_bytes=coarse(one.row_bytes), text_bytes=max(coarse(one.text_bytes) * _STEPS // 9, 1))
        for one in inspected.schemas
    )
    return replace(inspected, schemas=schemas)


def steady_share(total: int, limit: int) -> int:
    """Bytes of a chunk: `limit`, halved until there are enough chunks; the same for plates of about the same size.

    >>> steady_share(2 << 30, 64 << 20) >> 20, steady_share(100 << 20, 64 << 20) >> 20, steady_share(1, 64 << 20) >> 20
    (64, 8, 8)
    """
    while total < LEAST_CHUNKS * limit and limit // 2 >= SMALLEST_SHARE:
        limit //= 2
    return limit


def groups(names: Sequence[str], weights: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Stretches (start, stop) of neighbours that weigh at most `limit` together, or are one alone.

    Too heavy a stretch is divided in its middle half, at the name whose hash is least. Whoever comes, goes or changes
    moves only the boundaries of the stretches around, and of those few.

    >>> list(groups(["a", "b", "c"], [2, 2, 2], 100)), list(groups(["a", "b"], [1, 1], 1))
    ([(0, 3)], [(0, 1), (1, 2)])
    """
    marks = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    ends = [0, *accumulate(weights)]
    waiting = [(0, len(names))] if names else []
    while waiting:
        start, stop = waiting.pop()
        if stop - start == 1 or ends[stop] - ends[start] <= limit:
            yield start, stop
            continue
        middle = _boundary(marks, ends, start, stop)
        waiting += [(middle, stop), (start, middle)]


def _boundary(marks: Sequence[bytes], ends: Sequence[int], start: int, stop: int) -> int:
    total = ends[stop] - ends[start]
    inner = range(start + 1, stop)
    fitting = [one for one in inner if total <= 4 * (ends[one] - ends[start]) <= 3 * total]
    if fitting:
        return min(fitting, key=lambda one: marks[one])
    return min(inner, key=lambda one: (abs(2 * (ends[one] - ends[start]) - total), one))
