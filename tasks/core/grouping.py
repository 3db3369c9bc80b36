"""Which files and tables make a dataset: by folder and common beginning of their names, by database, by TableNumber."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from prefect_cytotable.tasks.core import naming
from prefect_cytotable.tasks.core.errors import BadSourceError, LayoutError
from prefect_cytotable.tasks.core.model import (
    Dataset,
    Fingerprint,
    Format,
    Only,
    Options,
    Preset,
    Skipped,
    Source,
)
from prefect_cytotable.tasks.core.places import Entry, Places, is_remote
from prefect_cytotable.tasks.core.sources.registry import (
    DATABASES,
    combined_compartments,
    database_reader,
    fingerprint_of,
    numbered_reader,
    reader_of,
)

COMBINED = ("object", "objects")
"""How ExportToSpreadsheet's users call the file in which it puts several compartments side by side."""


@dataclass(frozen=True)
class File:
    """A file that may be read.

    Attributes:
        relative: Its path below the source path, with slashes.
        folder: The folder of that.
        stem: Its name without the format's ending.
    """

    entry: Entry
    format: Format
    relative: str
    folder: str
    stem: str

    @property
    def fingerprint(self) -> Fingerprint:
        """What tells that it was changed."""
        return fingerprint_of(self.format, self.entry)

    def source(self, compartment: str, table: str = "") -> Source:
        """The file, or a table in it, as a source."""
        return Source(compartment, self.entry.path, self.format, self.fingerprint, table)


@dataclass
class Grouped:
    """Datasets, what was skipped, and how the compartments are spelled."""

    datasets: list[Dataset] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    spelled: dict[str, str] = field(default_factory=dict)


def grouped(files: list[File], options: Options, places: Places) -> Grouped:
    """The files as datasets.

    Raises:
        LayoutError: Two files of a folder claim the same compartment, or only some tables of a file tell the
            TableNumber of their rows.
    """
    found = Grouped()
    preset = options.preset
    if preset.any_table:
        (key,) = preset.compartments
        found.spelled[key] = key
        found.datasets = [Dataset(file.relative, (file.source(key),)) for file in files]
        return found
    for file in files:
        if file.format in DATABASES:
            _add_database(file, preset, places, found)
    folders: dict[str, list[File]] = {}
    for file in files:
        if file.format not in DATABASES:
            folders.setdefault(file.folder, []).append(file)
    for folder, inside in sorted(folders.items()):
        _add_folder(folder, inside, set(folders), options, places, found)
    found.datasets = [part for one in found.datasets for part in _split(one, preset, places, found)]
    return found


def compartment_of(name: str, preset: Preset) -> tuple[str, str] | None:
    """(key, spelling) of the compartment that a table's name stands for."""
    return next(((key, spelling) for before, key, spelling in _readings(name, preset) if not before), None)


def names_table(name: str, preset: Preset) -> bool:
    """Whether a name is a table's of the preset, with something before it or not."""
    return any(True for _ in _readings(name, preset))


def _readings(name: str, preset: Preset) -> Iterator[tuple[str, str, str]]:
    """(beginning, key, spelling) of a name that is a compartment's, with something before it or not.

    As little as can be is before it: Per_Cells is the table Per_Cells, and not Cells with Per_ before it.
    """
    found = list(_all_readings(name, preset))
    least = min((len(before) for before, _, _ in found), default=0)
    yield from (one for one in found if len(one[0]) == least)


def _all_readings(name: str, preset: Preset) -> Iterator[tuple[str, str, str]]:
    lower = name.lower()
    keys = [(key, preset.metadata[0]) for key in preset.metadata[-1:]] + [(key, key) for key in preset.compartments]
    for pattern in preset.table_names:
        before, after = pattern.lower().split("{label}")
        for label, key in keys:
            wanted = before + label + after
            start = len(lower) - len(wanted)
            if lower.endswith(wanted) and (start == 0 or lower[start - 1] == "_"):
                yield name[:start], key, name[start + len(before) : len(name) - len(after)]


def _add_database(file: File, preset: Preset, places: Places, found: Grouped) -> None:
    path = file.entry.path
    try:
        if file.entry.size == 0:
            raise BadSourceError(path, "the file is empty", "Export it again, or take it away.")
        tables = database_reader(file.format, places).tables(path, file.fingerprint)
    except BadSourceError as error:
        found.skipped.append(Skipped(file.relative, "", error.source, error.cause))
        return
    sources: dict[str, Source] = {}
    for table in tables:
        match = compartment_of(table, preset)
        if match is None or (match[0] in sources and table.lower() == match[0]):
            continue
        key, spelling = match
        found.spelled.setdefault(key, spelling)
        sources[key] = file.source(key, table)
    if sources:
        found.datasets.append(Dataset(file.relative, tuple(sources[key] for key in sorted(sources))))
    else:
        expected = ", ".join(preset.table_names[0].format(label=naming.label_of(one, one)) for one in _keys(preset))
        found.skipped.append(Skipped(file.relative, "", path, f"it has no table called {expected}"))


