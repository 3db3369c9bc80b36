"""Inputs that are fetched from object storage, and an output that goes there.

AnnData is read here and there, so that inputs are copied to this machine first: into the folder that belongs to the
destination, where a run that was killed finds them again. The output is made here and uploaded when it is whole.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.concat.model import Input, Options
from prefect_cytotable.tasks.core.concat.stores import look
from prefect_cytotable.tasks.core.concat.trust import METADATA
from prefect_cytotable.tasks.core.errors import (
    BadSourceError,
    DestinationExistsError,
    DiskSpaceError,
    SourceNotFoundError,
)
from prefect_cytotable.tasks.core.places import Entry, Places, is_remote, name_of
from prefect_cytotable.tasks.core.places.base import in_parallel
from prefect_cytotable.tasks.core.places.cache import RESERVE, cache_folder, prepare
from prefect_cytotable.tasks.core.store import discard, scratch_of

COPIES = "inputs"
"""The folder of the copies, in that of the destination."""

UPLOADING = "uploading"
"""A file that tells that the objects at the destination are of a run that was killed while it uploaded them."""

THREADS = 8
"""Objects of a zarr store that are under way at once."""

ZARR_METADATA = (*METADATA, ".zgroup", ".zattrs")


def any_remote(options: Options) -> bool:
    """Whether object storage is read or written."""
    return any(map(is_remote, (*options.in_files, options.destination)))


def look_at(path: str, options: Options) -> Input:
    """What an input holds; one in object storage is fetched.

    Raises:
        SourceNotFoundError: There is none.
        DiskSpaceError: It does not fit the disk.
        BadSourceError: It is no AnnData file.
    """
    if not is_remote(path):
        return look(path)
    places = Places(options.storage)
    entries = _entries(path, places)
    folder = copies_of(options)
    copy = folder / f"{mark_of(entries)[:16]}-{name_of(path)}"
    _fetch(path, entries, copy, places, options)
    try:
        found = look(str(copy))
    except BadSourceError as error:
        raise BadSourceError(path, error.cause, error.remedy) from error
    return replace(found, url=path, fingerprint=mark_of(entries))


def copies_of(options: Options) -> Path:
    """The folder for the copies of a run's inputs; it lies in this machine's cache folder."""
    mark = hashlib.sha256(options.destination.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_folder(options.storage) / f"concat-{mark}"


def forget_copies(options: Options) -> None:
    """Remove the copies of the inputs."""
    discard(copies_of(options))


def changed(one: Input, options: Options) -> bool:
    """Whether an input in object storage is no longer what was fetched."""
    return mark_of(_entries(one.url, Places(options.storage))) != one.fingerprint


def mark_of(entries: Sequence[Entry]) -> str:
    """What changes when one of the objects does."""
    text = "\n".join(f"{one.path}\0{one.size}\0{one.mark}" for one in entries)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _entries(path: str, places: Places) -> list[Entry]:
    """The object, or those of a zarr store, in order."""
    one = places.entry(path)
    if one is not None:
        return [one]
    found = sorted(places.entries(path), key=lambda entry: entry.path)
    if not found:
        raise SourceNotFoundError(f"{path}: there is no such object, and none below it.")
    return found


def _fetch(path: str, entries: Sequence[Entry], copy: Path, places: Places, options: Options) -> None:
    """Copy what is not there yet; a copy's name tells its contents, so that what is there is right."""
    prepare(cache_folder(options.storage))
    wanted: list[tuple[Entry, Path]] = []
    for entry in entries:
        target = _target(path, entry, copy)
        if not (target.is_file() and target.stat().st_size == entry.size):
            wanted.append((entry, target))
    copy.parent.mkdir(mode=0o700, exist_ok=True)
    needed, free = sum(entry.size for entry, _ in wanted), shutil.disk_usage(copy.parent).free
    if wanted and needed + RESERVE > free:
        raise DiskSpaceError(
            f"{copy.parent}: a copy of {path} needs {show_bytes(needed)}, and {show_bytes(free)} are free. Free some, "
            f"or name a folder on another disk with storage_options local_cache_dir."
        )

    def download(pair: tuple[Entry, Path]) -> None:
        entry, target = pair
        target.parent.mkdir(parents=True, exist_ok=True)
        places.download(entry.path, target, entry.mark)

    in_parallel(download, wanted, THREADS)


def _target(path: str, entry: Entry, copy: Path) -> Path:
    """Where an object is copied to: its key decides, and may not lead elsewhere.

    >>> _target("s3://b/a.zarr", Entry("s3://b/a.zarr/X/0.0", 1, 0), Path("copy")).as_posix()
    'copy/X/0.0'
    """
    below = entry.path.removeprefix(path).lstrip("/")
    names = below.split("/") if below else []
    if any(name in ("", ".", "..") or "\\" in name or "\0" in name for name in names):
        raise BadSourceError(path, f"the key {entry.path!r} cannot be a file's name", "Copy the store without it.")
    return copy.joinpath(*names)


def check_remote_destination(options: Options) -> None:
    """Refuse a destination in object storage where there is something.

    Raises:
        DestinationExistsError: There is an object that may not be replaced, or there are objects below it.
    """
    places, destination = Places(options.storage), options.destination
    if not options.overwrite and places.entry(destination) is not None:
        raise DestinationExistsError(f"{destination} exists. Choose another, or replace it with overwrite=True.")
    first = next(iter(_below(destination, places)), None)
    if first and not _uploading(options).exists():
        raise DestinationExistsError(
            f"{destination} holds objects already ({first.path}); a store in object storage is not replaced. Remove it "
            f"or choose another."
        )


def _below(destination: str, places: Places) -> list[Entry]:
    try:
        return [one for one in places.entries(destination) if one.path != destination]
    except SourceNotFoundError:
        return []


def _uploading(options: Options) -> Path:
    return scratch_of(options.destination, options.storage) / UPLOADING


def upload(output: Path, options: Options) -> None:
    """Bring a finished output to its destination: what makes a zarr store one comes last; all or nothing of it stays.

    Raises:
        DestinationExistsError: Somebody else has put something there.
        PlaceError: The service refuses.
    """
    places = Places(options.storage)
    if output.is_file():
        places.upload(output, options.destination, overwrite=options.overwrite)
        return
    check_remote_destination(options)
    mark = _uploading(options)
    if mark.exists():
        in_parallel(lambda one: places.remove(one.path), _below(options.destination, places), THREADS)
    mark.touch()
    names = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    chunks = [name for name in names if name.rpartition("/")[2] not in ZARR_METADATA]
    inner = [name for name in names if name.rpartition("/")[2] in ZARR_METADATA and "/" in name]
    own = [name for name in names if name not in {*chunks, *inner}]

    def send(name: str) -> None:
        places.upload(output / name, f"{options.destination}/{name}", overwrite=True)

    try:
        in_parallel(send, chunks, THREADS)
        in_parallel(send, inner, THREADS)
        for name in own:
            send(name)
    except BaseException:
        in_parallel(lambda name: places.remove(f"{options.destination}/{name}"), names, THREADS)
        mark.unlink(missing_ok=True)
        raise
    mark.unlink(missing_ok=True)
