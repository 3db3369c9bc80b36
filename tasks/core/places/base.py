"""What every place offers, and the parts that all services share: patience, errors, the bytes of an answer."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Protocol, TypeVar

from prefect_cytotable.tasks.core.errors import (
    CytotableError,
    DestinationExistsError,
    SourceChangedError,
    SourceNotFoundError,
)
from prefect_cytotable.tasks.core.places.errors import (
    DamagedTransferError,
    PlaceBusyError,
    PlaceDeniedError,
    PlaceError,
    UnsupportedError,
)
from prefect_cytotable.tasks.core.places.urls import Location

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - an item

CONNECT_SECONDS = 10
READ_SECONDS = 60
"""How long a request waits for a connection, and for the next bytes of an answer."""

SDK_ATTEMPTS = 2
"""Requests that a client library sends for one call before it gives up: a moment's trouble ends there."""

PATIENCE_SECONDS = 30.0
"""How long after its begin, or the last progress, a call is repeated when a client library gave up."""

POOL = 32
"""Connections that a client keeps open: more than twice the 16 threads that may share it."""

BLOCK = 8 << 20
"""Bytes of a part of an upload, of a range of a download, of a block of a stream: memory is a small multiple of it."""

THREADS = 4
"""Parts or ranges of one file that are under way at once."""


OUTSIDE = "outside"
"""The mark of a link that leads out of the allowed roots."""


@dataclass(frozen=True)
class Entry:
    """A file or an object.

    Attributes:
        path: As `Places` takes it.
        size: Bytes.
        modified: Nanoseconds since 1970.
        mark: What changes with the content: ETag (S3, Azure) or generation (Google); empty for a local file, and
            `OUTSIDE` for a link out of the allowed roots, which is not followed.
    """

    path: str
    size: int
    modified: int
    mark: str = ""


@dataclass(frozen=True)
class Head:
    """What a service tells of one object; `token` is what the upload that made it wrote beside it."""

    entry: Entry
    token: str


TOKEN = "prefectcytotableupload"
"""The name under which that token is kept with the object. It tells an upload whose answer was lost from another's."""


class Sink(Protocol):
    """Takes the bytes of an answer, in order, across as many requests as it needs.

    Attributes:
        received: Bytes so far.
        mark: The object's mark, where an answer told it; later requests of the same read ask for that.
        total: Size of the whole object, where an answer told it.
    """

    received: int
    mark: str
    total: int | None

    def write(self, piece: bytes, /) -> int:
        """Take the next bytes."""
        ...

    def restart(self) -> None:
        """Forget what came so far."""
        ...


@dataclass
class Memory:
    """A sink whose bytes stay in memory."""

    received: int = 0
    mark: str = ""
    total: int | None = None
    buffer: BytesIO = field(default_factory=BytesIO)

    def write(self, piece: bytes, /) -> int:
        """Take the next bytes."""
        self.received += len(piece)
        return self.buffer.write(piece)

    def restart(self) -> None:
        """Forget what came so far."""
        self.buffer = BytesIO()
        self.received = 0


@dataclass
class Stretch:
    """A sink that is a stretch of a file; several may be filled at once."""

    descriptor: int
    offset: int
    received: int = 0
    mark: str = ""
    total: int | None = None

    def write(self, piece: bytes, /) -> int:
        """Take the next bytes."""
        view = memoryview(piece)
        while view:
            done = os.pwrite(self.descriptor, view, self.offset + self.received)
            self.received += done
            view = view[done:]
        return len(piece)

    def restart(self) -> None:
        """Forget what came so far; it is written over."""
        self.received = 0


