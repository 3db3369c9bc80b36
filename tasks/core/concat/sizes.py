"""How large blocks and chunks are, what a concatenation takes in memory and on disk, and whether that fits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from prefect_cytotable.tasks.core.budget import MIB, show_bytes
from prefect_cytotable.tasks.core.concat.model import ArrayPlan, Column, Element, FramePlan, Kind, Options, Plan
from prefect_cytotable.tasks.core.concat.stores import TEXT
from prefect_cytotable.tasks.core.errors import MemoryBudgetError

BASE = {"local": 190 * MIB, "orchestrated": 330 * MIB}
"""Resident bytes of the process with its libraries, before the first block."""

WORKER_BASE = {"local": 170 * MIB, "orchestrated": 290 * MIB}
"""Resident bytes of one more process of the process runner."""

LARGEST_BLOCK, SMALLEST_BLOCK = 4 * MIB, MIB // 2
"""Bytes of an array that a block takes at a time."""

LARGEST_FREED = 4 * LARGEST_BLOCK
"""Bytes of a freed piece of memory that stays with the process."""

COPIES = 5
"""Peak bytes of a block over that: two bands of the input, a read across them, the block, what the encoder holds."""

CHUNK = MIB
"""Bytes of a chunk in zarr, about, where the inputs' chunks do not suit."""

SMALLEST_CHUNK = MIB // 16

SMALLEST_SPARSE_CHUNK = MIB // 16
"""Stored values of a chunk of a sparse array in zarr that an input has and the output takes over, at least."""

H5_SPARSE_CHUNK = MIB // 8
"""Stored values of a chunk of a compressed sparse array in h5ad: what HDF5 keeps decoded at a time is a mebibyte."""

JOB, JOBS = 64 * MIB, 16
"""Bytes of an array that one task writes, at most; an array becomes that many tasks where it is large enough."""

COLUMN_COPIES = 3
"""A column of a data frame in memory: the inputs', the result, what is written."""

MERGE_COPIES = 4
"""Elements that anndata puts together in memory: as read, brought into one order, the result, what is written."""


def block_bytes(options: Options) -> int:
    """Bytes of an array that a block takes: from the budget and `max_loaded_elems`, the same for every runner."""
    share = (options.memory_budget - BASE["local"]) // (8 * COPIES)
    block = min(max(share, SMALLEST_BLOCK), LARGEST_BLOCK)
    return max(min(block, 8 * options.max_loaded_elems), 8)


