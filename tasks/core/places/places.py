"""One value through which everything reads and writes, wherever a path lies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from prefect_cytotable.tasks.core.places import cache, clients
from prefect_cytotable.tasks.core.places.base import Entry, in_parallel
from prefect_cytotable.tasks.core.places.files import Files
from prefect_cytotable.tasks.core.places.options import StorageOptions
from prefect_cytotable.tasks.core.places.remote import Remote
from prefect_cytotable.tasks.core.places.urls import is_remote, split

READ_THREADS = 8
"""Small objects that `read_many` fetches at once: it waits for answers, not for bytes."""


@dataclass(frozen=True)
class Places:
    """Finds the place of each path. Small and picklable: workers on other machines make clients of their own.

    Every method raises, where it applies: SourceNotFoundError (no such file, object or bucket), SourceChangedError (the
    object no longer has the mark that was given), PlaceDeniedError, PlaceBusyError (may be tried again),
    MissingExtraError, PlaceError (anything else that a service refuses).

    Attributes:
        storage: What `check_storage_options` gave.
    """

    storage: StorageOptions = ()

    def _place(self, path: str) -> Files | Remote:
        return Remote(clients.service(split(path).scheme, self.storage)) if is_remote(path) else Files()

    def entries(self, root: str) -> Iterator[Entry]:
        """Every file below `root`, or `root` itself where it is one; nothing where there is none.

        Hidden folders of runs and files beginning with ``._`` are left out. Of object storage this is one listing, a
        request for each page; only whole components of keys are compared.
        """
        return self._place(root).entries(root)

    def entry(self, path: str) -> Entry | None:
        """What is known of one file, None where there is none."""
        return self._place(path).entry(path)

    def read(self, path: str, start: int = 0, stop: int | None = None, mark: str = "") -> bytes:
        """Bytes `start` to `stop` of a file, to its end where `stop` is None; all of them are in memory.

        A `start` beyond the end gives nothing. With a `mark`, only that very object is read.
        """
        return self._place(path).read(path, start, stop, mark)

    def read_many(self, paths_and_marks: Sequence[tuple[str, str]]) -> list[bytes]:
        """Whole files, in order, up to eight at once; all of them are in memory."""
        return in_parallel(lambda one: self.read(one[0], mark=one[1]), paths_and_marks, READ_THREADS)

    def open(self, path: str, mark: str = "") -> contextlib.AbstractContextManager[BinaryIO]:
        """A file to be read from beginning to end, in memory of two blocks."""
        return self._place(path).open(path, mark)

    def download(self, path: str, target: Path, mark: str = "") -> None:
        """A copy of a file as `target`; it appears whole."""
        self._place(path).download(path, target, mark)

    def upload(self, source: Path, path: str, overwrite: bool) -> Entry:
        """A copy of the local file `source` as `path`; it appears whole, and its size and checksum are compared.

        Raises:
            DestinationExistsError: There is something already, and `overwrite` is off.
        """
        return self._place(path).upload(source, path, overwrite)

    def write(self, path: str, data: bytes) -> Entry:
        """A small file; it appears whole and replaces what was there."""
        return self._place(path).write(path, data)

    def remove(self, path: str) -> None:
        """Remove a file; no error where there is none."""
        self._place(path).remove(path)

    def local(self, path: str, size: int, mark: str) -> Path:
        """A file of this machine with these contents: `path` itself, or its copy in the cache folder.

        Args:
            path: What is wanted.
            size: Its size in bytes, and
            mark: its mark, as `entries` or `entry` told them.

        Raises:
            DiskSpaceError: The copy does not fit the disk.
        """
        place = self._place(path)
        if isinstance(place, Files):
            return Path(path)
        entry = Entry(path, size, 0, mark)
        name = cache.copy_name(path, mark, self.storage)
        return cache.obtain(
            cache.cache_folder(self.storage), name, size, path, lambda partial: place.fill(entry, partial)
        )

    def forget(self, paths: Iterable[tuple[str, str]]) -> None:
        """Remove the cache's copies of these (path, mark) pairs; local paths are left alone."""
        folder = cache.cache_folder(self.storage)
        for path, mark in paths:
            if is_remote(path):
                cache.forget(folder, cache.copy_name(path, mark, self.storage))
