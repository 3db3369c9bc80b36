"""Where wells lie on a plate, found from their names alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

FORMATS = ((2, 3), (3, 4), (4, 6), (6, 8), (8, 12), (16, 24), (32, 48))
"""(rows, columns) of the plates that are made: 6, 12, 24, 48, 96, 384 and 1,536 wells."""

USUAL = (8, 12)
"""A smaller format is assumed only where every well of it is there: of a larger plate, few wells may be measured."""

_NAME = re.compile(r"([A-Z]{1,2})[ _-]?0*([1-9][0-9]?)")
_NUMBERS = re.compile(r"R0*([1-9][0-9]?)[ _-]?C0*([1-9][0-9]?)")


@dataclass(frozen=True, order=True)
class Well:
    """A place on a plate; both numbers begin with 1."""

    row: int
    column: int

    @property
    def name(self) -> str:
        """As people write it.

        >>> Well(3, 5).name, Well(28, 48).name
        ('C05', 'AB48')
        """
        return f"{row_name(self.row)}{self.column:02d}"


def row_name(row: int) -> str:
    """The letters of a row: A to Z, then AA to AF.

    >>> row_name(1), row_name(26), row_name(32)
    ('A', 'Z', 'AF')
    """
    return chr(64 + row) if row <= 26 else f"A{chr(64 + row - 26)}"


def parse(name: str) -> Well | None:
    """The place that a well's name tells; None where it is no such name.

    >>> parse("c5"), parse("AB-48"), parse("r03c05"), parse("control")
    (Well(row=3, column=5), Well(row=28, column=48), Well(row=3, column=5), None)
    """
    text = name.strip().upper()
    largest = FORMATS[-1]
    if match := _NUMBERS.fullmatch(text):
        row, column = int(match[1]), int(match[2])
    elif match := _NAME.fullmatch(text):
        letters, column = match[1], int(match[2])
        row = ord(letters[0]) - 64 if len(letters) == 1 else 26 * (ord(letters[0]) - 64) + ord(letters[1]) - 64
    else:
        return None
    return Well(row, column) if row <= largest[0] and column <= largest[1] else None


@dataclass(frozen=True)
class Plate:
    """Cells of each well of a plate.

    Attributes:
        name: Empty where nothing names it.
        rows, columns: Of the smallest format that has all of its wells.
        unplaced: (name, cells) of wells whose names tell no place.
    """

    name: str
    rows: int
    columns: int
    cells: Mapping[Well, int]
    unplaced: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        """Cells of all wells."""
        return sum(self.cells.values()) + sum(cells for _, cells in self.unplaced)


def plates_of(counts: Mapping[tuple[str, str], int]) -> list[Plate]:
    """The plates, by name, from cells by (plate, name of the well)."""
    by_plate: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for (plate, well), cells in counts.items():
        by_plate[plate].append((well, cells))
    return [_plate(name, by_plate[name]) for name in sorted(by_plate)]


def _plate(name: str, wells: Iterable[tuple[str, int]]) -> Plate:
    cells: dict[Well, int] = defaultdict(int)
    unplaced = []
    for text, count in sorted(wells):
        well = parse(text)
        if well is None:
            unplaced.append((text, count))
        else:
            cells[well] += count
    rows, columns = _format(cells)
    return Plate(name, rows, columns, dict(cells), tuple(unplaced))


def _format(wells: Iterable[Well]) -> tuple[int, int]:
    there = set(wells)
    rows = max((well.row for well in there), default=0)
    columns = max((well.column for well in there), default=0)
    for format_ in FORMATS:
        fits = rows <= format_[0] and columns <= format_[1]
        if fits and (format_ >= USUAL or len(there) == format_[0] * format_[1]):
            return format_
    return FORMATS[-1]
