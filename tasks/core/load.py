"""Reading a chunk: its rows of every compartment, as columns and keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.arrays import from_numpy
from prefect_cytotable.tasks.core.errors import BadSourceError, SourceChangedError
from prefect_cytotable.tasks.core.join import KeyTable, Step, key_array, steps_from
from prefect_cytotable.tasks.core.model import (
    IMAGE,
    Chunk,
    ColumnType,
    Dataset,
    Format,
    Plan,
    Schema,
    Skipped,
    Slice,
    Source,
    Span,
)
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.schema import to_arrow
from prefect_cytotable.tasks.core.sources.base import Answer, Finding, Keys, Reader, Request, Together
from prefect_cytotable.tasks.core.sources.registry import is_unchanged, reader_of


@dataclass
class Loaded:
    """One compartment's rows in a chunk.

    Attributes:
        columns: Arrays of equal length by source name, in as many pieces as they were read.
        keyless: By dataset of the chunk, the rows that were left unread because they have no image number.
    """

    schema: Schema
    columns: dict[str, pa.ChunkedArray]
    keys: KeyTable
    keyless: Counter[int]

    @property
    def rows(self) -> int:
        """Rows that were read."""
        return len(self.keys.dataset)


@dataclass
class Findings:
    """What is learnt while a chunk is read.

    Attributes:
        notes: How often, by (subject, finding).
        tableless: By compartment, the chunk's datasets that have no table of it.
    """

    widened: list[tuple[str, str, ColumnType]] = field(default_factory=list)
    bad: list[Skipped] = field(default_factory=list)
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)
    tableless: dict[str, set[int]] = field(default_factory=dict)

    @property
    def amends(self) -> bool:
        """Whether the plan has to change before the chunk can be converted."""
        return bool(self.widened or self.bad)


def load_joined(plan: Plan, chunk: Chunk, findings: Findings) -> dict[str, Loaded]:
    """Every compartment of a chunk, the base first; of each the columns that the output or the join needs.

    Where a chunk is a part of one image, the parents that its rows name are read, and no others.
    """
    steps = steps_from(plan.inspected.base, plan.inspected.relations)
    loaded: dict[str, Loaded] = {}
    names = [plan.inspected.base, *(step.compartment for step in steps)]
    known = [schema.compartment for schema in plan.inspected.schemas]
    for name in [*names, *(one for one in known if one not in names)]:
        step = next((one for one in steps if one.compartment == name), None)
        objects = chunk.slices[0].objects if name == plan.inspected.base else _named_parents(chunk, step, loaded)
        loaded[name] = load(plan, chunk, name, _needed(plan, name), findings, objects)
    return loaded


def load(
    plan: Plan,
    chunk: Chunk,
    compartment: str,
    columns: tuple[tuple[str, ColumnType], ...],
    findings: Findings,
    objects: tuple[int, int] | None = None,
) -> Loaded:
    """A chunk's rows of one compartment, those of its datasets one after the other."""
    schema = plan.inspected.schema(compartment)
    assert schema is not None
    keyless = Counter[int]()
    wanted: list[tuple[int, Request]] = []
    for position, slice_ in enumerate(chunk.slices):
        source, region = plan.datasets[slice_.dataset].source(compartment), slice_.region(compartment)
        if source is None or region is None:
            findings.tableless.setdefault(compartment, set()).add(position)
            continue
        keyless[position] += region.keyless
        if region.rows != 0:
            keys = Keys(schema.image_number, schema.object_number)
            spans = _overlapping(region.spans, objects)
            wanted.append((position, Request(source, keys, columns, slice_.images, objects, spans)))
    positions, tables = _read_all(plan, chunk, wanted, findings)
    uniform = [_uniform(table, columns) for table in tables]
    arrays = {name: _one_after_the_other([table[name] for table in uniform], type_) for name, type_ in columns}
    return Loaded(schema, arrays, _keys(plan, chunk, schema, arrays, positions), keyless)


