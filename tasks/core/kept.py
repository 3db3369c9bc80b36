"""What runs keep for later runs: chunks in work folders, copies of objects in the cache folder. Seen, bounded, cleared.

A work folder has a lock, held while a run uses it; its time tells the last use. Nothing is removed from a folder whose
lock is held, and never more than parts, records, results, plans and temporary files: an output that a killed run had
moved aside stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prefect_cytotable.tasks.core.errors import DestinationBusyError
from prefect_cytotable.tasks.core.locks import is_held, lock
from prefect_cytotable.tasks.core.places import cache
from prefect_cytotable.tasks.core.places.files import WORK_SUFFIX
from prefect_cytotable.tasks.core.store import LocalStore


@dataclass(frozen=True)
class Kept:
    """A work folder, or a copy of an object.

    Attributes:
        size: Bytes.
        parts: Files of chunks; 0 for a copy.
        last_used: Seconds since 1970.
        in_use: Whether a run holds its lock. A copy has none.
    """

    path: str
    size: int
    parts: int
    last_used: float
    in_use: bool = False


@dataclass(frozen=True)
class Wanted:
    """Which of what is kept is meant: unused for so many seconds, and larger than so many bytes."""

    older_than: float = 0.0
    larger_than: int = -1

    def fits(self, one: Kept, now: float) -> bool:
        """Whether one is meant."""
        return now - one.last_used >= self.older_than and one.size > self.larger_than


def work_folders(root: Path) -> Iterator[Path]:
    """Every work folder with chunks in it, at a path or below; links are not followed."""
    if _has_chunks(root):
        yield root
    waiting = [root] if root.is_dir() else []
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                inside = sorted((one for one in entries if one.is_dir(follow_symlinks=False)), key=lambda one: one.name)
        except (FileNotFoundError, PermissionError):
            continue  # gone meanwhile, or somebody else's
        for entry in inside:
            path = folder / entry.name
            if _has_chunks(path):
                yield path
            elif folder.name.endswith(WORK_SUFFIX) and entry.name in ("parts", "records", "results"):
                continue
            waiting.append(path)


def _has_chunks(folder: Path) -> bool:
    return folder.name.endswith(WORK_SUFFIX) and any((folder / name).is_dir() for name in ("parts", "records"))


def look(folder: Path) -> Kept:
    """A work folder as it is now."""
    size = parts = 0
    newest = 0.0
    store = LocalStore(str(folder))
    for place in (folder, store.parts, store.records, store.results):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        size += status.st_size
                        parts += place == store.parts
                        newest = max(newest, status.st_mtime)
    with contextlib.suppress(FileNotFoundError):
        newest = (folder / "lock").stat().st_mtime
    return Kept(str(folder), size, parts, newest, is_held(folder))


def clear(folder: Path) -> int | None:
    """Remove the chunks of a work folder; gives the bytes that were freed, None where a run uses it."""
    before = look(folder).size
    store = LocalStore(str(folder))
    with contextlib.suppress(DestinationBusyError), lock(folder, str(folder)):
        store.sweep()
        store.clear()
        after = look(folder).size if folder.is_dir() else 0
        store.remove_if_unused()
        return before - after
    return None


def copies(folder: Path) -> list[Kept]:
    """The copies of objects, and what was unpacked, in a cache folder of this machine."""
    found = []
    for path in cache.copies(folder):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            found.append(Kept(str(path), status.st_size, 0, max(status.st_mtime, status.st_atime)))
    return found


def drop_copy(copy: Kept) -> int:
    """Remove a copy; a run that still wants it fetches it again. Gives the bytes that were freed."""
    Path(copy.path).unlink(missing_ok=True)
    return copy.size


class Keeper:
    """Holds the work folders of a run over many plates to a size and an age, the least recently used first.

    Args:
        root: The folder that has them.
        size: Bytes of all together.
        seconds: How long a folder stays that no run has used.
    """

    def __init__(self, root: Path, size: int, seconds: float) -> None:
        self._size, self._seconds = size, seconds
        self._known = {str(folder): look(folder) for folder in work_folders(root)}
        self.freed = 0

    def changed(self, folder: str) -> None:
        """Look at a folder again: a conversion has used it."""
        if Path(folder).is_dir():
            self._known[folder] = look(Path(folder))
        else:
            self._known.pop(folder, None)

    def bound(self, under_way: Collection[str], now: float) -> None:
        """Remove what is too old, and of the rest what was used longest ago until all of it fits."""
        free = [one for one in self._known.values() if one.path not in under_way]
        for one in surplus(free, self._size, self._seconds, now):
            freed = clear(Path(one.path))
            if freed is not None:
                self.freed += freed
                self._known.pop(one.path, None)


def surplus(kept: Iterable[Kept], size: int, seconds: float, now: float) -> list[Kept]:
    """Of what is kept, what is too old, and what has to go so that the rest fits `size`.

    >>> old, mid, new = Kept("old", 5, 1, 0.0), Kept("mid", 5, 1, 90.0), Kept("new", 5, 1, 99.0)
    >>> [one.path for one in surplus([new, old, mid], 7, 50.0, 100.0)]
    ['old', 'mid']
    """
    gone, total = [], 0
    for one in sorted(kept, key=lambda one: (-one.last_used, one.path)):
        if now - one.last_used > seconds or total + one.size > size:
            gone.append(one)
        else:
            total += one.size
    return gone[::-1]
