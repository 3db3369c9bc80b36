"""Reads ranges of rows of stored arrays, each piece decoded once where reading goes forward.

Arrays whose bytes lie in a row in a file are read past their library: HDF5 lets one thread at a time read, a file
descriptor all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.chunks import Chunked, ChunkFiles
from prefect_cytotable.tasks.core.concat.chunks_h5 import H5Chunks, H5Place, places_of
from prefect_cytotable.tasks.core.concat.model import StoreFormat
from prefect_cytotable.tasks.core.concat.stores import opened
from prefect_cytotable.tasks.core.errors import BadSourceError

Array = NDArray[Any]

TALLEST = 4
"""How many times taller than asked for a band may be, so that it is of whole chunks."""


class Rows(Protocol):
    """An array that is read by ranges of its first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> Array:
        """Its rows from `start` to the one before `stop`; not to be written to."""
        ...

    def fill(self, start: int, out: Array) -> None:
        """Rows from `start` on, as many as `out` has, into that."""
        ...


class PlainRows:
    """Rows that lie in a row in a file."""

    def __init__(self, path: str, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], stack: ExitStack) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._offset = path, offset
        self._row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        self._descriptor = os.open(path, os.O_RDONLY)
        stack.callback(os.close, self._descriptor)

    def read(self, start: int, stop: int) -> Array:
        """Its rows from `start` to the one before `stop`."""
        found = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.fill(start, found)
        return found

    def fill(self, start: int, out: Array) -> None:
        """Rows from `start` on, as many as `out` has, into that."""
        if not out.size:
            return
        if out.dtype != self.dtype or not out.flags.c_contiguous:
            out[...] = self.read(start, start + len(out))
            return
        view, done = memoryview(cast(bytes, out.reshape(-1).view(np.uint8))), 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], self._offset + start * self._row + done)
            if not count:
                raise BadSourceError(self._path, "it ends before the values of an array do", "Is it whole?")
            done += count


