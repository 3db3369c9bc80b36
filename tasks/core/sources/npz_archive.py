"""NPZ archives: which arrays a zip file holds, what their headers say, and the bytes of their values.

Nothing that an archive says of itself is believed before it is checked: a header that promises more values than
its member holds, or a member that promises more bytes than its compressed form can give, costs no memory.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from prefect_cytotable.tasks.core.errors import BadSourceError, CytotableError
from prefect_cytotable.tasks.core.model import Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources.npz_pickle import short

WINDOW = 128 << 10
"""Bytes that are fetched at a time where only headers are wanted; holds the longest end record of a zip file."""

HEADER_BYTES = 16 << 10
"""More than NumPy's own limit for the header of an array."""

REMEDY = "Write the archive again with np.savez_compressed, or take it away."

_METHODS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
"""Methods that np.savez and np.savez_compressed use, with the most bytes that one stored byte can become."""

_ENCRYPTED = 0x1
_SUFFIX = ".npy"
_BEGINNING = b"PK\x03\x04"


@dataclass(frozen=True)
class Stored:
    """One array of an archive, as its header describes it.

    Attributes:
        start: Bytes before the first value.
        size: Bytes of the values.
    """

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int
    size: int


class RangedFile(io.RawIOBase):
    """A file that can be read from any place, of which only the stretches that are asked for are fetched.

    The end is fetched at once: a zip file has its directory there, and an archive of DeepProfiler its small arrays.
    """

    def __init__(self, places: Places, source: Source) -> None:
        super().__init__()
        self._places, self._source = places, source
        self._size = source.fingerprint.size
        self._position = 0
        tail = max(self._size - WINDOW, 0)
        self._tail = tail, self._fetch(tail, self._size)
        self._window = self._tail

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; one before the beginning is the beginning, counted from the end."""
        if whence == io.SEEK_SET and offset < 0:
            raise ValueError(f"negative place {offset}")
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, all that are left where it is negative; fewer at the end."""
        left = max(self._size - self._position, 0)
        size = left if size < 0 else min(size, left)
        for start, data in (self._tail, self._window):
            if start <= self._position and self._position + size <= start + len(data):
                break
        else:
            start = self._position
            data = self._fetch(start, min(start + max(size, WINDOW), self._size))
            self._window = start, data
        found = data[self._position - start : self._position - start + size]
        self._position += len(found)
        return found

    def _fetch(self, start: int, stop: int) -> bytes:
        return self._places.read(self._source.path, start, stop, self._source.fingerprint.mark) if stop > start else b""


class Archive:
    """The arrays of an NPZ archive.

    Raises:
        BadSourceError: It is no zip file, or damaged; every method raises it for what it finds.
    """

    def __init__(self, file: IO[bytes] | io.RawIOBase, where: str) -> None:
        self.where = where
        self._size = file.seek(0, io.SEEK_END)
        if not self._size:
            raise self.bad("the file is empty")
        file.seek(0)
        if file.read(len(_BEGINNING)) != _BEGINNING:
            raise self.bad("it is no NPZ archive: it does not begin as a zip file with members does")
        with _explained(where):
            self._zip = zipfile.ZipFile(file)
        self._names = Counter(info.filename for info in self._zip.infolist())

    def bad(self, cause: str, remedy: str = REMEDY) -> BadSourceError:
        """An error that names the archive."""
        return BadSourceError(self.where, cause, remedy)

    def checksum(self) -> int:
        """CRC-32 over the members in the order of their names, from the archive's directory.

        Of each its name (UTF-8), its own CRC-32 (4 bytes) and its size (8 bytes), both little-endian and of what
        is packed, so that neither the packing nor the order of the members matters.
        """
        value = 0
        for info in sorted(self._zip.infolist(), key=lambda one: (one.filename, one.CRC, one.file_size)):
            value = zlib.crc32(info.filename.encode() + struct.pack("<IQ", info.CRC, info.file_size), value)
        return value

    def stored(self, name: str) -> Stored:
        """What the header of an array says, checked against what the archive holds of it."""
        info = self._member(name)
        with _explained(self.where), self._zip.open(info) as file:
            head = file.read(HEADER_BYTES)
        shape, fortran, dtype, start = self._header(name, head)
        size = info.file_size - start
        if dtype.hasobject:
            return Stored(info, shape, dtype, fortran, start, size)
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
            values = f"{dtype} values of shape {short(shape)}"
            raise self.bad(f"its array {name!r} promises {values}, and holds {size:,} bytes of them")
        return Stored(info, shape, dtype, fortran, start, size)

    def pieces(self, stored: Stored, size: int) -> Iterator[bytes]:
        """The bytes of the values, `size` at a time; the last piece comes only when the checksum is right."""
        with _explained(self.where), self._zip.open(stored.info) as file:
            file.read(stored.start)
            left = stored.size
            while left:
                wanted = min(size, left)
                piece = file.read(wanted)
                if len(piece) < wanted:
                    raise EOFError(f"{stored.info.filename} ends {left - len(piece):,} bytes too early")
                left -= wanted
                yield piece

    def values(self, stored: Stored) -> bytes:
        """The bytes of all values; for small arrays."""
        return b"".join(self.pieces(stored, max(stored.size, 1)))

    def _member(self, name: str) -> zipfile.ZipInfo:
        member = name + _SUFFIX
        if not self._names[member]:
            there = ", ".join(repr(one.removesuffix(_SUFFIX)) for one in sorted(self._names)[:10]) or "nothing"
            raise self.bad(f"it has no array {name!r}; it has {short(there)}", "Check that DeepProfiler wrote it.")
        if self._names[member] > 1:
            raise self.bad(f"it has {self._names[member]} arrays called {name!r}")
        info = self._zip.getinfo(member)
        if info.flag_bits & _ENCRYPTED:
            raise self.bad(f"its array {name!r} is encrypted", "Write the archive without a password.")
        if info.compress_type not in _METHODS:
            raise self.bad(f"its array {name!r} is packed by method {info.compress_type}; 0 and 8 can be read")
        fits = info.header_offset + info.compress_size <= self._size
        if not fits or info.file_size > info.compress_size * _METHODS[info.compress_type]:
            packed = f"{info.file_size:,} bytes packed into {info.compress_size:,}"
            raise self.bad(f"its array {name!r} is said to be {packed}, which cannot be")
        return info

    def _header(self, name: str, head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        """(shape, whether columns lie one after the other, dtype, bytes of the header)."""
        file = io.BytesIO(head)
        try:
            version = npy.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"version {version[0]}.{version[1]} of the format")
            shape, fortran, dtype = _HEADERS[version](file)
        except Exception as error:  # NumPy hands a stranger's text to Python's parsers, which raise what they like
            cause = f"its array {name!r} has no header that NumPy can read ({short(error)})"
            raise self.bad(cause) from error
        return shape, fortran, dtype, file.tell()


_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """What zipfile and zlib raise for a damaged archive, as BadSourceError."""
    try:
        yield
    except CytotableError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
        struct.error,
    ) as error:
        cause = f"its zip archive is damaged or cut off ({short(error)})"
        raise BadSourceError(where, cause, "Copy it again from where it was written, or write it again.") from error
