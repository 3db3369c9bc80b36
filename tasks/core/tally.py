"""What the values of a chunk look like, in few bytes: cells of each well, nulls, columns of one value.

A chunk's tally travels in its record as a short text, so that neither a server nor the memory of a run with ten
thousand chunks notices it. Tallies are merged in any order; what did not fit is counted, and the report says so.
"""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.arrays import one_piece, to_numpy

TOTAL_BYTES = 48 << 20
"""What the tallies of all chunks of a run may take together."""

LEAST_BYTES, MOST_BYTES = 4096, 1 << 20
"""Bounds of one chunk's share of it."""

MOST_WELLS = 20_000
"""Pairs of plate and well that are told apart: 13 plates of 1,536 wells, 200 of 96."""

SHOWN = 60
"""Characters of a constant value that are kept; a longer one is told apart by its checksum."""

_WELL = {"well", "wellname", "wellid", "welllabel", "wellposition"}
_PLATE = {"plate", "platename", "plateid", "platelabel", "platebarcode", "assayplatebarcode", "barcode"}

Place = tuple[str, str]
"""A plate and a well; the plate is empty where no column tells it."""

Pairs = list[tuple[int, int]]


@dataclass
class Tally:
    """Counts over the rows of one chunk, or of several. Columns are numbered within their table.

    Attributes:
        rows: By table.
        wells: Rows by plate and well; a well without a name is an empty text.
        nulls: By table, (column, nulls) of the columns that have any.
        constants: By table, (column, value as text) of the columns with one value in all rows; a column without any
            value has None.
        lacking: What had to be left out to stay small: "wells", "nulls", "constants".
    """

    rows: dict[int, int] = field(default_factory=dict)
    wells: list[tuple[str, str, int]] = field(default_factory=list)
    nulls: dict[int, Pairs] = field(default_factory=dict)
    constants: dict[int, list[tuple[int, str | None]]] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)

    def add(self, number: int, table: pa.Table) -> None:
        """Count the rows of output table `number`."""
        self.rows[number] = table.num_rows
        if not table.num_rows:
            return
        nulls: Pairs = []
        constants: list[tuple[int, str | None]] = []
        for position, column in enumerate(table.columns):
            missing = column.null_count
            if missing:
                nulls.append((position, missing))
            if missing == table.num_rows:
                constants.append((position, None))
            elif missing or _ends_alike(column):
                value = _only_value(column.drop_null() if missing else column)
                if value is not None:
                    constants.append((position, value))
        self.nulls[number], self.constants[number] = nulls, constants

    def add_wells(self, table: pa.Table, dataset: pa.Array, names: Sequence[str]) -> None:
        """Count the rows of each well; where no column tells the plate, its dataset stands for it."""
        plate, well = well_columns(table.column_names)
        if well is None or not table.num_rows:
            return
        plates, plate_codes = _codes(table.column(plate)) if plate else (list(names), to_numpy(dataset))
        wells, well_codes = _codes(table.column(well))
        both = plate_codes.astype(np.int64) * len(wells) + well_codes
        found, counts = np.unique(both, return_counts=True)
        if len(found) > MOST_WELLS:
            self.lacking.append("wells")
            return
        self.wells = [
            (plates[code // len(wells)], wells[code % len(wells)], rows)
            for code, rows in zip(found.tolist(), counts.tolist(), strict=True)
        ]

    def text(self, chunks: int) -> str:
        """The tally as a text that fits this chunk's share where a run has so many chunks."""
        limit = min(max(TOTAL_BYTES // max(chunks, 1), LEAST_BYTES), MOST_BYTES)
        for name in ("", "constants", "nulls", "wells"):
            if name and name not in self.lacking:
                setattr(self, name, type(getattr(self, name))())
                self.lacking.append(name)
            text = base64.b85encode(zlib.compress(msgspec.json.encode(self), 6)).decode()
            if len(text) <= limit:
                break
        return text


_DECODER = msgspec.json.Decoder(Tally)


def read(text: str) -> Tally:
    """The tally that `Tally.text` wrote."""
    return _DECODER.decode(zlib.decompress(base64.b85decode(text)))


def well_columns(names: Iterable[str]) -> tuple[str | None, str | None]:
    """The columns that name the plate and the well, where there are such columns.

    >>> well_columns(["Metadata_ImageNumber", "Image_Metadata_Plate", "Image_Metadata_Well"])
    ('Image_Metadata_Plate', 'Image_Metadata_Well')
    """
    plate = well = None
    for name in names:
        word = re.sub(r"[^a-z0-9]", "", name.lower().rpartition("metadata_")[2])
        if well is None and word in _WELL:
            well = name
        elif plate is None and word in _PLATE:
            plate = name
    return plate, well


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct values as texts, a null as the empty one, and the position of each row's value among them."""
    encoded = one_piece(column).dictionary_encode()
    values = ["" if value is None else str(value).strip() for value in encoded.dictionary.to_pylist()]
    codes = to_numpy(encoded.indices).astype(np.int64)
    if encoded.indices.null_count:
        codes = np.where(to_numpy(encoded.indices.is_valid().cast(pa.int8())).astype(bool), codes, len(values))
        values.append("")
    return values, codes


def _ends_alike(column: pa.ChunkedArray) -> bool:
    """Whether the first and the last value of a column are the same: seldom so where there are several values."""
    first, last = column.chunk(0), column.chunk(column.num_chunks - 1)
    return not (len(first) and len(last)) or bool(first[0].equals(last[-1])) or _is_zero_or_nan(first[0])


def _is_zero_or_nan(value: pa.Scalar) -> bool:
    """Whether a value may be the same as one that Arrow calls another: two zeros, two that are not a number."""
    return pa.types.is_floating(value.type) and (value.as_py() == 0 or math.isnan(value.as_py()))


def _only_value(column: pa.ChunkedArray) -> str | None:
    """The one value of a column without nulls, as a text; None where there are several."""
    first = next(piece for piece in column.chunks if len(piece))[0]
    if pa.types.is_floating(column.type):
        number = first.as_py()
        for piece in column.chunks:
            values = to_numpy(piece)
            same = np.isnan(values) if math.isnan(number) else values == number
            if not same.all():
                return None
        return repr(number + 0.0)  # minus zero equals zero
    if pa.types.is_integer(column.type):
        number = first.as_py()
        return str(number) if all((to_numpy(piece) == number).all() for piece in column.chunks) else None
    if pc.count_distinct(column).as_py() != 1:
        return None
    text = str(first.as_py())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({zlib.crc32(text.encode('utf-8', 'replace')):08x})"


@dataclass
class Merged:
    """The tallies of all chunks of a run.

    Attributes:
        chunks: How many chunks had rows.
        untold: By "wells", "nulls" and "constants", how many of those could not tell.
        wells: Rows by plate and well.
        nulls: Nulls by (table, column).
        constants: The one value by (table, column); None where no row has a value.
    """

    chunks: int = 0
    untold: Counter[str] = field(default_factory=Counter)
    rows: Counter[int] = field(default_factory=Counter)
    wells: Counter[Place] = field(default_factory=Counter)
    nulls: Counter[tuple[int, int]] = field(default_factory=Counter)
    constants: dict[tuple[int, int], str | None] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def add(self, tally: Tally | None) -> None:
        """Add one chunk's; None for a chunk whose record has none."""
        if tally is None:
            self.chunks += 1
            self.untold.update(("wells", "nulls", "constants"))
            return
        if not any(tally.rows.values()):
            return
        self.chunks += 1
        self.untold.update(tally.lacking)
        self.rows.update(tally.rows)
        for plate, well, rows in tally.wells:
            if (plate, well) in self.wells or len(self.wells) < MOST_WELLS:
                self.wells[plate, well] += rows
            else:
                self.untold["rows of wells"] += rows
        for table, pairs in tally.nulls.items():
            for column, count in pairs:
                self.nulls[table, column] += count
        if "constants" not in tally.lacking:
            for table, found in tally.constants.items():
                self._intersect(table, dict(found))

    def _intersect(self, table: int, found: Mapping[int, str | None]) -> None:
        """Keep as constant what is so in every chunk, with one value; a chunk without a value contradicts nothing."""
        if table not in self._seen:
            self._seen.add(table)
            self.constants |= {(table, column): value for column, value in found.items()}
            return
        for key in [one for one in self.constants if one[0] == table]:
            if key[1] not in found:
                del self.constants[key]
                continue
            known, value = self.constants[key], found[key[1]]
            if known is None:
                self.constants[key] = value
            elif value is not None and value != known:
                del self.constants[key]


def merge(texts: Iterable[str]) -> Merged:
    """The tallies of chunks together; an empty text is that of a chunk without one."""
    merged = Merged()
    for text in texts:
        merged.add(read(text) if text else None)
    return merged
