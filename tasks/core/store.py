"""Where a run keeps its plan, its parts and their records.

Next to the destination lies a hidden folder ``.NAME.prefect-cytotable`` with the lock (module `locks`) and, unless
``work_dir`` says otherwise, the parts; for a destination in object storage it lies in this machine's cache folder. A
part counts as done only when its record is there and the file has the size and the checksum that the record tells; both
appear by a rename, so that a killed run leaves nothing that could be taken for done.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import msgspec

from prefect_cytotable.tasks.core.checksums import checksum
from prefect_cytotable.tasks.core.errors import DamagedPartError
from prefect_cytotable.tasks.core.model import ChunkResult, Options, Part, Plan
from prefect_cytotable.tasks.core.places import Entry, Places, is_remote
from prefect_cytotable.tasks.core.places.cache import cache_folder, prepare
from prefect_cytotable.tasks.core.places.files import TEMPORARY, WORK_SUFFIX, whole

PLAN = "plan-"
_RECORD = re.compile(r"[0-9a-f]{32}\.json")
_KEY = re.compile(rb"[0-9a-f]{32}")

# Made here, while one thread imports this module: where threads are the first to ask for a type at the same time,
# msgspec crashes the process (0.22.0: 17 of 20 tries with eight threads).
_PLAN = msgspec.json.Decoder(Plan)
_RESULT = msgspec.json.Decoder(ChunkResult)


def neighbour(destination: Path) -> Path:
    """The hidden folder that belongs to a destination."""
    return destination.with_name(f".{destination.name}{WORK_SUFFIX}")


def remote_neighbour(destination: str) -> str:
    """The same for a destination in object storage, where every machine reaches it."""
    folder, _, name = destination.rpartition("/")
    return f"{folder}/.{name}{WORK_SUFFIX}"


def scratch(options: Options) -> Path:
    """The folder on this machine that belongs to a destination: for its lock, and for the output until it is whole."""
    return scratch_of(options.destination, options.storage)


def scratch_of(destination: str, storage: tuple[tuple[str, str], ...]) -> Path:
    """The same for any destination."""
    if not is_remote(destination):
        return neighbour(Path(destination))
    mark = zlib.crc32(destination.encode())
    return cache_folder(storage) / f"{destination.rpartition('/')[2][:100]}-{mark:08x}{WORK_SUFFIX}"


class Store(Protocol):
    """Where the plan, the parts and the records of one destination lie."""

    @property
    def folder(self) -> str:
        """Path or URL."""
        ...

    def prepare(self) -> None:
        """Make the folders, where that is needed."""
        ...

    def save_plan(self, plan: Plan) -> str:
        """Write a plan where chunk tasks find it; returns its path or URL."""
        ...

    def remove_plan(self, path: str) -> None:
        """Remove a plan."""
        ...

    def add(self, name: str, write: Callable[[Path], Stored]) -> Stored:
        """Write a part under its name, whole or not at all; returns what is known of it, with where it lies."""
        ...

    def save(self, result: ChunkResult) -> None:
        """Write the record of a chunk whose parts are there."""
        ...

    def load(self, key: str) -> ChunkResult | None:
        """The record of a chunk that is done, its parts whole and unaltered; None for any other."""
        ...

    def fetched(self, part: Part, folder: Path) -> Path:
        """A part as a file of this machine: where it lies, or copied into `folder`."""
        ...

    def sweep(self) -> None:
        """Remove what an earlier run, now dead, left half done."""
        ...

    def clear(self) -> None:
        """Remove parts and records."""
        ...

    def drop_others(self, keys: Collection[str]) -> None:
        """Remove the parts and records of chunks that are none of these: those of an earlier state of the sources."""
        ...

    def remove_if_unused(self) -> None:
        """Remove the folder where it holds nothing but the lock and empty folders."""
        ...


@dataclass(frozen=True)
class Stored:
    """A file that was written: bytes, CRC-32, and where it lies, with the mark that the place gave it."""

    size: int
    checksum: int
    path: str = ""
    mark: str = ""


def store_of(options: Options) -> Store:
    """The store of a conversion, in its work folder."""
    return store_at(options.work_dir, options.storage)


def store_at(folder: str, storage: tuple[tuple[str, str], ...]) -> Store:
    """The store in a folder, on this machine or in object storage."""
    return RemoteStore(folder, Places(storage)) if is_remote(folder) else LocalStore(folder)


@dataclass(frozen=True)
class LocalStore:
    """A store in a folder of this machine, or of a file system that several share."""

    folder: str

    @property
    def _folder(self) -> Path:
        return Path(self.folder)

    @property
    def parts(self) -> Path:
        """Where the parts lie."""
        return self._folder / "parts"

    @property
    def records(self) -> Path:
        """Where the records lie."""
        return self._folder / "records"

    @property
    def results(self) -> Path:
        """Where Prefect keeps the results of chunk tasks."""
        return self._folder / "results"

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.parts, self.records):
            folder.mkdir(parents=True, exist_ok=True)

    def save_plan(self, plan: Plan) -> str:
        """Write a plan where chunk tasks find it; returns its path."""
        path = self._folder / f"{PLAN}{secrets.token_hex(8)}.json"
        with whole(path) as temporary:
            temporary.write_bytes(msgspec.json.encode(plan))
        return str(path)

    def remove_plan(self, path: str) -> None:
        """Remove a plan."""
        discard(Path(path))

    def add(self, name: str, write: Callable[[Path], Stored]) -> Stored:
        """Write a part under its name, whole or not at all."""
        path = self.parts / name
        with whole(path) as temporary:
            stored = write(temporary)
        return replace(stored, path=str(path))

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

    def fetched(self, part: Part, folder: Path) -> Path:
        """The part where it lies."""
        return Path(part.path)

    def sweep(self) -> None:
        """Remove what an earlier run, now dead, left half done: temporary files and plans."""
        for place in (self._folder, self.parts, self.records):
            if place.is_dir():
                for path in place.iterdir():
                    if path.name.startswith((TEMPORARY, PLAN)):
                        discard(path)

    def clear(self) -> None:
        """Remove parts, records and results."""
        for folder in (self.parts, self.records, self.results):
            discard(folder)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def drop_others(self, keys: Collection[str]) -> None:
        """Remove records whose chunks are none of these, with their parts and results; other files stay."""
        if not self.records.is_dir():
            return
        old = {path.stem for path in self.records.iterdir() if _RECORD.fullmatch(path.name)} - set(keys)
        if not old:
            return
        parts = [path for path in self.parts.iterdir() if path.name.partition("-")[0] in old]
        for path in (*(self.records / f"{key}.json" for key in old), *parts, *self._results_with(old)):
            discard(path)

    def _results_with(self, keys: Collection[str]) -> list[Path]:
        """What Prefect has kept of these chunks, alone or together with others."""
        if not self.results.is_dir():
            return []
        wanted = {key.encode() for key in keys}
        files = (path for path in self.results.iterdir() if path.is_file())
        return [path for path in files if not wanted.isdisjoint(_KEY.findall(path.read_bytes()))]

    def remove_if_unused(self) -> None:
        """Remove the folder where it holds nothing but the lock and empty folders."""
        for inner in (self.parts, self.records, self.results):
            with contextlib.suppress(OSError):
                inner.rmdir()
        with contextlib.suppress(OSError):
            if {path.name for path in self._folder.iterdir()} <= {"lock"}:
                (self._folder / "lock").unlink(missing_ok=True)
                self._folder.rmdir()


@dataclass(frozen=True)
class RemoteStore:
    """A store in object storage, for workers that share no file system.

    Objects appear whole by themselves. That a part is still what was written is told by its size and its mark (the
    ETag or generation), which change with its bytes.
    """

    folder: str
    places: Places

    def prepare(self) -> None:
        """Nothing: folders exist by what is in them."""

    def save_plan(self, plan: Plan) -> str:
        """Write a plan where chunk tasks find it; returns its URL."""
        path = f"{self.folder}/{PLAN}{secrets.token_hex(8)}.json"
        self.places.write(path, msgspec.json.encode(plan))
        return path

    def remove_plan(self, path: str) -> None:
        """Remove a plan."""
        self.places.remove(path)

    def add(self, name: str, write: Callable[[Path], Stored]) -> Stored:
        """Write a part on this machine, and upload it under its name."""
        path = f"{self.folder}/parts/{name}"
        here = cache_folder(self.places.storage)
        prepare(here)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=here) as folder:
            temporary = Path(folder) / name
            stored = write(temporary)
            entry = self.places.upload(temporary, path, overwrite=True)
        return replace(stored, path=path, mark=entry.mark)

    def save(self, result: ChunkResult) -> None:
        """Write the record of a chunk whose parts are there."""
        self.places.write(f"{self.folder}/records/{result.key}.json", msgspec.json.encode(result))

    def load(self, key: str) -> ChunkResult | None:
        """The record of a chunk that is done, its parts whole and unaltered; None for any other."""
        try:
            result = _RESULT.decode(self.places.read(f"{self.folder}/records/{key}.json"))
        except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
            return None
        if result.key != key:
            return None
        for part in result.parts:
            entry = self.places.entry(part.path)
            if entry is None or (entry.size, entry.mark) != (part.size, part.mark):
                return None
        return replace(result, reused=True)

    def fetched(self, part: Part, folder: Path) -> Path:
        """A copy of the part, checked to be what was written."""
        path = folder / part.path.rpartition("/")[2]
        self.places.download(part.path, path, part.mark)
        if path.stat().st_size != part.size or checksum(path) != part.checksum:
            raise DamagedPartError(f"{part.path} is not what was written. Run again: it is then made anew.")
        return path

    def sweep(self) -> None:
        """Remove plans that an earlier run, now dead, left."""
        for entry in self._entries():
            if entry.path.rpartition("/")[2].startswith(PLAN):
                self.places.remove(entry.path)

    def clear(self) -> None:
        """Remove parts and records."""
        for entry in self._entries():
            self.places.remove(entry.path)

    def drop_others(self, keys: Collection[str]) -> None:
        """Remove records whose chunks are none of these, with their parts; other objects stay."""
        entries = {entry.path.removeprefix(f"{self.folder}/"): entry.path for entry in self._entries()}
        records = [name.removeprefix("records/") for name in entries if name.startswith("records/")]
        old = {name.removesuffix(".json") for name in records if _RECORD.fullmatch(name)} - set(keys)
        for name, path in entries.items():
            place, _, rest = name.partition("/")
            if place in ("records", "parts") and rest.partition("-")[0].removesuffix(".json") in old:
                self.places.remove(path)

    def remove_if_unused(self) -> None:
        """Nothing: a folder without objects does not exist."""

    def _entries(self) -> list[Entry]:
        try:
            return list(self.places.entries(self.folder))
        except FileNotFoundError:
            return []


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


def load_plan(path: str, storage: tuple[tuple[str, str], ...] = ()) -> Plan:
    """A plan that `save_plan` wrote."""
    return _PLAN.decode(Places(storage).read(path))


def discard(path: Path) -> None:
    """Remove a file or folder that this run made; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
