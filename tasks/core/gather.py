"""Stage 1, gather: list the files once, group them into datasets and sources, take each file's fingerprint."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from prefect_cytotable.tasks.core import naming
from prefect_cytotable.tasks.core.errors import BadSourceError, LayoutError, SourceNotFoundError, nearest
from prefect_cytotable.tasks.core.model import (
    Dataset,
    Fingerprint,
    Format,
    Gathered,
    OnBadSource,
    Options,
    Preset,
    Skipped,
    Source,
)
from prefect_cytotable.tasks.core.sources import sqlite_file
from prefect_cytotable.tasks.core.sources.registry import SUFFIXES

WORK_SUFFIX = ".prefect-cytotable"
"""Ending of the hidden folders in which runs keep their parts; never searched for sources."""

APPLE_DOUBLE = "._"
"""Beginning of the files that macOS writes beside each file on a foreign disk; never data."""

CRC_BLOCK = 1 << 20


def gather(options: Options) -> Gathered:
    """What lies at the source path, as datasets in the order of the output's rows.

    Raises:
        SourceNotFoundError: Nothing is there, or nothing that the preset names.
        LayoutError: Two files of a folder claim the same compartment.
        BadSourceError: A source is bad, and `on_bad_source` forbids that.
    """
    root = Path(options.source)
    if not root.exists():
        raise SourceNotFoundError(f"{root}: there is no such file or folder.{_near(root)}")
    files = sorted(_files(root))
    formats = options.formats or (options.preset.format,)
    found = [file for file in files if any(file.suffix.lower() in SUFFIXES[one] for one in formats)]
    if not found:
        raise SourceNotFoundError(_nothing(root, files, formats, options.preset))
    datasets: list[Dataset] = []
    skipped: list[Skipped] = []
    spelled: dict[str, str] = {}
    if Format.SQLITE in formats:
        for file in found:
            if file.suffix.lower() in SUFFIXES[Format.SQLITE]:
                _add_database(file, root, options, datasets, skipped, spelled)
    if Format.CSV in formats:
        _add_folders(
            [file for file in found if file.suffix.lower() in SUFFIXES[Format.CSV]],
            root,
            options,
            datasets,
            spelled,
        )
    if not datasets:
        listed = "; ".join(f"{one.where}: {one.cause}" for one in skipped[:3])
        names = ", ".join(_expected(options.preset))
        raise SourceNotFoundError(
            f"{root}: {len(found)} file(s) with the right ending, none of them with a table called {names}."
            f"{' ' + listed + '.' if listed else ''} Check preset and compartments."
        )
    if missing := [key for key in options.required if key not in spelled]:
        seen = sorted({file.stem for file in found}) if Format.CSV in formats else sorted(spelled)
        raise LayoutError(f"{root}: there is no table of compartment {missing[0]!r}. {nearest(missing[0], seen)}")
    used = {source.path for dataset in datasets for source in dataset.sources}
    labels = tuple(
        (key, naming.label_of(key, spelled.get(key, key)))
        for key in (*options.preset.metadata[:1], *options.preset.compartments)
    )
    gathered = Gathered(str(root), tuple(datasets), labels, tuple(skipped), len(files) - len(used))
    return _numbered(gathered, options)


def refuse_if_wanted(bad: Skipped, options: Options) -> None:
    """Raise for a bad source where the user wants that."""
    if options.on_bad_source is OnBadSource.ERROR:
        raise BadSourceError(bad.where, bad.cause, 'Repair it, or skip such sources with on_bad_source="skip".')


def _near(path: Path) -> str:
    try:
        siblings = [one.name for one in path.parent.iterdir()]
    except OSError:
        return ""
    hint = nearest(path.name, siblings) if siblings else ""
    return f" {hint}" if hint.startswith("Did") else ""


def _files(root: Path) -> Iterator[Path]:
    """Every file below `root`, folders that are symlinks included, each folder once."""
    if root.is_file():
        yield root
        return
    seen = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        identity = (folder.stat().st_dev, folder.stat().st_ino)
        if identity in seen:
            continue
        seen.add(identity)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.is_dir():
                    if not entry.name.endswith(WORK_SUFFIX):
                        waiting.append(folder / entry.name)
                elif entry.is_file() and not entry.name.startswith(APPLE_DOUBLE):
                    yield folder / entry.name


def _nothing(root: Path, files: list[Path], formats: tuple[Format, ...], preset: Preset) -> str:
    endings = ", ".join(suffix for one in formats for suffix in SUFFIXES[one])
    others = sorted({file.suffix.lower() or file.name for file in files})[:6]
    hint = ""
    for format_, suffixes in SUFFIXES.items():
        if format_ not in formats and any(file.suffix.lower() in suffixes for file in files):
            hint = f" There are {format_.upper()} files: choose a preset for them (`prefect-cytotable presets`)."
    here = f"has {len(files)} file(s) ({', '.join(others)})" if files else "is empty"
    return f"{root} {here}, none that ends with {endings}, which preset {preset.name or 'None'} reads.{hint}"


def _expected(preset: Preset) -> list[str]:
    keys = (*preset.metadata[-1:], *preset.compartments)
    return [preset.table_names[0].format(label=naming.label_of(key, key)) for key in keys]


def _compartment(name: str, preset: Preset) -> tuple[str, str] | None:
    """(key, spelling) of the compartment that a table's name stands for."""
    for pattern in preset.table_names:
        before, after = pattern.lower().split("{label}")
        lower = name.lower()
        if lower.startswith(before) and lower.endswith(after) and len(lower) > len(before) + len(after):
            spelling = name[len(before) : len(name) - len(after)]
            if spelling.lower() in preset.metadata[-1:]:
                return preset.metadata[0], spelling
            if spelling.lower() in preset.compartments:
                return spelling.lower(), spelling
    return None


