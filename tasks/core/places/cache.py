"""Copies of remote files on this machine: each fetched once, whole, by whoever needs it first.

The folder belongs to one user. A copy is named by its URL and mark, so that a changed object gets another copy; it
appears by a rename, and only with its full size. While it is fetched its lock is held: others wait for it, and what a
process that died left behind is known by a lock that nobody holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.errors import DiskSpaceError
from prefect_cytotable.tasks.core.places.errors import PlaceDeniedError
from prefect_cytotable.tasks.core.places.options import LOCAL_CACHE_DIR, StorageOptions, used_by
from prefect_cytotable.tasks.core.places.urls import name_of, split

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no fcntl
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".part"
LOCK = ".lock"
SPACE_LOCK = f"prefect-cytotable-space{LOCK}"

RESERVE = 64 << 20
"""Bytes that a copy leaves free on the disk."""

_DIGITS = 32
_OURS = re.compile(rf"[0-9a-f]{{{_DIGITS}}}(-.*{PARTIAL}|{LOCK})", re.DOTALL)
_COPY = re.compile(rf"[0-9a-f]{{{_DIGITS}}}-.+", re.DOTALL)
_LONGEST_NAME = 180


def cache_folder(storage: StorageOptions) -> Path:
    """Where copies lie: `local_cache_dir`, or a folder of this user among the temporary files."""
    given = dict(storage).get(LOCAL_CACHE_DIR)
    return Path(given) if given else Path(tempfile.gettempdir()) / f"prefect-cytotable-cache-{os.getuid()}"


def copy_name(path: str, mark: str, storage: StorageOptions) -> str:
    """The file name of a copy: a hash of where it comes from, and the object's own name for its ending.

    >>> copy_name("s3://bucket/plate.sqlite", "abc", ())
    'e5bb5cc27293af037220876e9e9328d0-plate.sqlite'
    """
    at = split(path)
    server = [f"{name}={value}" for name, value in used_by(at.scheme, storage) if name.endswith("_url")]
    digest = hashlib.sha256("\0".join([at.url, mark, *server]).encode()).hexdigest()[:_DIGITS]
    own = "".join("_" if ord(one) < 32 or one in "/\\" else one for one in name_of(path))
    short = own.encode()[-_LONGEST_NAME:].decode(errors="ignore")
    return f"{digest}-{short}"


def prepare(folder: Path) -> None:
    """Make the folder, see that it belongs to this user, and sweep what dead processes left in it.

    Raises:
        PlaceDeniedError: It belongs to somebody else, or cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        default = folder == cache_folder(())  # among everybody's temporary files, where a link may be a trap
        if status.st_uid != os.getuid() or (default and folder.is_symlink()):
            raise PlaceDeniedError(
                f"{folder}: the cache folder belongs to somebody else. Name another with storage_options "
                f"{LOCAL_CACHE_DIR}."
            )
        if default and stat.S_IMODE(status.st_mode) != 0o700:
            folder.chmod(0o700)
    except (FileExistsError, PermissionError) as error:
        if isinstance(error, PlaceDeniedError):
            raise
        raise PlaceDeniedError(
            f"{folder} cannot be used as the cache folder ({error.strerror}). Name another with storage_options "
            f"{LOCAL_CACHE_DIR}."
        ) from error
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove the partial copies and locks that nobody works with any more; other files stay."""
    for path in _under_way(folder):
        with _lock(_lock_path(path), wait=False) as held:
            if held and path.name.endswith(PARTIAL):
                path.unlink(missing_ok=True)


def copies(folder: Path) -> list[Path]:
    """The whole copies in a cache folder, and what SQLite put beside them; other files are none of ours."""
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        path
        for path in found
        if _COPY.fullmatch(path.name) and not path.name.endswith(PARTIAL) and path.is_file() and not path.is_symlink()
    ]


def _under_way(folder: Path) -> list[Path]:
    """What runs put here while they fetch: partial copies and locks."""
    return [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]


def obtain(folder: Path, name: str, size: int, url: str, fill: Callable[[Path], None]) -> Path:
    """The copy called `name`, filled by `fill` where it is not there; other processes and threads wait meanwhile.

    Raises:
        DiskSpaceError: It does not fit the disk.
        PlaceDeniedError: The folder cannot be used.
    """
    copy = folder / name
    if _is_whole(copy, size):
        return copy
    prepare(folder)
    partial = folder / f"{name}{PARTIAL}"
    with _lock(_lock_path(partial), wait=True):
        if _is_whole(copy, size):
            return copy
        try:
            _reserve(folder, partial, size, url)
            fill(partial)
            partial.replace(copy)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and not isinstance(error, DiskSpaceError):
                raise _no_space(folder, size, _free(folder), url) from error
            raise
        finally:
            partial.unlink(missing_ok=True)
    return copy


def forget(folder: Path, name: str) -> None:
    """Remove a copy, and what SQLite may have put beside it; copies that are being fetched are left alone."""
    for beside in ("", "-wal", "-shm", "-journal"):
        (folder / f"{name}{beside}").unlink(missing_ok=True)


def _is_whole(copy: Path, size: int) -> bool:
    try:
        status = copy.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size and status.st_uid == os.getuid()


def _reserve(folder: Path, partial: Path, size: int, url: str) -> None:
    """Give the partial copy its length, after a look at the room that it and the others under way still need."""
    with _lock(folder / SPACE_LOCK, wait=True):
        wanted = size + sum(_missing(path) for path in _under_way(folder)) + RESERVE
        free = _free(folder)
        if wanted > free:
            raise _no_space(folder, wanted, free, url)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


def _missing(partial: Path) -> int:
    """The bytes of a file that take no room yet."""
    try:
        status = partial.stat()
    except FileNotFoundError:
        return 0
    return max(status.st_size - status.st_blocks * 512, 0)


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _no_space(folder: Path, wanted: int, free: int, url: str) -> DiskSpaceError:
    return DiskSpaceError(
        f"{folder}: a copy of {url} needs {show_bytes(wanted)}, and {show_bytes(free)} are free. Free some, or name a "
        f"folder on another disk with storage_options {LOCAL_CACHE_DIR}."
    )


def _lock_path(partial: Path) -> Path:
    return partial.with_name(f"{partial.name[:_DIGITS]}{LOCK}")


@contextlib.contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock file, and remove it at the end; gives whether it is held. The system frees it with its process."""
    if fcntl is None:  # pragma: no cover - Windows: a copy may be fetched twice, and still appears whole
        yield True
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if not _is_open(path, descriptor):
                continue  # whoever had it took the file away
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_open(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
