"""Sparse inputs of the other format, and dense ones among sparse ones, made CSR on disk before they are put together.

The rows of a CSC matrix are all over it. Its entries are dealt to files by range of rows, each of which fits into
memory; then each file is sorted. Both passes read and write forward.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.model import Element, Input, Kind
from prefect_cytotable.tasks.core.concat.reading import Rows, opened_rows
from prefect_cytotable.tasks.core.errors import BadSourceError

Array = NDArray[Any]
Numbers = NDArray[np.int64]

ENTRY = 64
"""Bytes that sorting takes for each entry."""


class _Growing:
    """A file as `numpy.save` makes it, of a length that is known at its end."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype, self._length = dtype, 0
        self._file = path.open("wb")
        self._header()

    def _header(self) -> None:
        self._file.seek(0)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: Array) -> None:
        values.astype(self._dtype, copy=False).tofile(self._file)
        self._length += len(values)

    def close(self) -> None:
        self._file.flush()
        self._header()
        self._file.close()


def make_csr(one: Input, element: Element, folder: Path, block_bytes: int) -> int:
    """Write an element as CSR: ``data.npy``, ``indices.npy`` and ``indptr.npy`` in a folder; gives its entries.

    Raises:
        BadSourceError: The element is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = _Growing(folder / "data.npy", np.dtype(element.dtype))
    indices = _Growing(folder / "indices.npy", np.dtype(np.int64))
    try:
        if element.kind is Kind.DENSE:
            counts = _from_dense(one, element, data, indices, block_bytes)
        else:
            counts = _from_csc(one, element, data, indices, folder, block_bytes)
    finally:
        data.close()
        indices.close()
    indptr = np.concatenate([[0], np.cumsum(counts)])
    np.save(folder / "indptr.npy", indptr, allow_pickle=False)
    return int(indptr[-1])


def _from_dense(one: Input, element: Element, data: _Growing, indices: _Growing, block_bytes: int) -> Numbers:
    counts = np.zeros(element.shape[0], np.int64)
    width = max(element.shape[1], 1) * (np.dtype(element.dtype).itemsize + 16)
    step = max(block_bytes // width, 1)
    with opened_rows(one.path, one.format, (element.path,), block_bytes) as (rows,):
        for low in range(0, element.shape[0], step):
            block = rows.read(low, min(low + step, element.shape[0]))
            there = block != 0
            data.append(block[there])
            indices.append(np.nonzero(there)[1])
            counts[low : low + len(block)] = there.sum(axis=1)
    return counts


def _from_csc(
    one: Input, element: Element, data: _Growing, indices: _Growing, folder: Path, block_bytes: int
) -> Numbers:
    names = tuple(f"{element.path}/{name}" for name in ("data", "indices", "indptr"))
    entries = max(block_bytes // ENTRY, 1)
    with ExitStack() as stack:
        values, rows, starts = stack.enter_context(opened_rows(one.path, one.format, names, block_bytes))
        counts = np.zeros(element.shape[0], np.int64)
        for low in range(0, element.nnz, entries):
            found = rows.read(low, min(low + entries, element.nnz))
            if len(found) and (int(found.min()) < 0 or int(found.max()) >= element.shape[0]):
                raise BadSourceError(
                    f"{one.path}, {element.path}", "it has an index outside its shape", "Make it anew."
                )
            counts += np.bincount(found, minlength=element.shape[0])
        bounds = _bounds(counts, entries)
        kind = np.dtype([("row", "<i8"), ("column", "<i8"), ("value", element.dtype)])
        files = [folder / f"rows-{number:06d}" for number in range(len(bounds))]
        for file in files:
            file.unlink(missing_ok=True)
        _deal(values, rows, starts, entries, kind, bounds, files)
        for file in files:
            if file.exists():
                bucket = np.fromfile(file, kind)
                order = np.argsort(bucket["row"], kind="stable")
                data.append(bucket["value"][order])
                indices.append(bucket["column"][order])
                file.unlink()
    return counts


def _bounds(counts: Numbers, entries: int) -> Numbers:
    """First rows of ranges with at most so many entries each, or of one row.

    >>> _bounds(np.array([2, 2, 5, 1, 1]), 4).tolist()
    [0, 2, 3]
    """
    total = np.cumsum(counts)
    bounds, begin = [], 0
    while begin < len(counts):
        bounds.append(begin)
        done = int(total[begin - 1]) if begin else 0
        begin = max(int(np.searchsorted(total, done + entries, side="right")), begin + 1)
    return np.array(bounds, np.int64)


def _deal(
    values: Rows, rows: Rows, starts: Rows, entries: int, kind: np.dtype[Any], bounds: Numbers, files: list[Path]
) -> None:
    """Append each entry to the file of its range of rows, in the order of the columns."""
    edges = starts.read(0, starts.shape[0]).astype(np.int64)
    if edges[0] != 0 or edges[-1] != rows.shape[0] or (np.diff(edges) < 0).any():
        raise BadSourceError(str(files[0].parent if files else "CSC"), "column starts do not ascend", "Make it anew.")
    for low in range(0, rows.shape[0], entries):
        high = min(low + entries, rows.shape[0])
        dealt = np.empty(high - low, kind)
        dealt["row"] = rows.read(low, high)
        dealt["value"] = values.read(low, high)
        dealt["column"] = np.searchsorted(edges, np.arange(low, high), side="right") - 1
        bucket = np.searchsorted(bounds, dealt["row"], side="right") - 1
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=len(bounds)))
        begin = 0
        for file, end in zip(files, ends.tolist(), strict=True):
            if begin < end:
                with file.open("ab") as sink:
                    dealt[order[begin:end]].tofile(sink)
            begin = end
