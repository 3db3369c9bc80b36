"""The chunks of an HDF5 dataset, read past HDF5: it lets one thread at a time decode, and asks for each chunk anew."""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import h5py
import numpy as np
from numcodecs import Shuffle
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.chunks import Chunked, Numbers
from prefect_cytotable.tasks.core.concat.model import StoreFormat
from prefect_cytotable.tasks.core.concat.stores import opened
from prefect_cytotable.tasks.core.errors import BadSourceError

Array = NDArray[Any]

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE

MOST_CHUNKS = 1 << 20
"""An array with more of them is left to HDF5: where they lie takes 24 bytes for each."""

MOST_KNOWN, MOST_KNOWN_CHUNKS = 256, 1 << 16
"""Datasets whose places are remembered, and chunks of all of them."""

Mark = tuple[int, int, int]
"""A file's state: it differs where the file was written to."""


@dataclass(frozen=True)
class H5Place:
    """Where the bytes of a dataset lie in its file: all that is asked of HDF5 to read it.

    Attributes:
        name: Of the file and the dataset, for people.
        chunks: Shape of a chunk; empty where the bytes lie in a row.
        offset: Where they begin then.
        filters: That chunks went through.
        where: Of each chunk in C's order: where its bytes begin, how many there are, which filters were not applied.
    """

    file: str
    name: str
    shape: Numbers
    dtype: np.dtype[Any]
    chunks: Numbers
    offset: int
    filters: tuple[int, ...]
    fill: Any
    where: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Any) -> H5Place | None:
        """That of a dataset; None where HDF5 itself has to read it."""
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "biufc":
            return None
        file = dataset.file
        shape, dtype, name = tuple(map(int, dataset.shape)), dataset.dtype, f"{file.filename}, {dataset.name}"
        none = np.empty((0, 3), np.int64)
        if dataset.chunks is None:
            offset = dataset.id.get_offset() if dtype.kind in "iufc" else None
            return None if offset is None else cls(file.filename, name, shape, dtype, (), offset, (), None, none)
        if dtype.kind not in "biuf" or dataset.id.get_num_chunks() > MOST_CHUNKS:
            return None
        if h5py.check_enum_dtype(dtype) is not None or not dataset.size:
            return None
        if file.userblock_size:  # versions of HDF5 differ in whether a chunk's place counts from behind it
            return None
        made = dataset.id.get_create_plist()
        filters = tuple(int(made.get_filter(number)[0]) for number in range(made.get_nfilters()))
        if filters not in ((), (_DEFLATE,), (_SHUFFLE, _DEFLATE)):
            return None
        chunks = tuple(map(int, dataset.chunks))
        grid = tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))
        return cls(
            file.filename, name, shape, dtype, chunks, 0, filters, dataset.fillvalue, _where(dataset, chunks, grid)
        )


