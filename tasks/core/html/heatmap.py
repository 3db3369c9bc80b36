"""Cells of each well as a table in the shape of the plate, coloured, with the numbers in it."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_cytotable.tasks.core.html.wells import Plate, Well, row_name
from prefect_cytotable.tasks.core.html.writing import more, table, text

LEVELS = 12
"""Colours of the scale (cividis, which people without red or green see alike); h0 is the lowest."""

MOST_WELLS = 3072
"""Wells that are drawn: two plates of 1,536, eight of 384, 32 of 96. More would make the page too large."""

MOST_UNPLACED = 200


def heat_maps(plates: Sequence[Plate]) -> str:
    """The maps of as many plates as the page can hold, on one scale, and the wells that have no place."""
    shown, left = _bounded([plate for plate in plates if plate.cells])
    counts = [cells for plate in shown for cells in plate.cells.values()]
    maps = ""
    if counts:
        low, high = min(counts), max(counts)
        maps = legend(low, high) + "".join(heat_map(plate, low, high) for plate in shown)
    return maps + more(left, "plate(s) are") + _unplaced(plates)


def _bounded(plates: Sequence[Plate]) -> tuple[list[Plate], int]:
    shown: list[Plate] = []
    room = MOST_WELLS
    for plate in plates:
        room -= plate.rows * plate.columns
        if shown and room < 0:
            break
        shown.append(plate)
    return shown, len(plates) - len(shown)


def level(cells: int, low: int, high: int) -> int:
    """The colour of a number of cells.

    >>> level(10, 10, 130), level(130, 10, 130), level(70, 10, 130), level(5, 5, 5)
    (0, 11, 6, 11)
    """
    if high == low:
        return LEVELS - 1
    return min(int(LEVELS * (cells - low) / (high - low)), LEVELS - 1)


def legend(low: int, high: int) -> str:
    """The colours with the numbers that they stand for."""
    if low == high:
        return f'<ul class="legend" aria-label="Cells in a well"><li><span class="h11"></span>{low:,}</li></ul>'
    step = (high - low) / LEVELS
    items = "".join(
        f'<li><span class="h{one}"></span>{"from " if not one else ""}{round(low + one * step):,}</li>'
        for one in range(0, LEVELS, 2)
    )
    last = f'<li><span class="h{LEVELS - 1}"></span>to {high:,}</li>'
    return f'<ul class="legend" aria-label="Cells in a well, by colour">{items}{last}</ul>'


def heat_map(plate: Plate, low: int, high: int) -> str:
    """A plate: rows are lettered, columns numbered, and each cell says how many cells its well has."""
    wells = plate.rows * plate.columns
    name = plate.name or "The plate"
    empty = wells - len(plate.cells)
    placed = sum(plate.cells.values())
    caption = (
        f"{text(name)}: {placed:,} cells in {len(plate.cells):,} of {wells:,} wells"
        f"{f'; {empty:,} without cells' if empty else ''}"
    )
    head = "".join(f'<th scope="col">{column}</th>' for column in range(1, plate.columns + 1))
    rows = []
    for row in range(1, plate.rows + 1):
        cells = "".join(_cell(plate, Well(row, column), low, high) for column in range(1, plate.columns + 1))
        rows.append(f'<tr><th scope="row">{row_name(row)}</th>{cells}</tr>')
    first = "".join(rows).replace("<td ", '<td tabindex="0" ', 1)
    return (
        f'<figure class="plate p{wells}"><div class="wide"><table class="map" role="grid" aria-readonly="true">'
        f"<caption>{caption}</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{first}</tbody></table></div>"
        f'<p class="told" aria-live="polite">Choose a well with the mouse or the arrow keys.</p></figure>'
    )


def _cell(plate: Plate, well: Well, low: int, high: int) -> str:
    cells = plate.cells.get(well)
    return '<td class="e">·</td>' if cells is None else f'<td class="h{level(cells, low, high)}">{_short(cells)}</td>'


def _short(cells: int) -> str:
    """A number in few letters; the exact one is beside it where it is shortened.

    >>> _short(987), _short(12345)
    ('987', '<abbr title="12,345">12k</abbr>')
    """
    return str(cells) if cells < 10_000 else f'<abbr title="{cells:,}">{cells // 1000}k</abbr>'


def _unplaced(plates: Sequence[Plate]) -> str:
    """The wells whose names tell no place on a plate."""
    rows = [(well or "(no name)", plate.name or "–", cells) for plate in plates for well, cells in plate.unplaced]
    if not rows:
        return ""
    caption = "Wells whose names tell no place on a plate"
    return table(caption, ("well", "plate", "cells"), rows[:MOST_UNPLACED]) + more(len(rows) - MOST_UNPLACED, "wells")
