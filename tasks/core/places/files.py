"""The local place: plain files. Light to import: every run gathers through it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prefect_cytotable.tasks.core.errors import SourceChangedError, SourceNotFoundError
from prefect_cytotable.tasks.core.places.base import OUTSIDE, Entry, taken
from prefect_cytotable.tasks.core.places.errors import PlaceDeniedError
from prefect_cytotable.tasks.core.roots import leads_out

WORK_SUFFIX = ".prefect-cytotable"
"""Ending of the hidden folders in which runs keep their parts; never searched for sources."""

APPLE_DOUBLE = "._"
"""Beginning of the files that macOS writes beside each file on a foreign disk; never data."""

TEMPORARY = ".tmp-"


def walk(root: Path) -> Iterator[Entry]:
    """Every file below `root`, or `root` itself where it is a file; folders that are symlinks included, each once.

    A link that leads out of the allowed roots is told, and not followed. Files of one folder come in the order of their
    names; what vanishes meanwhile is left out.
    """
    if not root.is_dir():
        if root.is_file():
            yield _entry(str(root), root.stat())
        return
    seen = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if _leads_nowhere(entry):
                    continue
                if entry.is_symlink() and leads_out(entry.path):
                    yield Entry(str(folder / entry.name), 0, 0, OUTSIDE)
                elif entry.is_dir():
                    if not entry.name.endswith(WORK_SUFFIX):
                        waiting.append(folder / entry.name)
                elif entry.is_file() and not entry.name.startswith(APPLE_DOUBLE):
                    with contextlib.suppress(FileNotFoundError):
                        yield _entry(str(folder / entry.name), entry.stat())


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether it is a symlink to itself, to what is not there, or to links that end so."""
    if not entry.is_symlink():
        return False
    try:
        entry.stat()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


def is_data(names: list[str]) -> bool:
    """Whether an object may be data, by the components of its key below what is searched: the same rules as `walk`'s.

    >>> is_data(["plate", "Cells.csv"]), is_data(["plate", "._Cells.csv"]), is_data([".x.prefect-cytotable", "a"])
    (True, False, False)
    """
    return (
        bool(names[-1])
        and not names[-1].startswith(APPLE_DOUBLE)
        and not any(name.endswith(WORK_SUFFIX) for name in names[:-1])
    )


def _entry(path: str, status: os.stat_result) -> Entry:
    return Entry(path, status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def whole(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """A temporary neighbour that takes the name `path` when the block ends well, and is removed otherwise.

    Raises:
        DestinationExistsError: `path` is there at the end, and `overwrite` is off.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{path.name}"[:200])
    try:
        yield temporary
        if overwrite:
            temporary.replace(path)
        else:
            _place_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _place_new(temporary: Path, path: Path) -> None:
    """Give a file its name where nothing has it: as a second name, which the system refuses where there is one."""
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without second names
            path.touch(exist_ok=False)
            temporary.replace(path)
    except FileExistsError as error:
        raise taken(path) from error


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors of the system as this package's."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, SourceNotFoundError):
            raise
        raise SourceNotFoundError(f"{path}: there is no such file or folder.") from error
    except PermissionError as error:
        raise PlaceDeniedError(f"{path}: permission denied. Look at its owner and mode.") from error


class Files:
    """Files of this machine, with the methods of a place."""

    def entries(self, root: str) -> Iterator[Entry]:
        """Every file below a folder, or the file itself."""
        with _named(root):
            yield from walk(Path(root))

    def entry(self, path: str) -> Entry | None:
        """What is known of a file, None where there is none."""
        file = Path(path)
        try:
            return _entry(path, file.stat()) if file.is_file() else None
        except FileNotFoundError:
            return None

    def read(self, path: str, start: int = 0, stop: int | None = None, mark: str = "") -> bytes:
        """Bytes of a file; a local file has no mark."""
        with _named(path), Path(path).open("rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(max(stop - start, 0))

    @contextlib.contextmanager
    def open(self, path: str, mark: str = "") -> Iterator[BinaryIO]:
        """A file from its beginning."""
        with _named(path):
            file = Path(path).open("rb")  # noqa: SIM115 - closed below, apart from errors of the block
        with file:
            yield file

    def download(self, path: str, target: Path, mark: str = "") -> None:
        """A copy of a file; it appears whole."""
        with _named(path), whole(target) as temporary:
            size = Path(path).stat().st_size
            shutil.copyfile(path, temporary)
            _check_size(path, temporary, size)

    def upload(self, source: Path, path: str, overwrite: bool) -> Entry:
        """A copy of `source`; it appears whole, and replaces nothing unless it may."""
        if not overwrite and os.path.lexists(path):
            raise taken(path)
        with _named(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with whole(Path(path), overwrite) as temporary:
                size = source.stat().st_size
                shutil.copyfile(source, temporary)
                _check_size(str(source), temporary, size)
            return _entry(path, Path(path).stat())

    def write(self, path: str, data: bytes) -> Entry:
        """A small file; it appears whole."""
        with _named(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with whole(Path(path)) as temporary:
                temporary.write_bytes(data)
            return _entry(path, Path(path).stat())

    def remove(self, path: str) -> None:
        """Remove a file; no error where there is none."""
        with _named(path):
            Path(path).unlink(missing_ok=True)


def _check_size(source: str, copy: Path, size: int) -> None:
    if copy.stat().st_size != size:
        raise SourceChangedError(f"{source} changed while it was copied. Run again when it is complete.")
