"""obs from parts: every column is looked through first, and written part by part then.

What is in memory does not grow with the rows: the obs columns of one part, and the labels of a few columns of texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.arrays import EMPTY_TEXT, from_texts, one_piece, to_numpy
from prefect_cytotable.tasks.core.sinks.container import (
    Container,
    Encoding,
    Growing,
    code_type,
    texts,
    write_array,
)

TEXTS_AT_A_TIME = 16
"""Columns of texts whose labels are in memory at a time."""

LABEL_BYTES = 4 << 20
"""Bytes of labels up to which a column of texts can be a categorical."""

Table = dict[str, pa.Array]


def tables(paths: Sequence[Path], columns: Sequence[str], labelled: Sequence[str] = ()) -> Iterator[Table]:
    """The columns of each part, in order; those of `labelled` as codes and labels."""
    for path in paths:
        with pq.ParquetFile(path, read_dictionary=list(labelled), pre_buffer=False) as file:
            table = file.read(columns=list(columns), use_threads=False)
        yield {name: _piece(table.column(name)) for name in columns}


def _piece(column: pa.ChunkedArray) -> pa.Array:
    return one_piece(column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column)


@dataclass
class _Seen:
    """What was seen of a column.

    Attributes:
        labels: The texts that occur; None where they are too many to remember, or the column has none.
    """

    rows: int = 0
    nulls: int = 0
    labels: pa.Array | None = field(default_factory=lambda: from_texts([]))

    def look(self, values: pa.Array) -> None:
        self.rows += len(values)
        self.nulls += values.null_count
        if not pa.types.is_dictionary(values.type):
            self.labels = None
        elif self.labels is not None:
            used = values.dictionary.cast(pa.string()).take(pc.unique(values.indices.drop_null()))
            both = pc.unique(pa.concat_arrays([self.labels, used]))
            self.labels = both if both.nbytes <= LABEL_BYTES else None

    @property
    def categories(self) -> pa.Array | None:
        """Labels in alphabetical order; None where the column is better written text by text."""
        if self.labels is None or (not self.nulls and len(self.labels) > self.rows // 2):
            return None
        return self.labels.take(pc.sort_indices(self.labels))


def write_columns(
    container: Container,
    frame: str,
    paths: Sequence[Path],
    columns: Sequence[tuple[str, str]],
    schema: pa.Schema,
    rows: int,
) -> None:
    """Write columns of a data frame; its group and index are another's.

    Args:
        container: Where to.
        frame: Path of the data frame.
        paths: Parts, in order.
        columns: (column of the parts, its name in the data frame) pairs.
        schema: Of the parts.
        rows: How many the parts hold.
    """
    is_text = {name for name, _ in columns if _is_text(schema.field(name).type)}
    others = [pair for pair in columns if pair[0] not in is_text]
    labelled = [pair for pair in columns if pair[0] in is_text]
    groups = [others] if others else []
    groups += [labelled[at : at + TEXTS_AT_A_TIME] for at in range(0, len(labelled), TEXTS_AT_A_TIME)]
    for group in groups:
        names = [column for column, _ in group]
        read_as_labels = [name for name in names if name in is_text]
        seen = {name: _Seen() for name in names}
        for table in tables(paths, names, read_as_labels):
            for name, values in table.items():
                seen[name].look(values)
        writers = {
            column: _writer(container, f"{frame}/{name}", schema.field(column).type, seen[column], rows)
            for column, name in group
        }
        for table in tables(paths, names, read_as_labels):
            for name, values in table.items():
                writers[name].append(values)
        for writer in writers.values():
            writer.close()


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _writer(container: Container, path: str, type_: pa.DataType, seen: _Seen, rows: int) -> _Writer:
    if _is_text(type_):
        labels = seen.categories
        if labels is not None:
            return _Categorical(container, path, labels, rows)
        return (_NullableTexts if seen.nulls else _Texts)(container, path, rows)
    if pa.types.is_floating(type_):
        return _Floats(container, path, type_, rows)
    if not seen.nulls:
        return _Plain(container, path, type_, rows)
    return _Nullable(container, path, type_, rows)


class _Writer:
    """Writes a column; the base of those below."""

    def __init__(self, *growing: Growing) -> None:
        self._growing = growing

    def append(self, values: pa.Array) -> None:
        for growing, one in zip(self._growing, self._pieces(values), strict=True):
            growing.append(one)

    def close(self) -> None:
        for growing in self._growing:
            growing.close()

    def _pieces(self, values: pa.Array) -> Iterable[NDArray[Any]]:
        raise NotImplementedError


class _Plain(_Writer):
    """Whole numbers or truth values, all there."""

    def __init__(self, container: Container, path: str, type_: pa.DataType, rows: int) -> None:
        super().__init__(container.growing(path, np.dtype(type_.to_pandas_dtype()), rows))

    def _pieces(self, values: pa.Array) -> Iterable[NDArray[Any]]:
        return [_numbers(values)]


class _Floats(_Plain):
    """Floats; nulls are NaN."""

    def _pieces(self, values: pa.Array) -> Iterable[NDArray[Any]]:
        numbers = to_numpy(values)
        if values.null_count:
            numbers = numbers.copy()
            numbers[_nulls(values)] = np.nan
        return [numbers]


class _Nullable(_Writer):
    """Whole numbers or truth values, some of which are missing."""

    def __init__(self, container: Container, path: str, type_: pa.DataType, rows: int) -> None:
        booleans = pa.types.is_boolean(type_)
        container.group(path, Encoding.NULLABLE_BOOLEAN if booleans else Encoding.NULLABLE_INTEGER)
        dtype = np.dtype(type_.to_pandas_dtype())
        super().__init__(
            container.growing(f"{path}/values", dtype, rows),
            container.growing(f"{path}/mask", np.dtype(bool), rows),
        )

    def _pieces(self, values: pa.Array) -> Iterable[NDArray[Any]]:
        nulls = _nulls(values)
        return [np.where(nulls, np.zeros(1, values.type.to_pandas_dtype()), _numbers(values)), nulls]


class _Categorical(_Writer):
    """Texts of which many are the same, as numbers of labels; -1 is a missing one."""

    def __init__(self, container: Container, path: str, labels: pa.Array, rows: int) -> None:
        container.group(path, Encoding.CATEGORICAL, ordered=False)
        write_array(container, f"{path}/categories", texts(labels.to_pylist()))
        self._labels, self._dtype = labels, code_type(len(labels))
        super().__init__(container.growing(f"{path}/codes", self._dtype, rows))

    def _pieces(self, values: pa.Array) -> Iterable[NDArray[Any]]:
        found = pc.index_in(values.dictionary.cast(pa.string()), value_set=self._labels)
        codes = found.take(values.indices)
        return [np.where(_nulls(codes), -1, to_numpy(codes)).astype(self._dtype)]


class _Texts(_Writer):
    """Texts of which few are the same, all there."""

    def __init__(self, container: Container, path: str, rows: int) -> None:
        super().__init__(container.growing(path, None, rows))

    def _pieces(self, values: pa.Array) -> Iterable[NDArray[Any]]:
        return [texts(_plain_texts(values).to_pylist())]


class _NullableTexts(_Writer):
    """Texts of which few are the same, and some are missing."""

    def __init__(self, container: Container, path: str, rows: int) -> None:
        container.group(path, Encoding.NULLABLE_STRING)
        super().__init__(
            container.growing(f"{path}/values", None, rows),
            container.growing(f"{path}/mask", np.dtype(bool), rows),
        )

    def _pieces(self, values: pa.Array) -> Iterable[NDArray[Any]]:
        return [texts(pc.fill_null(_plain_texts(values), EMPTY_TEXT).to_pylist()), _nulls(values)]


def _plain_texts(values: pa.Array) -> pa.Array:
    return values.dictionary.cast(pa.string()).take(values.indices)


def _nulls(values: pa.Array) -> NDArray[np.bool_]:
    return _truths(pc.is_null(values))


def _truths(values: pa.Array) -> NDArray[np.bool_]:
    """Truth values, which Arrow packs into bits; undefined where there is a null."""
    numbers: NDArray[np.uint8] = to_numpy(values.cast(pa.uint8()))
    return numbers.astype(bool)


def _numbers(values: pa.Array) -> NDArray[Any]:
    return _truths(values) if pa.types.is_boolean(values.type) else to_numpy(values)
