"""Arrow arrays and scalars that are made from buffers instead of Python objects.

``pyarrow.array`` and ``pyarrow.scalar`` look for pandas objects and import pandas to do so, which takes a third of a
second; a conversion needs no pandas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def from_numpy(values: NDArray[Any]) -> pa.Array:
    """An int32 or int64 NumPy array, of one dimension, as an Arrow array without nulls."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def from_texts(values: Sequence[str]) -> pa.Array:
    """Texts as an Arrow array without nulls."""
    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def to_numpy(array: pa.Array) -> NDArray[Any]:
    """An Arrow array of numbers as a NumPy array; what stands at a null is undefined."""
    values = np.frombuffer(array.buffers()[1] or b"", array.type.to_pandas_dtype())
    return values[array.offset : array.offset + len(array)]


def one_piece(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The values as one array; copied only where they are several."""
    if isinstance(values, pa.Array):
        return values
    if values.num_chunks == 1:
        return values.chunk(0)
    return pa.concat_arrays(values.chunks) if values.num_chunks else empty(values.type)


def empty(type_: pa.DataType) -> pa.Array:
    """An array without values."""
    return pa.nulls(0, type_)


def whole_numbers(array: pa.Array) -> pa.Array:
    """Floats as int64; a fraction, an infinity and what a double cannot count (2**53) become null."""
    fits = pc.and_(pc.equal(array, pc.floor(array)), pc.less(pc.abs(array), _TOO_LARGE))
    return pc.if_else(fits, array, missing(array.type)).cast(pa.int64())


def number(value: int) -> pa.Scalar:
    """A whole number as an int64 scalar."""
    return from_numpy(np.array([value], np.int64))[0]


def missing(type_: pa.DataType) -> pa.Scalar:
    """A null of a type."""
    return pa.nulls(1, type_)[0]


# Without a cast, which would allocate: the import of a module must not wake a memory pool that nobody may need.
_TOO_LARGE = pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(np.array([2.0**53]))])[0]
EMPTY_TEXT = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.zeros(2, np.int32)), pa.py_buffer(b"")])[0]
"""The text of length zero, as a scalar."""
