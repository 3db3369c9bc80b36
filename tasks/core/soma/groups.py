"""Rows regrouped: groups of one size, however many rows the batches have that come in.

Sinks get groups whose dictionary columns are codes; the labels lie beside them. Values of fixed width are copied once,
into arrays that serve every group: fresh ones for each would cost the system more time than the copying.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.arrays import empty
from prefect_cytotable.tasks.core.soma.labels import Labels, valid_of
from prefect_cytotable.tasks.core.soma.sizes import row_bytes, text_room


def labels_of(schema: pa.Schema) -> dict[str, Labels]:
    """Labels for every dictionary column of a schema."""
    return {field.name: Labels(field.type) for field in schema if pa.types.is_dictionary(field.type)}


def coded_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with codes in the place of dictionary columns."""
    return pa.schema(
        [field.with_type(field.type.index_type) if pa.types.is_dictionary(field.type) else field for field in schema]
    )


def groups(
    tables: Iterable[pa.Table], schema: pa.Schema, labels: dict[str, Labels], rows: int
) -> Iterator[pa.RecordBatch]:
    """Groups of `rows` rows, and a last one of fewer; where texts are long, of as many rows as there is room for.

    Where a group ends depends on the rows alone, not on how they come.

    Args:
        tables: With the columns of `schema`, in any number of pieces.
        schema: Of the output.
        labels: From `labels_of`; they learn what is met.
        rows: Of a group.

    Yields:
        A group, whose values are overwritten when the next one is asked for.
    """
    coded = coded_schema(schema)
    columns = [_column(field, labels.get(field.name), rows) for field in schema]
    texts = [field.name for field in schema if _is_text(field.type)]
    room = text_room(rows, row_bytes(schema))
    filled = held = 0
    for table in tables:
        for batch in table.to_batches():
            arrays = [batch.column(field.name) for field in schema]
            taken = 0
            while taken < batch.num_rows:
                wanted = min(rows - filled, batch.num_rows - taken)
                count, size = _fitting([batch.column(name).slice(taken, wanted) for name in texts], wanted, room - held)
                count = count or int(not filled)  # a text longer than the room is a group of its own
                for column, values in zip(columns, arrays, strict=True):
                    column.add(values.slice(taken, count), filled)
                taken, filled, held = taken + count, filled + count, held + size
                if filled == rows or count < wanted:
                    yield _group(columns, filled, coded)
                    filled = held = 0
            del batch, arrays  # the next table comes into their memory
        del table
    if filled:
        yield _group(columns, filled, coded)


def _is_text(type_: pa.DataType) -> bool:
    return type_ in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def _fitting(texts: list[pa.Array], rows: int, room: int) -> tuple[int, int]:
    """How many of the rows there is room for, and the bytes of their texts."""
    ends = [_ends(one) for one in texts]
    size = sum(int(one[-1]) for one in ends)
    if size <= room:
        return rows, size
    together = np.sum(ends, axis=0)
    fitting = int(np.searchsorted(together, room, "right"))
    return fitting, int(together[fitting - 1]) if fitting else 0


def _ends(values: pa.Array) -> NDArray[np.int64]:
    """Bytes of the texts up to the end of each."""
    wide = values.type in (pa.large_string(), pa.large_binary())
    offsets = np.frombuffer(values.buffers()[1] or bytes(8), np.int64 if wide else np.int32)
    offsets = offsets[values.offset : values.offset + len(values) + 1].astype(np.int64, copy=False)
    ends: NDArray[np.int64] = np.subtract(offsets[1:], offsets[0])
    return ends


def _group(columns: list[_Column], rows: int, coded: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([column.taken(rows) for column in columns], schema=coded)


class _Column(Protocol):
    """One column of the group that is being gathered."""

    def add(self, values: pa.Array, place: int) -> None:
        """Append values, the first of which is the group's row `place`."""
        ...

    def taken(self, rows: int) -> pa.Array:
        """The column, which begins anew."""
        ...


def _column(field: pa.Field, labels: Labels | None, rows: int) -> _Column:
    type_ = field.type if labels is None else field.type.index_type
    if pa.types.is_integer(type_) or pa.types.is_float32(type_) or pa.types.is_float64(type_):
        return _Numbers(type_, labels, rows)
    return _Pieces(type_)


class _Numbers:
    """Numbers, or codes of labels, in an array of the group's size."""

    def __init__(self, type_: pa.DataType, labels: Labels | None, rows: int) -> None:
        self._type, self._labels = type_, labels
        self._values: NDArray[Any] = np.empty(rows, type_.to_pandas_dtype())
        self._valid: NDArray[np.bool_] | None = None

    def add(self, values: pa.Array, place: int) -> None:
        end = place + len(values)
        if self._labels is None:
            self._values[place:end] = _numbers(values if values.type == self._type else values.cast(self._type))
        else:
            self._labels.encode(values, self._values[place:end])
        if values.null_count and self._valid is None:
            self._valid = np.ones(len(self._values), np.bool_)
        if self._valid is not None:
            self._valid[place:end] = valid_of(values) if values.null_count else True

    def taken(self, rows: int) -> pa.Array:
        valid, self._valid = self._valid, None
        mask = None if valid is None else pa.py_buffer(np.packbits(valid[:rows], bitorder="little"))
        return pa.Array.from_buffers(self._type, rows, [mask, pa.py_buffer(self._values[:rows])])


def _numbers(values: pa.Array) -> NDArray[Any]:
    """The values, whatever stands at nulls among them."""
    whole = np.frombuffer(values.buffers()[1] or b"", values.type.to_pandas_dtype())
    return whole[values.offset : values.offset + len(values)]


class _Pieces:
    """Values of any other type: kept as they come, and copied together at the end."""

    def __init__(self, type_: pa.DataType) -> None:
        self._type = type_
        self._pieces: list[pa.Array] = []

    def add(self, values: pa.Array, place: int) -> None:
        self._pieces.append(values if values.type == self._type else values.cast(self._type))

    def taken(self, rows: int) -> pa.Array:
        # In fresh buffers, even where it is one piece: what a file gets of a slice depends on its place.
        pieces, self._pieces = self._pieces, []
        return pa.concat_arrays([*pieces, empty(self._type)])
