"""When each chunk was converted, and by which process: a drawing, and the slowest chunks in numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_cytotable.tasks.core.html.writing import duration, more, paragraph, table, text

WIDTH, LANE, LEFT, AXIS = 1000, 18, 78, 22
MOST_LANES = 48
NAMED_BARS = 300
"""Bars of which each tells its chunk; where there are more, those that touch are drawn as one."""

SLOWEST = 15


@dataclass(frozen=True)
class Bar:
    """A chunk's conversion: seconds since the first one began."""

    name: str
    start: float
    seconds: float
    worker: str
    rows: int

    @property
    def stop(self) -> float:
        """When it was done."""
        return self.start + self.seconds


def timeline(bars: Sequence[Bar], reused: int) -> str:
    """The drawing, and the numbers for who does not see it; `reused` chunks of an earlier run are not drawn."""
    told = f"{reused:,} chunk(s) were done by an earlier run and only checked; they are not drawn. " if reused else ""
    if not bars:
        return paragraph(f"{told}No chunk was converted by this run.")
    lanes = _lanes(bars)
    span = max(max(bar.stop for bar in bars), 1e-3)
    busy = sum(bar.seconds for bar in bars)
    told += (
        f"{len(bars):,} chunk(s) in {duration(span)} on {len({bar.worker for bar in bars}):,} process(es); on average "
        f"{busy / span:.1f} at a time, {duration(busy / len(bars))} each."
    )
    slowest = sorted(bars, key=lambda bar: -bar.seconds)[:SLOWEST]
    numbers = {worker: number for number, worker in enumerate(dict.fromkeys(name for name, _ in lanes), start=1)}
    rows = [(bar.name, bar.start, bar.seconds, bar.rows, f"{numbers[bar.worker]}: {bar.worker}") for bar in slowest]
    names = ("chunk", "began after (s)", "took (s)", "rows", "process")
    caption = f"The {len(slowest):,} slowest chunks" if len(bars) > SLOWEST else "Chunks, the slowest first"
    return paragraph(told) + _drawing(lanes, numbers, span, told) + table(caption, names, rows)


def _lanes(bars: Sequence[Bar]) -> list[tuple[str, list[Bar]]]:
    """Bars by process, in as many lanes as keep those apart that overlap."""
    by_worker: dict[str, list[Bar]] = defaultdict(list)
    for bar in sorted(bars, key=lambda one: (one.start, one.name)):
        by_worker[bar.worker].append(bar)
    lanes: list[tuple[str, list[Bar]]] = []
    for worker, own in by_worker.items():
        mine: list[list[Bar]] = []
        for bar in own:
            free = next((lane for lane in mine if lane[-1].stop <= bar.start + 1e-3), None)
            if free is None:
                mine.append([bar])
            else:
                free.append(bar)
        lanes += [(worker, lane) for lane in mine]
    return lanes


def _drawing(lanes: list[tuple[str, list[Bar]]], numbers: dict[str, int], span: float, label: str) -> str:
    shown = lanes[:MOST_LANES]
    height = LANE * len(shown) + AXIS
    scale = (WIDTH - LEFT - 10) / span
    named = sum(len(bars) for _, bars in shown) <= NAMED_BARS
    pieces = []
    for tick in _ticks(span):
        x = round(LEFT + tick * scale, 1)
        pieces.append(f'<path class="tick" d="M{x} 0V{height - AXIS + 4}"/>')
        pieces.append(f'<text class="at" x="{x}" y="{height - 5}">{tick:g} s</text>')
    for position, (worker, bars) in enumerate(shown):
        top = position * LANE
        first = position == 0 or shown[position - 1][0] != worker
        if first:
            pieces.append(f'<text x="0" y="{top + 13}">process {numbers[worker]}</text>')
        pieces.append(_named(bars, top, scale) if named else _merged(bars, top, scale))
    return (
        f'<figure class="time"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text(label)}" '
        f'focusable="false">{"".join(pieces)}</svg></figure>' + more(len(lanes) - MOST_LANES, "lanes of chunks")
    )


def _named(bars: Sequence[Bar], top: int, scale: float) -> str:
    return "".join(
        f'<rect class="b{number % 2}" x="{LEFT + bar.start * scale:.1f}" y="{top + 2}" '
        f'width="{max(bar.seconds * scale - 0.6, 0.8):.1f}" height="{LANE - 4}">'
        f"<title>{text(bar.name)}: {duration(bar.seconds)}, {bar.rows:,} rows</title></rect>"
        for number, bar in enumerate(bars)
    )


def _merged(bars: Sequence[Bar], top: int, scale: float) -> str:
    """The bars of a lane as one path; those nearer than a pixel are one."""
    stretches: list[list[float]] = []
    for bar in bars:
        left, right = LEFT + bar.start * scale, LEFT + max(bar.stop * scale, bar.start * scale + 0.5)
        if stretches and left - stretches[-1][1] < 1:
            stretches[-1][1] = max(stretches[-1][1], right)
        else:
            stretches.append([left, right])
    down = LANE - 4
    path = "".join(f"M{left:.0f} {top + 2}H{right:.0f}v{down}H{left:.0f}z" for left, right in stretches)
    return f'<path class="b0" d="{path}"/>'


def _ticks(span: float) -> list[float]:
    """At most eleven round numbers of seconds.

    >>> _ticks(4.2)
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    """
    magnitude = 10.0 ** math.floor(math.log10(span))
    step = next(step for one in (0.1, 0.2, 0.5, 1.0) if span / (step := one * magnitude) <= 10)
    return [round(number * step, 6) for number in range(int(span / step + 1e-9) + 1)]
