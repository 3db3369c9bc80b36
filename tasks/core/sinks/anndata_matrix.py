"""X from parts: columns become rows, rows become chunks, on several threads and stored in order.

A part is decoded a few columns at a time into one block of its rows, so that besides the block and its chunks next to
nothing is in memory. Chunks do not end where parts do: the rows that are left over wait for those of the next part.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.arrays import one_piece, to_numpy
from prefect_cytotable.tasks.core.errors import CastError
from prefect_cytotable.tasks.core.sinks.container import Matrix

COLUMNS_AT_A_TIME = 64
ROWS_AT_A_TIME = 256
"""Of a block that is transposed at a time: small enough for the processor's cache."""


@dataclass
class _Order:
    """Lets the parts through one after the other, whichever thread has them."""

    turn: int = 0
    failed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def await_turn(self, number: int) -> bool:
        """Whether it is the turn of part `number`; False where an earlier one failed."""
        with self.changed:
            self.changed.wait_for(lambda: self.failed or self.turn == number)
            return not self.failed

    def end(self, failed: bool) -> None:
        with self.changed:
            self.turn += 1
            self.failed |= failed
            self.changed.notify_all()


class MatrixStream:
    """Writes X while parts are still being made.

    Args:
        matrix: Where to.
        features: Names of the columns.
        dtype: float64 or float32.
        threads: Parts that are encoded at a time.
    """

    def __init__(self, matrix: Matrix, features: tuple[str, ...], dtype: np.dtype[Any], threads: int) -> None:
        self._matrix, self._features, self._dtype = matrix, features, dtype
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="anndata")
        self._order = _Order()
        self._jobs: list[Future[None]] = []
        self._left: list[NDArray[Any]] = []
        self._added = self._chunks = 0
        self.rows = 0

    def add(self, path: Path) -> None:
        """Have a part encoded; parts come in the order of the output.

        Raises:
            CytotableError, OSError: An earlier part could not be.
        """
        for job in [job for job in self._jobs if job.done()]:
            self._jobs.remove(job)
            job.result()
        file = pq.ParquetFile(path)
        start, self.rows = self.rows, self.rows + file.metadata.num_rows
        number, self._added = self._added, self._added + 1
        if self._features:
            self._jobs.append(self._pool.submit(self._encode, path, file.metadata, start, number))

    def finish(self) -> int:
        """Write what is left; returns the number of rows.

        Raises:
            CytotableError, OSError: A part could not be encoded or written.
        """
        for job in self._jobs:
            job.result()
        self._pool.shutdown()
        if left := sum(map(len, self._left)):
            self._put(self._encoded_left(), left)
        self._matrix.close(self.rows)
        return self.rows

    def abandon(self) -> None:
        """Stop; what was written is of no use."""
        self._order.end(failed=True)
        self._pool.shutdown(cancel_futures=True)

    def _encode(self, path: Path, metadata: pq.FileMetaData, start: int, number: int) -> None:
        try:
            block = rows_of(path, metadata, self._features, self._dtype)
            size = self._matrix.chunk_rows
            head = min(-start % size, len(block))
            tail = head + (len(block) - head) // size * size
            chunks = list(self._matrix.encoded(block[row : row + size] for row in range(head, tail, size)))
            ends = block[:head].copy(), block[tail:].copy()
            del block
            if self._order.await_turn(number):
                self._store(*ends, chunks)
        except BaseException:
            self._order.end(failed=True)
            raise
        self._order.end(failed=False)

    def _store(self, head: NDArray[Any], tail: NDArray[Any], chunks: list[bytes | NDArray[Any]]) -> None:
        size = self._matrix.chunk_rows
        self._left.append(head)
        if sum(map(len, self._left)) == size:
            self._put(self._encoded_left(), size)
        for number, chunk in enumerate(chunks):
            self._put(chunk, size)
            chunks[number] = b""  # its memory is free for the next part
        self._left.append(tail)

    def _encoded_left(self) -> bytes | NDArray[Any]:
        """The rows that wait, as a chunk; of the last one, what follows them is zero."""
        block = np.zeros((self._matrix.chunk_rows, len(self._features)), self._dtype)
        rows = np.concatenate(self._left)
        block[: len(rows)] = rows
        self._left.clear()
        (chunk,) = self._matrix.encoded([block])
        return chunk

    def _put(self, chunk: bytes | NDArray[Any], rows: int) -> None:
        self._matrix.put(self._chunks, chunk, rows)
        self._chunks += 1


def rows_of(path: Path, metadata: pq.FileMetaData, features: tuple[str, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The features of a part, a row for each cell; nulls are NaN.

    Raises:
        CastError: A whole number is too large to be counted exactly.
    """
    block = np.empty((metadata.num_rows, len(features)), dtype)
    # Nothing is read twice: buffering would only hold what is read in memory for longer.
    with pq.ParquetFile(path, metadata=metadata, pre_buffer=False) as file:
        for first in range(0, len(features), COLUMNS_AT_A_TIME):
            names = features[first : first + COLUMNS_AT_A_TIME]
            table = file.read(columns=list(names), use_threads=False)
            columns = np.stack([floats(table.column(name), name, dtype) for name in names])
            for rows in _stretches(len(block)):
                block[rows, first : first + len(names)] = columns[:, rows].T
    return block


def _stretches(rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_A_TIME) for start in range(0, rows, ROWS_AT_A_TIME))


def floats(column: pa.ChunkedArray, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A column of numbers as floats; nulls are NaN.

    Raises:
        CastError: A whole number is too large to be counted exactly.
    """
    array = one_piece(column)
    wanted = pa.from_numpy_dtype(dtype)
    if pa.types.is_integer(array.type):
        extremes = pc.min_max(array).as_py()
        bits = np.finfo(dtype).nmant + 1
        if max(abs(value or 0) for value in extremes.values()) > 2**bits:
            raise CastError(
                f"{name} holds a whole number beyond 2**{bits}, which X cannot hold exactly: it is {dtype}. "
                f"{'Leave float out of data_type_cast_map, name' if bits < 53 else 'Name'} the column in "
                f"identifying_columns, so that it becomes a column of obs, or write Parquet."
            )
    if array.type != wanted:
        array = array.cast(wanted, safe=False)
    if not array.null_count:
        return to_numpy(array)
    values: NDArray[Any] = to_numpy(array).copy()
    values[to_numpy(pc.is_null(array).cast(pa.uint8())).view(bool)] = np.nan
    return values
