"""The metadata of an archive: a dictionary, each key of which becomes a column.

A single value stands for all cells; a list, a tuple or an array of one dimension has a value for each cell. None and
NaN are missing values and become null; an empty text stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.arrays import empty, from_numpy
from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.schema import to_arrow, widest
from prefect_cytotable.tasks.core.sources.npz_archive import REMEDY, Archive
from prefect_cytotable.tasks.core.sources.npz_pickle import Array, Opaque, PickleRefused, short, unpickled

METADATA = "metadata"
METADATA_LIMIT = 64 << 20
"""Bytes of the metadata of an archive, and of the text that one key becomes over all cells."""

_TEXT_REMEDY = "Write the metadata as texts and numbers, one for all cells or one for each."
_INT64 = range(-(1 << 63), 1 << 63)

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Values:
    """What a key holds.

    Attributes:
        type: None where every value is missing.
        values: One for each cell, or a single one.
        constant: Whether it is a single one that stands for all cells.
    """

    type: ColumnType | None
    values: tuple[Scalar, ...]
    constant: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in Arrow memory."""
        if self.type is not ColumnType.STRING:
            return 8
        return sum(len(str(one)) for one in self.values) // max(len(self.values), 1) + 5

    @property
    def text(self) -> str | None:
        """The one text that stands for all cells, where there is one."""
        value = self.values[0] if self.constant else None
        return value if isinstance(value, str) else None


def metadata_of(archive: Archive, cells: int) -> dict[str, Values]:
    """The metadata of an archive, in the order of their keys.

    Args:
        archive: Whose `metadata` is a 0-d array that holds a dictionary.
        cells: Rows of the archive.

    Raises:
        BadSourceError: They are no dictionary of texts and numbers, or a key has another number of values than cells.
    """
    stored = archive.stored(METADATA)
    if not stored.dtype.hasobject or stored.shape:
        cause = f"its array {METADATA!r} has shape {stored.shape} and type {stored.dtype}, and holds no dictionary"
        raise archive.bad(cause, _TEXT_REMEDY)
    if stored.size > METADATA_LIMIT:
        raise archive.bad(
            f"its metadata take {stored.size:,} bytes, more than the {METADATA_LIMIT:,} that are read", REMEDY
        )
    try:
        pickled = unpickled(archive.values(stored))
    except PickleRefused as error:
        raise archive.bad(f"its metadata hold {error}, and are not read", _TEXT_REMEDY) from error
    whole = pickled.data if isinstance(pickled, Array) and pickled.shape == () else None
    if not isinstance(whole, list) or not isinstance(whole[0], dict):
        raise archive.bad(f"its array {METADATA!r} holds no dictionary", _TEXT_REMEDY)
    return {_checked_name(key, archive): _values(key, value, cells, archive) for key, value in whole[0].items()}


def array_of(values: Values, type_: ColumnType, cells: int) -> pa.Array:
    """The column of a key.

    Args:
        values: What the key holds.
        type_: A type that holds them: their own, or one that `widest` made of it and others.
        cells: Rows of the archive.
    """
    if not cells:
        return empty(to_arrow(type_))
    if values.type is None:
        return pa.nulls(cells, to_arrow(type_))
    array = _array(values.values, type_)
    return array.take(from_numpy(np.zeros(cells, np.int64))) if values.constant else array


def text_bytes(values: Values, cells: int) -> int:
    """Bytes of text in the column of a key."""
    size = sum(len(one.encode()) for one in values.values if isinstance(one, str))
    return size * cells if values.constant else size


def _checked_name(key: str, archive: Archive) -> str:
    if not key or not _is_unicode(key):
        raise archive.bad(
            f"its metadata have the key {short(key)!r}, which cannot be the name of a column", _TEXT_REMEDY
        )
    return key


def _values(key: str, value: object, cells: int, archive: Archive) -> Values:
    """What a key holds, as plain values of one type."""
    many = _many(value)
    if many is None:
        if isinstance(value, Array):
            value = _only(value)
        single = _scalar(key, value, archive)
        values = Values(_type_of(single), (single,), constant=True)
    else:
        if _length(many) != cells:
            raise archive.bad(
                f"its metadata key {short(key)!r} has {_length(many):,} values, and there are {cells:,} cells",
                _TEXT_REMEDY,
            )
        scalars = tuple(_scalar(key, one, archive) for one in _items(many))
        values = _of_one_type(key, scalars, archive)
    size = text_bytes(values, cells)
    if size > METADATA_LIMIT:
        cause = f"its metadata key {short(key)!r} takes {size:,} bytes of text over {cells:,} cells"
        raise archive.bad(f"{cause}, more than the {METADATA_LIMIT:,} that are read", _TEXT_REMEDY)
    return values


