"""Dictionary columns, with the labels that are used and no other.

A store's column has the labels of all its rows, and every batch that is read carries them all: 20,000 donors for two
thousand cells. What is written has the labels that its rows use, in the order in which they are first met, so that it
does not depend on the batches. The labels of an ordered column are kept all, in their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.arrays import empty, from_numpy, to_numpy


class Labels:
    """The labels of one column that were met so far."""

    def __init__(self, type_: pa.DictionaryType) -> None:
        self.type = type_
        self._codes: dict[object, int] = {}
        self._dictionary: pa.Array | None = None
        # Codes of the column's own width need no cast; an unsigned width has no room for "none yet".
        signed = pa.types.is_signed_integer(type_.index_type)
        self._width = np.dtype(type_.index_type.to_pandas_dtype() if signed else np.int64)
        self._mapping: NDArray[np.signedinteger] = np.empty(0, self._width)
        self._values = empty(type_.value_type)
        self._met: list[pa.Array] = []  # labels that are not among the values yet

    def encode(self, values: pa.DictionaryArray, codes: NDArray[Any]) -> None:
        """Write the values as codes into `dictionary` to `codes`, an array of the index type; 0 where they are null."""
        self._follow(values.dictionary)
        indices = values.indices
        valid = valid_of(indices) if indices.null_count else None
        if not len(self._mapping):
            codes[:] = 0
            return
        positions = to_numpy(indices)
        if valid is not None:
            positions = np.where(valid, positions, 0)
        found = codes if codes.dtype == self._width else np.empty(len(codes), self._width)
        self._mapping.take(positions, out=found, mode="clip")  # every position is within; "raise" would copy
        unseen = found < 0 if valid is None else (found < 0) & valid
        if unseen.any():
            self._learn(positions[unseen])
            self._mapping.take(positions, out=found, mode="clip")
        if found is not codes:
            codes[:] = found
        if valid is not None:
            codes[~valid] = 0  # what lies below a null is written too

    def dictionary(self) -> pa.Array:
        """The labels, by code."""
        if self._met:
            self._values = pa.concat_arrays([self._values, *self._met])
            self._met = []
        return self._values

    def _follow(self, dictionary: pa.Array) -> None:
        """Know which code each entry of a batch's dictionary has; batches mostly come with the same one."""
        if self._dictionary is not None and dictionary.equals(self._dictionary):
            return
        self._dictionary = dictionary
        self._mapping = np.array([self._codes.get(label, -1) for label in dictionary.to_pylist()], self._width)
        if self.type.ordered:
            self._learn(np.flatnonzero(self._mapping < 0))

    def _learn(self, positions: NDArray[np.integer]) -> None:
        """Give codes to entries of the dictionary, in the order in which they come."""
        assert self._dictionary is not None
        entries, first = np.unique(positions, return_index=True)
        entries = entries[np.argsort(first)].astype(np.int64)
        met = []
        for entry, label in zip(entries, self._dictionary.take(from_numpy(entries)).to_pylist(), strict=True):
            if label not in self._codes:
                self._codes[label] = len(self._codes)
                met.append(entry)
            self._mapping[entry] = self._codes[label]
        if met:
            self._met.append(self._dictionary.take(from_numpy(np.array(met))).cast(self.type.value_type))


def narrowed(codes: pa.Array, labels: Labels) -> pa.DictionaryArray:
    """Codes as a dictionary array of the column's type with just the labels that these codes use."""
    dictionary = labels.dictionary()
    if not labels.type.ordered:
        values = to_numpy(codes)
        valid = valid_of(codes) if codes.null_count else None
        used = np.zeros(len(dictionary), np.bool_)
        used[values if valid is None else values[valid]] = True
        kept = np.flatnonzero(used)
        if 0 < len(kept) < len(dictionary):
            places = (np.cumsum(used, dtype=np.int64) - 1).clip(0).astype(values.dtype)
            mask = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
            codes = pa.Array.from_buffers(codes.type, len(codes), [mask, pa.py_buffer(places.take(values))])
        dictionary = dictionary.take(from_numpy(kept)) if len(kept) < len(dictionary) else dictionary
    return pa.DictionaryArray.from_arrays(codes, dictionary, ordered=labels.type.ordered)


def valid_of(values: pa.Array) -> NDArray[np.bool_]:
    """Which values are no nulls; by Arrow's own way NumPy would come with pandas."""
    bitmap = values.buffers()[0]
    if bitmap is None:
        return np.ones(len(values), np.bool_)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=values.offset + len(values), bitorder="little")
    return bits[values.offset :].view(np.bool_)
