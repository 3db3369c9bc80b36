"""The plates at a root: one folder or one file each, found by one listing."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from prefect_cytotable.tasks.core.errors import ArgumentError, CytotableError, LayoutError, SourceNotFoundError
from prefect_cytotable.tasks.core.grouping import names_table
from prefect_cytotable.tasks.core.model import Format, Options
from prefect_cytotable.tasks.core.places import Entry, Places, is_remote
from prefect_cytotable.tasks.core.reprocess.model import Listing, Plate, Settings
from prefect_cytotable.tasks.core.sources.registry import DATABASES, fingerprint_of, suffix_of

INDEX = "index.parquet"
"""The index table's name in the destination."""

TEMPORARY_ENDINGS = (".tmp", ".temp", ".part", ".partial", ".crdownload", "~")
BESIDE_DATABASES = ("-wal", "-journal", ".wal")
"""What databases write beside themselves while they are written to."""


@dataclass
class _Found:
    """A name at the root: whether it is a folder, its files, and why they could not be listed."""

    name: str
    path: str
    folder: bool
    entries: list[Entry] = field(default_factory=list)
    problem: str = ""


def listed(settings: Settings, options: Options) -> Listing:
    """The plates at the root, by name.

    Args:
        settings: Where to look, and which names count.
        options: Of the conversion: its formats and preset decide what can be read.

    Raises:
        SourceNotFoundError: There is no such root.
        LayoutError: The tables of a plate lie in the root itself, or two names would have the same output.
    """
    places = Places(settings.storage)
    found = (_remote if is_remote(settings.source_root) else _local)(settings, places)
    plates: dict[str, Plate] = {}
    ignored = []
    for one in sorted(found, key=lambda one: one.name):
        name = _plate_name(one, options, settings)
        plate = None if name is None else _plate(one, name, options)
        if plate is None:
            ignored.append(one.name)
        elif other := plates.get(plate.name):
            raise LayoutError(
                f"{settings.source_root}: {_last(other.source)} and {one.name} are both plate {plate.name!r}, and "
                f"would become one output. Rename one of them, or leave it out with exclude."
            )
        elif plate.name + settings.suffix == INDEX:
            raise LayoutError(
                f"{settings.source_root}: the output of {one.name} would be {INDEX}, where the index of all plates "
                f"lies. Rename it, or leave it out with exclude."
            )
        else:
            plates[plate.name] = plate
    beside = {one.name: one.entries for one in found if not one.folder}
    return Listing(tuple(_with_logs(one, beside) for one in plates.values()), tuple(ignored))


def look_again(plate: Plate, options: Options, storage: tuple[tuple[str, str], ...]) -> Plate:
    """A plate as it is now.

    Raises:
        SourceNotFoundError: It is no longer there.
    """
    entries = list(Places(storage).entries(plate.source))
    folder = [entry.path for entry in entries] != [plate.source]
    found = _plate(_Found(_last(plate.source), plate.source, folder, entries), plate.name, options)
    if found is None:
        raise SourceNotFoundError(f"{plate.source}: there is nothing left to read.")
    return found


def check_apart(source_root: str, destination_root: str) -> None:
    """Refuse a destination that is the root, or inside one of its plates.

    Raises:
        ArgumentError: It is.
    """
    inside = _below(destination_root, source_root)
    if inside is not None and len(inside) != 1:
        what = "is the source root itself" if not inside else f"is inside {inside[0]!r}, which may be a plate"
        raise ArgumentError(
            f"{destination_root} {what}. Choose a destination outside {source_root}, or a folder directly in it, which "
            f"is then no plate."
        )


def own_name(settings: Settings) -> str | None:
    """The name that the destination has in the root, where it lies directly in it."""
    inside = _below(settings.destination_root, settings.source_root)
    return inside[0] if inside else None


def _below(path: str, root: str) -> tuple[str, ...] | None:
    """The components by which a path lies below a root; None where it does not."""
    if is_remote(path) != is_remote(root):
        return None
    if is_remote(path):
        root = root.rstrip("/")
        if path != root and not path.startswith(f"{root}/"):
            return None
        return tuple(path[len(root) + 1 :].split("/")) if path != root else ()
    resolved, top = Path(path).resolve(), Path(root).resolve()
    return resolved.relative_to(top).parts if resolved.is_relative_to(top) else None


