"""Sparse arrays whose parts need no renaming: their entries are those of the inputs, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.chunks import ChunkFiles
from prefect_cytotable.tasks.core.concat.model import ArrayLayout, Kind, Layout, Source
from prefect_cytotable.tasks.core.concat.reading import DirectRows, Rows
from prefect_cytotable.tasks.core.concat.targets import Target, ZarrTarget
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
    low = span[0]
    while low < span[1]:
        first = int(np.searchsorted(ends, low, side="right"))
        base, end = int(begins[first]), min(int(ends[first]), span[1])
        whole = (min(step, end - low) if not (low - base) % data.chunk else 0) // data.chunk * data.chunk
        if whole and _as_stored(array.sources[first], rows_of(first), low - base, whole, minor, targets, low, buffers):
            low += whole
            continue
        high = min(low + step, span[1])
        values, places = (buffer[: high - low] for buffer in buffers)
        last = int(np.searchsorted(begins, high, side="left"))
        for number in range(first, last):
            base = int(begins[number])
            begin, end = max(low, base), min(high, int(ends[number]))
            if begin < end:
                _copy(array.sources[number], rows_of(number), begin - base, end - base, minor,
                      values[begin - low : end - low], places[begin - low : end - low])  # fmt: skip
        data.write(low, values)
        indices.write(low, places)
        low = high


def _as_stored(
    source: Source,
    rows: tuple[Rows, ...],
    begin: int,
    count: int,
    minor: int,
    targets: tuple[Target, Target],
    low: int,
    buffers: tuple[Array, Array],
) -> bool:
    """Write whole chunks as the input has them: their bytes stay, they are only looked at. False where that cannot be.

    Args:
        source: To which the entries belong.
        rows: Its data and indices.
        begin: Its first entry, at which a chunk of the output begins.
        count: Entries, of whole chunks.
        minor: Entries along the minor axis.
        targets: For data and indices.
        low: Place of the first entry in the output.
        buffers: For the values, as the output has them.
    """
    pairs = []
    for one, target in zip(rows, targets, strict=True):
        files = one.chunked if isinstance(one, DirectRows) else None
        if not isinstance(files, ChunkFiles) or not isinstance(target, ZarrTarget) or not target.takes(files):
            return False
        pairs.append((files, target))
    size = targets[0].chunk
    if begin + count > rows[1].shape[0]:
        raise damaged(source, "its row starts lead out of its values")
    for (files, target), buffer in zip(pairs, buffers, strict=True):
        chunk = buffer[:size]
        for place in range(0, count, size):
            stored = files.read_stored(((begin + place) // size,), chunk)
            if target is targets[1]:
                check_indices(chunk, minor, source)
            target.put(((low + place) // size,), stored)
    return True


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
