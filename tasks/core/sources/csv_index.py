"""Where the rows of each image lie in a large CSV file: one pass over its bytes, in bounded memory.

A whole-plate file of many GB is cut into chunks by image, and each chunk then parses its own bytes alone. The pass
finds line ends and the two key fields of each line with NumPy, a block at a time; it does not parse the other
fields. Fields in quotes may hold delimiters and line breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import Span
from prefect_cytotable.tasks.core.sources.base import ImageRows, Index
from prefect_cytotable.tasks.core.sources.csv_header import Header
from prefect_cytotable.tasks.core.sources.csv_values import MISSING as ABSENT
from prefect_cytotable.tasks.core.sources.csv_values import NAN, NUMBER
from prefect_cytotable.tasks.core.sources.row_index import MISSING, Integers, Mask, by_image, runs, uniqueness
from prefect_cytotable.tasks.core.sources.text import Text

BLOCK_BYTES = 16 << 20
SPLIT_ROWS = 512
"""An image with more rows gets a span for every so many, so that a chunk can be a part of it."""

LONGEST_ROW = 64 << 20
"""Bytes after which a row without an end is taken for one whose quote is not closed."""

_NEWLINE, _RETURN, _QUOTE = b'\n\r"'
_LARGEST = 2.0**53
_ABSENT = MISSING + 1
"""Stands for an empty field, until it is decided what that means."""

_IS_NUMBER = re.compile(NUMBER.encode())
_IS_NAN = re.compile(NAN.encode())
_NOTHING = {one.encode() for one in ABSENT}

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Rows:
    """Every row of a file in its order: byte range, image number and object number (`missing` where empty)."""

    starts: Integers
    stops: Integers
    images: Integers
    objects: Integers | None


def index_of(text: Text, header: Header, image_field: int | None, object_field: int | None) -> Index:
    """The index of a CSV file.

    Args:
        text: The file.
        header: Its header.
        image_field: Position of the image number among the fields, or None where rows belong to no numbered image.
        object_field: Position of the object number, or None for an image table.

    Raises:
        BadSourceError: A row has too few fields, or the file ends within a row.
    """
    rows = scan(text, header, image_field, object_field)
    if image_field is None:
        return Index(tuple(_stretches(rows)), 0, None, "rows have no keys")
    known = rows.images != MISSING
    unique, finding = uniqueness(rows.images, rows.objects, known)
    return Index(tuple(_images(rows, known)), int((~known).sum()), unique, finding)


def scan(text: Text, header: Header, image_field: int | None, object_field: int | None) -> Rows:
    """Byte ranges and keys of all rows; see `index_of`."""
    fields = [field for field in (image_field, object_field) if field is not None]
    pieces: list[tuple[Integers, ...]] = []
    for offset, block in _blocks(text, header.start):
        try:
            starts, stops, keys = _rows_of(block, fields, ord(header.delimiter))
        except ValueError as error:
            raise BadSourceError(
                text.where, f"near byte {offset:,} {error}", "Export the file again, or repair the row."
            ) from error
        pieces.append((starts + offset, stops + offset, *keys))
    empty = np.empty(0, np.int64)
    columns = [np.concatenate(parts) for parts in zip(*pieces, strict=True)] if pieces else [empty] * 4
    if header.groups and object_field is not None:  # rows that another compartment is longer by are none of this one
        columns = [one[columns[-1] != _ABSENT] for one in columns]
    for numbers in columns[2:]:
        numbers[numbers == _ABSENT] = MISSING
    images = columns[2] if image_field is not None else np.full(len(columns[0]), MISSING)
    return Rows(columns[0], columns[1], images, columns[3] if object_field is not None else None)


def _stretches(rows: Rows) -> Iterator[ImageRows]:
    """Rows without keys in stretches, counted from one."""
    for number, start in enumerate(range(0, len(rows.starts), SPLIT_ROWS), start=1):
        stop = min(start + SPLIT_ROWS, len(rows.starts))
        yield ImageRows(number, stop - start, (Span(int(rows.starts[start]), int(rows.stops[stop - 1])),))


def _blocks(text: Text, start: int) -> Iterator[tuple[int, Bytes]]:
    """(offset, bytes) of stretches that end with a row's end."""
    with text.stream(start) as file:
        rest = b""
        while data := file.read(BLOCK_BYTES):
            data = rest + data
            end = last_row_end(data)
            if end:
                yield start, np.frombuffer(data, np.uint8, count=end)
            start, rest = start + end, data[end:]
            if len(rest) > max(LONGEST_ROW, BLOCK_BYTES):
                raise BadSourceError(
                    text.where,
                    f"the row at byte {start:,} does not end: a quote in it is not closed",
                    "Export the file again, or repair the row.",
                )
    if rest:
        raise cut_off(text.where)


