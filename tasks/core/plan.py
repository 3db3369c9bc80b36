"""Stage 3, plan: cut the datasets into chunks that fit the memory budget, and refuse what cannot be done.

Decides everything before a row is read: nothing is converted here, and a plan prints (``prefect-cytotable plan``).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import msgspec
import pyarrow as pa
from prefect_cytotable.tasks.core import query as queries
from prefect_cytotable.tasks.core.budget import COPIES, chunk_bytes, even_share, show_bytes
from prefect_cytotable.tasks.core.errors import DiskSpaceError, DuplicateKeyError
from prefect_cytotable.tasks.core.layout import DATASET, output_tables
from prefect_cytotable.tasks.core.model import (
    Chunk,
    Dataset,
    Format,
    Inspected,
    KeyCheck,
    Options,
    OutputColumn,
    OutputTable,
    Plan,
    Region,
    Schema,
    Slice,
    Source,
    Span,
)
from prefect_cytotable.tasks.core.naming import TABLE_NUMBER, column_rank
from prefect_cytotable.tasks.core.schema import arrow_type, cast_type
from prefect_cytotable.tasks.core.sources.base import ImageRows, Index, Keys
from prefect_cytotable.tasks.core.sources.registry import reader_of

PART_FORMAT = 1
"""Raised when the same slice and options make other parts than before; old parts then count for nothing."""

UNCHECKED = "checked as each chunk is read"


@dataclass(frozen=True)
class _Sizes:
    """Rows and bytes of one dataset: counted where it was indexed, estimated otherwise."""

    dataset: int
    indexes: dict[str, Index] | None
    rows: int
    memory: int


def plan(inspected: Inspected, options: Options) -> Plan:
    """The plan of a conversion.

    Raises:
        DuplicateKeyError: An index shows object keys that are not unique.
        JoinQueryError: The SQL of ``joins=`` does not fit the tables.
    """
    numbered = [one.table_number for one in inspected.gathered.datasets]
    with_table_number = any(number is not None for number in numbered)
    tables = output_tables(inspected, options, with_table_number)
    if options.join and options.query:
        options = replace(options, query=queries.prepared(options.query, query_tables(inspected)))
        tables = (_query_output(inspected, options, with_table_number),)
    limit = chunk_bytes(options.memory_budget)
    with ThreadPoolExecutor(options.workers) as pool:
        datasets = range(len(inspected.gathered.datasets))
        sizes = list(pool.map(lambda number: _sizes(inspected, options, number, limit), datasets))
    limit = even_share(sum(one.memory for one in sizes), limit)
    checks = _key_checks(inspected, options, sizes)
    drafts = list(_draft(inspected, options, sizes, limit))
    seed = _seed(inspected, options, tables, with_table_number)
    chunks = tuple(
        _chunk(number, slices, rows, memory, inspected, seed) for number, (slices, rows, memory) in enumerate(drafts)
    )
    rows = sum(one.rows for one in sizes)
    memory = sum(one.memory for one in sizes)
    return Plan(
        options=options,
        inspected=inspected,
        tables=tables,
        chunks=chunks,
        with_table_number=with_table_number,
        key_checks=checks,
        rows=rows,
        rows_counted=all(one.indexes is not None for one in sizes),
        memory=max((one.memory for one in chunks), default=0),
        disk=memory,
        workers=options.workers,
    )


def check_disk(plan: Plan, work: Path, destination: Path) -> None:
    """Refuse when parts and output surely do not fit the disk.

    A compressed part is taken to be at least half of its Arrow bytes; parts and output stand side by side at the end.

    Raises:
        DiskSpaceError: There is not enough room.
    """
    needed = plan.disk // 2
    places = {_existing(work): needed, _existing(destination.parent): needed}
    if len({place.stat().st_dev for place in places}) == 1:
        places = {_existing(work): 2 * needed}
    for place, size in places.items():
        free = shutil.disk_usage(place).free
        if free < size:
            raise DiskSpaceError(
                f"{place}: {show_bytes(free)} free, but parts and output need at least {show_bytes(size)}. Make room, "
                f"or choose another work_dir or destination."
            )


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def query_tables(inspected: Inspected) -> dict[str, str]:
    """The compartment that each file name in a joins query stands for: "cells", "per_cells"."""
    names: dict[str, str] = {}
    for schema in inspected.schemas:
        names[schema.compartment] = schema.compartment
        names[f"per_{schema.compartment}"] = schema.compartment
    return names


def _query_output(inspected: Inspected, options: Options, with_table_number: bool) -> OutputTable:
    """The columns of a joins query, learnt by running it over empty tables."""
    empty = {}
    for schema in inspected.schemas:
        fields = [(one.output, arrow_type(cast_type(one.type, options.casts))) for one in schema.columns]
        if with_table_number and all(name != TABLE_NUMBER for name, _ in fields):
            fields.insert(0, (TABLE_NUMBER, pa.int64()))
        empty[schema.compartment] = pa.schema(fields).empty_table()
    columns: dict[str, OutputColumn] = {}
    for field in queries.run(options.query, empty).schema:
        if field.name not in columns:
            columns[field.name] = OutputColumn(field.name, _plain(field.type), "joins", field.name)
    if with_table_number and TABLE_NUMBER not in columns:
        columns[TABLE_NUMBER] = OutputColumn(TABLE_NUMBER, "int64", DATASET, "TableNumber")
    return OutputTable("joined", tuple(sorted(columns.values(), key=lambda one: column_rank(one.name))))


def _plain(type_: pa.DataType) -> str:
    """The name of a type that Parquet and every reader know; decimals become doubles, the rest text."""
    try:
        return str(pa.type_for_alias(str(type_)))
    except ValueError:
        return "double" if pa.types.is_decimal(type_) else "string"


def _keys(schema: Schema) -> Keys:
    return Keys(schema.image_number, schema.object_number)


def _present(inspected: Inspected, dataset: Dataset) -> list[tuple[Schema, Source]]:
    pairs = [(schema, dataset.source(schema.compartment)) for schema in inspected.schemas]
    return [(schema, source) for schema, source in pairs if source is not None]


def _sizes(inspected: Inspected, options: Options, number: int, limit: int) -> _Sizes:
    """Rows and bytes of a dataset; indexed where it may have to be cut."""
    dataset = inspected.gathered.datasets[number]
    present = _present(inspected, dataset)
    estimates = {
        schema.compartment: max(source.fingerprint.size // max(schema.text_bytes, 1), 0) for schema, source in present
    }
    memory = sum(estimates[schema.compartment] * schema.row_bytes for schema, _ in present)
    rows = estimates.get(inspected.base, 0)
    cuts = memory > limit or (options.chunk_rows and rows * 1.5 > options.chunk_rows)
    if not cuts and all(source.format is Format.CSV for _, source in present):
        return _Sizes(number, None, rows, memory)
    indexes = {
        schema.compartment: reader_of(source.format).index(source, _keys(schema), bool(schema.object_number))
        for schema, source in present
    }
    counted = {name: sum(one.rows for one in index.images) + index.keyless for name, index in indexes.items()}
    memory = sum(counted[schema.compartment] * schema.row_bytes for schema, _ in present)
    return _Sizes(number, indexes, counted.get(inspected.base, 0), memory)


def _key_checks(inspected: Inspected, options: Options, sizes: list[_Sizes]) -> tuple[KeyCheck, ...]:
    checks = []
    for schema in inspected.schemas:
        if not schema.object_number:
            continue
        findings = set()
        for one in sizes:
            index = (one.indexes or {}).get(schema.compartment)
            if one.indexes is None:
                findings.add(UNCHECKED)
            elif index is not None:
                findings.add(index.finding)
                if index.unique is False and options.join:
                    source = inspected.gathered.datasets[one.dataset].source(schema.compartment)
                    where = source.where if source else schema.label
                    raise DuplicateKeyError(
                        f"{where}: image and object numbers are not unique ({index.finding}). A join would multiply "
                        f"rows. Was the export appended to an older one? Export it into an empty place."
                    )
        checks.append(KeyCheck(schema.compartment, "; ".join(sorted(findings))))
    return tuple(checks)


Draft = tuple[tuple[Slice, ...], int, int]
"""(slices, rows of the base, Arrow bytes) of a chunk to be."""


def _draft(inspected: Inspected, options: Options, sizes: list[_Sizes], limit: int) -> Iterator[Draft]:
    """Chunks in the order of the output: small datasets together, large ones cut."""
    alone = not options.concat and not options.join
    waiting: list[tuple[Slice, int, int]] = []
    for one in sizes:
        if one.indexes is not None:
            if waiting:
                yield _together(waiting)
                waiting = []
            yield from _cut(inspected, options, one.dataset, one.indexes, limit)
            continue
        rows = sum(row for _, row, _ in waiting) + one.rows
        memory = sum(size for _, _, size in waiting) + one.memory // 2
        full = memory > limit or (options.chunk_rows and rows > options.chunk_rows) or alone
        if waiting and full:
            yield _together(waiting)
            waiting = []
        present = _present(inspected, inspected.gathered.datasets[one.dataset])
        regions = tuple(Region(schema.compartment) for schema, _ in present)
        waiting.append((Slice(one.dataset, regions), one.rows, one.memory))
    if waiting:
        yield _together(waiting)


def _together(waiting: list[tuple[Slice, int, int]]) -> Draft:
    return (
        tuple(one for one, _, _ in waiting),
        sum(row for _, row, _ in waiting),
        sum(size for *_, size in waiting),
    )


def _cut(inspected: Inspected, options: Options, number: int, indexes: dict[str, Index], limit: int) -> Iterator[Draft]:
    """Chunks of one dataset: ranges of images, or of objects where one image is too large."""
    by_image: dict[str, dict[int, ImageRows]] = {
        name: {one.image: one for one in index.images} for name, index in indexes.items()
    }
    widths = {schema.compartment: schema.row_bytes for schema in inspected.schemas}
    images = sorted({image for found in by_image.values() for image in found})
    base = by_image.get(inspected.base, {})
    keyless = {name: index.keyless for name, index in indexes.items()}
    first = True
    group: list[int] = []
    rows = memory = 0

    def close() -> Draft:
        nonlocal first
        regions = tuple(
            _region(name, [found[image] for image in group if image in found], keyless[name] if first else 0)
            for name, found in by_image.items()
        )
        bounds = (group[0], group[-1]) if group else (0, -1)
        first = False
        return (Slice(number, regions, bounds),), rows, memory

    for image in images:
        here = sum(found[image].rows * widths[name] for name, found in by_image.items() if image in found)
        count = base[image].rows if image in base else 0
        too_many = bool(options.chunk_rows) and rows + count > options.chunk_rows
        if group and (too_many or (not options.chunk_rows and memory + here // 2 > limit)):
            yield close()
            group, rows, memory = [], 0, 0
        pieces = _pieces(options, count, here, limit)
        if pieces > 1:
            parts = list(_objects(inspected, options, number, by_image, image, pieces, here))
            if parts:
                if first and any(keyless.values()):
                    yield close()
                first = False
                yield from parts
                continue
        group.append(image)
        rows, memory = rows + count, memory + here
    if group or first:
        yield close()


def _region(name: str, images: list[ImageRows], keyless: int) -> Region:
    spans = tuple(span for one in images for span in one.spans)
    return Region(name, _condensed(spans), sum(one.rows for one in images), keyless)


def _condensed(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Spans that follow each other made one."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start):
        if joined and joined[-1].stop in (span.start, span.start - 1):
            joined[-1] = Span(joined[-1].start, span.stop)
        else:
            joined.append(Span(span.start, span.stop))
    return tuple(joined)


def _pieces(options: Options, rows: int, memory: int, limit: int) -> int:
    """Into how many parts an image is cut; one where it fits a chunk."""
    if options.query or not options.join or not rows:
        return 1
    if options.chunk_rows:
        return -(-rows // options.chunk_rows)
    return -(-memory // limit) if memory > 2 * limit else 1


def _objects(
    inspected: Inspected,
    options: Options,
    number: int,
    by_image: dict[str, dict[int, ImageRows]],
    image: int,
    pieces: int,
    memory: int,
) -> Iterator[Draft]:
    """One image cut by the object numbers of the base; nothing where it has rows without a number."""
    dataset = inspected.gathered.datasets[number]
    schema, source = inspected.schema(inspected.base), dataset.source(inspected.base)
    assert schema is not None
    assert source is not None
    numbers = reader_of(source.format).objects(source, _keys(schema), image)
    rows = by_image[inspected.base][image].rows
    if len(numbers) != rows:
        return
    step = options.chunk_rows or -(-rows // pieces)
    for start in range(0, rows, step):
        objects = numbers[start : start + step]
        regions = []
        for name, found in by_image.items():
            one = found.get(image, ImageRows(image, 0))
            counted = len(objects) if name == inspected.base else (0 if not one.rows else None)
            regions.append(Region(name, one.spans, counted))
        yield (
            (Slice(number, tuple(regions), (image, image), (objects[0], objects[-1])),),
            len(objects),
            memory * len(objects) // rows,
        )


def _chunk(number: int, slices: tuple[Slice, ...], rows: int, memory: int, inspected: Inspected, seed: bytes) -> Chunk:
    datasets = inspected.gathered.datasets
    used = [(datasets[one.dataset], one) for one in slices]
    content = [(dataset.name, dataset.table_number, dataset.sources, replace(one, dataset=0)) for dataset, one in used]
    key = hashlib.sha256(seed + msgspec.json.encode(content)).hexdigest()[:32]
    text = max(
        (source.fingerprint.size for dataset, one in used for source in dataset.sources if not one.images),
        default=0,
    )
    return Chunk(number, _name(used), key, slices, rows, int(memory * COPIES) + text)


def _name(used: list[tuple[Dataset, Slice]]) -> str:
    """What a person reads: "a.sqlite, images 1-640", "site-1 to site-25 (25 datasets)"."""
    dataset, one = used[0]
    if len(used) > 1:
        return f"{dataset.name} to {used[-1][0].name} ({len(used)} datasets)"
    if one.images is None:
        return dataset.name
    first, last = one.images
    if last < first:
        return f"{dataset.name}, no images"
    text = f"{dataset.name}, image{'s' if first != last else ''} {first}{f'-{last}' if first != last else ''}"
    return f"{text}, objects {one.objects[0]}-{one.objects[1]}" if one.objects else text


def _seed(inspected: Inspected, options: Options, tables: tuple[OutputTable, ...], with_table_number: bool) -> bytes:
    """What every chunk's result depends on, besides its own slices."""
    schemas = [
        (one.compartment, one.label, one.columns, one.image_number, one.object_number)
        for one in (
            replace(schema, columns=tuple(replace(column, absent=0) for column in schema.columns))
            for schema in inspected.schemas
        )
    ]
    return msgspec.json.encode(
        (
            PART_FORMAT,
            version("prefect-cytotable"),
            pa.__version__,
            schemas,
            inspected.relations,
            inspected.base,
            tables,
            with_table_number,
            options.join,
            options.query,
            options.drop_null,
            options.casts,
            options.sort_output,
            options.unmatched,
        )
    )
