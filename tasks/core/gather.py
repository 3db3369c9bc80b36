"""Stage 1, gather: list the files once, group them into datasets and sources, take each file's fingerprint."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from prefect_cytotable.tasks.core import naming
from prefect_cytotable.tasks.core.errors import BadSourceError, LayoutError, SourceNotFoundError, nearest
from prefect_cytotable.tasks.core.grouping import File, Grouped, grouped
from prefect_cytotable.tasks.core.model import (
    Dataset,
    Format,
    Gathered,
    OnBadSource,
    Options,
    Preset,
    Skipped,
    Source,
    TableNumber,
)
from prefect_cytotable.tasks.core.places import Entry, Places, is_remote
from prefect_cytotable.tasks.core.places.base import OUTSIDE
from prefect_cytotable.tasks.core.roots import ROOTS, allowed_roots, leads_out
from prefect_cytotable.tasks.core.sources.registry import DATABASES, SUFFIXES, reader_of, suffix_of

_LARGEST = 2**63

BESIDE = ("-wal", "-shm", "-journal", ".wal")
"""Endings of the files that SQLite and DuckDB open together with a database."""

LEADS_OUT = f"a link that leads out of {ROOTS}"


def gather(options: Options) -> Gathered:
    """What lies at the source path, as datasets in the order of the output's rows.

    Raises:
        SourceNotFoundError: Nothing is there, or nothing that the preset names.
        LayoutError: Two files of a folder claim the same compartment.
        BadSourceError: A source is bad, and `on_bad_source` forbids that.
    """
    root, places = options.source, Places(options.storage)
    if not is_remote(root) and not Path(root).exists():
        raise SourceNotFoundError(f"{root}: there is no such file or folder.{_near(Path(root))}")
    every = sorted(places.entries(root), key=lambda one: one.path)
    entries = [one for one in every if one.mark != OUTSIDE]
    links = {one.path for one in every if one.mark == OUTSIDE}
    formats = options.formats or (options.preset.format,)
    files = list(_files(entries, root, formats))
    if not is_remote(root):
        links |= {link for file in files for link in _links_beside(file)}
        files = [file for file in files if not _links_beside(file)]
    if not files and links:
        raise SourceNotFoundError(f"{root}: {min(links)} is {LEADS_OUT}, and there is nothing else to read.")
    if not files:
        raise SourceNotFoundError(_nothing(root, entries, formats, options.preset))
    found = grouped(files, options, places)
    found.skipped[:0] = [_outside(link, root) for link in sorted(links)]
    for bad in found.skipped:
        refuse_if_wanted(bad, options)
    if not found.datasets:
        listed = "; ".join(f"{one.where}: {one.cause}" for one in found.skipped[:3])
        names = ", ".join(_expected(options.preset))
        raise SourceNotFoundError(
            f"{root}: {len(files)} file(s) with the right ending, none of them with a table called {names}."
            f"{' ' + listed + '.' if listed else ''} Check preset and compartments."
        )
    if missing := [key for key in options.required if key not in found.spelled]:
        seen = sorted({file.stem for file in files}) if Format.CSV in formats else sorted(found.spelled)
        raise LayoutError(f"{root}: there is no table of compartment {missing[0]!r}. {nearest(missing[0], seen)}")
    used = {source.path for dataset in found.datasets for source in dataset.sources}
    labels = tuple(
        (key, naming.label_of(key, found.spelled.get(key, key)))
        for key in (*options.preset.metadata[:1], *options.preset.compartments)
    )
    datasets = _numbered(found, options, places)
    return Gathered(root, datasets, labels, tuple(found.skipped), len(entries) - len(used))


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


def _links_beside(file: File) -> list[str]:
    """Links out of the allowed roots that a database's library would open together with it."""
    if file.format not in DATABASES or allowed_roots() is None:
        return []
    beside = (file.entry.path + ending for ending in BESIDE)
    return [path for path in beside if Path(path).is_symlink() and leads_out(path)]


def _outside(link: str, root: str) -> Skipped:
    relative = _relative(link, root) if Path(link).is_relative_to(root) else Path(link).name
    return Skipped(relative.rpartition("/")[0] or relative, "", link, LEADS_OUT)