@dataclass(frozen=True)
class Payload:
    """What is uploaded: a file, or bytes where `source` is None."""

    size: int
    source: Path | None = None
    data: bytes = b""

    @classmethod
    def of(cls, source: Path) -> Payload:
        """The payload that a file is."""
        return cls(source.stat().st_size, source)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of a range.

        Raises:
            SourceChangedError: The file is shorter than it was.
        """
        if self.source is None:
            return self.data[start:stop]
        with self.source.open("rb") as file:
            file.seek(start)
            piece = file.read(stop - start)
        if len(piece) != stop - start:
            raise SourceChangedError(f"{self.source} became shorter while it was uploaded.")
        return piece


class Service(Protocol):
    """One storage service. Every method raises the errors of this package, never those of a client library."""

    def page(self, bucket: Location, prefix: str, token: str) -> tuple[list[Entry], str]:
        """Up to a few thousand objects whose keys begin with `prefix`, and where to go on; "" where that was all."""
        ...

    def head(self, at: Location) -> Head | None:
        """What is known of an object, None where there is none."""
        ...

    def get(self, at: Location, start: int, stop: int | None, mark: str, sink: Sink) -> None:
        """Bytes `start` to `stop` of an object that has that mark; none where it ends before `start`."""
        ...

    def put(self, at: Location, payload: Payload, overwrite: bool, token: str) -> None:
        """Make an object; it appears with its last byte or not at all."""
        ...

    def delete(self, at: Location) -> None:
        """Remove an object; no error where there is none."""
        ...


class Patience:
    """How long to go on trying, and how long to wait in between."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew: there was progress."""
        self._until = time.monotonic() + PATIENCE_SECONDS
        self._wait = 0.5

    def wait(self) -> bool:
        """Wait a moment, longer each time; False where there is no patience left."""
        pause = self._wait * random.uniform(0.5, 1)
        self._wait = min(self._wait * 2, 8.0)
        if time.monotonic() + pause > self._until:
            return False
        time.sleep(pause)
        return True


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns, called again while the service is busy.

    Raises:
        PlaceBusyError: It stays so.
    """
    patience = Patience()
    while True:
        try:
            return call()
        except PlaceBusyError:
            if not patience.wait():
                raise


def guarded(
    call: Callable[[], T], failures: tuple[type[Exception], ...], translate: Callable[[Exception], CytotableError]
) -> T:
    """What `call` returns; a client library's exception becomes ours.

    Ours is raised outside of the handler: the library's own, whose text may hold signed addresses, then hangs nowhere.
    """
    try:
        return call()
    except CytotableError:
        raise
    except failures as error:
        found = translate(error)
    raise found


def fetch(service: Service, at: Location, start: int, stop: int | None, mark: str, sink: Sink) -> None:
    """Bytes `start` to `stop` of an object into `sink`; goes on at the byte where a connection broke.

    Raises:
        PlaceBusyError: No more bytes come.
        PlaceError: Fewer bytes came than the object has.
    """
    patience = Patience()
    while True:
        before = sink.received
        try:
            service.get(at, start + before, stop, mark or sink.mark, sink)
            break
        except PlaceBusyError as error:
            if sink.received > before:
                patience.renew()
            if isinstance(error, DamagedTransferError) or not (mark or sink.mark):
                sink.restart()
            if sink.received and start + sink.received == _end(stop, sink):
                break
            if not patience.wait():
                raise
    end = _end(stop, sink)
    if sink.total is not None and end is not None and sink.received != max(end - start, 0):
        raise PlaceError(f"{at.url}: {sink.received} bytes came of {max(end - start, 0)}. Run again.")


def _end(stop: int | None, sink: Sink) -> int | None:
    """The first byte that is not asked for or not there, where that is known."""
    if sink.total is None:
        return stop
    return sink.total if stop is None else min(stop, sink.total)


def in_parallel(work: Callable[[I], T], items: Sequence[I], threads: int) -> list[T]:
    """What `work` returns for each item, in order; after a failure nothing new is begun."""
    if len(items) < 2 or threads < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="places") as pool:
        return list(pool.map(work, items))


def ranges(size: int, step: int) -> list[tuple[int, int]]:
    """The ranges of `step` bytes that `size` bytes fall into.

    >>> ranges(25, 10), ranges(0, 10)
    ([(0, 10), (10, 20), (20, 25)], [])
    """
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def quoted(mark: str) -> str:
    """An ETag as headers carry it.

    >>> quoted("abc"), quoted('W/"abc"')
    ('"abc"', 'W/"abc"')
    """
    return mark if '"' in mark else f'"{mark}"'


def bare(etag: str | None) -> str:
    """An ETag as a mark.

    >>> bare('"abc"'), bare(None)
    ('abc', '')
    """
    return (etag or "").removeprefix('"').removesuffix('"') if (etag or "").startswith('"') else etag or ""


def nanoseconds(moment: datetime | None) -> int:
    """A moment as file systems count it.

    >>> nanoseconds(datetime(1970, 1, 1, 0, 0, 1, 5, UTC))
    1000005000
    """
    return 0 if moment is None else (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


@dataclass(frozen=True)
class Refusal:
    """Why a request failed, as a client library tells it.

    Attributes:
        status: HTTP status, None where there was no answer.
        code: The service's own word for it, or the name of the library's exception.
        denied: Whether credentials are missing or not accepted, whatever the status.
        busy: Whether it may succeed later, whatever the status.
    """

    status: int | None
    code: str
    denied: bool = False
    busy: bool = False

    @property
    def text(self) -> str:
        """For a message."""
        return f"{self.code}, HTTP {self.status}" if self.status else self.code


def taken(path: str | Path) -> DestinationExistsError:
    """The error for a destination that is there already."""
    return DestinationExistsError(f"{path} exists. Choose another, or replace it with overwrite=True.")


def problem(refusal: Refusal, at: Location, writing: bool, credentials: str) -> CytotableError:
    """The error that a refusal becomes.

    Args:
        refusal: What happened.
        at: The object that was asked for.
        writing: Whether it was to be made.
        credentials: A sentence that tells where this service's credentials are looked for.
    """
    status, where = refusal.status, at.url
    if refusal.denied or status in (401, 403):
        return PlaceDeniedError(f"{where}: access is denied ({refusal.text}). {credentials}")
    if refusal.busy or status in (408, 425, 429) or (status is not None and status >= 500 and status not in (501, 505)):
        return PlaceBusyError(
            f"{where}: the storage service is busy or cannot be reached ({refusal.text}). Try again later, or check "
            f"endpoint and network."
        )
    if status == 404:
        return SourceNotFoundError(f"{where}: there is no such bucket or object ({refusal.text}).")
    if status in (304, 412):
        if writing:
            return taken(where)
        return SourceChangedError(f"{where} changed while it was being read. Run again when it is complete.")
    if status == 501:
        return UnsupportedError(f"{where}: the storage service cannot do what was asked ({refusal.text}).")
    return PlaceError(f"{where}: the storage service refused a request ({refusal.text}).")
