"""What is to be done with each plate: pure functions over what was listed and what the index knows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from prefect_cytotable.tasks.core.durations import show_seconds
from prefect_cytotable.tasks.core.places import name_of, parent_of
from prefect_cytotable.tasks.core.reprocess.listing import counts
from prefect_cytotable.tasks.core.reprocess.model import (
    Decision,
    IndexRow,
    Listing,
    NewVersion,
    Plate,
    Settings,
    Status,
    Verdict,
)

NEW = "new"
CHANGED = "changed"
UNCHANGED = "unchanged"
OTHER_OPTIONS = "converted with other options"
NO_OUTPUT = "its output is not there"
OTHER_OUTPUT = "its output is not what was written"
INTERRUPTED = "its conversion was broken off"
FAILED = "failed before"


def decide(
    listing: Listing,
    rows: Mapping[str, IndexRow],
    outputs: Mapping[str, int | None],
    settings: Settings,
    version: str,
    now: int,
) -> tuple[Decision, ...]:
    """What is to be done with every plate that is there or is known, by name.

    Args:
        listing: What is there.
        rows: What the index knows.
        outputs: Bytes of what is in the destination, by name; None for a folder.
        settings: Of the run.
        version: Of this program.
        now: Nanoseconds since 1970.
    """
    decisions = [_of_plate(plate, rows.get(plate.name), outputs, settings, version, now) for plate in listing.plates]
    there = {plate.name for plate in listing.plates}
    decisions += [
        Decision(name, Verdict.GONE, "its source is no longer there", None, row)
        for name, row in rows.items()
        if name not in there and parent_of(row.source) == settings.source_root and counts(name_of(row.source), settings)
    ]
    return tuple(sorted(decisions, key=lambda one: one.name))


def _of_plate(
    plate: Plate, row: IndexRow | None, outputs: Mapping[str, int | None], settings: Settings, version: str, now: int
) -> Decision:
    problem = plate.problem or _taken(plate, row, settings)
    if problem:
        return Decision(plate.name, Verdict.FAIL, problem, plate, row)
    why = _reason(plate, row, outputs, settings, version)
    if not why:
        return Decision(plate.name, Verdict.UNCHANGED, UNCHANGED, plate, row)
    if waits := unsettled(plate, settings.settle, now):
        return Decision(plate.name, Verdict.WAIT, f"{why}; {waits}", plate, row)
    return Decision(plate.name, Verdict.CONVERT, why, plate, row)


def unsettled(plate: Plate, settle: float, now: int) -> str:
    """Why a plate may still be written to; empty where it has been left alone for long enough."""
    age = (now - plate.newest) / 1e9
    if age >= settle:
        return ""
    if age < 0:
        when = datetime.fromtimestamp(plate.newest // 10**9, UTC)
        return f"a file of it is dated in the future ({when:%Y-%m-%d %H:%M:%S} UTC)"
    return f"changed {show_seconds(age)} ago, settles after {show_seconds(settle)}"


def _taken(plate: Plate, row: IndexRow | None, settings: Settings) -> str:
    """Why a plate may not have the name that another one, from elsewhere, has in the index; empty where it may."""
    if row is None or settings.overwrite or row.source == plate.source or row.fingerprint == plate.fingerprint:
        return ""
    return (
        f"the index has a plate of that name from {row.source}, and this one is another. Choose another destination, "
        f"or let it take the name with overwrite=True"
    )


def _reason(
    plate: Plate, row: IndexRow | None, outputs: Mapping[str, int | None], settings: Settings, version: str
) -> str:
    """Why a plate has to be converted; empty where its output is what it should be."""
    if row is None:
        return NEW
    if not row.has_output or row.fingerprint != plate.fingerprint:
        known = {Status.FAILED: FAILED, Status.CONVERTING: INTERRUPTED}
        return known.get(row.status, CHANGED if row.has_output else NEW)
    if row.options != settings.options:
        return OTHER_OPTIONS
    output = name_of(row.path)
    if output not in outputs:
        return NO_OUTPUT
    if outputs[output] not in (None, row.size):
        return OTHER_OUTPUT
    if row.tool_version != version and settings.new_version is NewVersion.CONVERT:
        return f"converted with version {row.tool_version or 'unknown'}"
    return ""
