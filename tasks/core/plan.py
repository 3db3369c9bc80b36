"""Stage 3, plan: cut the datasets into chunks that fit the memory budget, and refuse what cannot be done.

Decides everything before a row is read: nothing is converted here, and a plan prints (``prefect-cytotable plan``).
"""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import msgspec
import pyarrow as pa

from prefect_cytotable.tasks.core import query as queries
from prefect_cytotable.tasks.core.budget import COPIES, PARSER, chunk_bytes, even_share, show_bytes
from prefect_cytotable.tasks.core.cutting import Sizes, cut, keys_of, sources_of
from prefect_cytotable.tasks.core.errors import DiskSpaceError, DuplicateKeyError
from prefect_cytotable.tasks.core.layout import output_tables, table_number
from prefect_cytotable.tasks.core.model import (
    Chunk,
    Dataset,
    Inspected,
    KeyCheck,
    Options,
    OutputColumn,
    OutputTable,
    Plan,
    Schema,
    Slice,
    Source,
)
from prefect_cytotable.tasks.core.naming import TABLE_NUMBER, column_rank
from prefect_cytotable.tasks.core.places import Places, is_remote
from prefect_cytotable.tasks.core.redact import redact
from prefect_cytotable.tasks.core.schema import arrow_type, cast_type
from prefect_cytotable.tasks.core.sources.base import Cut, Index
from prefect_cytotable.tasks.core.sources.registry import reader_of
from prefect_cytotable.tasks.core.steady import coarsened, steady_share

PART_FORMAT = 2
"""Raised when the same slice and options make other parts than before; old parts then count for nothing."""

UNCHECKED = "checked as each chunk is read"


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
    sized = coarsened(inspected) if options.keep_chunks else inspected
    sizes = _sizes(sized, options, limit)
    share = steady_share if options.keep_chunks else even_share
    limit = share(sum(one.memory for one in sizes), limit)
    checks = _key_checks(inspected, options, sizes)
    drafts = list(cut(sized, options, sizes, limit))
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


