"""What a fetch will do, decided before rows are read: sizes, and chunks where they pay."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

import msgspec

from prefect_cytotable.tasks.core.budget import max_threads
from prefect_cytotable.tasks.core.report import PRODUCER
from prefect_cytotable.tasks.core.soma import opening
from prefect_cytotable.tasks.core.soma.look import look
from prefect_cytotable.tasks.core.soma.model import FetchOptions, FetchPlan, Range, Table
from prefect_cytotable.tasks.core.soma.rows import slices
from prefect_cytotable.tasks.core.soma.scattered import cuts, is_scattered
from prefect_cytotable.tasks.core.soma.sizes import SMALLEST_BUDGET, group_rows, sizes, slice_rows

REMOTE_CHUNK = 1 << 22
"""Joinids of a chunk of a remote store: 20 chunks for the whole Census, each of which opens it once."""


def plan(options: FetchOptions) -> FetchPlan:
    """Look at the table and decide.

    Raises:
        CytotableError: The store, the table or the budget do not allow what was asked for.
    """
    opening.library()  # what the import takes is not the store's
    started = time.perf_counter()
    place = opening.find(options)
    found = time.perf_counter()
    table = look(place, options)
    rows = group_rows(options.memory_budget, table.row_bytes, options.format)
    size = _chunk_size(options, table)
    if is_scattered(table, slice_rows(options.memory_budget, table.row_bytes)):
        # Chunks are the same for every number of workers, so that their parts serve a run with another one.
        share = SMALLEST_BUDGET if size else options.memory_budget
        table = replace(table, cuts=cuts(table, sizes(share, table.row_bytes, table.widest, 0, 1)))
    chunks = _chunks(options, table, rows, size)
    workers = max(min(options.workers, len(chunks), options.memory_budget // SMALLEST_BUDGET), 1)
    # A pool of chunks keeps the processors busy by itself.
    threads = max_threads() if workers == 1 else max(max_threads() // workers, 1)
    divided = sizes(options.memory_budget // workers, table.row_bytes, table.widest, options.buffer_bytes, threads)
    return FetchPlan(
        options=options,
        table=table,
        chunks=chunks,
        workers=workers,
        sizes=divided,
        group_rows=rows,
        open_seconds=round(found - started, 3),
        query_seconds=round(time.perf_counter() - found, 3),
    )


def _chunk_size(options: FetchOptions, table: Table) -> int:
    """Joinids of a chunk; 0 where the rows stream into the destination in one go."""
    if table.index < 0:  # without an index every chunk would read the whole table
        return 0
    return options.chunk_ids or (REMOTE_CHUNK if table.place.remote else 0)


def _chunks(options: FetchOptions, table: Table, group: int, size: int) -> tuple[Range, ...]:
    """Ranges of joinids; none where there are no chunks."""
    return tuple(
        Range(number, first, last, _key(table, options, group, first, last), f"joinids {first:,} to {last:,}")
        for number, (first, last) in enumerate(_ends(table, size))
    )


def _ends(table: Table, size: int) -> Iterator[tuple[int, int]]:
    """First and last joinid of each chunk; where they lie far apart, a chunk has so many rows instead."""
    if not size:
        return iter(())
    if not table.cuts:
        return slices(table.first, table.last, size)
    each = max(size // slice_rows(SMALLEST_BUDGET, table.row_bytes), 1)
    numbers = range(0, len(table.cuts), each)
    return ((table.cuts[one][0], table.cuts[min(one + each, len(table.cuts)) - 1][1]) for one in numbers)


def _key(table: Table, options: FetchOptions, group: int, first: int, last: int) -> str:
    """What a part depends on: the program, the state of the table, and what was asked of it."""
    parts = [version(PRODUCER), table.mark, table.columns, table.value_filter, group, first, last]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:40]
