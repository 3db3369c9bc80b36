"""Stage 4, convert chunk: read this chunk's rows, rename, join, and write one part.

Nothing of another chunk is read. A chunk that finds a type too narrow or a source unreadable writes nothing and says
so; the plan is then amended and the chunk is converted under the new plan, so that a result never depends on which
chunk came first.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_cytotable.tasks.core import assemble
from prefect_cytotable.tasks.core.arrays import from_numpy, to_numpy
from prefect_cytotable.tasks.core.errors import AccountError, UnmatchedError
from prefect_cytotable.tasks.core.join import join, key_array, steps_from
from prefect_cytotable.tasks.core.load import (
    Findings,
    Loaded,
    check_unchanged,
    count_columns,
    load,
    load_joined,
)
from prefect_cytotable.tasks.core.model import (
    IMAGE,
    Account,
    Cause,
    Chunk,
    ChunkResult,
    Note,
    Part,
    Plan,
    Unmatched,
)
from prefect_cytotable.tasks.core.sinks.parquet import write_part
from prefect_cytotable.tasks.core.store import Store, Stored
from prefect_cytotable.tasks.core.tally import Tally

Dropped = Counter[tuple[int, Cause]]


def convert_chunk(plan: Plan, chunk: Chunk, store: Store) -> ChunkResult:
    """Convert one chunk, unless it is done already.

    Returns:
        The record of the chunk's parts, or what has to change in the plan first.

    Raises:
        DuplicateKeyError, UnmatchedError, CastError, JoinQueryError: The data does not allow what was asked for.
        SourceChangedError: A source is no longer what the plan saw.
    """
    if (done := store.load(chunk.key)) is not None:
        return done
    begun, started = time.time(), time.perf_counter()
    findings = Findings()
    result = (_joined if plan.options.join else _unjoined)(plan, chunk, store, findings)
    check_unchanged(source for one in chunk.slices for source in plan.datasets[one.dataset].sources)
    if findings.amends:
        return ChunkResult(
            chunk.key, chunk.number, widened=tuple(sorted(set(findings.widened))), bad=tuple(findings.bad)
        )
    notes = tuple(Note(subject, text, count) for (subject, text), count in sorted(findings.notes.items()) if count)
    result = replace(
        result,
        notes=notes,
        begun=round(begun, 3),
        seconds=round(time.perf_counter() - started, 3),
        worker=f"{platform.node()}/{os.getpid()}",
    )
    store.save(result)
    return result


def _joined(plan: Plan, chunk: Chunk, store: Store, findings: Findings) -> ChunkResult:
    """Every compartment joined to one part."""
    empty = ChunkResult(chunk.key, chunk.number)
    loaded = load_joined(plan, chunk, findings)
    if findings.amends:
        return empty
    base = loaded[plan.inspected.base]
    rows_in = Counter(to_numpy(base.keys.dataset).tolist())
    tables_in = tuple((name, table.rows) for name, table in loaded.items())
    _compare_counts(plan, chunk, loaded, findings)
    added: Counter[int] = Counter()
    dropped: Dropped
    if plan.options.query:
        table, dataset = assemble.query(plan, chunk, loaded)
        made = Counter(to_numpy(dataset).tolist())
        dropped = Counter({(ds, Cause.QUERY): rows for ds, rows in (rows_in - made).items()})
        added = made - rows_in
    else:
        table, dataset, dropped = _matched(plan, chunk, loaded, findings)
    rows_out = Counter(to_numpy(dataset).tolist())
    table, left, nulls = assemble.without_nulls(plan, table, dataset)
    rows_out.subtract(nulls)
    dropped += Counter({(ds, Cause.HAS_NULL): rows for ds, rows in nulls.items()})
    for ds, rows in base.keyless.items():
        rows_in[ds] += rows
        dropped[ds, Cause.NO_IMAGE_NUMBER] += rows
    assemble.count_values(table, findings)
    accounts = _accounts(plan, chunk, rows_in, rows_out, dropped, added)
    tally = Tally()
    tally.add(0, table)
    tally.add_wells(table, left, [plan.datasets[one.dataset].name for one in chunk.slices])
    return replace(
        empty,
        parts=_written(plan, chunk, store, plan.tables[0].name, table),
        accounts=accounts,
        tables_in=tables_in,
        tally=tally.text(len(plan.chunks)),
    )


def _matched(
    plan: Plan, chunk: Chunk, loaded: dict[str, Loaded], findings: Findings
) -> tuple[pa.Table, pa.Array, Dropped]:
    """The joined rows, the dataset of each, and what was dropped."""
    base = plan.inspected.base
    keys = loaded[base].keys
    if keys.image is None:
        straight: dict[str, pa.Array | None] = {base: None}
        table = assemble.take(plan, chunk, plan.tables[0].columns, loaded, straight, keys.dataset)
        return table, keys.dataset, Counter()
    steps = steps_from(base, plan.inspected.relations)
    joined = join(
        base,
        {name: table.keys for name, table in loaded.items()},
        steps,
        findings.tableless,
        plan.options.unmatched,
        plan.options.sort_output,
    )
    dropped: Dropped = Counter({(ds, cause): rows for ds, cause, rows in joined.dropped})
    if plan.options.unmatched is Unmatched.ERROR:
        _refuse(plan, chunk, dropped)
    for step in steps:
        orphans = joined.positions[step.compartment].null_count
        if orphans:
            label = loaded[step.compartment].schema.label
            findings.notes[label, "rows of the output have no such parent (kept, null there)"] += orphans
    if joined.imageless:
        findings.notes[IMAGE, "rows of the output whose image has no row in the image table (kept)"] += joined.imageless
    positions: dict[str, pa.Array | None] = dict(joined.positions)
    table = assemble.take(plan, chunk, plan.tables[0].columns, loaded, positions, joined.dataset)
    return table, joined.dataset, dropped


def _unjoined(plan: Plan, chunk: Chunk, store: Store, findings: Findings) -> ChunkResult:
    """Every compartment to a part of its own; rows in and out are those of all tables together."""
    rows_in, rows_out, dropped = Counter[int](), Counter[int](), Counter[tuple[int, Cause]]()
    parts: list[Part] = []
    tables_in = []
    tally = Tally()
    for number, output in enumerate(plan.tables):
        schema = plan.inspected.schema(output.name)
        assert schema is not None
        columns = tuple((column.name, column.type) for column in schema.columns)
        loaded = load(plan, chunk, output.name, columns, findings)
        if findings.amends:
            continue
        tables_in.append((output.name, loaded.rows))
        order = _order(loaded, plan.options.sort_output)
        dataset = loaded.keys.dataset.take(order)
        table = assemble.take(plan, chunk, output.columns, {output.name: loaded}, {output.name: order}, dataset)
        table, _, nulls = assemble.without_nulls(plan, table, dataset)
        rows_in += Counter(to_numpy(loaded.keys.dataset).tolist()) + loaded.keyless
        rows_out += Counter(to_numpy(dataset).tolist()) - nulls
        for ds, rows in (_unnumbered(loaded) + loaded.keyless).items():
            dropped[ds, Cause.NO_IMAGE_NUMBER] += rows
        for ds, rows in nulls.items():
            dropped[ds, Cause.HAS_NULL] += rows
        assemble.count_values(table, findings)
        tally.add(number, table)
        parts += _written(plan, chunk, store, output.name, table)
    accounts = () if findings.amends else _accounts(plan, chunk, rows_in, rows_out, dropped, Counter())
    result = ChunkResult(chunk.key, chunk.number, tuple(parts), accounts, tuple(tables_in))
    return replace(result, tally=tally.text(len(plan.chunks)))


def _unnumbered(loaded: Loaded) -> Counter[int]:
    """By dataset of the chunk, the rows that were read and have no image number, though rows of their table do."""
    image = loaded.keys.image
    return Counter() if image is None else Counter(to_numpy(loaded.keys.dataset.filter(image.is_null())).tolist())


def _order(loaded: Loaded, sort: bool) -> pa.Array:
    """Positions of the rows that have an image number, in the order of (dataset, image, object).

    All rows as they lie, where none has a number.
    """
    if loaded.keys.image is None:
        return from_numpy(np.arange(loaded.rows, dtype=np.int64))
    known = to_numpy(pc.indices_nonzero(loaded.keys.image.is_valid())).astype(np.int64)
    if not sort:
        return from_numpy(known)
    columns = {"ds": loaded.keys.dataset, "image": loaded.keys.image}
    if loaded.keys.object is not None:
        columns["object"] = loaded.keys.object
    keys = pa.table(columns).take(from_numpy(known))
    order = pc.sort_indices(keys, [(name, "ascending") for name in columns])
    return from_numpy(known[to_numpy(order)])


def _compare_counts(plan: Plan, chunk: Chunk, loaded: dict[str, Loaded], findings: Findings) -> None:
    """Note images of which there are more or fewer objects than the image table counted."""
    if any(one.objects for one in chunk.slices) or IMAGE not in loaded:
        return
    image = loaded[IMAGE]
    images = _numbers(image)
    for compartment, column in count_columns(plan):
        found = Counter(_numbers(loaded[compartment]))
        counts = key_array(image.columns[column]).to_pylist()
        if compartment in findings.tableless:
            continue
        pairs = zip(images, counts, strict=True)
        wrong = sum(count is not None and count != found[number] for number, count in pairs)
        if wrong:
            finding = f"images with another number of objects than {column} in the image table tells"
            findings.notes[loaded[compartment].schema.label, finding] += wrong


def _numbers(loaded: Loaded) -> list[tuple[int, int | None]]:
    """(dataset, image number) of each row."""
    images = loaded.keys.image
    return list(
        zip(
            loaded.keys.dataset.to_pylist(), images.to_pylist() if images is not None else [], strict=images is not None
        )
    )


def _refuse(plan: Plan, chunk: Chunk, dropped: Dropped) -> None:
    for (ds, cause), rows in sorted(dropped.items()):
        name = plan.datasets[chunk.slices[ds].dataset].name
        raise UnmatchedError(
            f"{name}: {rows:,} row(s) of {plan.inspected.gathered.label(plan.inspected.base)} would be dropped because "
            f'{cause.value}, and unmatched="error" forbids that. Use "drop" or "keep", or repair the export.'
        )


def _accounts(
    plan: Plan,
    chunk: Chunk,
    rows_in: Counter[int],
    rows_out: Counter[int],
    dropped: Dropped,
    added: Counter[int],
) -> tuple[Account, ...]:
    """The rows of each dataset of the chunk, checked to be all accounted for."""
    accounts = []
    for position, slice_ in enumerate(chunk.slices):
        causes = tuple((cause, rows) for (ds, cause), rows in sorted(dropped.items()) if ds == position and rows)
        name = plan.datasets[slice_.dataset].name
        account = Account(name, rows_in[position], rows_out[position], causes, added[position])
        if not account.balanced:
            raise AccountError(
                f"{name}: {account.rows_in} rows in, {account.rows_out} out and {causes} dropped do not add up. "
                f"This is a defect of prefect-cytotable: please report it."
            )
        accounts.append(account)
    return tuple(accounts)


def _written(plan: Plan, chunk: Chunk, store: Store, name: str, table: pa.Table) -> tuple[Part, ...]:
    """The part's file; none where there are no rows."""
    if not table.num_rows:
        return ()
    number = [one.name for one in plan.tables].index(name)

    def write(path: Path) -> Stored:
        return Stored(*write_part(table, path))

    stored = store.add(f"{chunk.key}-{number}.parquet", write)
    dataset = plan.datasets[chunk.slices[0].dataset].name
    return (Part(name, stored.path, table.num_rows, stored.size, stored.checksum, dataset, stored.mark),)