def check_disk(plan: Plan, scratch: Path) -> None:
    """Refuse when parts and output surely do not fit the disks of this machine.

    A compressed part is taken to be at least half of its Arrow bytes; parts and output stand side by side at the end.

    Args:
        plan: What is planned.
        scratch: Where the output grows until it is whole.

    Raises:
        DiskSpaceError: There is not enough room.
    """
    needed = plan.disk // 2
    work, destination = plan.options.work_dir, plan.options.destination
    output = scratch if is_remote(destination) else Path(destination).parent
    folders = [_existing(output), _existing(output if is_remote(work) else Path(work))]
    sizes: dict[int, int] = {}
    for folder in folders:
        sizes[folder.stat().st_dev] = sizes.get(folder.stat().st_dev, 0) + needed
    for folder in reversed(folders):
        free, size = shutil.disk_usage(folder).free, sizes[folder.stat().st_dev]
        if free < size:
            raise DiskSpaceError(
                f"{folder}: {show_bytes(free)} free, but parts and output need at least {show_bytes(size)}. Make room, "
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
            fields.insert(0, (TABLE_NUMBER, arrow_type(table_number(inspected).type)))
        empty[schema.compartment] = pa.schema(fields).empty_table()
    columns: dict[str, OutputColumn] = {}
    for field in queries.run(options.query, empty).schema:
        if field.name not in columns:
            columns[field.name] = OutputColumn(field.name, _plain(field.type), "joins", field.name)
    if with_table_number and TABLE_NUMBER not in columns:
        columns[TABLE_NUMBER] = table_number(inspected)
    return OutputTable("joined", tuple(sorted(columns.values(), key=lambda one: column_rank(one.name))))


def _plain(type_: pa.DataType) -> str:
    """The name of a type that Parquet and every reader know; decimals become doubles, the rest text."""
    try:
        return str(pa.type_for_alias(str(type_)))
    except ValueError:
        return "double" if pa.types.is_decimal(type_) else "string"


def _sizes(inspected: Inspected, options: Options, limit: int) -> list[Sizes]:
    """Rows and bytes of each dataset; those that may have to be cut are indexed, several sources at a time."""
    places = Places(options.storage)
    estimates = [_estimated(inspected, number) for number in range(len(inspected.gathered.datasets))]
    indexed = [one.dataset for one in estimates if _is_indexed(inspected, options, places, one, limit)]
    tables: dict[tuple[str, str], list[tuple[int, Schema, Source]]] = {}
    for number in indexed:
        for schema, source in sources_of(inspected, inspected.gathered.datasets[number]):
            tables.setdefault((schema.compartment, source.where), []).append((number, schema, source))

    def index(group: list[tuple[int, Schema, Source]]) -> list[Index]:
        _, schema, source = group[0]
        reader = reader_of(source.format, places)
        return reader.index([one for *_, one in group], keys_of(schema), bool(schema.object_number))

    with ThreadPoolExecutor(options.workers) as pool:
        answers = list(pool.map(index, tables.values()))
    found: dict[int, dict[str, Index]] = {number: {} for number in indexed}
    for group, indexes in zip(tables.values(), answers, strict=True):
        for (number, schema, _), one in zip(group, indexes, strict=True):
            found[number][schema.compartment] = one
    return [_counted(inspected, one, found[one.dataset]) if one.dataset in found else one for one in estimates]


def _estimated(inspected: Inspected, number: int) -> Sizes:
    """Rows and bytes of a dataset from the sizes of its files."""
    present = sources_of(inspected, inspected.gathered.datasets[number])
    rows = {schema.compartment: source.fingerprint.size // max(schema.text_bytes, 1) for schema, source in present}
    memory = sum(rows[schema.compartment] * schema.row_bytes for schema, _ in present)
    return Sizes(number, None, rows.get(inspected.base, 0), memory)


def _is_indexed(inspected: Inspected, options: Options, places: Places, sizes: Sizes, limit: int) -> bool:
    """Whether a dataset needs an index: to be cut, or where its header tells its rows exactly."""
    present = sources_of(inspected, inspected.gathered.datasets[sizes.dataset])
    cuts = {reader_of(source.format, places).cut for _, source in present}
    too_many_rows = bool(options.chunk_rows) and sizes.rows * 1.5 > options.chunk_rows
    return sizes.memory > limit or too_many_rows or bool(cuts & {Cut.ALWAYS, Cut.NEVER})


def _counted(inspected: Inspected, sizes: Sizes, indexes: dict[str, Index]) -> Sizes:
    rows = {name: index.rows for name, index in indexes.items()}
    memory = sum(
        rows[schema.compartment] * schema.row_bytes for schema in inspected.schemas if schema.compartment in rows
    )
    return Sizes(sizes.dataset, indexes, rows.get(inspected.base, 0), memory)


def _key_checks(inspected: Inspected, options: Options, sizes: list[Sizes]) -> tuple[KeyCheck, ...]:
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


def _chunk(number: int, slices: tuple[Slice, ...], rows: int, memory: int, inspected: Inspected, seed: bytes) -> Chunk:
    datasets = inspected.gathered.datasets
    used = [(datasets[one.dataset], one) for one in slices]
    content = [(dataset.name, dataset.table_number, dataset.sources, replace(one, dataset=0)) for dataset, one in used]
    key = hashlib.sha256(seed + msgspec.json.encode(content)).hexdigest()[:32]
    name = redact(_name(inspected, used))
    return Chunk(number, name, key, slices, rows, int(memory * COPIES) + _text_bytes(inspected, used))


def _text_bytes(inspected: Inspected, used: list[tuple[Dataset, Slice]]) -> int:
    """Text that is held while the largest compartment of a chunk is parsed; none for databases."""
    texts = [0]
    for schema in inspected.schemas:
        text = 0
        for dataset, one in used:
            source, region = dataset.source(schema.compartment), one.region(schema.compartment)
            if source is None or region is None or not schema.held_bytes:
                continue
            rows = source.fingerprint.size / max(schema.text_bytes, 1) if region.rows is None else region.rows
            text += int(rows * schema.held_bytes)
        texts.append(text + PARSER if text else 0)
    return max(texts)


def _name(inspected: Inspected, used: list[tuple[Dataset, Slice]]) -> str:
    """What a person reads: "a.sqlite, images 1-640", "site-1 to site-25 (25 datasets)"."""
    dataset, one = used[0]
    if len(used) > 1:
        return f"{dataset.name} to {used[-1][0].name} ({len(used)} datasets)"
    if one.images is None:
        return dataset.name
    first, last = one.images
    if last < first:
        return f"{dataset.name}, no images"
    what = "image" if inspected.schemas[0].image_number else "stretch"
    plural = {"image": "images", "stretch": "stretches"}[what] if first != last else what
    text = f"{dataset.name}, {plural} {first}{f'-{last}' if first != last else ''}"
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
