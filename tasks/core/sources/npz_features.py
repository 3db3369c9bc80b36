"""The numbers of an archive: its features and locations, unpacked straight into columns.

A table of an archive lies row by row, an Arrow table column by column. Features are turned a piece at a time, while
it is in the processor's cache, into room that is taken once for all archives: what is held beside the columns is a
piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.arrays import empty
from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.schema import to_arrow
from prefect_cytotable.tasks.core.sources.npz_archive import Archive, Stored
from prefect_cytotable.tasks.core.sources.npz_metadata import bool_array, text_array
from prefect_cytotable.tasks.core.sources.npz_pickle import short

FEATURES_LIMIT = 100_000
"""Features of an archive: far beyond any model, and what a header without values may not exceed."""

PIECE_BYTES = 1 << 20
"""Features that are held between the archive and their columns."""

WIDTHS = {ColumnType.BOOL: 1, ColumnType.INT64: 8, ColumnType.FLOAT: 4, ColumnType.DOUBLE: 8}
"""Bytes of a value in memory."""

_NATIVE: dict[ColumnType, type[np.generic]] = {
    ColumnType.BOOL: np.bool_,
    ColumnType.INT64: np.int64,
    ColumnType.FLOAT: np.float32,
    ColumnType.DOUBLE: np.float64,
}


def feature_type(dtype: np.dtype[Any]) -> ColumnType:
    """The type of the columns of features that are stored as `dtype`."""
    if dtype.kind == "f":
        return ColumnType.FLOAT if dtype.itemsize <= 4 else ColumnType.DOUBLE
    return ColumnType.BOOL if dtype.kind == "b" else ColumnType.INT64


def features_shape(archive: Archive, features: Stored) -> tuple[int, int]:
    """(cells, features).

    Raises:
        BadSourceError: The array is no table of numbers, or has more columns than any model has features.
    """
    shape = (0, 0) if features.shape == (0,) else features.shape
    if len(shape) != 2:
        raise archive.bad(f"its features have shape {short(features.shape)}, and are no table of cells x features")
    if features.dtype.kind not in "fiub" or features.dtype.itemsize > 8:
        raise archive.bad(f"its features are {short(features.dtype)} values, and no numbers of up to 64 bits")
    if shape[1] > FEATURES_LIMIT:
        raise archive.bad(f"it has {shape[1]:,} features, more than the {FEATURES_LIMIT:,} that are read")
    return shape[0], shape[1]


def check_locations(archive: Archive, locations: Stored, cells: int) -> None:
    """Refuse locations that are not two numbers for each cell.

    Raises:
        BadSourceError: They are not.
    """
    if locations.dtype.kind not in "fiu" or locations.dtype.itemsize > 8:
        raise archive.bad(f"its locations are {short(locations.dtype)} values, and no numbers of up to 64 bits")
    if locations.shape == (0,) and cells == 0:
        return
    if len(locations.shape) != 2 or locations.shape[1] != 2:
        raise archive.bad(f"its locations have shape {short(locations.shape)}, and are no table of cells x 2")
    if locations.shape[0] != cells:
        raise archive.bad(f"it has the locations of {locations.shape[0]:,} cells, and the features of {cells:,}")


def centers(archive: Archive, locations: Stored, cells: int) -> NDArray[np.float64]:
    """The locations as doubles: 2 x cells."""
    values = np.frombuffer(archive.values(locations), locations.dtype)
    table = values.reshape(2, cells) if locations.fortran else values.reshape(cells, 2).T
    return np.ascontiguousarray(table, np.float64)


@dataclass(frozen=True)
class Block:
    """Features of one planned type.

    Attributes:
        features: Their positions among the archive's features, in ascending order.
        values: features x cells of all archives, in the type that they have in memory.
    """

    features: tuple[int, ...]
    type: ColumnType
    values: NDArray[Any]

    @property
    def which(self) -> slice | list[int]:
        """The features as an index; of a stretch without gaps nothing is copied."""
        first, last = self.features[0], self.features[-1]
        return slice(first, last + 1) if last - first + 1 == len(self.features) else list(self.features)


def blocks_for(wanted: Sequence[tuple[int, ColumnType]], dtype: np.dtype[Any], cells: int) -> list[Block]:
    """Room for features of a number of cells.

    Args:
        wanted: (position among the features, planned type) pairs, no position twice.
        dtype: Of the features, as they are stored.
        cells: Of all archives.
    """
    by_type: dict[ColumnType, list[int]] = {}
    for position, type_ in wanted:
        by_type.setdefault(type_, []).append(position)
    own = _NATIVE[feature_type(dtype)]  # what is planned as text is made text at the end
    return [
        Block(tuple(sorted(positions)), type_, np.empty((len(positions), cells), _NATIVE.get(type_, own)))
        for type_, positions in by_type.items()
    ]


def fill(blocks: Sequence[Block], archive: Archive, features: Stored, start: int) -> None:
    """Unpack the features of an archive into the cells from `start` on.

    Raises:
        BadSourceError: The archive is damaged, or holds a number that no column can.
    """
    if not blocks:
        return
    targets = [(block.which, block.values) for block in blocks]
    for piece in _pieces(archive, features):
        for which, values in targets:
            values[:, start : start + len(piece)] = piece[:, which].T
        start += len(piece)


def _pieces(archive: Archive, stored: Stored) -> Iterator[NDArray[Any]]:
    """The features, some cells at a time: each piece is cells x features."""
    cells, width = features_shape(archive, stored)
    if stored.fortran:  # columns lie one after the other: no cell is whole before all are there
        whole = np.frombuffer(archive.values(stored), stored.dtype)
        yield _checked(archive, whole.reshape(width, cells).T)
        return
    row_bytes = max(width * stored.dtype.itemsize, 1)
    for data in archive.pieces(stored, max(PIECE_BYTES // row_bytes, 1) * row_bytes):
        yield _checked(archive, np.frombuffer(data, stored.dtype).reshape(-1, width))


def _checked(archive: Archive, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "b":
        return np.not_equal(values.view(np.uint8), 0)
    if values.dtype.kind == "u" and values.dtype.itemsize == 8 and values.max(initial=0) > np.iinfo(np.int64).max:
        raise archive.bad("its features hold a whole number beyond the 63 bits of a signed one")
    return values


def columns_of(values: NDArray[Any], type_: ColumnType) -> list[pa.Array]:
    """The rows of a table as Arrow arrays over its memory; texts and truth values are copied."""
    count, cells = values.shape
    if not cells:
        return [empty(to_arrow(type_))] * count
    if type_ is ColumnType.STRING:
        return [text_array([str(one) for one in row.tolist()]) for row in values]
    if type_ is ColumnType.BOOL:
        return [bool_array(row) for row in values]
    buffer, size, arrow = pa.py_buffer(values.reshape(-1)), cells * values.itemsize, to_arrow(type_)
    return [pa.Array.from_buffers(arrow, cells, [None, buffer.slice(at * size, size)]) for at in range(count)]
