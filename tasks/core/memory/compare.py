"""Two profiles side by side: did the peak grow by more than is tolerated?"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.memory.errors import NotComparableError
from prefect_cytotable.tasks.core.memory.model import Profile

SHOWN = 10
"""Places that grew, of which a comparison tells."""

LEAST = 64 << 10
"""Bytes by which a place has to have changed to be shown."""


class Figure(StrEnum):
    """Which peak is compared."""

    ALLOCATED = "allocated"
    RESIDENT = "resident"
    BOTH = "both"


@dataclass(frozen=True)
class Change:
    """One figure, before and after, in bytes."""

    name: str
    before: int
    after: int
    compared: bool
    tolerance: float

    @property
    def growth(self) -> float:
        """By what part it grew; less than 0 where it shrank."""
        if self.before == 0:
            return 0.0 if self.after == 0 else math.inf
        return (self.after - self.before) / self.before

    @property
    def too_much(self) -> bool:
        """Whether it grew by more than is tolerated."""
        return self.compared and self.after > self.before * (1 + self.tolerance)


@dataclass(frozen=True)
class Comparison:
    """What changed, and the places where; those are (function, file) and the bytes more."""

    changes: tuple[Change, ...]
    places: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]

    @property
    def too_much(self) -> bool:
        """Whether a peak that is compared grew by more than is tolerated."""
        return any(one.too_much for one in self.changes)


def parse_tolerance(text: str) -> float:
    """A part, as "10%" or as 0.1.

    >>> parse_tolerance("10%"), parse_tolerance("0.25"), parse_tolerance("0")
    (0.1, 0.25, 0.0)

    Raises:
        ArgumentError: It is neither; a number above 1 without a % could mean both.
    """
    number, percent = text.strip().removesuffix("%").strip(), text.strip().endswith("%")
    try:
        part = float(number) / (100 if percent else 1)
    except ValueError:
        part = math.nan
    if not 0 <= part < math.inf or (part > 1 and not percent):
        raise ArgumentError(f"--tolerance is {text!r}, not a part such as '10%' or '0.1'.")
    return part


def compare(before: Profile, after: Profile, figure: Figure, tolerance: float) -> Comparison:
    """Compare two profiles.

    Raises:
        NotComparableError: One is of a run that failed or lacks the figure, or they recorded different things.
    """
    for name, profile in (("before", before), ("after", after)):
        if profile.status != 0:
            raise NotComparableError(
                f"The profile {name} is of a run that ended with exit status {profile.status}: its peak says nothing "
                f"about a whole run. Profile one that succeeds."
            )
    figures = (Figure.ALLOCATED, Figure.RESIDENT)
    changes = []
    for one in figures:
        compared = figure in (one, Figure.BOTH)
        if compared:
            _require(one, before, after)
        old, new = (getattr(profile.peaks, one.value) for profile in (before, after))
        if old is not None and new is not None:
            changes.append(Change(f"peak {one}", old, new, compared, tolerance))
    return Comparison(tuple(changes), _places(before, after), tuple(_notes(before, after)))


def _require(figure: Figure, before: Profile, after: Profile) -> None:
    for name, profile in (("before", before), ("after", after)):
        if getattr(profile.peaks, figure.value) is None:
            raise NotComparableError(f"The profile {name} does not tell the peak {figure}. Make it again.")
        if figure is Figure.ALLOCATED and not profile.complete:
            raise NotComparableError(
                f"The profile {name} lacks the allocations of a process that was killed. Make it again, or compare "
                f"with --of resident."
            )
    if figure is Figure.ALLOCATED:
        for field in ("python_allocators", "arrow_allocations", "whole_process"):
            if getattr(before, field) != getattr(after, field):
                raise NotComparableError(
                    f"The profiles do not count the same: {field} is {getattr(before, field)} before and "
                    f"{getattr(after, field)} after. Make both in the same way."
                )


def _places(before: Profile, after: Profile) -> tuple[tuple[str, int], ...]:
    """Where the peak grew most; without line numbers, which move with every edit."""
    sizes: Counter[str] = Counter()
    for profile, sign in ((before, -1), (after, 1)):
        for site in profile.sites:
            sizes[f"{site.function} ({site.file})" if site.file else site.function] += sign * site.size
    changed = [(place, size) for place, size in sizes.items() if abs(size) >= LEAST]
    return tuple(sorted(changed, key=lambda one: (-one[1], one[0])))


def _notes(before: Profile, after: Profile) -> list[str]:
    notes = []
    if before.command != after.command:
        notes.append(f"the command was {before.command} before and is {after.command}")
    counts = [sum(one.allocated is not None for one in profile.processes) for profile in (before, after)]
    if counts[0] != counts[1]:
        notes.append(f"{counts[0]} process(es) were tracked before, {counts[1]} after")
    pools = {one.arrow_pool for profile in (before, after) for one in profile.processes if one.arrow}
    if "mimalloc" in pools:
        notes.append("what Arrow holds inside the address space that its allocator reserves is not seen here: profile "
                     "with --arrow-allocations, or compare --of both")  # fmt: skip
    old, new = before.tools or {}, after.tools or {}
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            notes.append(f"{name} was {old[name]} and is {new[name]}")
    return notes


def lines(comparison: Comparison) -> list[str]:
    """The comparison as text, for a log."""
    text = []
    for one in comparison.changes:
        verdict = "not compared"
        if one.compared:
            verdict = f"{'GREW BY MORE THAN' if one.too_much else 'within'} the tolerance of {100 * one.tolerance:.4g}%"
        text.append(
            f"{one.name:<15} {show_bytes(one.before):>10} -> {show_bytes(one.after):>10}  {_percent(one.growth):>7}  "
            f"{verdict}"
        )
    text += [f"note: {note}" for note in comparison.notes]
    grown = [one for one in comparison.places if one[1] > 0][:SHOWN]
    shrunk = [one for one in reversed(comparison.places) if one[1] < 0][:SHOWN]
    for heading, places in (("more allocated at the peak:", grown), ("less allocated at the peak:", shrunk)):
        if places:
            text.append(heading)
            text += [f"  {'+' if size > 0 else '-'}{show_bytes(abs(size)):<10} {place}" for place, size in places]
    return text


def _percent(growth: float) -> str:
    return "new" if math.isinf(growth) else f"{100 * growth:+.1f}%"