def cut_off(where: str) -> BadSourceError:
    """What is wrong with a file that ends within a row."""
    return BadSourceError(
        where,
        "it ends within a row: the file is cut off, its last line lacks a line break, or a quote is not closed",
        "Export the file again; if it is whole, add a line break at its end.",
    )


def last_row_end(data: bytes) -> int:
    """Bytes up to and with the last line break outside quotes; `data` begins outside quotes."""
    end = data.rfind(b"\n") + 1
    inside = data.count(b'"', 0, end) % 2
    while end and inside:
        before = data.rfind(b"\n", 0, end - 1) + 1
        inside ^= data.count(b'"', before, end) % 2
        end = before
    return end


def _rows_of(block: Bytes, fields: list[int], delimiter: int) -> tuple[Integers, Integers, list[Integers]]:
    """(starts, stops, numbers of each field) of the rows of a block."""
    separator = (block == delimiter) | (block == _NEWLINE)
    if (quotes := block == _QUOTE).any():
        separator &= (np.cumsum(quotes, dtype=np.uint8) & 1) == 0
    separators = np.flatnonzero(separator)
    row_ends = np.flatnonzero(block[separators] == _NEWLINE)
    stops = separators[row_ends] + 1
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)
    filled = (stops - starts > 2) | ((stops - starts == 2) & (block[starts] != _RETURN))
    first = np.concatenate([[0], row_ends[:-1] + 1])[filled]
    last = row_ends[filled]
    starts, stops = starts[filled], stops[filled]
    keys = []
    for field in fields:
        if (first + field > last).any():
            raise ValueError("a row has fewer fields than the header")
        ends = separators[first + field]
        begins = starts if field == 0 else separators[first + field - 1] + 1
        keys.append(_numbers(block, begins, ends))
    return starts, stops.astype(np.int64), keys


def _numbers(block: Bytes, begins: Integers, ends: Integers) -> Integers:
    """The whole numbers that stand at these places; any other field is a missing number."""
    widths = ends - begins
    values = np.zeros(len(begins), np.int64)
    plain = (widths > 0) & (widths <= 18)
    for digit in range(int(widths[plain].max(initial=0))):
        here = plain & (widths > digit)
        bytes_here = block[np.where(here, begins + digit, 0)]
        plain &= ~here | ((bytes_here >= 48) & (bytes_here <= 57))
        values = np.where(here, values * 10 + bytes_here.astype(np.int64) - 48, values)
    for row in np.flatnonzero(~plain):
        values[row] = _number(bytes(block[begins[row] : ends[row]]))
    return values


def _number(text: bytes) -> int:
    """What a field numbers, by the rules of `csv_values.converted`."""
    text = text.strip().strip(b'"').strip()
    if text in _NOTHING or _IS_NAN.match(text):
        return _ABSENT
    if not _IS_NUMBER.match(text):
        return MISSING
    if text.lstrip(b"+-").isdigit() and not text.startswith(b"+"):
        value = int(text) if len(text) <= 20 else 0
        return value if _ABSENT < value < -MISSING else MISSING
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < _LARGEST else MISSING


def _images(rows: Rows, known: Mask) -> Iterator[ImageRows]:
    """The rows of each image; rows that lie together make one span, large ones several."""
    for image, places in by_image(rows.images, known):
        yield ImageRows(image, len(places), tuple(_spans(rows, places)))


def _spans(rows: Rows, places: Integers) -> Iterator[Span]:
    for run in runs(places, rows.objects, SPLIT_ROWS):
        yield Span(int(rows.starts[run.first]), int(rows.stops[run.last]), run.first_object, run.last_object)
