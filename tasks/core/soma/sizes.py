"""How much is read at a time: SOMA's buffers, the rows of a slice, and the slices under way, from schema and budget."""

from __future__ import annotations

import pyarrow as pa

from prefect_cytotable.tasks.core.budget import MIB, show_bytes
from prefect_cytotable.tasks.core.errors import MemoryBudgetError
from prefect_cytotable.tasks.core.soma.model import Sizes, TableFormat

SMALLEST_BUDGET = 24 * MIB
"""Bytes for one worker; a table's tiles and TileDB's threads take most of them (measured: 10-20 MiB)."""

SMALLEST_SLICE, LARGEST_SLICE = 1 << 10, 1 << 18
"""Joinids of a slice. Larger ones gain nothing in speed."""

TEXT = 16
"""Bytes of a text, where only the data can tell; a longer one makes more batches of a slice, not larger ones."""

TEXT_ROOM = 2
"""How much longer than estimated the texts of a slice or of a group can be, in bytes of all its columns."""

COPIES = 2
"""A slice lies in SOMA's buffers and in Arrow's arrays."""

THREADS = 2
"""TileDB's threads for one slice."""

MOST_READERS = 4
"""Slices read at the same time."""

_SMALLEST_BUFFER = 1 << 16


def value_bytes(type_: pa.DataType) -> int:
    """Bytes of a value in an Arrow array, its offset among them.

    >>> value_bytes(pa.int64()), value_bytes(pa.dictionary(pa.int16(), pa.string())), value_bytes(pa.large_string())
    (8, 2, 24)
    """
    if pa.types.is_dictionary(type_):
        return value_bytes(type_.index_type)
    return 8 + TEXT if of_any_length(type_) else max(int(type_.bit_width) // 8, 1)


def of_any_length(type_: pa.DataType) -> bool:
    """Whether only the data can tell how many bytes a value has.

    >>> of_any_length(pa.large_string()), of_any_length(pa.dictionary(pa.int8(), pa.string()))
    (True, False)
    """
    try:
        return not pa.types.is_dictionary(type_) and not type_.bit_width
    except ValueError:
        return True


def text_room(rows: int, bytes_of_row: int) -> int:
    """Bytes of texts that so many rows may have; with longer ones, there are to be fewer rows at a time."""
    return TEXT_ROOM * rows * bytes_of_row


def row_bytes(schema: pa.Schema) -> int:
    """Bytes of a row, with a byte for each value that can be missing, as SOMA's buffers have it."""
    return sum(value_bytes(field.type) + field.nullable for field in schema)


def widest(schema: pa.Schema) -> int:
    """Bytes of the widest value of fixed length."""
    return max((value_bytes(field.type) for field in schema if value_bytes(field.type) != 8 + TEXT), default=8)


def group_rows(budget: int, bytes_of_row: int, format_: TableFormat) -> int:
    """Rows of a group of the output: of a slice, or of half of one for Feather.

    A Feather file's labels stand in it once, so that smaller groups cost nothing and take less memory; a row group of
    Parquet has its own.
    """
    rows = slice_rows(budget, bytes_of_row)
    return rows // 2 if format_ is TableFormat.FEATHER else rows


def slice_rows(budget: int, bytes_of_row: int) -> int:
    """Joinids of a slice: the power of two of which ten fit the budget.

    Slices read or waiting, each in two forms, and their tiles; a group, gathered and encoded.

    >>> slice_rows(128 << 20, 134), slice_rows(128 << 20, 1000)
    (65536, 8192)
    """
    fitting = max(budget // (10 * max(bytes_of_row, 1)), 1)
    return min(max(1 << (fitting.bit_length() - 1), SMALLEST_SLICE), LARGEST_SLICE)


def sizes(budget: int, bytes_of_row: int, widest_value: int, buffer_bytes: int, threads: int) -> Sizes:
    """Sizes for one worker.

    Args:
        budget: Bytes that the worker may take above its interpreter.
        bytes_of_row: Of the output, see `row_bytes`.
        widest_value: See `widest`.
        buffer_bytes: What the user wants as SOMA's buffer for a column; 0 for what a slice needs.
        threads: Processors.

    Raises:
        MemoryBudgetError: It is too small for anything.
    """
    if budget < SMALLEST_BUDGET:
        raise MemoryBudgetError(
            f"memory_budget is {show_bytes(budget)}, and TileDB needs {show_bytes(SMALLEST_BUDGET)} above the program "
            f"itself. Give at least that."
        )
    rows = slice_rows(budget, bytes_of_row)
    each = COPIES * rows * bytes_of_row
    readers = min(max(budget // max(each, 1) - 1, 1), max(threads // THREADS, 1), MOST_READERS)
    return Sizes(
        rows=rows,
        # A batch that ends within a tile of the store has that tile decoded again for the next one. Room for half of a
        # slice takes a fifth more CPU than room for all of it, for three quarters 15 MiB less and 9% more (measured).
        buffer_bytes=buffer_bytes or max(rows * widest_value, _SMALLEST_BUFFER),
        readers=readers,
        tile_bytes=max(budget // (4 * readers), SMALLEST_BUDGET // 2),
    )
