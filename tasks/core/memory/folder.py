"""The folder of a profile: it appears when it is whole, and replaces nothing but an earlier profile."""

from __future__ import annotations

import glob
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect_cytotable.tasks.core.errors import ArgumentError, CytotableError, DestinationExistsError
from prefect_cytotable.tasks.core.memory import flamegraph, report, tracking
from prefect_cytotable.tasks.core.memory.model import Profile, Profiling
from prefect_cytotable.tasks.core.memory.reading import Traced
from prefect_cytotable.tasks.core.places.files import TEMPORARY
from prefect_cytotable.tasks.core.roots import check_file
from prefect_cytotable.tasks.core.store import discard

if sys.platform != "win32":  # where there is no memray either, which is told first
    import fcntl

LOCK = "lock"


@dataclass(frozen=True)
class Space:
    """Where a profile is made, beside the folder that it becomes.

    Attributes:
        how: What is recorded.
        destination: The folder to be.
        root: The hidden folder meanwhile.
    """

    how: Profiling
    destination: Path
    root: Path

    @property
    def raw(self) -> Path:
        """Where the processes write."""
        return self.root / report.RAW

    def write(self, profile: Profile, traced: Sequence[Traced]) -> None:
        """Write a profile's files, and give them their name when all of them are there."""
        new = self.root / "profile"
        new.mkdir()
        (new / report.JSON).write_bytes(report.encode(profile))
        (new / report.MARKDOWN).write_text(report.markdown(profile), encoding="utf-8")
        flamegraph.write(new / report.FLAMEGRAPH, traced, profile.command)
        report.load(new)  # what cannot be read again is not given out
        if self.how.keep_raw:
            self.raw.rename(new / report.RAW)
        old = self.root / "old"
        if self.destination.is_dir() and any(self.destination.iterdir()):
            require_free(self.destination, self.how.overwrite)
            self.destination.rename(old)
        try:
            new.rename(self.destination)
        except OSError:
            if old.exists():
                old.rename(self.destination)
            raise


@contextmanager
def space(how: Profiling) -> Iterator[Space]:
    """A place to make a profile in; removed at the end, whatever happens.

    Raises:
        ArgumentError: The folder has no name.
        OutsideRootsError: It lies outside the allowed roots.
        DestinationExistsError: There is something that may not be replaced.
    """
    check_file("profile", how.folder)
    if not how.folder.strip():
        raise ArgumentError("The folder of the profile is empty.")
    destination = Path(how.folder).expanduser().absolute()
    require_free(destination, how.overwrite)
    _sweep(destination)
    root = destination.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{destination.name}"[:200])
    made = Space(how, destination, root)
    made.raw.mkdir(parents=True)
    try:
        with _held(root):
            tracking.save_settings(made.raw, tracking.How(how.native, how.python_allocators, how.every_allocation))
            yield made
    finally:
        discard(root)


@contextmanager
def _held(root: Path) -> Iterator[None]:
    """A lock in the folder, for as long as this process makes a profile in it; the system ends it with the process."""
    with (root / "lock.new").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (root / "lock.new").rename(root / LOCK)
        yield


def _sweep(destination: Path) -> None:
    """Remove what earlier profiles for this folder left, whose processes were killed."""
    for lock in destination.parent.glob(f"{TEMPORARY}*-{glob.escape(destination.name)}/{LOCK}"):
        try:
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                discard(lock.parent)
        except (BlockingIOError, FileNotFoundError):
            continue  # at work, or just gone


def require_free(destination: Path, overwrite: bool) -> None:
    """See that a profile may be written there.

    Raises:
        DestinationExistsError: There is another thing, or a profile that is not to be replaced.
    """
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if not destination.exists() and not destination.is_symlink():
        return
    if not overwrite:
        raise DestinationExistsError(
            f"{destination} is there already. Choose another folder for the profile, or replace it (--overwrite)."
        )
    try:
        report.load(destination / report.JSON)
    except (CytotableError, OSError) as error:
        raise DestinationExistsError(
            f"{destination} is there and no profile, so it is not replaced. Choose another folder for the profile."
        ) from error