def _relative(path: Path, root: Path) -> str:
    if root.is_file() or path == root:
        return path.name
    return path.relative_to(root).as_posix()


def _add_database(
    file: Path,
    root: Path,
    options: Options,
    datasets: list[Dataset],
    skipped: list[Skipped],
    spelled: dict[str, str],
) -> None:
    name = _relative(file, root)
    try:
        if file.stat().st_size == 0:
            raise BadSourceError(str(file), "the file is empty", "Export it again, or take it away.")
        if not sqlite_file.looks_like(file):
            raise BadSourceError(str(file), "it is no SQLite database", "Export it again, or take it away.")
        tables = sqlite_file.tables(file)
    except BadSourceError as error:
        bad = Skipped(name, "", error.source, error.cause)
        refuse_if_wanted(bad, options)
        skipped.append(bad)
        return
    sources: dict[str, Source] = {}
    mark = sqlite_file.fingerprint(file)
    for table in tables:
        match = _compartment(table, options.preset)
        if match is None or (match[0] in sources and table.lower() == match[0]):
            continue
        key, spelling = match
        spelled.setdefault(key, spelling)
        sources[key] = Source(key, str(file), Format.SQLITE, mark, table)
    if sources:
        datasets.append(Dataset(name, tuple(sources[key] for key in sorted(sources))))
    else:
        expected = ", ".join(_expected(options.preset))
        skipped.append(Skipped(name, "", str(file), f"it has no table called {expected}"))


def _add_folders(
    files: list[Path], root: Path, options: Options, datasets: list[Dataset], spelled: dict[str, str]
) -> None:
    folders: dict[Path, dict[str, Source]] = {}
    for file in files:
        match = _compartment(file.stem, options.preset)
        if match is None:
            continue
        key, spelling = match
        sources = folders.setdefault(file.parent, {})
        if key in sources:
            raise LayoutError(
                f"{file.parent}: {Path(sources[key].path).name} and {file.name} are both the table of "
                f"{key!r}. Take one of them away."
            )
        spelled.setdefault(key, spelling)
        status = file.stat()
        sources[key] = Source(key, str(file), Format.CSV, Fingerprint(status.st_size, status.st_mtime_ns))
    top = root if root.is_dir() else root.parent
    for folder in sorted(folders):
        name = folder.relative_to(top).as_posix()
        name = top.name if name == "." and top / top.name not in folders else name
        datasets.append(Dataset(name, tuple(folders[folder][key] for key in sorted(folders[folder]))))


def _numbered(gathered: Gathered, options: Options) -> Gathered:
    """Datasets with their TableNumber where the output shows it, sorted by it where the output is sorted."""
    datasets = sorted(gathered.datasets, key=lambda one: one.name)
    wanted = options.table_number if options.table_number is not None else len(datasets) > 1
    if wanted:
        with ThreadPoolExecutor(options.workers) as pool:
            sums = list(pool.map(lambda one: _checksum(Path(_numbering_source(one, options).path)), datasets))
        datasets = [
            replace(dataset, table_number=number)
            for dataset, number in zip(datasets, _distinct(sums, datasets), strict=True)
        ]
        if options.sort_output:
            datasets.sort(key=lambda one: one.table_number or 0)
    return replace(gathered, datasets=tuple(datasets))


def _numbering_source(dataset: Dataset, options: Options) -> Source:
    for key in options.preset.metadata:
        if source := dataset.source(key):
            return source
    return dataset.sources[0]


def _checksum(path: Path) -> int:
    """CRC-32 of a file's bytes, as cytominer-database numbers its tables."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(CRC_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _distinct(sums: list[int], datasets: list[Dataset]) -> Iterator[int]:
    """The checksums, with the name mixed in where two datasets are alike: each keeps an identity of its own."""
    taken: set[int] = set()
    for value, dataset in zip(sums, datasets, strict=True):
        while value in taken:
            value = zlib.crc32(dataset.name.encode("utf-8", "surrogateescape"), value)
        taken.add(value)
        yield value
