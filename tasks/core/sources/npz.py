"""NPZ: one archive a site, as DeepProfiler writes it.

The array `features` (cells x features) becomes a column for each feature, `locations` (cells x 2) two more, and
each key of the dictionary in `metadata` one. Features keep their width: what is float32 stays float32.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Source
from prefect_cytotable.tasks.core.naming import TABLE_NUMBER
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.schema import merge, to_arrow, widest
from prefect_cytotable.tasks.core.sources.base import (
    Answer,
    Cut,
    ImageRows,
    Index,
    Keys,
    Request,
    Sample,
    Together,
)
from prefect_cytotable.tasks.core.sources.npz_archive import Archive, RangedFile, Stored
from prefect_cytotable.tasks.core.sources.npz_features import (
    WIDTHS,
    Block,
    blocks_for,
    centers,
    check_locations,
    columns_of,
    feature_type,
    features_shape,
    fill,
)
from prefect_cytotable.tasks.core.sources.npz_metadata import Values, array_of, metadata_of, text_bytes
from prefect_cytotable.tasks.core.sources.npz_pickle import short

FEATURES, LOCATIONS, MODEL = "features", "locations", "Metadata_Model"
NPZ_SOURCE = "Metadata_NPZSource"
CENTERS = ("Location_Center_X", "Location_Center_Y")
DEFAULT_PREFIX = "DP"

TOGETHER_TEXT = 1 << 30
"""Bytes of text that a column of several archives may hold; Arrow's texts end at 2 GiB."""

HEADERS = 8192
"""Archives whose headers are remembered: each is asked for several times before it is read."""

Columns = tuple[tuple[str, ColumnType], ...]


@dataclass(frozen=True)
class Header:
    """What is known of an archive before its features are read.

    Attributes:
        names: Of all columns, in their order; archives alike share one tuple.
        dtype: Of the features, as they are stored.
        types: Of the columns before the features, None where no value was seen.
        row_bytes: Bytes of a row in Arrow memory.
        text_bytes: Bytes of the longest text column.
    """

    rows: int
    names: tuple[str, ...]
    dtype: np.dtype[Any]
    types: tuple[ColumnType | None, ...]
    row_bytes: int
    text_bytes: int
    checksum: int

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features' columns."""
        return self.names[len(self.types) :]


@dataclass(frozen=True)
class _Opened:
    """An archive whose arrays are described, and whose metadata are read."""

    archive: Archive
    header: Header
    features: Stored
    locations: Stored
    metadata: dict[str, Values]