def _files(entries: list[Entry], root: str, formats: tuple[Format, ...]) -> Iterator[File]:
    """The files of the formats that may be read, with their places below `root`."""
    for entry in entries:
        if (match := suffix_of(entry.path, formats)) is not None:
            relative = _relative(entry.path, root)
            folder, _, name = relative.rpartition("/")
            yield File(entry, match[0], relative, folder, name[: len(name) - len(match[1])])


def _relative(path: str, root: str) -> str:
    """A path below `root`, with slashes; the file's name where it is `root` itself."""
    if path == root:
        return path.rpartition("/")[2] if is_remote(path) else Path(path).name
    if is_remote(root):
        return path.removeprefix(root.rstrip("/") + "/")
    return Path(path).relative_to(root).as_posix()


def _nothing(root: str, entries: list[Entry], formats: tuple[Format, ...], preset: Preset) -> str:
    endings = ", ".join(suffix for one in formats for suffix in SUFFIXES[one])
    names = [entry.path.replace("\\", "/").rpartition("/")[2] for entry in entries]
    others = sorted({Path(name).suffix.lower() or name for name in names})[:6]
    hint = ""
    for format_ in SUFFIXES:
        if format_ not in formats and any(suffix_of(name, (format_,)) for name in names):
            hint = f" There are {format_.upper()} files: choose a preset for them (`prefect-cytotable presets`)."
    here = f"has {len(entries)} file(s) ({', '.join(others)})" if entries else "is empty"
    return f"{root} {here}, none that ends with {endings}, which preset {preset.name or 'None'} reads.{hint}"


def _expected(preset: Preset) -> list[str]:
    keys = (*preset.metadata[-1:], *preset.compartments)
    return [preset.table_names[0].format(label=naming.label_of(key, key)) for key in keys]


def _numbered(found: Grouped, options: Options, places: Places) -> tuple[Dataset, ...]:
    """Datasets with their TableNumber where the output shows it, sorted by it where the output is sorted."""
    datasets = sorted(found.datasets, key=lambda one: one.name)
    wanted = options.table_number if options.table_number is not None else len(datasets) > 1
    if not wanted:
        return tuple(replace(dataset, table_number=None) for dataset in datasets)

    def number(dataset: Dataset) -> TableNumber:
        if dataset.table_number is not None:
            return dataset.table_number
        source = _numbering_source(dataset, options)
        try:
            return reader_of(source.format, places).checksum(source)
        except BadSourceError:  # it is left out when its header is read, and there it is reported
            return zlib.crc32(_bytes(dataset.name))

    with ThreadPoolExecutor(options.workers) as pool:
        numbers = list(pool.map(number, datasets))
    distinct = _distinct(_alike(numbers), datasets)
    datasets = [replace(dataset, table_number=one) for dataset, one in zip(datasets, distinct, strict=True)]
    if options.sort_output:
        datasets.sort(key=lambda one: (str(one.table_number) if isinstance(one.table_number, str) else "", _rank(one)))
    return tuple(datasets)


def _rank(dataset: Dataset) -> int:
    return dataset.table_number if isinstance(dataset.table_number, int) else 0


def _numbering_source(dataset: Dataset, options: Options) -> Source:
    for key in options.preset.metadata:
        if source := dataset.source(key):
            return source
    return dataset.sources[0]


def _alike(numbers: list[TableNumber]) -> list[TableNumber]:
    """All as whole numbers where each is one, else all as texts: they become one column."""
    whole = [_whole(number) for number in numbers]
    known = [number for number in whole if number is not None]
    return list(known) if len(known) == len(numbers) else [str(number) for number in numbers]


def _whole(number: TableNumber) -> int | None:
    if isinstance(number, int):
        return number
    try:
        value = int(number)
    except ValueError:
        return None
    return value if str(value) == number and -_LARGEST <= value < _LARGEST else None


def _distinct(numbers: list[TableNumber], datasets: list[Dataset]) -> Iterator[TableNumber]:
    """The numbers, with the name mixed in where two datasets are alike: each keeps an identity of its own."""
    taken: set[TableNumber] = set()
    for number, dataset in zip(numbers, datasets, strict=True):
        name = _bytes(dataset.name)
        while number in taken:
            if isinstance(number, int):
                number = zlib.crc32(name, number & 0xFFFFFFFF)
            else:
                number = f"{number}-{zlib.crc32(name):08x}"
        taken.add(number)
        yield number


def _bytes(name: str) -> bytes:
    """A name as its file system has it."""
    return name.encode("utf-8", "surrogateescape")