def _local(settings: Settings, places: Places) -> list[_Found]:
    root = Path(settings.source_root)
    if not root.is_dir():
        what = "is a file; a root is a folder of plates" if root.exists() else "there is no such folder"
        raise SourceNotFoundError(f"{root}: {what}.")
    own, found = own_name(settings), []
    for entry in sorted(os.scandir(root), key=lambda one: one.name):
        if entry.name == own or not counts(entry.name, settings):
            continue
        path = root / entry.name
        one = _Found(entry.name, str(path), path.is_dir())
        if not one.folder and not path.is_file():
            continue  # a link that leads nowhere
        try:
            one.entries = list(places.entries(one.path))
        except FileNotFoundError:
            continue  # it vanished meanwhile
        except (CytotableError, OSError) as error:
            one.problem = str(error)
        found.append(one)
    return found


def _remote(settings: Settings, places: Places) -> list[_Found]:
    root, own = settings.source_root.rstrip("/"), own_name(settings)
    found: dict[str, _Found] = {}
    for entry in places.entries(settings.source_root):
        name, slash, _ = entry.path.removeprefix(f"{root}/").partition("/")
        if entry.path == root or name == own or not counts(name, settings):
            continue
        one = found.get(name)
        if one is not None and one.folder != bool(slash):  # a store can have plate1.sqlite and plate1.sqlite/Cells.csv
            raise LayoutError(f"{root}: {name} is an object and a folder of objects. Rename one of them.")
        if one is None:
            one = found[name] = _Found(name, f"{root}/{name}", bool(slash))
        one.entries.append(entry)
    if not found and next(iter(places.entries(settings.source_root)), None) is None:
        raise SourceNotFoundError(f"{root}: there are no objects.")
    return list(found.values())


def counts(name: str, settings: Settings) -> bool:
    """Whether a name at the root may be a plate: it is not hidden or temporary, and was not left out."""
    if not name or name.startswith((".", "~")) or name.lower().endswith(TEMPORARY_ENDINGS):
        return False
    if any(fnmatchcase(name, pattern) for pattern in settings.exclude):
        return False
    names = (name, name.rpartition(".")[0] or name)
    return not settings.only or any(fnmatchcase(one, pattern) for one in names for pattern in settings.only)


def _plate_name(one: _Found, options: Options, settings: Settings) -> str | None:
    """What the plate is called; None where it is none."""
    if one.folder:
        return one.name
    match = suffix_of(one.name, formats_of(options))
    if match is None:
        return None
    stem = one.name[: -len(match[1])]
    if match[0] in DATABASES or options.preset.any_table:
        return stem or None
    if names_table(stem, options.preset):
        raise LayoutError(
            f"{settings.source_root}: {one.name} lies in the root itself. A root has a folder or a database for each "
            f"plate: name the folder above, give the plate a folder of its own, or leave the file out with exclude."
        )
    return None


def formats_of(options: Options) -> tuple[Format, ...]:
    """The formats that a conversion reads."""
    return options.formats or (options.preset.format,)


def _plate(one: _Found, name: str, options: Options) -> Plate | None:
    """The plate that a name is; None for a folder in which nothing can be read."""
    if (shown := _shown(name)) != name:
        return Plate(shown, _shown(one.path), 0, 0, 0, "", "its name is not UTF-8; no table can name it. Rename it")
    if one.problem:
        return Plate(name, one.path, 0, 0, 0, "", one.problem)
    marks: list[tuple[str, int, int, str]] = []
    try:
        for entry in one.entries:
            match = suffix_of(entry.path, formats_of(options))
            if match is not None:
                known = fingerprint_of(match[0], entry)
                marks.append((_relative(entry.path, one.path), known.size, known.modified, known.mark))
    except OSError as error:
        return Plate(name, one.path, 0, 0, 0, "", f"{error.filename or one.path}: {error.strerror or error}")
    if not marks:
        return None
    digest = hashlib.sha256(repr(sorted(marks)).encode()).hexdigest()[:32]
    newest = max(entry.modified for entry in one.entries)
    return Plate(name, one.path, len(marks), sum(size for _, size, _, _ in marks), newest, digest)


def _with_logs(plate: Plate, files: dict[str, list[Entry]]) -> Plate:
    """A database at the root is as new as what is written beside it."""
    beside = [entry for ending in BESIDE_DATABASES for entry in files.get(_last(plate.source) + ending, ())]
    newest = max([plate.newest, *(entry.modified for entry in beside)])
    return replace(plate, newest=newest)


def _shown(text: str) -> str:
    """A name as text that can be written anywhere: bytes that are not UTF-8 escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _relative(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/\\") or _last(path)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] if is_remote(path) else Path(path).name