def _read_all(
    plan: Plan, chunk: Chunk, wanted: list[tuple[int, Request]], findings: Findings
) -> tuple[NDArray[np.int32], list[pa.Table]]:
    """(the dataset of each row, tables): sources of one kind at once where that works, else one by one."""
    places = Places(plan.options.storage)
    datasets: list[NDArray[np.int32]] = []
    tables: list[pa.Table] = []
    for _, group in groupby(wanted, key=lambda one: _kind(one[1].source)):
        requests = list(group)
        reader = reader_of(requests[0][1].source.format, places)
        together = _together(plan, chunk, reader, requests, findings) if len(requests) > 1 else None
        if together is not None:
            positions = np.array([position for position, _ in requests], np.int32)
            datasets.append(positions[together.order])
            tables.append(together.table)
            continue
        for position, request in requests:
            answer = _read(reader, request, plan, chunk.slices[position], findings)
            if answer is not None:
                datasets.append(np.full(answer.table.num_rows, position, np.int32))
                tables.append(answer.table)
    return np.concatenate(datasets) if datasets else np.empty(0, np.int32), tables


def _kind(source: Source) -> tuple[Format, str]:
    """Sources of one kind may be read together: those of one database's table, or files of one format."""
    return source.format, source.where if source.table else ""


def _together(
    plan: Plan, chunk: Chunk, reader: Reader, requests: list[tuple[int, Request]], findings: Findings
) -> Together | None:
    """The rows of several sources; None where they have to be read one by one, or not at all under this plan."""
    try:
        together = reader.read_together([request for _, request in requests])
    except BadSourceError:
        return None
    if together is None:
        return None
    compartment = requests[0][1].source.compartment
    if together.widened:
        findings.widened += [(compartment, column, type_) for column, type_ in together.widened]
        return Together(pa.table({}), np.empty(0, np.int32), ())
    counted = zip(requests, together.counts, strict=True)
    if not all(_as_counted(request, chunk.slices[position], rows) for (position, request), rows in counted):
        return None
    _note(compartment, together.findings, findings)
    return together


def _note(compartment: str, found: tuple[Finding, ...], findings: Findings) -> None:
    for one in found:
        subject = f"{compartment}.{one.column}" if one.column else compartment
        findings.notes[subject, one.finding] += one.count


def _keys(
    plan: Plan, chunk: Chunk, schema: Schema, arrays: dict[str, pa.ChunkedArray], datasets: NDArray[np.int32]
) -> KeyTable:
    """The keys among the columns of a compartment."""
    parents = sorted({one.column for one in plan.inspected.relations if one.child == schema.compartment})
    return KeyTable(
        schema.label,
        from_numpy(datasets),
        key_array(arrays[schema.image_number]) if schema.image_number else None,
        key_array(arrays[schema.object_number]) if schema.object_number else None,
        {name: key_array(arrays[name]) for name in parents},
        tuple(_place(plan.datasets[one.dataset], schema) for one in chunk.slices),
    )


def _place(dataset: Dataset, schema: Schema) -> str:
    """Where the rows of a compartment lie, as an error names it."""
    source = dataset.source(schema.compartment)
    if source is None:
        return f"{dataset.name}, {schema.label}"
    return f"{source.where}, {source.only.column} {source.only.value}" if source.only else source.where


def check_unchanged(sources: Iterable[Source]) -> None:
    """Raise SourceChangedError where a source is no longer what was gathered."""
    for source in {source.path: source for source in sources}.values():
        if not is_unchanged(source):
            raise _changed(source)


def _changed(source: Source) -> SourceChangedError:
    return SourceChangedError(
        f"{source.where} was changed while it was being converted. Run again when the program that writes it is "
        f"done; what is done and unchanged is kept."
    )


