"""Blocks of a sparse array: whole rows (of CSR; columns of CSC) are read, their entries renamed, sorted and written.

"Major" is the axis whose slices lie one after the other, rows of CSR and columns of CSC; "minor" is the other. The
parts of an array are stacked along its major axis, or lie side by side along its minor one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from prefect_cytotable.tasks.core.concat import copying
from prefect_cytotable.tasks.core.concat.copying import check_indices, damaged
from prefect_cytotable.tasks.core.concat.dense import Opened, fill_of
from prefect_cytotable.tasks.core.concat.model import ArrayLayout, Kind, Layout, Source
from prefect_cytotable.tasks.core.concat.reading import Rows, gather
from prefect_cytotable.tasks.core.concat.renaming import Renaming, Slices, kept_counts, renamed, renaming
from prefect_cytotable.tasks.core.concat.targets import Target, opened_targets
from prefect_cytotable.tasks.core.errors import BadSourceError

Array = NDArray[Any]
Numbers = NDArray[np.int64]

DATASETS = ("data", "indices", "indptr")

ENTRY = 20
"""Bytes that a block takes for each entry: data, indices, their copies and places."""


class SparseSources(Opened):
    """The sources of a sparse array, with how their entries are renamed."""

    def __init__(self, layout: Layout, array: ArrayLayout, names: tuple[str, ...] = DATASETS) -> None:
        super().__init__(layout, array, names, 1 if array.stacked else len(array.sources))
        self._array = array
        self._renamings: dict[int, Renaming] = {}

    def renaming(self, number: int) -> Renaming:
        """How the entries of a source are renamed; that of the last one is remembered."""
        if number not in self._renamings:
            if self._array.stacked:
                self._renamings.clear()
            source = self._array.sources[number]
            self._renamings[number] = renaming(
                self._array, source, self.indexer(source) if self._array.stacked else None
            )
        return self._renamings[number]


def write_sparse(layout: Layout, array: ArrayLayout, start: int, stop: int) -> int:
    """Write the stored values `start` to the one before `stop`; gives the checksum of what lies on disk then."""
    indptr = np.load(Path(layout.folder) / array.indptr, mmap_mode="r", allow_pickle=False)
    first = int(np.searchsorted(indptr, start, side="right")) - 1
    last = int(np.searchsorted(indptr, stop, side="left"))
    copied = copying.can_be_copied(array)
    with (
        opened_targets(layout, array, ("data", "indices")) as (data, indices),
        SparseSources(layout, array, DATASETS[:2] if copied else DATASETS) as sources,
    ):
        if copied:
            copying.copy_entries(layout, array, sources.rows, (data, indices), (start, stop), indptr)
            return data.written ^ indices.written << 32
        writers = _Forward(data, start, stop, array.dtype), _Forward(indices, start, stop, array.index_dtype)
        for low, high in _blocks(layout, array, sources, first, last):
            found = _block(array, sources, low, high)
            base = int(indptr[low])
            if len(found.data) != int(indptr[high]) - base:
                raise BadSourceError(array.path, "an input was written to while it was read", "Run it again.")
            cut = slice(max(start - base, 0), max(min(stop, int(indptr[high])) - base, 0))
            writers[0].append(found.data[cut])
            writers[1].append(found.indices[cut])
        for writer in writers:
            writer.close()
        return data.written ^ indices.written << 32


class _Forward:
    """Writes values one after the other, in whole chunks."""

    def __init__(self, target: Target, start: int, stop: int, dtype: str) -> None:
        self._target, self._place, self._stop = target, start, stop
        self._dtype = np.dtype(dtype)
        self._held: list[Array] = []
        self._length = 0

    def append(self, values: Array) -> None:
        self._held.append(values.astype(self._dtype, copy=False))
        self._length += len(values)
        whole = self._length // self._target.chunk * self._target.chunk
        if whole:
            self._write(whole)

    def _write(self, count: int) -> None:
        values = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        self._target.write(self._place, values[:count])
        self._held = [values[count:].copy()] if count < len(values) else []
        self._place += count
        self._length -= count

    def close(self) -> None:
        if self._length:
            self._write(self._length)
        assert self._place == self._stop, (self._place, self._stop)


def _blocks(
    layout: Layout, array: ArrayLayout, sources: SparseSources, first: int, last: int
) -> Iterator[tuple[int, int]]:
    """Ranges of major slices of which none has many entries, counted as they are read."""
    limit = max(layout.block_bytes // ENTRY, 1)
    step = max(limit // 4, 1)
    for begin in range(first, last, step):
        end = min(begin + step, last)
        load = np.zeros(end - begin, np.int64)
        for number, source in enumerate(array.sources):
            low, high = _own(array, source, begin, end)
            if low < high and source.element:
                low_, high_ = low - begin, high - begin
                load[low_:high_] += _counts(array, sources, number, low, high)[0]
        load = np.cumsum(load)
        low = 0
        while low < end - begin:
            done = int(load[low - 1]) if low else 0
            high = max(int(np.searchsorted(load, done + limit, side="right")), low + 1)
            yield begin + low, begin + high
            low = high


def _own(array: ArrayLayout, source: Source, low: int, high: int) -> tuple[int, int]:
    """The part of a range of major slices to which a source contributes."""
    return (max(low, source.start), min(high, source.stop)) if array.stacked else (low, high)


def _counts(array: ArrayLayout, sources: SparseSources, number: int, low: int, high: int) -> tuple[Numbers, Numbers]:
    """How many entries a source has in each of some of the output's slices, and where they begin in it.

    A slice that the source lacks has -1 as its beginning.
    """
    source = array.sources[number]
    indptr = sources.rows(number)[2]
    indexer = None if array.stacked else sources.indexer(source)
    if indexer is None:
        shift = source.start if array.stacked else 0
        edges = indptr.read(low - shift, high - shift + 1).astype(np.int64)
        return np.diff(edges), edges[:-1]
    wanted = indexer[low:high]
    begins = gather(indptr, wanted).astype(np.int64)
    ends = gather(indptr, np.where(wanted < 0, -1, wanted + 1)).astype(np.int64)
    return ends - begins, np.where(wanted < 0, -1, begins)


def _block(array: ArrayLayout, sources: SparseSources, low: int, high: int) -> Slices:
    """Some major slices of the output."""
    parts = []
    for number, source in enumerate(array.sources):
        begin, end = _own(array, source, low, high)
        if begin < end:
            parts.append(_part(array, sources, number, begin, end))
    if len(parts) == 1:
        return parts[0]
    indices = np.concatenate([one.indices for one in parts])
    data = np.concatenate([one.data for one in parts])
    if array.stacked:
        return Slices(np.concatenate([one.counts for one in parts]), indices, data)
    return _woven(parts, indices, data)


def _woven(parts: list[Slices], indices: Array, data: Array) -> Slices:
    """Parts that lie side by side: each slice has its entries of the first part, then those of the second, ..."""
    counts = np.sum([one.counts for one in parts], axis=0)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    places = np.empty(len(indices), np.int64)
    done = 0
    for one in parts:
        size = len(one.indices)
        places[done : done + size] = np.repeat(before - _starts(one.counts), one.counts) + np.arange(size)
        before = before + one.counts
        done += size
    woven = Slices(counts, np.empty_like(indices), np.empty_like(data))
    woven.indices[places] = indices
    woven.data[places] = data
    return woven


def _starts(counts: Numbers) -> Numbers:
    return np.cumsum(counts) - counts


def _part(array: ArrayLayout, sources: SparseSources, number: int, low: int, high: int) -> Slices:
    """What one source contributes to some slices, in the output's names."""
    source = array.sources[number]
    names = sources.renaming(number)
    fill, dtype = fill_of(array), np.dtype(array.dtype)
    if not source.element:
        return _filled(high - low, names.every, fill, dtype)
    counts, begins = _counts(array, sources, number, low, high)
    data, indices, _ = sources.rows(number)
    found = _read(counts, begins, indices, data, source, array)
    found = renamed(found, names)
    lacking = np.where(begins < 0)[0]
    if names.lacking is not None and len(names.lacking):
        found = _extended(found, np.arange(high - low), names.lacking, fill, dtype)
    if names.every is not None and len(lacking):
        found = _extended(found, lacking, names.every, fill, dtype)
    return found if names.ascending else _sorted(found, array.shape[1 if array.kind is Kind.CSR else 0])


