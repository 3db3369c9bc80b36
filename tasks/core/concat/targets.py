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
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.chunks import ChunkFiles
from prefect_cytotable.tasks.core.concat.model import ArrayLayout, Layout, StoreFormat
from prefect_cytotable.tasks.core.concat.packing import packed
from prefect_cytotable.tasks.core.errors import DamagedPartError

Array = NDArray[Any]

READ_BYTES = 1 << 22

NONE = b"none"
"""What a chunk that is not there counts as in a checksum."""


class Target(Protocol):
    """An array of the output.

    Attributes:
        chunk: Rows that are written together.
        written: Checksum of what was written through this value, in order.
    """

    chunk: int
    written: int

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
        self.written = 0

    def write(self, start: int, block: Array) -> None:
        """Write rows at their place."""
        view = memoryview(cast(bytes, np.ascontiguousarray(block).reshape(-1).view(np.uint8)))
        self.written = zlib.crc32(view, self.written)
        place, done = self._offset + start * self._row, 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], place + done)

    def checksum(self, start: int, stop: int) -> int:
        """Of the bytes of some rows."""
        value, place, end = 0, self._offset + start * self._row, self._offset + stop * self._row
        buffer = memoryview(bytearray(min(READ_BYTES, max(end - place, 1))))
        while place < end:
            count = os.preadv(self._descriptor, [buffer[: end - place]], place)
            if not count:
                return -1  # the file ends before
            value = zlib.crc32(buffer[:count], value)
            place += count
        return value


class ZarrTarget:
    """An array of a zarr store."""

    def __init__(self, files: ChunkFiles) -> None:
        self.chunk = files.chunks[0]
        self.written = 0
        self._files = files

    def write(self, start: int, block: Array) -> None:
        """Write whole chunks of rows."""
        files = self._files
        for numbers in files.numbers(start, start + len(block)):
            corner = [number * size for number, size in zip(numbers, files.chunks, strict=True)]
            corner[0] -= start
            part = block[tuple(slice(low, low + size) for low, size in zip(corner, files.chunks, strict=True))]
            if part.shape != files.chunks:  # at an edge; the rest of the chunk is zero, as zarr has it
                chunk = np.zeros(files.chunks, files.dtype)
                chunk[tuple(map(slice, part.shape))] = part
                part = chunk
            self.put(numbers, files.encoded(part.astype(files.dtype, copy=False)))

    def put(self, numbers: tuple[int, ...], stored: bytes | None) -> None:
        """Write the bytes of a chunk as they are; None for one that is all zero."""
        self._files.store(numbers, stored)
        self.written = zlib.crc32(NONE if stored is None else stored, self.written)

    def takes(self, files: ChunkFiles) -> bool:
        """Whether the chunks of another array would be chunks of this one, byte by byte."""
        own = self._files
        codecs = [getattr(one.codec, "codec_id", None) for one in (own, files)]
        same = own.chunks == files.chunks and own.dtype == files.dtype and codecs[0] == codecs[1]
        return same and not np.asarray(files.fill).tobytes().strip(b"\0")  # a chunk that is not there is zero here too

    def checksum(self, start: int, stop: int) -> int:
        """Of the files of some chunks; one that is not there, because all of it is the fill value, counts too."""
        value = 0
        for numbers in self._files.numbers(start, stop):
            try:
                content = self._files.stored(numbers)
            except FileNotFoundError:
                content = NONE
            value = zlib.crc32(content, value)
        return value


@contextmanager
def opened_targets(layout: Layout, array: ArrayLayout, names: tuple[str, ...]) -> Iterator[tuple[Target, ...]]:
    """Datasets of an array: "" is a dense one itself, "data" and "indices" those of a sparse one."""
    if layout.format is StoreFormat.ZARR:
        folders = [Path(layout.output) / f"{array.path}/{name}".rstrip("/") for name in names]
        yield tuple(ZarrTarget(_made(folder)) for folder in folders)
        return
    if array.compression:
        yield tuple(ZarrTarget(packed(layout, array, name)) for name in names)
        return
    offsets = dict(array.offsets)
    types = {"": array.dtype, "data": array.dtype, "indices": array.index_dtype}
    width = int(np.prod(array.shape[1:], dtype=np.int64)) if "" in names else 1
    descriptor = os.open(layout.output, os.O_RDWR)
    try:
        yield tuple(PlainTarget(descriptor, offsets[name], width * np.dtype(types[name]).itemsize) for name in names)
    finally:
        os.close(descriptor)


def _made(folder: Path) -> ChunkFiles:
    """An array that was made for this output."""
    files = ChunkFiles.of(folder)
    if files is None:
        raise DamagedPartError(f"{folder} is not as it was made. Run again with overwrite, or remove what was begun.")
    return files
