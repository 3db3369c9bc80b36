"""The header of a CSV file: its columns, and how its fields are written."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.sources.text import Text

HEADER_LIMIT = 64 << 20
FIRST_LOOK = 64 << 10
"""Bytes of a file that are read for its header, where it is not longer."""

SHARED = "Image"
"""What stands above the columns of a combined table that belong to every compartment."""

DELIMITERS = (",", ";", "\t", "|")
_DECIMAL_COMMA = re.compile(rb"[+-]?\d+,\d+([eE][+-]?\d+)?")
_DECIMAL_POINT = re.compile(rb"[+-]?\d+\.\d+([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Header:
    """What a CSV file begins with.

    Attributes:
        fields: The names of all fields, each once.
        start: Offset of the first row.
        groups: Where several compartments are combined, whose field each is; `fields` then have it before them.
    """

    fields: tuple[str, ...]
    start: int
    delimiter: str = ","
    decimal: str = "."
    groups: tuple[str, ...] = ()

    def columns(self, table: str) -> dict[str, str]:
        """The field of each column; of a combined table's compartment where `table` names one."""
        if not self.groups:
            return dict(zip(self.fields, self.fields, strict=True))
        return {
            field.partition("/")[2]: field
            for field, group in zip(self.fields, self.groups, strict=True)
            if group.lower() in (SHARED.lower(), table.lower())
        }

    @property
    def usual(self) -> bool:
        """Whether it is written as CellProfiler writes: commas, points, one table."""
        return self.delimiter == "," and not self.groups


def header_of(text: Text, combined: bool = False, head: bytes | None = None) -> Header:
    """The header of a file.

    Args:
        text: The file.
        combined: Whether it has two header rows: compartments, and their columns.
        head: What the file begins with, where that has been read: `FIRST_LOOK` bytes or more, or all of it.

    Raises:
        BadSourceError: There is none that can be read.
    """
    data = text.head(FIRST_LOOK) if head is None else head
    if len(data) >= FIRST_LOOK and len(_row_ends(data, 2 if combined else 1)) < (2 if combined else 1):
        data = text.head(HEADER_LIMIT)
    header = header_in(text.where, data, combined)
    if header.delimiter != "," and FIRST_LOOK <= len(data) < header.start + FIRST_LOOK:
        header = header_in(text.where, text.head(header.start + FIRST_LOOK), combined)  # rows tell the decimal sign
    return header


def header_in(where: str, data: bytes, combined: bool = False) -> Header:
    """The header of the file `where`, from the bytes that it begins with; see `header_of`."""
    rows = 2 if combined else 1
    ends = _row_ends(data, rows)
    if not data[: ends[-1] if ends else HEADER_LIMIT].strip():
        raise BadSourceError(where, "the file is empty", "Export it again, or take it away.")
    if len(ends) < rows:
        _decoded(where, data[:HEADER_LIMIT])  # what is no text is told so first
        cause = "its header is cut off: it has no line break, or a quote in it is not closed"
        raise BadSourceError(where, cause, "Export the file again.")
    lines = [_decoded(where, data[start:stop]) for start, stop in zip((0, *ends), ends, strict=False)]
    delimiter = max(DELIMITERS, key=lambda one: _width(lines[-1], one))
    names = _split(where, lines[-1], delimiter)
    groups: tuple[str, ...] = ()
    if combined:
        groups = _split(where, lines[0], delimiter)
        if len(groups) != len(names):
            cause = f"its first header row has {len(groups)} fields, its second {len(names)}"
            raise BadSourceError(where, cause, "Export the file again.")
        names = tuple(f"{group}/{name}" for group, name in zip(groups, names, strict=True))
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise BadSourceError(
            where, f"its header names {repeated[0]!r} more than once", "Give each column a name of its own."
        )
    decimal = _decimal(data[ends[-1] : ends[-1] + FIRST_LOOK], delimiter)
    return Header(names, ends[-1], delimiter, decimal, groups)


def groups_of(text: Text) -> tuple[str, ...]:
    """The compartments that a combined table names in its first row, each once."""
    return tuple(dict.fromkeys(one for one in header_of(text, combined=True).groups if one != SHARED))


def _row_ends(data: bytes, rows: int) -> list[int]:
    """Offsets behind the first rows, line breaks inside quoted names skipped."""
    ends: list[int] = []
    position = start = 0
    while len(ends) < rows and (position := data.find(b"\n", position) + 1):
        if data.count(b'"', start, position) % 2 == 0:
            ends.append(position)
            start = position
    return ends


def _decoded(where: str, line: bytes) -> str:
    try:
        decoded = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSourceError(
            where,
            f"its header is not UTF-8 text ({error.reason} at byte {error.start})",
            "Save it as UTF-8.",
        ) from error
    if "\0" in decoded:
        raise BadSourceError(where, "its header holds zero bytes, so it is no UTF-8 text", "Save it as UTF-8.")
    return decoded


def _width(line: str, delimiter: str) -> int:
    """How many fields a line has if they are separated so; none where it cannot be parsed so."""
    try:
        return len(_split("", line, delimiter))
    except BadSourceError:
        return 0


def _split(where: str, line: str, delimiter: str) -> tuple[str, ...]:
    if delimiter not in line and delimiter != ",":
        return ()
    try:
        return tuple(next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), []))
    except csv.Error as error:
        raise BadSourceError(where, f"its header cannot be parsed ({error})", "Export the file again.") from error


def _decimal(rows: bytes, delimiter: str) -> str:
    """The sign before decimals: a comma where fields are not separated by one, and numbers are seen to have it."""
    if delimiter == ",":
        return "."
    fields = re.split(rb"[\r\n\"" + re.escape(delimiter.encode()) + rb"]+", rows)
    commas = sum(_DECIMAL_COMMA.fullmatch(field) is not None for field in fields)
    points = sum(_DECIMAL_POINT.fullmatch(field) is not None for field in fields)
    return "," if commas > points else "."