def _read(counts: Numbers, begins: Numbers, indices: Rows, data: Rows, source: Source, array: ArrayLayout) -> Slices:
    """The entries of some slices, as they are stored."""
    total = int(counts.sum())
    if (counts < 0).any() or total > indices.shape[0]:
        raise damaged(source, "its row starts do not ascend")
    full = np.flatnonzero(counts)
    begins, lengths = begins[full], counts[full]
    pieces_of_indices, pieces_of_data = [], []
    breaks = np.flatnonzero(begins[1:] != begins[:-1] + lengths[:-1]) + 1
    edges = [0, *breaks.tolist(), len(begins)] if len(begins) else []
    for low, high in pairwise(edges):
        begin, end = int(begins[low]), int(begins[high - 1] + lengths[high - 1])
        if begin < 0 or end > indices.shape[0]:
            raise damaged(source, "its row starts lead out of its values")
        pieces_of_indices.append(indices.read(begin, end))
        pieces_of_data.append(data.read(begin, end))
    one = _joined(pieces_of_indices, indices.dtype)
    minor = source.shape[1 if array.kind is Kind.CSR else 0]
    check_indices(one, minor, source)
    return Slices(counts, one, _joined(pieces_of_data, data.dtype))


def _joined(pieces: list[Array], dtype: np.dtype[Any]) -> Array:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype)