def _needed(plan: Plan, compartment: str) -> tuple[tuple[str, ColumnType], ...]:
    """(column, type) of what the output shows of a compartment, of its keys, and of its object counts."""
    schema = plan.inspected.schema(compartment)
    assert schema is not None
    wanted = {schema.image_number, schema.object_number}
    wanted |= {one.column for one in plan.inspected.relations if one.child == compartment}
    if plan.options.query:
        wanted |= {column.name for column in schema.columns}
    for table in plan.tables:
        wanted |= {column.column for column in table.columns if column.compartment == compartment}
    if compartment == IMAGE:
        wanted |= {column for _, column in count_columns(plan)}
    return tuple((column.name, column.type) for column in schema.columns if column.name in wanted)


def count_columns(plan: Plan) -> list[tuple[str, str]]:
    """(compartment, column of the image table that tells how many objects of it each image has)."""
    image = plan.inspected.schema(IMAGE)
    if image is None:
        return []
    names = {column.name for column in image.columns}
    pairs = []
    for schema in plan.inspected.schemas:
        for name in (f"Count_{schema.label}", f"Image_Count_{schema.label}"):
            if name in names:
                pairs.append((schema.compartment, name))
    return pairs


def _named_parents(chunk: Chunk, step: Step | None, loaded: dict[str, Loaded]) -> tuple[int, int] | None:
    """Bounds of the object numbers that a part of an image names; None where all objects may be needed."""
    if chunk.slices[0].objects is None or step is None or not step.up:
        return None
    bounds = pc.min_max(loaded[step.via].keys.parents[step.column]).as_py()
    return (bounds["min"], bounds["max"]) if bounds["min"] is not None else (0, 0)


def _overlapping(spans: tuple[Span, ...], objects: tuple[int, int] | None) -> tuple[Span, ...]:
    """The spans that can hold objects within the bounds; a span without bounds of its own can hold any."""
    if objects is None:
        return spans
    inside = tuple(
        one
        for one in spans
        if not one.last_object or (one.first_object <= objects[1] and objects[0] <= one.last_object)
    )
    return inside or spans[:1]


def _read(reader: Reader, request: Request, plan: Plan, slice_: Slice, findings: Findings) -> Answer | None:
    """The reader's answer; None where the source is bad or a column too narrow, which `findings` then tell."""
    source, dataset = request.source, plan.datasets[slice_.dataset].name
    try:
        answer = reader.read(request)
    except FileNotFoundError as error:
        raise _changed(source) from error
    except BadSourceError as error:
        findings.bad.append(Skipped(dataset, source.compartment, source.where, error.cause, reader.count(source)))
        return None
    _note(source.compartment, answer.findings, findings)
    if answer.widened:
        findings.widened += [(source.compartment, column, type_) for column, type_ in answer.widened]
        return None
    if not _as_counted(request, slice_, answer.table.num_rows):
        if not is_unchanged(source):
            raise _changed(source)
        cause = "what tells where its rows lie and the rows themselves do not agree, so it is damaged"
        findings.bad.append(Skipped(dataset, source.compartment, source.where, cause, reader.count(source)))
        return None
    return answer


def _as_counted(request: Request, slice_: Slice, rows: int) -> bool:
    """Whether a source has the rows that its index counted: else it was changed in between, or is damaged."""
    region = slice_.region(request.source.compartment)
    exact = region is not None and region.rows is not None and request.objects in (None, slice_.objects)
    return not exact or region is None or rows == region.rows


def _uniform(table: pa.Table, columns: tuple[tuple[str, ColumnType], ...]) -> dict[str, pa.ChunkedArray]:
    """All planned columns, with nulls for those that the source lacks."""
    present = set(table.column_names)
    return {
        name: table.column(name) if name in present else pa.chunked_array([pa.nulls(table.num_rows, to_arrow(type_))])
        for name, type_ in columns
    }


def _one_after_the_other(pieces: list[pa.ChunkedArray], type_: ColumnType) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], to_arrow(type_))
