"""The bytes of a text file, wherever it lies, and unpacked where it is compressed."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from prefect_cytotable.tasks.core.errors import BadSourceError, CytotableError
from prefect_cytotable.tasks.core.model import Source
from prefect_cytotable.tasks.core.places import Places, name_of
from prefect_cytotable.tasks.core.places.cache import cache_folder, forget, obtain

PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Compressions by the ending of a file's name."""

BLOCK_BYTES = 1 << 20

_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowInvalid)


@dataclass(frozen=True)
class Text:
    """A text file; offsets count unpacked bytes."""

    places: Places
    source: Source

    @property
    def where(self) -> str:
        """The file, as an error names it."""
        return self.source.path

    @property
    def packed(self) -> str:
        """How it is compressed; empty where it is not."""
        return next((name for ending, name in PACKED.items() if self.where.lower().endswith(ending)), "")

    @property
    def stored(self) -> int:
        """Bytes of the file as it is stored."""
        return self.source.fingerprint.size

    def head(self, limit: int) -> bytes:
        """The first `limit` bytes, or all there are."""
        if not self.packed:
            return self.places.read(self.where, 0, limit, self.source.fingerprint.mark)
        with self.stream() as file:
            return file.read(limit)

    def whole(self) -> bytes:
        """Everything."""
        return self.unpacked(self.places.read(self.where, mark=self.source.fingerprint.mark))

    def stretches(self, bounds: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes between each pair of offsets. A compressed file is unpacked once, into the cache."""
        if not self.packed:
            mark = self.source.fingerprint.mark
            return [self.places.read(self.where, first, stop, mark) for first, stop in bounds]
        pieces = []
        with self._unpacked_copy().open("rb") as file:
            for first, stop in bounds:
                file.seek(first)
                pieces.append(file.read(stop - first))
        return pieces

    @contextlib.contextmanager
    def stream(self, start: int = 0) -> Iterator[BinaryIO]:
        """A file-like object that reads from `start` on, in bounded memory."""
        with self.places.open(self.where, self.source.fingerprint.mark) as stored, self._unpacking(stored) as file:
            try:
                _skip(file, start)
                yield file
            except _DAMAGED as error:
                raise self._damaged(error) from error
            except OSError as error:
                if not self.packed or error.errno is not None or isinstance(error, CytotableError):
                    raise
                raise self._damaged(error) from error  # Arrow's, which has no number as those of the system have

    def unpacked(self, data: bytes) -> bytes:
        """All bytes of the text, from all bytes of the file."""
        if not self.packed:
            return data
        try:
            if self.packed == "gzip":
                return gzip.decompress(data)
            with pa.CompressedInputStream(pa.BufferReader(data), self.packed) as stream:
                return cast(bytes, stream.read())
        except (*_DAMAGED, OSError) as error:
            raise self._damaged(error) from error

    @contextlib.contextmanager
    def _unpacking(self, stored: BinaryIO) -> Iterator[BinaryIO]:
        if not self.packed:
            yield stored
        elif self.packed == "gzip":
            with gzip.GzipFile(fileobj=stored) as file:
                yield cast(BinaryIO, file)
        else:
            with pa.CompressedInputStream(pa.PythonFile(stored, "r"), self.packed) as stream:
                yield cast(BinaryIO, stream)

    def forget(self) -> None:
        """Remove the unpacked copy, if there is one."""
        if self.packed:
            forget(cache_folder(self.places.storage), self._copy_name)

    def _unpacked_copy(self) -> Path:
        def fill(target: Path) -> None:
            with self.stream() as file, target.open("wb") as copy:
                while block := file.read(BLOCK_BYTES):
                    copy.write(block)

        return obtain(cache_folder(self.places.storage), self._copy_name, _unpacked_size(self), self.where, fill)

    @property
    def _copy_name(self) -> str:
        mark = self.source.fingerprint
        key = "\0".join(["unpacked", self.where, str(mark.size), str(mark.modified), mark.mark])
        return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}-{name_of(self.where)[-150:]}.unpacked"

    def _damaged(self, error: Exception) -> BadSourceError:
        return BadSourceError(
            self.where, f"it cannot be unpacked as {self.packed} ({error})", "Compress or copy the file again."
        )


@lru_cache(maxsize=64)
def _unpacked_size(text: Text) -> int:
    """Bytes of a compressed file when unpacked, by unpacking it once: what its format tells may be wrong."""
    size = 0
    with text.stream() as file:
        while block := file.read(BLOCK_BYTES):
            size += len(block)
    return size


def _skip(file: BinaryIO, size: int) -> None:
    if file.seekable():
        file.seek(size)
        return
    while size > 0 and (block := file.read(min(size, BLOCK_BYTES))):
        size -= len(block)
