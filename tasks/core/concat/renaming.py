"""How the entries of a sparse array's sources get the output's minor indices, and which of them are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from prefect_cytotable.tasks.core.concat.dense import fill_of
from prefect_cytotable.tasks.core.concat.model import ArrayLayout, Kind, Source

Array = NDArray[Any]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Slices:
    """Some major slices: how many entries each has, and the entries one after the other."""

    counts: Numbers
    indices: Array
    data: Array


@dataclass(frozen=True)
class Renaming:
    """What becomes of the minor index of a source.

    Attributes:
        places: By the source's index, that of the output, -1 for what is dropped; None for the same, plus `offset`.
        lacking: Indices of the output that the source lacks and that get a value; None where zero needs none.
        every: What a slice that the source lacks is filled with, likewise.
    """

    offset: int
    places: Array | None
    lacking: Numbers | None
    every: Numbers | None

    @cached_property
    def drops(self) -> bool:
        """Whether entries are dropped."""
        return self.places is not None and not self.kept.all()

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """By the source's index, whether its entries are kept."""
        assert self.places is not None
        return self.places >= 0

    @cached_property
    def ascending(self) -> bool:
        """Whether the order of the entries stays right."""
        if self.lacking is not None and len(self.lacking):
            return False
        return self.places is None or bool((np.diff(self.places[self.places >= 0]) > 0).all())


def renaming(array: ArrayLayout, source: Source, indexer: Numbers | None) -> Renaming:
    """How the entries of a source are renamed.

    Args:
        array: To which the source belongs.
        source: One of its sources.
        indexer: Of the other axis.
    """
    filled = bool(fill_of(array) != 0)
    minor = array.shape[1 if array.kind is Kind.CSR else 0]
    if not array.stacked:
        every = np.arange(source.start, source.stop, dtype=np.int64) if filled else None
        return Renaming(source.minor, None, None, every)
    if not source.element:
        return Renaming(0, None, None, np.arange(minor, dtype=np.int64) if filled else None)
    if indexer is None:
        return Renaming(source.minor, None, None, None)
    own = source.shape[1 if array.kind is Kind.CSR else 0]
    places = np.full(own, -1, np.int32 if minor <= np.iinfo(np.int32).max else np.int64)
    there = np.flatnonzero(indexer >= 0)
    places[indexer[there]] = there
    return Renaming(0, places, np.flatnonzero(indexer < 0) if filled else None, None)


def renamed(found: Slices, names: Renaming) -> Slices:
    """Slices with the output's indices, without what it drops."""
    if names.places is None:
        if not names.offset:
            return found
        return Slices(found.counts, found.indices.astype(np.int64) + names.offset, found.data)
    if not names.drops:
        indices = names.places.take(found.indices, mode="clip")  # all are inside, which was looked at
        return Slices(found.counts, indices, found.data)
    there = np.flatnonzero(names.kept.take(found.indices, mode="clip"))
    counts = np.diff(np.searchsorted(there, np.cumsum(found.counts)), prepend=0)
    indices = names.places.take(found.indices.take(there), mode="clip")
    return Slices(counts, indices, found.data.take(there))


def kept_counts(indices: Array, counts: Numbers, kept: Array) -> Numbers:
    """How many entries of each slice are kept: each slice times a vector of ones and zeros, which SciPy multiplies.

    >>> kept_counts(np.array([0, 2, 1, 2, 0]), np.array([2, 0, 3]), np.array([True, False, False])).tolist()
    [1, 0, 1]
    """
    wide = np.int64 if max(len(indices), len(kept)) > np.iinfo(np.int32).max else np.int32
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(wide)
    ones = np.ones(len(indices), np.int32)
    slices = sparse.csr_matrix((ones, indices.astype(wide, copy=False), starts), (len(counts), len(kept)), copy=False)
    return np.asarray(slices @ kept.astype(np.int32), np.int64)