class _Known:
    """Where datasets lie that were looked for before: many blocks read one input, and each asks the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: OrderedDict[tuple[str, str], tuple[Mark, H5Place | None]] = OrderedDict()
        self._chunks = 0

    def get(self, file: str, name: str, mark: Mark) -> tuple[bool, H5Place | None]:
        """Whether a dataset is known, of this state of its file, and its place."""
        with self._lock:
            found = self._places.get((file, name))
            if found is None or found[0] != mark:
                return False, None
            self._places.move_to_end((file, name))
            return True, found[1]

    def put(self, file: str, name: str, mark: Mark, place: H5Place | None) -> None:
        """Remember a dataset, and forget those that were not asked for for longest."""
        with self._lock:
            self._forget((file, name))
            self._places[file, name] = mark, place
            self._chunks += _chunks(place)
            while len(self._places) > MOST_KNOWN or (self._chunks > MOST_KNOWN_CHUNKS and len(self._places) > 1):
                self._forget(next(iter(self._places)))

    def _forget(self, key: tuple[str, str]) -> None:
        if key in self._places:
            self._chunks -= _chunks(self._places.pop(key)[1])


def _chunks(place: H5Place | None) -> int:
    return 0 if place is None else len(place.where)


_known = _Known()


def places_of(file: str, names: tuple[str, ...]) -> list[H5Place | None]:
    """Where the bytes of some datasets of an HDF5 file lie; None for one that HDF5 has to read."""
    stat = os.stat(file)  # noqa: PTH116 - asked for each block
    mark = stat.st_ino, stat.st_size, stat.st_mtime_ns
    found = [_known.get(file, name, mark) for name in names]
    if not all(known for known, _ in found):
        with opened(file, StoreFormat.H5AD) as root:
            for number, name in enumerate(names):
                if not found[number][0]:
                    place = H5Place.of(root[name])
                    _known.put(file, name, mark, place)
                    found[number] = True, place
    return [place for _, place in found]


class H5Chunks(Chunked):
    """A dataset in chunks that are plain, deflated, or shuffled and deflated. Its file is closed with the stack."""

    def __init__(self, place: H5Place, stack: ExitStack) -> None:
        self.shape, self.chunks, self.dtype = place.shape, place.chunks, place.dtype
        self._filters, self._fill, self._name, self._where = place.filters, place.fill, place.name, place.where
        self._grid = tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))
        self._bytes = int(np.prod(self.chunks, dtype=np.int64)) * self.dtype.itemsize
        self._descriptor = os.open(place.file, os.O_RDONLY)
        stack.callback(os.close, self._descriptor)

    def read(self, numbers: Numbers, out: Array) -> None:
        """Decode a chunk."""
        offset, size, skipped = self._where[np.ravel_multi_index(numbers, self._grid)].tolist()
        if not size:
            out[...] = self._fill
            return
        plain = not self._filters or skipped == (1 << len(self._filters)) - 1
        if plain and out.flags.c_contiguous and size == out.nbytes:
            _pread(self._descriptor, out, offset, self._name)
            return
        stored = np.empty(size, np.uint8)
        _pread(self._descriptor, stored, offset, self._name)
        out[...] = self._decoded(stored, skipped).view(self.dtype).reshape(self.chunks)

    def read_band(self, start: int, stop: int, found: Array) -> None:
        """The same, at once for chunks that lie in a row in the file."""
        if self._filters or len(self.shape) > 1 or found.dtype != self.dtype or not found.flags.c_contiguous:
            super().read_band(start, stop, found)
            return
        tall, first, last = self.chunks[0], start // self.chunks[0], -(-stop // self.chunks[0])
        where = self._where[first:last]
        cuts = np.flatnonzero((np.diff(where[:, 0]) != self._bytes) | (where[1:, 1] == 0) | (where[:-1, 1] == 0)) + 1
        for low, high in pairwise([0, *cuts.tolist(), last - first]):
            part = found[low * tall : high * tall]
            if where[low, 1]:
                _pread(self._descriptor, part, int(where[low, 0]), self._name)
            else:
                part[...] = self._fill

    def _decoded(self, stored: Array, skipped: int) -> Array:
        """The bytes of a chunk; filters whose bit is set were not applied to it."""
        found = stored
        for place in reversed(range(len(self._filters))):
            if skipped >> place & 1:
                continue
            if self._filters[place] == _DEFLATE:
                try:
                    inflated = zlib.decompressobj().decompress(cast(bytes, found), self._bytes)
                except zlib.error as error:
                    raise self._damaged(str(error)) from error
                found = np.frombuffer(inflated, np.uint8)
            else:
                found = np.frombuffer(Shuffle(self.dtype.itemsize).decode(found), np.uint8)
        if len(found) != self._bytes:
            raise self._damaged(f"{len(found)} bytes instead of {self._bytes}")
        return found

    def _damaged(self, cause: str) -> BadSourceError:
        return BadSourceError(self._name, f"a chunk cannot be decoded ({cause})", "Is the file whole? Copy it again.")


def _where(dataset: Any, chunks: Numbers, grid: Numbers) -> NDArray[np.int64]:
    seen: list[Any] = []
    dataset.id.chunk_iter(seen.append)
    found = np.zeros((int(np.prod(grid, dtype=np.int64)), 3), np.int64)
    if seen:
        corners = np.array([one[0] for one in seen], np.int64) // np.array(chunks, np.int64)
        numbers = np.ravel_multi_index(tuple(corners.T), grid)
        found[numbers] = [(one[2], one[3], one[1]) for one in seen]
    return found


def _pread(descriptor: int, out: Array, offset: int, name: str) -> None:
    view, done = memoryview(cast(bytes, out.reshape(-1).view(np.uint8))), 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            raise BadSourceError(name, "the file ends before its values do", "Is it whole?")
        done += count
