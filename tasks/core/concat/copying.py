"""Sparse arrays whose parts need no renaming: their entries are those of the inputs, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.model import ArrayLayout, Kind, Layout, Source
from prefect_cytotable.tasks.core.concat.reading import Rows
from prefect_cytotable.tasks.core.concat.targets import Target
from prefect_cytotable.tasks.core.errors import BadSourceError

Array = NDArray[Any]


def can_be_copied(array: ArrayLayout) -> bool:
    """Whether each input has its entries as the output has them, whatever their types."""
    return array.stacked and all(one.element and not one.indexer and not one.minor for one in array.sources)


def copy_entries(
    layout: Layout,
    array: ArrayLayout,
    rows_of: Callable[[int], tuple[Rows, ...]],
    targets: tuple[Target, Target],
    span: tuple[int, int],
    indptr: NDArray[np.int64],
) -> None:
    """Write the entries of a span of the output, read from where they lie in the inputs.

    Args:
        layout: Of the output.
        array: Its array.
        rows_of: Data and indices of a source, by its number.
        targets: For data and indices.
        span: First entry, and the one after the last.
        indptr: Where the slices of the output begin.

    Raises:
        BadSourceError: An input is damaged.
    """
    data, indices = targets
    minor = array.shape[1 if array.kind is Kind.CSR else 0]
    entry = np.dtype(array.dtype).itemsize + np.dtype(array.index_dtype).itemsize
    step = max(layout.block_bytes // entry // data.chunk, 1) * data.chunk
    ends = indptr[[one.stop for one in array.sources]]
    begins = indptr[[one.start for one in array.sources]]
    size = min(step, span[1] - span[0])
    buffers = np.empty(size, array.dtype), np.empty(size, array.index_dtype)
    for low in range(*span, step):
        high = min(low + step, span[1])
        values, places = (buffer[: high - low] for buffer in buffers)
        first, last = np.searchsorted(ends, low, side="right"), np.searchsorted(begins, high, side="left")
        for number in range(int(first), int(last)):
            base = int(begins[number])
            begin, end = max(low, base), min(high, int(ends[number]))
            if begin < end:
                _copy(array.sources[number], rows_of(number), begin - base, end - base, minor,
                      values[begin - low : end - low], places[begin - low : end - low])  # fmt: skip
        data.write(low, values)
        indices.write(low, places)


def _copy(
    source: Source, rows: tuple[Rows, ...], begin: int, end: int, minor: int, values: Array, places: Array
) -> None:
    data, indices = rows
    if end > indices.shape[0]:
        raise damaged(source, "its row starts lead out of its values")
    data.fill(begin, values)
    if indices.dtype == places.dtype:
        indices.fill(begin, places)
        check_indices(places, minor, source)
    else:  # looked at before it is made narrower
        found = indices.read(begin, end)
        check_indices(found, minor, source)
        places[...] = found


def check_indices(found: Array, minor: int, source: Source) -> None:
    """Refuse indices that no entry can have.

    Raises:
        BadSourceError: One is outside.
    """
    if len(found) and (int(found.min()) < 0 or int(found.max()) >= minor):
        raise damaged(source, f"it has an index outside 0 to {minor - 1}")


def damaged(source: Source, cause: str) -> BadSourceError:
    """The error for a source that cannot be right."""
    return BadSourceError(f"{source.file}, {source.element}", cause, "The file is damaged; make it anew.")