def _keys(preset: Preset) -> tuple[str, ...]:
    return (*preset.metadata[-1:], *preset.compartments)


def _add_folder(
    folder: str, files: list[File], folders: set[str], options: Options, places: Places, found: Grouped
) -> None:
    """The datasets of one folder: one, or one for each beginning that its files' names have in common."""
    preset = options.preset
    groups: dict[str, dict[str, tuple[str, File]]] = {}
    for file in files:
        for before, key, spelling in _readings(file.stem, preset):
            tables = groups.setdefault(before, {})
            if key in tables and tables[key][1] is not file:
                other = tables[key][1]
                raise LayoutError(
                    f"{_where(file)}: {_name(other)} and {_name(file)} are both the table of {key!r}. Take one of "
                    f"them away."
                )
            tables[key] = (spelling, file)
    combined = {beginning: file for file in files if (beginning := _combined(file)) is not None}
    for beginning in combined:
        groups.setdefault(beginning, {})
    whole = {
        before: tables
        for before, tables in groups.items()
        if not before or before in combined or len(tables) > 1 or set(tables) & set(preset.metadata[:1])
    }
    for before, tables in sorted(whole.items()):
        sources = {key: file.source(key) for key, (_, file) in tables.items()}
        for key, (spelling, _) in tables.items():
            found.spelled.setdefault(key, spelling)
        if before in combined and any(key not in sources for key in preset.compartments):
            _add_combined(combined[before], preset, places, sources, found)
        if sources:
            name = "/".join(part for part in (folder, before.rstrip("_") if len(whole) > 1 else "") if part)
            name = name or _top(files[0], options, folders)
            found.datasets.append(Dataset(name, tuple(sources[key] for key in sorted(sources))))


def _add_combined(file: File, preset: Preset, places: Places, sources: dict[str, Source], found: Grouped) -> None:
    """The compartments that lie side by side in one file, where they have no file of their own."""
    try:
        names = combined_compartments(file.source(""), places)
    except BadSourceError as error:
        found.skipped.append(Skipped(file.folder or file.relative, "", error.source, error.cause))
        return
    for name in names:
        key = name.lower()
        if key in preset.compartments and key not in sources:
            found.spelled.setdefault(key, name)
            sources[key] = file.source(key, name)


def _combined(file: File) -> str | None:
    """What stands before "object" in the name of a combined file; None for any other file."""
    before, _, name = file.stem.rpartition("_")
    if file.format is not Format.CSV or name.lower() not in COMBINED:
        return None
    return f"{before}_" if before else ""


def _top(file: File, options: Options, folders: set[str]) -> str:
    """The name of the dataset that lies in the source path itself."""
    path = options.source.rstrip("/")
    if path == file.entry.path:
        path = path.rpartition("/")[0]
    name = path.rpartition("/")[2] if is_remote(path) else Path(path).absolute().name
    return name if name and name not in folders else "."


def _is_numbered(source: Source, preset: Preset, places: Places) -> bool:
    try:
        return preset.table_number in reader_of(source.format, places).columns(source)
    except BadSourceError:
        return True  # it is left out when its header is read, and there it is reported


def _where(file: File) -> str:
    return file.entry.path[: -len(_name(file))].rstrip("/\\")


def _name(file: File) -> str:
    return file.relative.rpartition("/")[2]


def _split(dataset: Dataset, preset: Preset, places: Places, found: Grouped) -> Iterator[Dataset]:
    """A dataset for each TableNumber, where the tables hold the rows of several."""
    numbers: dict[str, tuple[str | None, ...]] = {}
    for source in dataset.sources:
        reader = numbered_reader(source.format, places)
        if reader is None or not preset.table_number:
            continue
        try:
            numbers[source.compartment] = reader.numbers(source, preset.table_number, preset.image_number)
        except BadSourceError as error:
            skipped = Skipped(dataset.name, source.compartment, source.where, error.cause, reader.count(source))
            found.skipped.append(skipped)
    bad = {one.where for one in found.skipped}
    dataset = replace(dataset, sources=tuple(one for one in dataset.sources if one.where not in bad))
    if not dataset.sources:
        return
    images_first = sorted(numbers, key=lambda key: key not in preset.metadata)
    every = list(dict.fromkeys(number for key in images_first for number in numbers[key]))
    if not every:
        yield dataset
        return
    if len(every) == 1:
        yield replace(dataset, table_number=every[0])
        return
    if without := [source.where for source in dataset.sources if not _is_numbered(source, preset, places)]:
        raise LayoutError(
            f"{without[0]} has no column {preset.table_number}, while other tables there hold rows of {len(every)} "
            f"datasets, told apart by it. Add the column, or convert each dataset on its own."
        )
    for number in every:
        only = Only(preset.table_number, number)
        sources = tuple(replace(source, only=only) for source in dataset.sources)
        which = f"without {preset.table_number}" if number is None else f"{preset.table_number} {number}"
        yield Dataset(f"{dataset.name}, {which}", sources, number)