@dataclass(frozen=True)
class NpzReader:
    """Reads NPZ archives."""

    places: Places
    cut = Cut.NEVER

    def columns(self, source: Source) -> tuple[str, ...]:
        """TableNumber, source, metadata in their order, locations, then the features, counted from one.

        A feature is called after the one text in `Metadata_Model`, `DP` where there is none.
        """
        return _header(self.places, source).names

    def sample(self, sources: Sequence[Source], limit: int, measures: bool) -> Sample:
        """Types from the arrays' headers and from the metadata, which are read whole."""
        headers = [_header(self.places, source) for source in sources]
        nothing: dict[str, ColumnType | None] = {}
        types = reduce(merge, (_types(header) for header in headers), nothing)
        sizes = [one.fingerprint.size // max(header.rows, 1) for one, header in zip(sources, headers, strict=True)]
        return Sample(types, max(one.row_bytes for one in headers), max(sizes))

    def index(self, sources: Sequence[Source], keys: Keys, objects: bool) -> list[Index]:
        """All rows of an archive as one stretch: they stay together."""
        return [_index(_header(self.places, source).rows) for source in sources]

    def objects(self, source: Source, keys: Keys, image: int) -> list[int]:
        """None: cells have no numbers."""
        return []

    def count(self, source: Source) -> int | None:
        """The number of cells that the header of the features tells."""
        try:
            archive = Archive(RangedFile(self.places, source), source.where)
            return features_shape(archive, archive.stored(FEATURES))[0]
        except BadSourceError:
            return None

    def checksum(self, source: Source) -> int:
        """CRC-32 over the names, checksums and sizes of the archive's members, from its directory alone."""
        try:
            return _header(self.places, source).checksum
        except BadSourceError:  # of what its arrays hold; the directory may be whole all the same
            return Archive(RangedFile(self.places, source), source.where).checksum()

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """Archives of the same columns, each unpacked straight into the columns of all.

        None where anything at all is unusual about one; read one by one, each gets an answer or an error.
        """
        columns = requests[0].columns
        if any(one.columns != columns for one in requests):
            return None
        try:
            headers = [_header(self.places, one.source) for one in requests]
            if not _alike(headers):
                return None
            wanted = _wanted(headers[0], columns)
            if _widened(headers[0], wanted.columns) or any(_widened(one, wanted.others) for one in headers[1:]):
                return None
            table = _table(wanted, headers, (self._open(one.source) for one in requests))
        except (BadSourceError, _OtherArchiveError):
            return None
        counts = tuple(one.rows for one in headers)
        return Together(table, np.repeat(np.arange(len(counts), dtype=np.int32), counts), counts)

    def read(self, request: Request) -> Answer:
        """The rows of the whole archive."""
        opened = self._open(request.source)
        wanted = _wanted(opened.header, request.columns)
        widened = _widened(opened.header, wanted.columns)
        if widened:
            return Answer(pa.table({}), widened)
        return Answer(_table(wanted, [opened.header], iter([opened])))

    def _open(self, source: Source) -> _Opened:
        data = self.places.read(source.path, mark=source.fingerprint.mark)
        return _opened(Archive(io.BytesIO(data), source.where), source)


class _OtherArchiveError(ValueError):
    """An archive is not the one whose header was read before."""


@lru_cache(HEADERS)
def _header(places: Places, source: Source) -> Header:
    """The header of an archive, from its directory and its first bytes; `source` tells a changed one."""
    return _opened(Archive(RangedFile(places, source), source.where), source).header


def _opened(archive: Archive, source: Source) -> _Opened:
    features, locations = archive.stored(FEATURES), archive.stored(LOCATIONS)
    cells, width = features_shape(archive, features)
    check_locations(archive, locations, cells)
    metadata = metadata_of(archive, cells)
    model = metadata[MODEL].text if MODEL in metadata else None
    prefix = model if model and model.strip() else DEFAULT_PREFIX
    names = _unique_names(archive, tuple(metadata), prefix, width)
    metadata = {NPZ_SOURCE: Values(ColumnType.STRING, (_file_name(source),), constant=True)} | metadata
    inside = tuple(one.type for one in metadata.values())
    row_bytes = 8 + sum(one.row_bytes for one in metadata.values()) + 16
    header = Header(
        cells,
        names,
        features.dtype,
        (ColumnType.INT64, *inside, ColumnType.DOUBLE, ColumnType.DOUBLE),
        row_bytes + width * WIDTHS[feature_type(features.dtype)],
        max(text_bytes(one, cells) for one in metadata.values()),
        archive.checksum(),
    )
    return _Opened(archive, header, features, locations, metadata)


def _unique_names(archive: Archive, keys: tuple[str, ...], prefix: str, width: int) -> tuple[str, ...]:
    names = _names(keys, prefix, width)
    if len(_positions(names)) != len(names):
        own = {*names[:2], *names[2 + len(keys) :]}
        repeated = next(key for key in keys if key in own)
        cause = f"its metadata key {short(repeated)!r} is also the name of another column"
        raise archive.bad(cause, "Give the key another name.")
    return names


@lru_cache(16)
def _names(keys: tuple[str, ...], prefix: str, width: int) -> tuple[str, ...]:
    features = (f"{prefix}_{number}" for number in range(1, width + 1))
    return (TABLE_NUMBER, NPZ_SOURCE, *keys, *CENTERS, *features)


@lru_cache(16)
def _positions(names: tuple[str, ...]) -> dict[str, int]:
    return {name: position for position, name in enumerate(names)}


def _file_name(source: Source) -> str:
    """The name of the archive's file; bytes in it that are no UTF-8 are replaced."""
    return PurePosixPath(source.path).name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _types(header: Header) -> dict[str, ColumnType | None]:
    first = dict(zip(header.names, header.types, strict=False))
    return first | dict.fromkeys(header.features, feature_type(header.dtype))


def _index(rows: int) -> Index:
    images = (ImageRows(1, rows),) if rows else ()
    return Index(images, 0, None, "cells have no numbers")


def _alike(headers: Sequence[Header]) -> bool:
    """Whether the archives have the same columns, and no text column of all of them is too long for Arrow."""
    first = headers[0]
    same = all(one.names == first.names and one.dtype == first.dtype for one in headers)
    return same and sum(one.text_bytes for one in headers) <= TOGETHER_TEXT


@dataclass(frozen=True)
class _Wanted:
    """The columns that were asked for and are there, in the order in which they were asked for.

    Attributes:
        others: Those that are no features.
        features: (position among the features, type) pairs.
    """

    columns: Columns
    others: Columns
    features: tuple[tuple[int, ColumnType], ...]


def _wanted(header: Header, columns: Columns) -> _Wanted:
    positions, before = _positions(header.names), len(header.types)
    present = tuple(one for one in columns if one[0] in positions)
    others = tuple(one for one in present if positions[one[0]] < before)
    features = tuple((positions[name] - before, type_) for name, type_ in present if positions[name] >= before)
    return _Wanted(present, others, features)


def _widened(header: Header, columns: Columns) -> Columns:
    """Those of an archive's columns that need a wider type than was planned, with that type."""
    types, of_features = dict(zip(header.names, header.types, strict=False)), feature_type(header.dtype)
    wider = []
    for name, planned in columns:
        needed = types.get(name, of_features)
        if needed is not planned and needed is not None:
            holds_both = widest(planned, needed)
            if holds_both is not None and holds_both is not planned:
                wider.append((name, holds_both))
    return tuple(wider)


def _table(wanted: _Wanted, headers: Sequence[Header], archives: Iterator[_Opened]) -> pa.Table:
    """Columns of archives that are alike, one archive after the other.

    Args:
        wanted: Columns, in types that hold what the archives have.
        headers: Of the archives.
        archives: Each is opened when the one before it is done with, and let go.
    """
    blocks = blocks_for(wanted.features, headers[0].dtype, sum(one.rows for one in headers))
    pieces: dict[str, list[pa.Array]] = {name: [] for name, _ in wanted.others}
    start = 0
    for header in headers:
        _add(next(archives), header, wanted, blocks, pieces, start)
        start += header.rows
    arrays = {name: found[0] if len(found) == 1 else pa.concat_arrays(found) for name, found in pieces.items()}
    names = headers[0].features
    for block in blocks:
        columns = columns_of(block.values, block.type)
        arrays.update((names[position], array) for position, array in zip(block.features, columns, strict=True))
    ordered = [name for name, _ in wanted.columns]
    return pa.table([arrays[name] for name in ordered], names=ordered)


def _add(
    opened: _Opened,
    header: Header,
    wanted: _Wanted,
    blocks: Sequence[Block],
    pieces: dict[str, list[pa.Array]],
    start: int,
) -> None:
    """An archive's features into `blocks`, from row `start` on, and its other columns behind those in `pieces`."""
    if opened.header != header:
        raise _OtherArchiveError
    fill(blocks, opened.archive, opened.features, start)
    for name, array in _others(opened, wanted.others):
        pieces[name].append(array)


def _others(opened: _Opened, columns: Columns) -> Iterator[tuple[str, pa.Array]]:
    """(name, column) pairs of what is no feature of an archive."""
    cells = opened.header.rows
    places: NDArray[np.float64] | None = None
    for name, type_ in columns:
        if name == TABLE_NUMBER:
            yield name, pa.nulls(cells, to_arrow(type_))
        elif name in CENTERS:
            places = centers(opened.archive, opened.locations, cells) if places is None else places
            yield name, columns_of(places[CENTERS.index(name)][None], type_)[0]
        else:
            yield name, array_of(opened.metadata[name], type_, cells)
