"""The chunks of an HDF5 dataset, read past HDF5: it lets one thread at a time decode, and asks for each chunk anew."""

from __future__ import annotations

import os
import zlib
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, cast

import h5py
import numpy as np
from numcodecs import Shuffle
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.chunks import Chunked, Numbers
from prefect_cytotable.tasks.core.errors import BadSourceError

Array = NDArray[Any]

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE

MOST_CHUNKS = 1 << 20
"""An array with more of them is left to HDF5: where they lie takes 24 bytes for each."""


class H5Chunks(Chunked):
    """A dataset in chunks that are plain, deflated, or shuffled and deflated."""

    def __init__(self, dataset: Any, filters: tuple[int, ...], stack: ExitStack) -> None:
        self.shape, self.chunks = tuple(map(int, dataset.shape)), tuple(map(int, dataset.chunks))
        self.dtype = dataset.dtype
        self._filters, self._fill = filters, dataset.fillvalue
        self._name = f"{dataset.file.filename}, {dataset.name}"
        self._grid = tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))
        self._where = _where(dataset, self._grid)
        self._bytes = int(np.prod(self.chunks, dtype=np.int64)) * self.dtype.itemsize
        self._descriptor = os.open(dataset.file.filename, os.O_RDONLY)
        stack.callback(os.close, self._descriptor)

    @classmethod
    def of(cls, dataset: Any, stack: ExitStack) -> H5Chunks | None:
        """The dataset; None where HDF5 itself has to read it. Its file is closed with the stack."""
        if dataset.chunks is None or dataset.dtype.kind not in "biuf" or dataset.id.get_num_chunks() > MOST_CHUNKS:
            return None
        if h5py.check_enum_dtype(dataset.dtype) is not None or not dataset.size:
            return None
        if dataset.file.userblock_size:  # versions of HDF5 differ in whether a chunk's place counts from behind it
            return None
        made = dataset.id.get_create_plist()
        filters = tuple(int(made.get_filter(number)[0]) for number in range(made.get_nfilters()))
        if filters not in ((), (_DEFLATE,), (_SHUFFLE, _DEFLATE)):
            return None
        return cls(dataset, filters, stack)

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


def _where(dataset: Any, grid: Numbers) -> NDArray[np.int64]:
    """Of each chunk in C's order: where its bytes begin, how many there are, which filters were not applied."""
    seen: list[Any] = []
    dataset.id.chunk_iter(seen.append)
    found = np.zeros((int(np.prod(grid, dtype=np.int64)), 3), np.int64)
    if seen:
        corners = np.array([one[0] for one in seen], np.int64) // np.array(dataset.chunks, np.int64)
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