class ChunkedRows:
    """Rows of an array of h5py or zarr, read in bands of whole chunks, of which the last one is kept."""

    def __init__(self, array: Any, band_bytes: int) -> None:
        self.shape, self.dtype = tuple(map(int, array.shape)), array.dtype
        self._array = array
        row = max(int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize, 1)
        wanted = max(band_bytes // row, 1)
        chunk = array.chunks[0] if getattr(array, "chunks", None) else wanted
        self._band = max(wanted // chunk, 1) * chunk if chunk <= TALLEST * wanted else wanted
        self._kept: tuple[int, Array] | None = None

    def read(self, start: int, stop: int) -> Array:
        """Its rows from `start` to the one before `stop`."""
        first, last = start // self._band, max(stop - 1, start) // self._band
        if first == last:
            offset = first * self._band
            return self._banded(first)[start - offset : stop - offset]
        found = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for number in range(first, last + 1):
            low, high = number * self._band, min((number + 1) * self._band, self.shape[0])
            begin, end = max(low, start), min(high, stop)
            found[begin - start : end - start] = self._banded(number)[begin - low : end - low]
        return found

    def fill(self, start: int, out: Array) -> None:
        """Rows from `start` on, as many as `out` has, into that."""
        out[...] = self.read(start, start + len(out))

    def _banded(self, number: int) -> Array:
        if self._kept is not None and self._kept[0] == number:
            return self._kept[1]
        self._kept = None  # before the next one is read: one at a time is in memory
        low, high = number * self._band, min((number + 1) * self._band, self.shape[0])
        band = np.asarray(self._array[low:high])
        self._kept = number, band
        return band


class DirectRows:
    """Rows of an array whose chunks are read past its library; the last one that was asked for in part is kept."""

    def __init__(self, chunked: Chunked) -> None:
        self.shape, self.dtype = chunked.shape, chunked.dtype
        self.chunked, self._tall = chunked, chunked.chunks[0]
        self._kept: tuple[int, Array] | None = None

    def read(self, start: int, stop: int) -> Array:
        """Its rows from `start` to the one before `stop`."""
        tall, first = self._tall, start // self._tall
        if stop <= min((first + 1) * tall, self.shape[0]) and stop > start:
            return self._row(first)[start - first * tall : stop - first * tall]
        found = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.fill(start, found)
        return found

    def fill(self, start: int, out: Array) -> None:
        """Rows from `start` on, as many as `out` has, into that."""
        low, stop, tall = start, start + len(out), self._tall
        while low < stop:
            number = low // tall
            high = min((number + 1) * tall, stop)
            if low == number * tall and out.dtype == self.dtype and not self._keeps(number):
                end = stop if stop == self.shape[0] else stop // tall * tall
                if end > low:  # whole chunks from here on
                    self.chunked.read_band(low, end, out[low - start : end - start])
                    low = end
                    continue
            out[low - start : high - start] = self._row(number)[low - number * tall : high - number * tall]
            low = high

    def _keeps(self, number: int) -> bool:
        return self._kept is not None and self._kept[0] == number

    def _row(self, number: int) -> Array:
        """A row of chunks."""
        if not self._keeps(number):
            self._kept = None  # before the next one is read: one at a time is in memory
            low, high = number * self._tall, min((number + 1) * self._tall, self.shape[0])
            found = np.empty((high - low, *self.shape[1:]), self.dtype)
            self.chunked.read_band(low, high, found)
            self._kept = number, found
        assert self._kept is not None
        return self._kept[1]


@contextmanager
def opened_rows(file: str, format: str, names: tuple[str, ...], band_bytes: int) -> Iterator[tuple[Rows, ...]]:
    """Several arrays of one file, or of one folder of plain arrays (format "raw")."""
    with ExitStack() as stack:
        if format == "raw":
            yield tuple(_plain(Path(file) / f"{name.rpartition('/')[2]}.npy", stack) for name in names)
            return
        found: list[Rows | None]
        if format == StoreFormat.ZARR:
            found = [_as_files(Path(file) / name, band_bytes) for name in names]
        else:
            found = [_placed(place, band_bytes, stack) for place in places_of(file, names)]
        root: Any = None if all(found) else stack.enter_context(opened(file, StoreFormat(format)))
        yield tuple(one or ChunkedRows(root[name], band_bytes) for one, name in zip(found, names, strict=True))


def _placed(place: H5Place | None, band_bytes: int, stack: ExitStack) -> Rows | None:
    """The rows of a dataset, read past HDF5; None where only that can."""
    if place is None:
        return None
    if not place.chunks:
        return PlainRows(place.file, place.offset, place.shape, place.dtype, stack)
    return _direct(place, band_bytes, lambda: H5Chunks(place, stack))


def _as_files(folder: Path, band_bytes: int) -> Rows | None:
    """The rows of a zarr array, read past zarr; None where only zarr can."""
    files = ChunkFiles.of(folder)
    return None if files is None else _direct(files, band_bytes, lambda: files)


def _direct(found: ChunkFiles | H5Place, band_bytes: int, chunked: Callable[[], Chunked]) -> DirectRows | None:
    """Rows that are read chunk by chunk, where a row of chunks is not much larger than a band."""
    row = int(np.prod(found.shape[1:], dtype=np.int64)) * found.dtype.itemsize
    return DirectRows(chunked()) if found.chunks[0] * row <= TALLEST * max(band_bytes, row) else None


def _plain(path: Path, stack: ExitStack) -> Rows:
    """An array that `numpy.save` wrote, or one that was written like that."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    offset, shape, dtype = int(mapped.offset), mapped.shape, mapped.dtype
    del mapped
    return PlainRows(str(path), offset, shape, dtype, stack)


def gather(rows: Rows, wanted: NDArray[np.int64]) -> Array:
    """Rows by number, in the order asked for; -1 gives zeros. Neighbours are read together."""
    found = np.zeros((len(wanted), *rows.shape[1:]), rows.dtype)
    order = np.argsort(wanted, kind="stable")
    order = order[np.searchsorted(wanted[order], 0) :]
    for piece in runs(wanted[order]):
        numbers = wanted[order[piece]]
        low = int(numbers[0])
        found[order[piece]] = rows.read(low, int(numbers[-1]) + 1)[numbers - low]
    return found


def runs(numbers: NDArray[np.int64], gap: int = 1) -> Iterator[slice]:
    """Stretches of ascending numbers in which none is more than `gap` above the one before.

    >>> list(runs(np.array([3, 4, 5, 9, 10])))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    if not len(numbers):
        return
    steps = np.diff(numbers)
    cuts = np.flatnonzero((steps > gap) | (steps < 0)) + 1
    edges = [0, *cuts.tolist(), len(numbers)]
    for begin, end in pairwise(edges):
        yield slice(begin, end)
