"""Where a run keeps its plan, its parts and their records, and how it keeps other runs out.

Next to the destination lies a hidden folder ``.NAME.prefect-cytotable`` with the lock and, unless ``work_dir`` says
otherwise, the parts. A part counts as done only when its record is there and the file has the size and the checksum
that the record tells; both appear by a rename, so that a killed run leaves nothing that could be taken for done.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from prefect_cytotable.tasks.core.errors import DestinationBusyError
from prefect_cytotable.tasks.core.gather import WORK_SUFFIX
from prefect_cytotable.tasks.core.model import ChunkResult, Plan
from prefect_cytotable.tasks.core.sinks.parquet import checksum

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no fcntl
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp-"

# Made here, while one thread imports this module: where threads are the first to ask for a type at the same time,
# msgspec crashes the process (0.22.0: 17 of 20 tries with eight threads).
_PLAN = msgspec.json.Decoder(Plan)
_RESULT = msgspec.json.Decoder(ChunkResult)


def neighbour(destination: Path) -> Path:
    """The hidden folder that belongs to a destination."""
    return destination.with_name(f".{destination.name}{WORK_SUFFIX}")


@dataclass(frozen=True)
class Store:
    """The folder in which parts and records of one destination lie."""

    folder: Path

    @property
    def parts(self) -> Path:
        """Where the parts lie."""
        return self.folder / "parts"

    @property
    def records(self) -> Path:
        """Where the records lie."""
        return self.folder / "records"

    @property
    def results(self) -> Path:
        """Where Prefect keeps the results of chunk tasks."""
        return self.folder / "results"

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.parts, self.records):
            folder.mkdir(parents=True, exist_ok=True)

    def save_plan(self, plan: Plan) -> Path:
        """Write a plan where chunk tasks find it; returns its path."""
        path = self.folder / f"plan-{secrets.token_hex(8)}.json"
        with whole(path) as temporary:
            temporary.write_bytes(msgspec.json.encode(plan))
        return path

    def save(self, result: ChunkResult) -> None:
        """Write the record of a chunk whose parts are there."""
        with whole(self.records / f"{result.key}.json") as temporary:
            temporary.write_bytes(msgspec.json.encode(result))

    def load(self, key: str) -> ChunkResult | None:
        """The record of a chunk that is done, its parts whole and unaltered; None for any other."""
        try:
            result = _RESULT.decode((self.records / f"{key}.json").read_bytes())
        except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
            return None
        return replace(result, reused=True) if result.key == key and intact(result) else None


def intact(result: ChunkResult) -> bool:
    """Whether every part of a record is what was written."""
    for part in result.parts:
        path = Path(part.path)
        try:
            if path.stat().st_size != part.size or checksum(path) != part.checksum:
                return False
        except OSError:
            return False
    return True


def load_plan(path: Path) -> Plan:
    """A plan that `save_plan` wrote."""
    return _PLAN.decode(path.read_bytes())


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary neighbour that takes the name `path` when the block ends well, and is removed otherwise."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{path.name}"[:200])
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        discard(temporary)
        raise


def discard(path: Path) -> None:
    """Remove a file or folder that this run made; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(destination: Path) -> Iterator[None]:
    """Keep other runs from this destination; the system gives the lock back when the process dies.

    Raises:
        DestinationBusyError: Another run holds it.
    """
    path = neighbour(destination) / "lock"
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
                yield


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether `path` is the file that is open as `descriptor`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Remove what an earlier run, now dead, left half done: temporary files and plans."""
    for place in (folder, folder / "parts", folder / "records"):
        if place.is_dir():
            for path in place.iterdir():
                if path.name.startswith((TEMPORARY, "plan-")):
                    discard(path)
