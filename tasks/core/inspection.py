"""Stage 2, inspect: one schema for each compartment over all its sources, and the relations among compartments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import reduce

from prefect_cytotable.tasks.core import schema as schemas
from prefect_cytotable.tasks.core.errors import ArgumentError, BadSourceError, LayoutError, nearest
from prefect_cytotable.tasks.core.gather import refuse_if_wanted
from prefect_cytotable.tasks.core.model import (
    Column,
    ColumnType,
    Dataset,
    Gathered,
    Inspected,
    Options,
    Relation,
    Schema,
    Skipped,
    Source,
)
from prefect_cytotable.tasks.core.naming import TABLE_NUMBER, Namer
from prefect_cytotable.tasks.core.places import Places, is_remote
from prefect_cytotable.tasks.core.sources.base import Sample
from prefect_cytotable.tasks.core.sources.registry import reader_of

REMOTE_READS = 16
"""Headers that are read from an object store at once: each waits for an answer, not for a processor."""

WIDTHS = {
    ColumnType.BOOL: 1,
    ColumnType.INT64: 8,
    ColumnType.FLOAT: 4,
    ColumnType.DOUBLE: 8,
    ColumnType.STRING: 8,
}
"""The least bytes of a value in Arrow memory."""

SAMPLES = 16
"""Sources of a compartment that are sampled for types, spread over all of them."""

SAMPLE_BYTES = 1 << 20
"""What is read of a compartment for them, in all."""

Widened = tuple[tuple[str, str, ColumnType], ...]


@dataclass(frozen=True)
class _Headers:
    """Column names by source path and table, and the sources that have none that can be read."""

    columns: dict[str, tuple[str, ...]]
    bad: dict[str, Skipped]


def inspect(gathered: Gathered, options: Options, widened: Widened = (), bad: tuple[Skipped, ...] = ()) -> Inspected:
    """Schemas and relations of what was gathered.

    Args:
        gathered: The datasets.
        options: The conversion.
        widened: Types that chunks found to be needed, beyond what the samples told.
        bad: Sources that chunks found to be unreadable.

    Raises:
        LayoutError: Compartments or key columns are missing, or nothing relates two compartments.
        BadSourceError: A source is bad, and `on_bad_source` forbids that.
    """
    headers = _headers(gathered, options)
    samples, unreadable, counts = _samples(gathered, headers, options)
    known = {one.where: one for one in bad} | headers.bad | unreadable
    gathered = _without(gathered, known)
    keys = _key_columns(gathered, headers, options)
    gathered = _without_keyless(gathered, headers, keys, options)
    present = [key for key, _ in gathered.labels if any(one.source(key) for one in gathered.datasets)]
    tables = tuple(
        _schema(key, gathered, headers, samples.get(key, []), keys[key], options, widened) for key in present
    )
    compartments = [key for key in present if key not in options.preset.metadata]
    if not compartments:
        raise LayoutError(_nothing_left(gathered, options))
    relations = _relations(tables, gathered, options)
    base = _base(compartments, relations, options) if options.join else compartments[0]
    if options.join and not options.query:
        _check_connected(base, compartments, relations, gathered, tables)
    return Inspected(gathered, tables, relations, base, counts, widened)


def _sources(gathered: Gathered) -> Iterable[tuple[Dataset, Source]]:
    return ((dataset, source) for dataset in gathered.datasets for source in dataset.sources)


def _each(sources: list[tuple[Dataset, Source]], action: Callable[[Source], object], workers: int) -> list[object]:
    """What `action` returns for each source, or the BadSourceError that it raised."""

    def attempt(pair: tuple[Dataset, Source]) -> object:
        try:
            return action(pair[1])
        except BadSourceError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(attempt, sources))


def _bad(dataset: Dataset, source: Source, error: BadSourceError, options: Options) -> Skipped:
    skipped = Skipped(dataset.name, source.compartment, source.where, error.cause, _count(source, options))
    refuse_if_wanted(skipped, options)
    return skipped


def _count(source: Source, options: Options) -> int | None:
    return reader_of(source.format, Places(options.storage)).count(source)


def unreadable(gathered: Gathered, error: BadSourceError, options: Options) -> Skipped | None:
    """The gathered source that `error` is about, as one to be skipped; None where it is about none of them."""
    for dataset, source in _sources(gathered):
        if error.source in (source.where, source.path):
            return Skipped(dataset.name, source.compartment, source.where, error.cause, _count(source, options))
    return None


def _headers(gathered: Gathered, options: Options) -> _Headers:
    tables: dict[str, tuple[Dataset, Source]] = {}
    for dataset, source in _sources(gathered):
        tables.setdefault(source.where, (dataset, source))
    sources = list(tables.values())
    places = Places(options.storage)
    columns: dict[str, tuple[str, ...]] = {}
    bad: dict[str, Skipped] = {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    workers = max(options.workers, REMOTE_READS) if is_remote(gathered.root) else options.workers
    answers = _each(sources, lambda one: reader_of(one.format, places).columns(one), workers)
    for (dataset, source), answer in zip(sources, answers, strict=True):
        if isinstance(answer, BadSourceError):
            bad[source.where] = _bad(dataset, source, answer, options)
        else:
            assert isinstance(answer, tuple)
            columns[source.where] = shared.setdefault(answer, answer)
    return _Headers(columns, bad)


def _samples(
    gathered: Gathered, headers: _Headers, options: Options
) -> tuple[dict[str, list[Sample]], dict[str, Skipped], tuple[int, int]]:
    """Samples by compartment, the sources whose sample cannot be read, and (sampled, all)."""
    chosen: list[tuple[Dataset, Source]] = []
    total = 0
    for key, _ in gathered.labels:
        pairs = [(one, source) for one, source in _sources(gathered) if source.compartment == key]
        pairs = list({pair[1].where: pair for pair in pairs if pair[1].where in headers.columns}.values())
        total += len(pairs)
        step = max(len(pairs) / SAMPLES, 1)
        chosen += [pairs[int(position * step)] for position in range(min(SAMPLES, len(pairs)))]
    alike: dict[tuple[str, tuple[str, ...]], list[tuple[Dataset, Source]]] = {}
    for dataset, source in chosen:
        alike.setdefault((source.compartment, headers.columns[source.where]), []).append((dataset, source))
    samples: dict[str, list[Sample]] = {}
    bad: dict[str, Skipped] = {}
    for (key, _), pairs in alike.items():
        reader = reader_of(pairs[0][1].format, Places(options.storage))
        measures = key not in options.preset.metadata
        try:
            samples.setdefault(key, []).append(reader.sample([source for _, source in pairs], SAMPLE_BYTES, measures))
        except BadSourceError:
            for dataset, source in pairs:
                try:
                    samples.setdefault(key, []).append(reader.sample([source], SAMPLE_BYTES // len(pairs), measures))
                except BadSourceError as error:
                    bad[source.where] = _bad(dataset, source, error, options)
    return samples, bad, (len(chosen), total)


def _without(gathered: Gathered, bad: dict[str, Skipped]) -> Gathered:
    """The datasets without their bad sources."""
    if not bad:
        return gathered
    datasets = tuple(
        replace(one, sources=tuple(source for source in one.sources if source.where not in bad))
        for one in gathered.datasets
    )
    new = [one for one in bad.values() if one not in gathered.skipped]
    return replace(gathered, datasets=datasets, skipped=(*gathered.skipped, *sorted(new, key=lambda one: one.where)))


def _key_columns(gathered: Gathered, headers: _Headers, options: Options) -> dict[str, tuple[str, str]]:
    """(image number, object number) columns by compartment; the second is empty for image tables."""
    preset, given = options.preset, dict(options.object_numbers)
    keys = {}
    for key, label in gathered.labels:
        if not preset.image_number:
            keys[key] = ("", given.get(key, ""))
            continue
        if key in preset.metadata:
            keys[key] = (preset.image_number, "")
            continue
        sources = [source for _, source in _sources(gathered) if source.compartment == key]
        names = {name for source in sources for name in headers.columns.get(source.where, ())}
        usual = [
            f"{label}_Number_Object_Number",
            f"{label}_ObjectNumber",
            "ObjectNumber",
            "Number_Object_Number",
        ]
        pattern = preset.object_number.format(label=label)
        candidates = [one for one in (given.get(key, ""), pattern, *usual) if one]
        keys[key] = (preset.image_number, next((one for one in candidates if one in names), candidates[0]))
    return keys


def _without_keyless(
    gathered: Gathered, headers: _Headers, keys: dict[str, tuple[str, str]], options: Options
) -> Gathered:
    """The datasets without sources that lack a key column."""
    bad = {}
    for dataset, source in _sources(gathered):
        names = headers.columns[source.where]
        missing = [name for name in keys[source.compartment] if name and name not in names]
        if missing:
            hint = nearest(missing[0], names)
            cause = f"it has no column {missing[0]!r}" + (f" ({hint})" if hint.startswith("Did") else "")
            error = BadSourceError(source.where, cause, "")
            bad[source.where] = _bad(dataset, source, error, options)
    return _without(gathered, bad)


def _nothing_left(gathered: Gathered, options: Options) -> str:
    causes = [f"{one.where}: {one.cause}" for one in gathered.skipped[:3]]
    if causes:
        return f"{gathered.root}: no compartment's table can be read. {'; '.join(causes)}"
    wanted = ", ".join(key for key in options.preset.compartments)
    return f"{gathered.root}: there is no table of any compartment ({wanted}). Check preset and compartments."


def _schema(
    key: str,
    gathered: Gathered,
    headers: _Headers,
    samples: list[Sample],
    keys: tuple[str, str],
    options: Options,
    widened: Widened,
) -> Schema:
    """The union of the columns of a compartment, in the order in which they are first met."""
    sources = [source for _, source in _sources(gathered) if source.compartment == key]
    sources.sort(key=lambda one: one.path)  # the order of the columns is that of the files, whatever their numbers
    presence: Counter[tuple[str, ...]] = Counter(headers.columns[source.where] for source in sources)
    if len({frozenset(names) for names in presence}) > 1 and not options.common_schema:
        raise LayoutError(_differing(gathered, sources, headers))
    counts: Counter[str] = Counter()
    for names, times in presence.items():
        counts.update(dict.fromkeys(names, times))
    nothing: dict[str, ColumnType | None] = {}
    sampled = reduce(schemas.merge, (one.types for one in samples), nothing)
    wider = {column: type_ for compartment, column, type_ in widened if compartment == key}
    image = key in options.preset.metadata
    label = gathered.label(key)
    namer = _kept if options.preset.keep_names else Namer(label, frozenset(options.preset.identifying))
    columns = []
    for name, times in counts.items():
        default = ColumnType.STRING if image or not keys[0] else ColumnType.DOUBLE
        type_ = schemas.widest(sampled.get(name), wider.get(name)) or default
        if name and name in keys:
            type_ = ColumnType.INT64
        columns.append(Column(name, type_, namer(name), len(sources) - times))
    _check_names(f"{gathered.root}: {label}", columns)
    rows = max((one.row_bytes for one in samples), default=8 * len(columns))
    text = max((one.text_bytes for one in samples), default=8 * len(columns))
    held = max((one.held_bytes for one in samples), default=0)
    width = sum(WIDTHS[column.type] for column in columns)
    return Schema(key, label, tuple(columns), *keys, max(rows, width), text, held)


def _kept(column: str) -> str:
    """The name of a column that keeps its name."""
    return column


def _differing(gathered: Gathered, sources: list[Source], headers: _Headers) -> str:
    first = sources[0]
    names = set(headers.columns[first.where])
    other = next(one for one in sources if set(headers.columns[one.where]) != names)
    strange = sorted(names ^ set(headers.columns[other.where]))
    return (
        f"{first.where} and {other.where} have different columns, for example {strange[0]!r}, and "
        f"infer_common_schema=False forbids to unite them. Leave that argument out to get all columns, with nulls."
    )


def _check_names(where: str, columns: list[Column]) -> None:
    outputs: dict[str, str] = {}
    for column in columns:
        if column.output in outputs:
            raise LayoutError(
                f"{where} has the columns {outputs[column.output]!r} and {column.name!r}, which would both be called "
                f"{column.output!r}. Rename one of them, or change identifying_columns."
            )
        if column.output == TABLE_NUMBER:
            continue
        outputs[column.output] = column.name


def _relations(tables: tuple[Schema, ...], gathered: Gathered, options: Options) -> tuple[Relation, ...]:
    """The preset's or the user's relations among the compartments that are there; else those of Parent_* columns."""
    by_key = {table.compartment: table for table in tables}
    found: list[Relation] = []
    for wanted in options.relations or options.preset.relations:
        child, parent = by_key.get(wanted.child), by_key.get(wanted.parent)
        if child is None or parent is None:
            continue
        patterns = (wanted.column,) if options.relations else (wanted.column, *_USUAL_PARENTS)
        column = _parent_column(patterns, child, parent)
        if column is None and options.relations:
            name = wanted.column.format(child=child.label, parent=parent.label)
            raise ArgumentError(
                f"relations: {child.label} has no column {name!r}. {nearest(name, [one.name for one in child.columns])}"
            )
        if column:
            found.append(Relation(wanted.child, wanted.parent, column))
    if options.relations:
        return tuple(found)
    related = {frozenset((one.child, one.parent)) for one in found}
    for child in tables:
        for parent in tables:
            if parent.object_number and child is not parent:
                column = _parent_column(_USUAL_PARENTS, child, parent)
                if column and frozenset((child.compartment, parent.compartment)) not in related:
                    found.append(Relation(child.compartment, parent.compartment, column))
    return tuple(found)


_USUAL_PARENTS = ("Parent_{parent}", "{child}_Parent_{parent}")


def _parent_column(patterns: tuple[str, ...], child: Schema, parent: Schema) -> str | None:
    names = {column.name.lower(): column.name for column in child.columns}
    for pattern in patterns:
        name = pattern.format(child=child.label, parent=parent.label).lower()
        if name in names:
            return names[name]
    return None


def _base(compartments: list[str], relations: tuple[Relation, ...], options: Options) -> str:
    """The preset's base where it is there; else the compartment from which most others can be reached upwards."""
    if options.preset.base in compartments:
        return options.preset.base

    def reach(start: str) -> int:
        reached, waiting = {start}, [start]
        while waiting:
            child = waiting.pop()
            for one in relations:
                if one.child == child and one.parent not in reached:
                    reached.add(one.parent)
                    waiting.append(one.parent)
        return len(reached)

    return max(compartments, key=lambda one: (reach(one), one == "cytoplasm", -compartments.index(one)))


def _check_connected(
    base: str,
    compartments: list[str],
    relations: tuple[Relation, ...],
    gathered: Gathered,
    tables: tuple[Schema, ...],
) -> None:
    reached, waiting = {base}, [base]
    while waiting:
        one = waiting.pop()
        for relation in relations:
            for here, there in ((relation.child, relation.parent), (relation.parent, relation.child)):
                if here == one and there not in reached:
                    reached.add(there)
                    waiting.append(there)
    if alone := [one for one in compartments if one not in reached]:
        labels = ", ".join(gathered.label(one) for one in reached)
        label = gathered.label(alone[0])
        example = f'relations={{"{label}.Parent_{gathered.label(base)}": "{gathered.label(base)}"}}'
        raise LayoutError(
            f"{gathered.root}: Nothing relates {label} to {labels}: no column Parent_{label} there, and no Parent_* "
            f"column of theirs in {label}. Name the column ({example}), leave {label} out of compartments, or convert "
            f"with join=False."
        )
