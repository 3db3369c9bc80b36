"""Blocks of numbers as the zlib streams that HDF5's shuffle and gzip filters read, without compressing what cannot be.

Shuffled, a block is one plane of bytes after the other: the first byte of every number, then the second, and so on. Of
measured floats the low planes are noise, which deflate passes over at 50 MB/s to gain nothing. A stream may hold stored
blocks beside compressed ones: the planes that a trial found to be noise are stored, the others compressed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 1
WORTH = 0.8
"""A plane is compressed where that leaves at most this share of its bytes."""

_HEADER = b"\x78\x01"  # RFC 1950: deflate, window of 32 KiB, fastest level
_LONGEST_STORED = 65_535
_END = b"\x01\x00\x00\xff\xff"  # RFC 1951: a last block, stored, of no bytes


def shuffled(block: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of a block as planes: (bytes of a number, numbers)."""
    flat = np.ascontiguousarray(block).reshape(-1)
    return np.ascontiguousarray(flat.view(np.uint8).reshape(flat.size, flat.itemsize).T)


def worth_compressing(planes: NDArray[np.uint8]) -> list[bool]:
    """Which planes shrink enough to be compressed: found by trying."""
    return [len(zlib.compress(plane.data, LEVEL)) <= WORTH * plane.size for plane in planes]


def deflated(planes: NDArray[np.uint8], compress: list[bool]) -> bytes:
    """Planes as one zlib stream; those that `compress` does not name are stored as they are."""
    pieces: list[bytes | memoryview] = [_HEADER]
    first = 0
    while first < len(planes):
        last = first + 1
        while last < len(planes) and compress[last] == compress[first]:
            last += 1
        run = planes[first:last].reshape(-1)  # neighbouring planes lie one behind the other
        pieces += _compressed(run) if compress[first] else _stored(run)
        first = last
    pieces += [_END, zlib.adler32(planes.reshape(-1).data).to_bytes(4, "big")]
    return b"".join(pieces)


def _compressed(run: NDArray[np.uint8]) -> list[bytes]:
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    # A full flush ends on a whole byte and forgets the window, so that stored blocks can follow.
    return [stream.compress(run.data), stream.flush(zlib.Z_FULL_FLUSH)]


def _stored(run: NDArray[np.uint8]) -> Iterator[bytes | memoryview]:
    view = run.data
    for start in range(0, len(view), _LONGEST_STORED):
        piece = view[start : start + _LONGEST_STORED]
        size = len(piece)
        yield b"\x00" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")
        yield piece


def streams(blocks: Iterable[NDArray[Any]]) -> Iterator[bytes]:
    """Blocks of like numbers as zlib streams; the first block decides which planes are compressed."""
    compress: list[bool] | None = None
    for block in blocks:
        planes = shuffled(block)
        if compress is None:
            compress = worth_compressing(planes)
        yield deflated(planes, compress)