def _many(value: object) -> Sequence[object] | Array | None:
    """A value for each cell; None where it is a single one."""
    if isinstance(value, list | tuple):
        return value
    return value if isinstance(value, Array) and len(value.shape) == 1 else None


def _length(many: Sequence[object] | Array) -> int:
    return many.shape[0] if isinstance(many, Array) else len(many)


def _items(many: Sequence[object] | Array) -> Sequence[object]:
    if not isinstance(many, Array):
        return many
    items = many.items()
    return items if items is not None else [_opaque(many)] * many.shape[0]


def _only(array: Array) -> object:
    """The value of a 0-d array; what else an array holds is no single value."""
    if array.shape:
        return Opaque(f"array of {len(array.shape)} dimensions")
    items = array.items()
    return items[0] if items else _opaque(array)


def _opaque(array: Array) -> Opaque:
    return Opaque(f"NumPy's {array.dtype.other or array.dtype.name}" if array.dtype else "empty array")


def _scalar(key: str, value: object, archive: Archive) -> Scalar:
    """A plain value; NaN is a missing one."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, int):
        if value not in _INT64:
            cause = f"its metadata key {short(key)!r} holds a whole number beyond 64 bits"
            raise archive.bad(cause, _TEXT_REMEDY)
        return value
    if isinstance(value, str):
        if not _is_unicode(value):
            raise archive.bad(f"its metadata key {short(key)!r} holds a text that is not valid Unicode", _TEXT_REMEDY)
        return value
    kind = value.kind if isinstance(value, Opaque) else type(value).__name__.lower()
    raise archive.bad(f"its metadata key {short(key)!r} holds a value of the kind {kind!r}", _TEXT_REMEDY)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8, which half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_TYPES: dict[type, ColumnType] = {
    bool: ColumnType.BOOL,
    int: ColumnType.INT64,
    float: ColumnType.DOUBLE,
    str: ColumnType.STRING,
}


def _type_of(value: Scalar) -> ColumnType | None:
    return None if value is None else _TYPES[type(value)]


def _of_one_type(key: str, values: tuple[Scalar, ...], archive: Archive) -> Values:
    """A column's values; whole numbers beside others are doubles, all else has to be alike."""
    types = {type(one) for one in values if one is not None}
    if len(types) > 1 and types != {int, float}:
        kinds = " and ".join(sorted(one.__name__ for one in types))
        raise archive.bad(f"its metadata key {short(key)!r} mixes values of the kinds {kinds}", _TEXT_REMEDY)
    type_: ColumnType | None = None
    for one in types:
        type_ = widest(type_, _TYPES[one])
    return Values(type_, values, constant=False)


def _array(values: tuple[Scalar, ...], type_: ColumnType) -> pa.Array:
    """An Arrow array of plain values that `type_` holds."""
    valid = np.array([one is not None for one in values], np.bool_)
    validity = None if valid.all() else _bits(valid)
    if type_ is ColumnType.STRING:
        texts = ["" if one is None else str(one) for one in values]
        return text_array(texts, validity)
    if type_ is ColumnType.BOOL:
        data = _bits(np.array([one is True for one in values], np.bool_))
    else:
        arrow = to_arrow(type_)
        data = pa.py_buffer(np.array([0 if one is None else one for one in values], arrow.to_pandas_dtype()))
    return pa.Array.from_buffers(to_arrow(type_), len(values), [validity, data])


def text_array(texts: Sequence[str], validity: pa.Buffer | None = None) -> pa.Array:
    """Texts as an Arrow array."""
    encoded = [one.encode() for one in texts]
    ends = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(one) for one in encoded], out=ends[1:])
    return pa.Array.from_buffers(
        pa.string(), len(texts), [validity, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    )


def bool_array(values: NDArray[np.bool_]) -> pa.Array:
    """Truth values as an Arrow array."""
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, _bits(values)])


def _bits(values: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))