def _filled(slices: int, every: Numbers | None, fill: Any, dtype: np.dtype[Any]) -> Slices:
    """Slices that no input has."""
    width = 0 if every is None else len(every)
    indices = np.empty(0, np.int64) if every is None else np.tile(every, slices)
    return Slices(np.full(slices, width, np.int64), indices, np.full(len(indices), fill, dtype))


def _extended(found: Slices, which: Numbers, indices: Numbers, fill: Any, dtype: np.dtype[Any]) -> Slices:
    """Slices of which some get more entries, all with the value `fill`."""
    counts = np.zeros(len(found.counts), np.int64)
    counts[which] = len(indices)
    more = Slices(counts, np.tile(indices, len(which)), np.full(len(indices) * len(which), fill, dtype))
    both = [found.indices.astype(np.int64, copy=False), more.indices]
    return _woven(
        [found, more], np.concatenate(both), np.concatenate([found.data.astype(dtype, copy=False), more.data])
    )


def _sorted(found: Slices, minor: int) -> Slices:
    """Slices with their entries in ascending order: turned round twice, which sorts in linear time."""
    indptr = np.concatenate([[0], np.cumsum(found.counts)])
    wide = np.int64 if max(minor, len(found.data)) > np.iinfo(np.int32).max else np.int32
    size = found.data.dtype.itemsize
    bits = found.data.view(f"u{size}") if size <= 8 else found.data  # SciPy does not know every type
    whole = sparse.csr_matrix(
        (bits, found.indices.astype(wide, copy=False), indptr.astype(wide)), (len(found.counts), minor), copy=False
    )
    once = whole.tocsc()
    del whole
    again = once.tocsr()
    return Slices(np.diff(again.indptr).astype(np.int64), again.indices, again.data.view(found.data.dtype))


def count_entries(
    array: ArrayLayout, sources: SparseSources, number: int, entries: int
) -> Iterator[tuple[int, Numbers]]:
    """How many entries a source contributes to each slice of the output: pairs of a first slice and counts.

    Args:
        array: To which the source belongs.
        sources: Its sources.
        number: Which of them.
        entries: How many are looked at at a time.
    """
    source = array.sources[number]
    major = array.shape[0 if array.kind is Kind.CSR else 1]
    low, high = (source.start, source.stop) if array.stacked else (0, major)
    names = sources.renaming(number)
    every = 0 if names.every is None else len(names.every)
    if not source.element:
        yield low, np.full(high - low, every, np.int64)
        return
    lacking = 0 if names.lacking is None else len(names.lacking)
    counts, begins = _counts(array, sources, number, low, high)
    if (counts < 0).any() or (array.stacked and len(begins) and begins[0] != 0):
        raise damaged(source, "its row starts do not ascend from 0")
    if names.places is None or not names.drops:
        yield low, counts + np.where(begins < 0, every, lacking)
        return
    loads = np.cumsum(counts)
    _, indices, _ = sources.rows(number)
    begin = 0
    while begin < len(counts):
        done = int(loads[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(loads, done + entries, side="right")), begin + 1)
        found = indices.read(done, int(loads[end - 1]))
        check_indices(found, len(names.places), source)
        yield (
            low + begin,
            kept_counts(found, counts[begin:end], names.kept) + lacking,
        )
        begin = end
