"""Objects of a storage service as a place: what is the same for every service."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from prefect_cytotable.tasks.core.errors import (
    DestinationExistsError,
    SourceChangedError,
    SourceNotFoundError,
)
from prefect_cytotable.tasks.core.places import base
from prefect_cytotable.tasks.core.places.base import Entry, Head, Memory, Payload, Service, Stretch
from prefect_cytotable.tasks.core.places.errors import PlaceDeniedError, PlaceError
from prefect_cytotable.tasks.core.places.files import is_data, whole
from prefect_cytotable.tasks.core.places.urls import Location, split


@dataclass(frozen=True)
class Remote:
    """The objects of one service, with the methods of a place."""

    service: Service

    def entries(self, root: str) -> Iterator[Entry]:
        """Every object below `root`, or `root` itself where it is one; a listing, and no request for each object."""
        at = split(root)
        bucket, prefix = Location(at.scheme, at.bucket, ""), f"{at.key.rstrip('/')}/" if at.key else ""
        found = False
        try:
            for entry in self._listed(bucket, prefix):
                found = True
                if is_data(split(entry.path).key[len(prefix) :].split("/")):
                    yield entry
        except PlaceDeniedError:
            # Who may not list a bucket may still read an object that he knows by name.
            if found or not at.key or (single := self.entry(root)) is None:
                raise
            yield single
            return
        if not found and at.key and not at.key.endswith("/") and (single := self.entry(root)):
            yield single

    def _listed(self, bucket: Location, prefix: str) -> Iterator[Entry]:
        token, more = "", True
        while more:
            page, token = self._page(bucket, prefix, token)
            yield from page
            more = bool(token)

    def _page(self, bucket: Location, prefix: str, token: str) -> tuple[list[Entry], str]:
        return base.patiently(lambda: self.service.page(bucket, prefix, token))

    def entry(self, path: str) -> Entry | None:
        """What is known of an object, None where there is none."""
        head = self._head(split(path))
        return head.entry if head else None

    def _head(self, at: Location) -> Head | None:
        return base.patiently(lambda: self.service.head(at)) if at.key else None

    def _known(self, path: str, mark: str) -> Entry:
        """What is known of an object that has to be there, and to have `mark` unless that is empty."""
        entry = self.entry(path)
        if entry is None:
            raise SourceNotFoundError(f"{path}: there is no such bucket or object.")
        if mark and entry.mark != mark:
            raise SourceChangedError(f"{path} changed while it was being read. Run again when it is complete.")
        return entry

    def read(self, path: str, start: int = 0, stop: int | None = None, mark: str = "") -> bytes:
        """Bytes of an object, by one request."""
        if stop is not None and stop <= start:
            return b""
        sink = Memory()
        base.fetch(self.service, split(path), start, stop, mark, sink)
        return sink.buffer.getvalue()

    @contextlib.contextmanager
    def open(self, path: str, mark: str = "") -> Iterator[BinaryIO]:
        """An object from its beginning; while one block is read the next is fetched."""
        stream = _Stream(self, self._known(path, mark))
        try:
            yield cast(BinaryIO, io.BufferedReader(stream, 1 << 16))
        finally:
            stream.close()

    def download(self, path: str, target: Path, mark: str = "") -> None:
        """A whole object as a file."""
        entry = self._known(path, mark)
        with whole(target) as temporary:
            temporary.touch(mode=0o600, exist_ok=False)
            self.fill(entry, temporary)

    def fill(self, entry: Entry, file: Path) -> None:
        """The bytes of an object into a file that is there, several ranges at once; they are on the disk afterwards.

        Raises:
            SourceChangedError: The object has another mark or another size.
        """
        at = split(entry.path)
        descriptor = os.open(file, os.O_WRONLY)
        try:
            base.in_parallel(
                lambda piece: self._fill_range(at, entry, descriptor, piece),
                base.ranges(entry.size, base.BLOCK),
                base.THREADS,
            )
            os.ftruncate(descriptor, entry.size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _fill_range(self, at: Location, entry: Entry, descriptor: int, piece: tuple[int, int]) -> None:
        sink = Stretch(descriptor, piece[0])
        base.fetch(self.service, at, *piece, entry.mark, sink)
        if sink.received != piece[1] - piece[0] or sink.total not in (None, entry.size):
            raise SourceChangedError(f"{entry.path} does not have the {entry.size} bytes that were listed.")

    def upload(self, source: Path, path: str, overwrite: bool) -> Entry:
        """An object made of a file."""
        return self._put(Payload.of(source), path, overwrite)

    def write(self, path: str, data: bytes) -> Entry:
        """A small object."""
        return self._put(Payload(len(data), data=data), path, True)

    def _put(self, payload: Payload, path: str, overwrite: bool) -> Entry:
        at = split(path)
        if not at.key or at.key.endswith("/"):
            raise PlaceError(f"{path} names no object. Add a file name.")
        if not overwrite and self.entry(path) is not None:
            raise base.taken(path)
        token = secrets.token_hex(8)
        try:
            self.service.put(at, payload, overwrite, token)
        except (DestinationExistsError, SourceNotFoundError):
            # The service may have refused the repetition of a request that it had fulfilled, its answer lost.
            head = self._head(at)
            if head is None or head.token != token:
                raise
        return self._check(at, payload, token)

    def _check(self, at: Location, payload: Payload, token: str) -> Entry:
        """What was written, as the service now tells it."""
        head = self._head(at)
        if head is None or head.token != token:
            raise PlaceError(f"{at.url} was replaced or removed by somebody else as soon as it was written.")
        if head.entry.size != payload.size:
            self.service.delete(at)
            raise PlaceError(
                f"{at.url} has {head.entry.size} bytes, not the {payload.size} that were sent; it was removed again."
            )
        return head.entry

    def remove(self, path: str) -> None:
        """Remove an object; no error where there is none."""
        base.patiently(lambda: self.service.delete(split(path)))


class _Stream(io.RawIOBase):
    """The bytes of an object in order, in blocks, one block ahead."""

    def __init__(self, remote: Remote, entry: Entry) -> None:
        self._remote, self._entry = remote, entry
        self._waiting = iter(base.ranges(entry.size, base.BLOCK))
        self._block = memoryview(b"")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="places-ahead")
        self._next: Future[bytes] | None = None
        self._ahead()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        while not self._block:
            if self._next is None:
                return 0
            self._block = memoryview(self._next.result())
            self._ahead()
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._block = memoryview(b"")
        super().close()

    def _ahead(self) -> None:
        piece = next(self._waiting, None)
        self._next = None if piece is None else self._pool.submit(self._fetch, piece)

    def _fetch(self, piece: tuple[int, int]) -> bytes:
        data = self._remote.read(self._entry.path, *piece, self._entry.mark)
        if len(data) != piece[1] - piece[0]:
            raise SourceChangedError(f"{self._entry.path} does not have the {self._entry.size} bytes that were listed.")
        return data
