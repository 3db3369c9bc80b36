"""Writes ranges of rows of the output's arrays, from any process, and takes checksums of what lies there.

A zarr array is a file for each chunk: who writes whole chunks disturbs nobody. In an h5ad file the large arrays lie
in a row, at a place that is fixed when the file is prepared; blocks write their bytes there, past HDF5, which would
let one process at a time write and leave a damaged file where that is killed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.model import ArrayLayout, Layout, StoreFormat

Array = NDArray[Any]

READ_BYTES = 1 << 22


class Target(Protocol):
    """An array of the output."""

    chunk: int

    def write(self, start: int, block: Array) -> None:
        """Write rows; in zarr, whole chunks of them."""
        ...

    def checksum(self, start: int, stop: int) -> int:
        """Of what lies on disk for a range of rows."""
        ...


class PlainTarget:
    """An array in an h5ad file, at its place."""

    chunk = 1

    def __init__(self, descriptor: int, offset: int, row: int) -> None:
        self._descriptor, self._offset, self._row = descriptor, offset, row

    def write(self, start: int, block: Array) -> None:
        """Write rows at their place."""
        view = memoryview(cast(bytes, np.ascontiguousarray(block).reshape(-1).view(np.uint8)))
        place, done = self._offset + start * self._row, 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], place + done)

    def checksum(self, start: int, stop: int) -> int:
        """Of the bytes of some rows."""
        value, place, end = 1, self._offset + start * self._row, self._offset + stop * self._row
        buffer = memoryview(bytearray(min(READ_BYTES, max(end - place, 1))))
        while place < end:
            count = os.preadv(self._descriptor, [buffer[: end - place]], place)
            if not count:
                return -1  # the file ends before
            value = zlib.adler32(buffer[:count], value)
            place += count
        return value


class ZarrTarget:
    """An array of a zarr store."""

    def __init__(self, array: Any, folder: Path) -> None:
        self.chunk = int(array.chunks[0])
        self._array, self._folder = array, folder
        self._columns = [
            range(-(-size // chunk)) for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)
        ]

    def write(self, start: int, block: Array) -> None:
        """Write whole chunks of rows."""
        self._array[start : start + len(block)] = block

    def checksum(self, start: int, stop: int) -> int:
        """Of the files of some chunks; one that is not there, because all of it is the fill value, counts too."""
        value = 1
        for row in range(start // self.chunk, -(-stop // self.chunk)):
            for coordinates in np.ndindex(*map(len, self._columns)):
                path = self._folder / self._array.metadata.encode_chunk_key((row, *coordinates))
                try:
                    content = path.read_bytes()
                except FileNotFoundError:
                    content = b"none"
                value = zlib.adler32(content, value)
        return value


@contextmanager
def opened_targets(layout: Layout, array: ArrayLayout, names: tuple[str, ...]) -> Iterator[tuple[Target, ...]]:
    """Datasets of an array: "" is a dense one itself, "data" and "indices" those of a sparse one."""
    if layout.format is StoreFormat.ZARR:
        root: Any = zarr.open_group(layout.output, mode="r+", use_consolidated=False)
        paths = [f"{array.path}/{name}".rstrip("/") for name in names]
        yield tuple(ZarrTarget(root[path], Path(layout.output) / path) for path in paths)
        return
    offsets = dict(array.offsets)
    types = {"": array.dtype, "data": array.dtype, "indices": array.index_dtype}
    width = int(np.prod(array.shape[1:], dtype=np.int64)) if "" in names else 1
    descriptor = os.open(layout.output, os.O_RDWR)
    try:
        yield tuple(PlainTarget(descriptor, offsets[name], width * np.dtype(types[name]).itemsize) for name in names)
    finally:
        os.close(descriptor)
