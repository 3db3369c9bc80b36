"""A Parquet file: how it is opened, what its columns hold, what its errors mean, and its rows in bounded memory."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefect_cytotable.tasks.core.arrays import from_numpy
from prefect_cytotable.tasks.core.errors import BadSourceError, CytotableError
from prefect_cytotable.tasks.core.sources.columnar import Kinds, kinds_of, plain
from prefect_cytotable.tasks.core.sources.row_index import Integers

MEMORY_MAPPING = "CYTOTABLE_ARROW_USE_MEMORY_MAPPING"
"""Environment variable; 0 turns off that files are mapped into memory."""

DECODER_BYTES = 24 << 20
"""What the decoders of the columns that are read at a time may hold."""

COLUMN_BYTES = 4 << 20
"""What the decoder of one column holds at most: a page and a dictionary, 1 MiB each by default, packed and unpacked."""

BATCH_BYTES = 4 << 20
BATCH_ROWS = (256, 65_536)
_STREAM_BYTES = 1 << 16


@dataclass(frozen=True)
class Opened:
    """A file that is open.

    Attributes:
        where: What an error calls it.
        mapping: Its bytes in memory, None where it is not mapped.
    """

    file: pq.ParquetFile
    where: str
    mapping: mmap.mmap | None

    @property
    def rows(self) -> int:
        """All rows."""
        return int(self.file.metadata.num_rows)

    @cached_property
    def kinds(self) -> Kinds:
        """What each column holds."""
        return kinds_of(self.file.schema_arrow, self.where)

    def let_go(self) -> None:
        """Forget the pages that were read; else the process grows by the size of the file. They are read anew."""
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def open_file(path: Path, where: str) -> Iterator[Opened]:
    """The file, closed at the end of the block; errors in the block are those of `errors`."""
    with errors(where), path.open("rb") as stream:
        mapping = None
        source: Path | pa.NativeFile = path
        if os.environ.get(MEMORY_MAPPING) != "0" and os.fstat(stream.fileno()).st_size:
            mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            source = pa.BufferReader(mapping)
        buffer = 0 if mapping else _STREAM_BYTES
        with pq.ParquetFile(source, buffer_size=buffer, pre_buffer=False, page_checksum_verification=True) as file:
            yield Opened(file, where, mapping)


@contextlib.contextmanager
def errors(where: str) -> Iterator[None]:
    """Arrow's errors as a bad source."""
    try:
        yield
    except (CytotableError, FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())[:200]
        raise BadSourceError(
            where, f"it cannot be read as Parquet ({text})", "Write or copy the file again, or take it away."
        ) from error


def pieces(
    opened: Opened, columns: Sequence[str], rows: Integers | None = None
) -> Iterator[tuple[Integers, dict[str, pa.Array]]]:
    """(positions, columns by name as `columnar.plain` makes them) of rows of the file, in its order.

    Args:
        opened: Only the row groups in which wanted rows lie are read, and of these only `columns`.
        columns: Of the file.
        rows: Positions of the wanted rows in ascending order; None for all.
    """
    start = 0
    for group in range(opened.file.num_row_groups):
        stop = start + opened.file.metadata.row_group(group).num_rows
        inside = None if rows is None else _between(rows, start, stop)
        if inside is None or len(inside):
            yield from _of_group(opened, group, start, columns, inside)
        start = stop


def _of_group(
    opened: Opened, group: int, start: int, columns: Sequence[str], rows: Integers | None
) -> Iterator[tuple[Integers, dict[str, pa.Array]]]:
    file, where = opened.file, opened.where
    end = start + file.metadata.row_group(group).num_rows
    last = end if rows is None else int(rows[-1]) + 1
    batches = file.iter_batches(_batch_rows(opened, group, columns), [group], list(columns), use_threads=False)
    for batch in batches:
        stop = start + batch.num_rows
        here = (
            np.arange(start, stop) if rows is None else rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        )
        if len(here):
            arrays = {name: _taken(batch.column(name), here - start) for name in columns}
            yield here, {name: plain(array, name, where) for name, array in arrays.items()}
        opened.let_go()
        start = stop
        if start >= last:
            return
    if start < end:
        raise BadSourceError(
            where,
            f"its row group {group} has fewer rows than its footer says",
            "Write or copy the file again, or take it away.",
        )


def _between(rows: Integers, start: int, stop: int) -> Integers:
    return rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]


def _taken(array: pa.Array, rows: Integers) -> pa.Array:
    """Rows of a batch: copied, unless they are most of it, so that a few rows do not keep all of it in memory."""
    if len(rows) == len(array):
        return array
    if 2 * len(rows) > len(array) and rows[-1] - rows[0] == len(rows) - 1:
        return array.slice(int(rows[0]), len(rows))
    return array.take(from_numpy(rows))


def column_groups(opened: Opened, columns: Sequence[str]) -> Iterator[list[str]]:
    """The columns in groups whose decoders fit `DECODER_BYTES` together."""
    held = max((_column_bytes(opened, group) for group in range(opened.file.num_row_groups)), default=1)
    step = max(DECODER_BYTES // min(2 * held, COLUMN_BYTES), 1)
    return (list(columns[start : start + step]) for start in range(0, len(columns), step))


def _column_bytes(opened: Opened, group: int) -> int:
    """Mean unpacked bytes of a column in a row group.

    The footer also tells the size of each column; but Arrow ends the process when it is asked for one that is damaged.
    """
    described = opened.file.metadata.row_group(group)
    return max(int(described.total_byte_size) // max(int(described.num_columns), 1), 1)


def _batch_rows(opened: Opened, group: int, columns: Sequence[str]) -> int:
    """Rows of a batch that takes about `BATCH_BYTES`."""
    rows = max(int(opened.file.metadata.row_group(group).num_rows), 1)
    width = len(columns) * max(_column_bytes(opened, group) // rows, 8)
    return min(max(BATCH_BYTES // width, BATCH_ROWS[0]), BATCH_ROWS[1])