def dense_chunks(
    shape: tuple[int, ...], itemsize: int, known: tuple[int, ...], block: int, widest: int = 0, renamed: bool = False
) -> tuple[int, ...]:
    """The chunks of a dense array in zarr: those of the input where they suit, so that whole chunks meet whole ones.

    Args:
        shape: Of the array.
        itemsize: Bytes of a value.
        known: Chunks of an input.
        block: Bytes that a block takes at a time.
        widest: Bytes of the widest row of an input.
        renamed: Whether columns are not those of the inputs, whose chunks then mean less than how many files there are.

    >>> dense_chunks((10_000, 5_000), 4, (500, 500), 1 << 23)
    (419, 500)
    >>> dense_chunks((10_000, 50), 8, (), 1 << 23)
    (2621, 50)
    >>> dense_chunks((10_000, 1_500), 4, (500, 500), 1 << 22, 20_000, renamed=True)
    (209, 1500)
    """
    width = max(int(np.prod(shape[1:], dtype=np.int64)) * itemsize, itemsize, widest)
    rows = max(min(block // width, CHUNK // (width if width < SMALLEST_CHUNK else 1) or 1, shape[0]), 1)
    if known:
        rows = max(min(known[0], block // width, shape[0]), 1)
    inner = [max(size, 1) for size in shape[1:]]
    rest = int(np.prod(inner[1:], dtype=np.int64)) * itemsize
    columns = known[1] if known and SMALLEST_CHUNK <= rows * known[1] * itemsize <= 4 * CHUNK else 0
    if renamed:
        columns *= max(CHUNK // max(rows * columns * rest, 1), 1)
        columns = inner[0] if rows * inner[0] * rest <= 2 * CHUNK else columns
    columns = min(columns or max(CHUNK // max(rows * rest, 1), 1), inner[0])
    return (rows, columns, *inner[1:])


@cache
def keep_freed_memory() -> None:
    """Let the allocator keep the buffers of a block for the next one, once for this process.

    The C library gives larger pieces than it has seen freed back to the system, page by page; blocks spend up to half
    of the system's time on getting them again. A piece that is never touched, and freed, tells it otherwise.
    """
    np.empty(LARGEST_FREED, np.uint8)


def sparse_chunk(block: int, known: int = 0) -> int:
    """Stored values of a chunk of a sparse array in zarr: an input's where that is not small, so that chunks meet.

    >>> sparse_chunk(4 << 20)
    524288
    >>> sparse_chunk(4 << 20, 156_250)
    156250
    """
    largest = max(block // 8, 1)
    return known if SMALLEST_SPARSE_CHUNK <= known <= largest else largest


def job_rows(total: int, row: int, chunk: int, block: int) -> int:
    """Rows that one task writes, whole chunks of them.

    Args:
        total: Rows of the array.
        row: Bytes of one.
        chunk: Rows of a chunk.
        block: Bytes that a block takes at a time; a task writes one at least.
    """
    wanted = min(JOB, max(-(-total * row // JOBS), block)) // max(row, 1)
    return max(-(-wanted // chunk), 1) * chunk


def fitted(plan: Plan, processes: bool, orchestrated: bool) -> Plan:
    """The plan with what it takes, and with as many workers as its memory allows.

    Raises:
        MemoryBudgetError: The annotations, or one block, do not fit the budget.
    """
    kind = "orchestrated" if orchestrated else "local"
    budget, base, own = plan.options.memory_budget, BASE[kind], WORKER_BASE[kind] if processes else 0
    annotations = _annotations(plan)
    block = max((_block(array, plan.block_bytes) for array in plan.arrays), default=0)
    needed = base + max(annotations, block + own)
    if needed > budget:
        raise MemoryBudgetError(
            f"memory_budget is {show_bytes(budget)}; the program itself takes {show_bytes(base)}, the annotations "
            f"{show_bytes(annotations)}, a block of the arrays {show_bytes(block + own)}. Give at least "
            f"{show_bytes(needed)}."
        )
    fitting = (budget - base) // max(block + own, 1)
    workers = int(max(min(plan.options.workers, fitting), 1))
    memory = base + max(annotations, workers * (block + own))
    return replace(plan, annotations=annotations, block=block, workers=workers, memory=memory, disk=_disk(plan))


def _block(array: ArrayPlan, block: int) -> int:
    """Peak bytes of a block of an array."""
    elements = [part.element for part in array.parts if part.element]
    piece = max((one.chunk for one in elements), default=0)
    row = int(np.prod(array.shape[1:], dtype=np.int64)) * np.dtype(array.dtype).itemsize
    if array.kind is not Kind.DENSE:
        return COPIES * block + 2 * piece + 8 * (array.shape[0] if array.kind is Kind.CSC else 1)
    widest = max((one.shape[1] * np.dtype(one.dtype).itemsize for one in elements), default=0)
    return COPIES * max(block, row, widest) + 2 * piece


def _annotations(plan: Plan) -> int:
    """Peak bytes of names, data frames, `uns` and what else is put together in memory."""
    options = plan.options
    extent = sum(one.shape[options.axis] for one in plan.inputs)
    names = sum(one.shape[1 - options.axis] for one in plan.inputs) + plan.joined[0].names
    total = TEXT * 2 * names
    column = max((_column(frame, one) for frame in plan.frames for one in frame.columns), default=0)
    total += max(COLUMN_COPIES * column, 2 * TEXT * max(one.shape[options.axis] for one in plan.inputs))
    total += sum(MERGE_COPIES * other.size + TEXT * extent for other in plan.others)
    if options.merge:
        other = options.other_name
        mapped = (f"{other}m", f"{other}p")
        merged = [one for each in plan.inputs for one in each.elements if one.path.split("/")[0] in (other, *mapped)]
        total += MERGE_COPIES * sum(one.size for one in merged)
    if options.uns_merge:
        total += MERGE_COPIES * sum(one.uns for one in plan.inputs)
    counts = max(
        (array.shape[0 if array.kind is Kind.CSR else 1] for array in plan.arrays if array.kind.sparse), default=0
    )
    return total + 40 * counts


def _column(frame: FramePlan, name: str) -> int:
    """Bytes of one column of all inputs."""
    total = 0
    for element in frame.elements:
        column = next((one for one in element.columns if one.name == name), None) if element else None
        total += _value(column) * (element.shape[0] if element else 0)
    return total


def _value(column: Column | None) -> int:
    if column is None or column.dtype:
        return np.dtype(column.dtype).itemsize if column else 8
    return TEXT if column.encoding in ("string-array", "nullable-string-array") else 16


def _disk(plan: Plan) -> int:
    """Bytes of the output, and of the sparse arrays that are turned round meanwhile, at most."""
    rest = sum(one.size - _stored(one.elements) for one in plan.inputs if one.size > _stored(one.elements))
    turned = 0
    for array in plan.arrays:
        for part in array.parts:
            if array.kind.sparse and part.element and part.element.kind is not array.kind:
                turned += _cells(part.element) * (np.dtype(array.dtype).itemsize + 40)
    return sum(array.size * (2 if array.compression else 1) for array in plan.arrays) + turned + rest


def _cells(element: Element) -> int:
    return element.nnz if element.kind.sparse else int(np.prod(element.shape, dtype=np.int64))


def _stored(elements: tuple[Element, ...]) -> int:
    return sum(one.size for one in elements if one.kind is not Kind.FRAME and one.kind is not Kind.OTHER)
