"""How a run keeps others out of the folders that it works in."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from prefect_cytotable.tasks.core.errors import DestinationBusyError
from prefect_cytotable.tasks.core.places import is_remote

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no fcntl
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def lock(folder: Path, destination: str) -> Iterator[None]:
    """Keep other runs of this machine from a destination; the system gives the lock back when the process dies.

    Args:
        folder: The destination's folder on this machine; see `scratch`.
        destination: What an error names.

    Raises:
        DestinationBusyError: Another run holds it.
    """
    path = folder / "lock"
    locked = False
    while not locked:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise DestinationBusyError(
                        f"{destination}: another run is writing there. Wait for it, or choose another destination."
                    ) from error
            locked = _is_open(path, file.fileno())  # else a run that has just ended took the file away
            if locked:
                os.utime(path)  # tells when the folder was last used
                yield


@contextlib.contextmanager
def in_use(folder: str) -> Iterator[None]:
    """Hold the lock of a work folder that lies elsewhere than its destination: nobody clears it meanwhile.

    Object storage has no locks, and some shared file systems have none: there a folder in use looks like any other.

    Raises:
        DestinationBusyError: Somebody is clearing it, or another machine's run uses it.
    """
    with contextlib.ExitStack() as stack:
        if not is_remote(folder):
            try:
                stack.enter_context(lock(Path(folder), folder))
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                    raise
        yield


def is_held(folder: Path) -> bool:
    """Whether a run holds the lock of a folder. Nothing is made or changed."""
    if fcntl is None:  # pragma: no cover - Windows
        return False
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether `path` is the file that is open as `descriptor`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
