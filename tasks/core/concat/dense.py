"""Blocks of a dense array: whole bands of rows are read, columns taken, whole bands of chunks written."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.model import ArrayLayout, Layout, Source
from prefect_cytotable.tasks.core.concat.reading import Rows, gather, opened_rows
from prefect_cytotable.tasks.core.concat.targets import opened_targets

Array = NDArray[Any]

SMALLEST_BAND = 1 << 16
"""Bytes that are read at a time where many inputs are open at once."""


NEAR = 1 << 18
"""Bytes of rows whose columns are taken at a time: what surely fits the processor's nearer caches."""


class Opened:
    """The sources of an array, opened when they are needed, and one at a time where that is enough.

    Args:
        layout: Of the output.
        array: Its array.
        names: Of the datasets of a sparse element; ("",) for a dense one.
        together: How many are open at once; each reads in bands of its share of the block.
    """

    def __init__(self, layout: Layout, array: ArrayLayout, names: tuple[str, ...], together: int) -> None:
        self._names, self._folder = names, Path(layout.folder)
        self._band = max(layout.block_bytes // (max(together, 1) * len(names)), SMALLEST_BAND)
        self._together = together
        self._open: dict[int, tuple[ExitStack, tuple[Rows, ...]]] = {}
        self._indexers: dict[str, NDArray[np.int64]] = {}
        self._array = array

    def rows(self, number: int) -> tuple[Rows, ...]:
        """The datasets of a source."""
        if number not in self._open:
            while len(self._open) >= self._together:
                self._open.pop(next(iter(self._open)))[0].close()
            source, stack = self._array.sources[number], ExitStack()
            paths = tuple(f"{source.element}/{name}".rstrip("/") for name in self._names)
            self._open[number] = stack, stack.enter_context(opened_rows(source.file, source.format, paths, self._band))
        return self._open[number][1]

    def indexer(self, source: Source) -> NDArray[np.int64] | None:
        """The indexer of the other axis; None where the input's order is the output's."""
        if not source.indexer:
            return None
        if source.indexer not in self._indexers:
            self._indexers.clear()
            self._indexers[source.indexer] = np.load(self._folder / source.indexer, allow_pickle=False)
        return self._indexers[source.indexer]

    def close(self) -> None:
        """Close all."""
        for stack, _ in self._open.values():
            stack.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_dense(layout: Layout, array: ArrayLayout, start: int, stop: int) -> int:
    """Write rows `start` to the one before `stop`; gives the checksum of what lies on disk then."""
    dtype = np.dtype(array.dtype)
    fill = fill_of(array)
    width = max(int(np.prod(array.shape[1:], dtype=np.int64)) * dtype.itemsize, 1)
    if array.axis == 0:
        width = max(width, *(int(np.prod(one.shape[1:])) * dtype.itemsize for one in array.sources if one.element), 1)
    together = 1 if array.axis == 0 else len(array.sources)
    with opened_targets(layout, array, ("",)) as (target,), Opened(layout, array, ("",), together) as sources:
        rows = max(layout.block_bytes // width // target.chunk, 1) * target.chunk
        buffer = np.empty((min(rows, stop - start), *array.shape[1:]), dtype)
        for low in range(start, stop, rows):
            high = min(low + rows, stop)
            block = buffer[: high - low]
            for number, source in enumerate(array.sources):
                if array.axis == 0:
                    _stack(block, low, high, source, number, sources, fill)
                else:
                    _beside(block, low, high, source, number, sources, fill)
            target.write(low, block)
        return target.written


def fill_of(array: ArrayLayout) -> Any:
    """The value for what no input has."""
    return np.frombuffer(bytes.fromhex(array.fill), array.dtype)[0]


def _stack(block: Array, low: int, high: int, source: Source, number: int, sources: Opened, fill: Any) -> None:
    """Rows of one input, its columns brought into the output's order."""
    begin, end = max(low, source.start), min(high, source.stop)
    if begin >= end:
        return
    part = block[begin - low : end - low]
    if not source.element:
        part[...] = fill
        return
    (rows,) = sources.rows(number)
    found = rows.read(begin - source.start, end - source.start)
    indexer = sources.indexer(source)
    if indexer is None:
        part[...] = found
    elif not found.shape[1]:
        part[...] = fill
    else:
        take_columns(part, found, indexer, fill)


def take_columns(part: Array, found: Array, indexer: NDArray[np.int64], fill: Any) -> None:
    """`part` becomes the columns of `found` that `indexer` names, and `fill` where that is -1."""
    lacking = np.flatnonzero(indexer < 0)
    direct = part.dtype == found.dtype and part.flags.c_contiguous
    step = max(NEAR * len(found) // max(found.nbytes, 1), 1)
    for low in range(0, len(found), step):
        rows = found[low : low + step]
        if rows.flags.c_contiguous:
            rows.reshape(-1).view(np.uint8).max(initial=0)  # brings them near in order, and taking finds them there
        if direct:
            np.take(rows, indexer, axis=1, out=part[low : low + step], mode="clip")
        else:
            part[low : low + step] = np.take(rows, indexer, axis=1, mode="clip")
    if len(lacking):
        part[:, lacking] = fill


def _beside(block: Array, low: int, high: int, source: Source, number: int, sources: Opened, fill: Any) -> None:
    """Columns of one input, its rows brought into the output's order."""
    part = block[:, source.start : source.stop]
    if not source.element:
        part[...] = fill
        return
    if not part.shape[1]:
        return
    (rows,) = sources.rows(number)
    indexer = sources.indexer(source)
    if indexer is None:
        part[...] = rows.read(low, high)
        return
    wanted = indexer[low:high]
    part[...] = gather(rows, wanted)
    part[wanted < 0] = fill
