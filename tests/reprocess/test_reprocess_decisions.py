"""What is to be done with a plate: pure decisions, over every cause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prefect_cytotable.tasks.core.durations import parse_seconds
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.reprocess.decisions import decide
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

NOW = 1_800_000_000 * 10**9
SETTINGS = Settings(
    source_root="/root",
    destination_root="/out",
    settle=600,
    options="options",
    suffix=".parquet",
    work_root="/out/.prefect-cytotable",
    plates_at_once=1,
    share=1 << 30,
    workers=1,
    keep=0,
    keep_seconds=0,
    new_version=NewVersion.KEEP,
    overwrite=False,
)
PLATE = Plate("a", "/root/a", 4, 100, NOW - 3600 * 10**9, "mark")
ROW = IndexRow(
    "a", "/root/a", Status.CONVERTED, "/out/a.parquet", "mark", "options", "1", rows=5, size=77, converted_at=1
)


def decided(plate: Plate | None = PLATE, row: IndexRow | None = ROW, **more: Any) -> Decision:
    outputs = more.pop("outputs", {"a.parquet": 77})
    listing = Listing((plate,) if plate else ())
    settings = replace(SETTINGS, **more)
    (one,) = decide(listing, {row.plate: row} if row else {}, outputs, settings, "1", NOW)
    return one


def test_a_plate_that_is_what_it_was_is_left_alone() -> None:
    assert decided().verdict is Verdict.UNCHANGED


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"row": None}, "new"),
        ({"plate": replace(PLATE, fingerprint="other")}, "changed"),
        ({"options": "others"}, "converted with other options"),
        ({"outputs": {}}, "its output is not there"),
        ({"outputs": {"a.parquet": 76}}, "its output is not what was written"),
        ({"row": replace(ROW, fingerprint="", status=Status.CONVERTING)}, "its conversion was broken off"),
        ({"row": replace(ROW, fingerprint="", status=Status.FAILED)}, "failed before"),
        ({"row": IndexRow("a", "/root/a", Status.WAITING)}, "new"),
        ({"row": replace(ROW, fingerprint="", status=Status.WAITING)}, "changed"),
        ({"row": replace(ROW, tool_version="0"), "new_version": NewVersion.CONVERT}, "converted with version 0"),
    ],
)
def test_what_is_converted_and_why(changes: dict[str, Any], why: str) -> None:
    one = decided(**changes)
    assert (one.verdict, one.why) == (Verdict.CONVERT, why)


def test_another_version_alone_is_no_reason() -> None:
    assert decided(row=replace(ROW, tool_version="0")).verdict is Verdict.UNCHANGED


@pytest.mark.parametrize(
    ("age", "settle", "verdict"),
    [
        (599, 600.0, Verdict.WAIT),
        (600, 600.0, Verdict.CONVERT),
        (0, 0.0, Verdict.CONVERT),
        (-60, 600.0, Verdict.WAIT),
        (-60, 0.0, Verdict.WAIT),
    ],
)
def test_a_plate_settles_and_the_future_waits(age: int, settle: float, verdict: Verdict) -> None:
    plate = replace(PLATE, fingerprint="other", newest=NOW - age * 10**9)
    one = decided(plate=plate, settle=settle)
    assert one.verdict is verdict
    assert ("in the future" in one.why) == (age < 0)


def test_a_plate_whose_files_are_those_of_its_output_does_not_wait() -> None:
    assert decided(plate=replace(PLATE, newest=NOW)).verdict is Verdict.UNCHANGED


def test_what_is_no_longer_there_is_gone_where_it_was_looked_for() -> None:
    assert decided(plate=None).verdict is Verdict.GONE
    for settings in ({"source_root": "/elsewhere"}, {"exclude": ("a",)}, {"only": ("b*",)}):
        assert decide(Listing(()), {"a": ROW}, {}, replace(SETTINGS, **settings), "1", NOW) == ()


def test_a_plate_of_another_root_keeps_its_name() -> None:
    moved = replace(PLATE, source="/elsewhere/a")
    assert decided(plate=moved, source_root="/elsewhere").verdict is Verdict.UNCHANGED
    other = replace(moved, fingerprint="other")
    one = decided(plate=other, source_root="/elsewhere")
    assert one.verdict is Verdict.FAIL
    assert "/root/a" in one.why
    assert decided(plate=other, source_root="/elsewhere", overwrite=True).verdict is Verdict.CONVERT


def test_a_plate_that_cannot_be_listed_fails() -> None:
    one = decided(plate=replace(PLATE, problem="permission denied"))
    assert (one.verdict, one.why) == (Verdict.FAIL, "permission denied")


@pytest.mark.parametrize("text", ["", "ten", "5 parsecs", "-3", -1, True, float("nan"), None])
def test_what_is_no_time_is_refused(text: Any) -> None:
    with pytest.raises(ArgumentError, match="settle is"):
        parse_seconds("settle", text)


def test_times_with_units() -> None:
    units = {"1s": 1, "10min": 600, "10 minutes": 600, "2h": 7200, "2 hours": 7200, "1d": 86400, "30days": 2592000}
    assert {text: parse_seconds("settle", text) for text in units} == units
