"""The parts of a profile that need no profiler: sums over processes, tasks, comparison, files, text."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.errors import ArgumentError, DestinationExistsError, SourceNotFoundError
from prefect_cytotable.tasks.core.memory import compare, folder, reading, report, resident
from prefect_cytotable.tasks.core.memory.compare import Figure
from prefect_cytotable.tasks.core.memory.errors import NotComparableError, ProfileFailedError, ProfileFileError
from prefect_cytotable.tasks.core.memory.model import (
    FORMAT,
    VERSION,
    Peaks,
    ProcessPeak,
    Profile,
    Profiling,
    Role,
    Site,
)
from prefect_cytotable.tasks.core.memory.profile import KEPT_SITES, Run, build, explain, most, tasks, together
from prefect_cytotable.tasks.core.memory.reading import Capture, Samples, Traced
from prefect_cytotable.tasks.core.memory.tracking import Begun, Ended, Task

MIB = 1 << 20
HERE = socket.gethostname()


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def traced(
    pid: int = 1,
    samples: list[tuple[int, int, int]] | None = None,
    peak: int = 0,
    tasks: tuple[Task, ...] = (),
    role: Role = Role.MAIN,
    ended: bool = True,
    sites: tuple[Site, ...] = (),
    **begun: Any,
) -> Traced:
    """A process with samples of (milliseconds, heap, RSS)."""
    rows = samples if samples is not None else [(0, 0, 0)]
    columns = [ints(*column) for column in zip(*rows, strict=True)]
    start, end = rows[0][0], rows[-1][0]
    return Traced(
        path=Path("nowhere.bin"),
        begun=Begun(pid, role, begun.pop("machine", HERE), start, begun.pop("highest", None), **begun),
        tasks=tasks,
        flow_runs=(),
        ended=Ended(end, None, "", None) if ended else None,
        capture=Capture(peak, 3, sites, Samples(columns[0], columns[1], columns[2]), None),
    )


def profile(**changes: Any) -> Profile:
    """A whole profile of one process."""
    peaks = Peaks(100 * MIB, 100 * MIB, 7, 200 * MIB, 1)
    one = Profile(
        command="convert",
        status=0,
        started="2026-01-01T00:00:00.000+00:00",
        seconds=1.0,
        peaks=replace(peaks, **{name: changes.pop(name) for name in ("allocated", "resident") if name in changes}),
        explanation="because",
        sites=(Site("read", "a.py", 1, 100 * MIB, 7),),
        processes=(ProcessPeak(1, Role.MAIN, allocated=100 * MIB),),
        tasks=(),
    )
    return replace(one, **changes)


# --- several processes at one moment -------------------------------------------------------------------------


def test_peaks_that_were_not_at_one_moment_are_not_added() -> None:
    one = (ints(0, 10, 20), ints(5, 100, 5))
    other = (ints(0, 10, 20), ints(5, 5, 100))
    assert together([one, other]) == 105
    assert together([one]) == 100
    assert together([]) == 0


def test_a_process_that_has_ended_counts_no_more() -> None:
    assert together([(ints(0, 10), ints(70, 70)), (ints(20, 30), ints(80, 80))]) == 80
    assert together([(ints(0, 25), ints(70, 70)), (ints(20, 30), ints(80, 80))]) == 150


def test_changes_at_the_same_time_are_one_state() -> None:
    """One gives back what the other takes: never both."""
    assert together([(ints(0, 10), ints(50, 0)), (ints(0, 10), ints(0, 50))]) == 50


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 40), st.integers(0, 1000)), min_size=1, max_size=8, unique_by=lambda s: s[0]),
        min_size=1,
        max_size=4,
    )
)
def test_together_is_what_counting_at_every_moment_gives(processes: list[list[tuple[int, int]]]) -> None:
    ordered = [sorted(one) for one in processes]

    def held(one: list[tuple[int, int]], moment: int) -> int:
        before = [value for at, value in one if at <= moment]
        return before[-1] if before and moment <= one[-1][0] else 0

    expected = max(sum(held(one, moment) for one in ordered) for moment in range(42))
    arrays = [(ints(*(at for at, _ in one)), ints(*(value for _, value in one))) for one in ordered]
    assert together(arrays) == expected


def test_exact_peaks_beat_samples_and_bound_them() -> None:
    """memray knows the peak of each process to the byte; of all together there are only samples."""
    processes = [
        traced(1, [(0, 10, 0), (10, 60, 0), (20, 10, 0)], peak=90),
        traced(2, [(0, 10, 0), (10, 10, 0), (20, 50, 0)], peak=55, role=Role.WORKER),
    ]
    made = build(Run("convert", 0, 0, 30, True), Profiling("x"), processes, resident.Resident())
    assert (made.peaks.allocated, made.peaks.allocated_sum) == (90, 145)
    assert made.peaks.allocations == 6
    assert [one.allocated for one in made.processes] == [90, 55]
    assert made.peaks.resident is None, "nothing was sampled, so nothing is known"


def test_resident_is_the_sum_at_one_moment_of_tree_and_outside_workers() -> None:
    tree = resident.Resident()
    main, helper = resident.Found(1, "a"), resident.Found(7, "b")
    resident.add(tree, {main: 100}, 0.0)
    resident.add(tree, {main: 100, helper: 30}, 0.010)
    resident.add(tree, {main: 110}, 0.020)
    inside = [traced(1, [(0, 1, 90), (20, 1, 95)], peak=5)]
    made = build(Run("convert", 0, 0, 30, True), Profiling("x"), inside, tree)
    assert (made.peaks.resident, made.peaks.processes) == (130, 2)
    assert [(one.pid, one.role, one.resident) for one in made.processes] == [(1, "main", 110), (7, "other", 30)]

    outside = traced(9, [(9, 1, 1000), (15, 1, 1000)], peak=5, role=Role.WORKER, machine="elsewhere", outside=True)
    made = build(Run("convert", 0, 0, 30, True), Profiling("x"), [*inside, outside], tree)
    assert (made.peaks.resident, made.peaks.processes) == (1130, 3)
    assert [one.machine for one in made.processes] == ["", "elsewhere", ""]


def test_a_process_that_was_killed_leaves_what_is_known() -> None:
    lost = replace(traced(2, role=Role.WORKER, ended=False), capture=None)
    tree = resident.Resident()
    resident.add(tree, {resident.Found(2, "b"): 50}, 1.0)
    made = build(Run("convert", 137, 0, 2000, True), Profiling("x"), [traced(1, peak=9), lost], tree)
    assert not made.complete
    worker = made.processes[1]
    assert (worker.allocated, worker.resident, worker.complete) == (None, 50, False)
    assert any("1 process was killed" in line for line in report.lines(made))
    alone = build(Run("convert", 137, 0, 2000, True), Profiling("x"), [lost], tree)
    assert alone.peaks.allocated is None
    assert "unknown" in report.lines(alone)[1]


def test_the_systems_peak_counts_only_where_it_rose() -> None:
    """What a process held before its tracking began is not a peak of the run."""
    for before, after, expected, exact in ((500, 500, 90, False), (500, 700, 700, True), (None, 700, 700, True)):
        one = traced(1, [(0, 1, 80), (9, 1, 90)], peak=5, highest=before)
        assert one.ended is not None
        one = replace(one, ended=Ended(9, after, "", None))
        made = build(Run("call", 0, 0, 9, False), Profiling("x"), [one], resident.Resident())
        assert (made.processes[0].resident, made.processes[0].resident_exact) == (expected, exact)


# --- tasks ---------------------------------------------------------------------------------------------------


def test_a_task_has_the_peak_of_its_process_meanwhile() -> None:
    samples = [(0, 10, 1), (10, 20, 2), (20, 90, 3), (30, 40, 4), (40, 15, 5)]
    first, second, short = Task("first", 12, 32, False), Task("second", 33, 40, True), Task("short", 41, 42, False)
    found = tasks(traced(5, samples, tasks=(first, second, short)), begun=10)
    assert [(one.name, one.before, one.allocated, one.resident, one.failed) for one in found] == [
        ("first", 20, 90, 4, False),
        ("second", 40, 15, 5, True),
        ("short", 15, None, None, False),
    ]
    assert [(one.start, one.seconds) for one in found] == [(0.002, 0.02), (0.023, 0.007), (0.031, 0.001)]
    assert {one.beside for one in found} == {0}


def test_tasks_that_share_a_process_say_so() -> None:
    times = {"a": (0, 10), "b": (5, 20), "c": (15, 30), "d": (40, 50)}
    kept = tuple(Task(name, start, end, False) for name, (start, end) in times.items())
    assert [one.beside for one in tasks(traced(tasks=kept), 0)] == [1, 2, 1, 0]
    text = report.markdown(profile(tasks=tuple(tasks(traced(tasks=kept), 0))))
    assert "memory belongs to a process" in text
    alone = report.markdown(profile(tasks=tuple(tasks(traced(tasks=kept[3:]), 0))))
    assert "one task at a time" in alone


# --- places --------------------------------------------------------------------------------------------------


def test_places_of_all_processes_are_added_up_and_the_rest_is_one() -> None:
    many = [Site("f", f"{number}.py", 1, number, 1) for number in range(1, KEPT_SITES + 11)]
    found = most([*many, Site("f", "1.py", 1, 10_000, 5)])
    assert found[0] == Site("f", "1.py", 1, 10_001, 6)
    assert len(found) == KEPT_SITES + 1
    assert found[-1].function == "all other places"
    assert sum(one.size for one in found) == sum(one.size for one in many) + 10_000
    assert sum(one.allocations for one in found) == len(many) + 5


def test_our_own_files_have_the_same_name_in_a_checkout_and_installed() -> None:
    assert reading.short(report.__file__) == "prefect_cytotable/tasks/core/memory/report.py"
    assert reading.short("/x/lib/python3.12/site-packages/duckdb/__init__.py") == "duckdb/__init__.py"
    assert reading.short("<frozen importlib._bootstrap>") == "<frozen importlib._bootstrap>"


# --- events --------------------------------------------------------------------------------------------------


def test_events_of_a_killed_process_are_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "worker-1.events"
    whole = b'{"type":"Task","name":"one","start":1,"end":2,"failed":false}\n'
    path.write_bytes(whole + b'{"type":"Task","na')
    assert reading.read_events(path) == [Task("one", 1, 2, False)]
    path.write_bytes(b'{"type":"Ta\n' + whole)
    with pytest.raises(ProfileFailedError, match=re.escape("worker-1.events")):
        reading.read_events(path)


def test_a_process_without_a_line_is_none(tmp_path: Path) -> None:
    (tmp_path / "worker-1.events").write_bytes(b"")
    assert reading.read_all(tmp_path) == []


# --- why the figures differ ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allocated", "size", "expected"),
    [
        (3 << 30, 1 << 30, "at least 2.0 GiB of the allocated peak had no memory behind it"),
        (1 << 30, 3 << 30, "Resident is larger by 2.0 GiB"),
        (None, 1 << 30, "only resident sizes are known"),
        (1 << 30, None, "does not tell resident sizes"),
    ],
)
def test_the_explanation_is_one_line(allocated: int | None, size: int | None, expected: str) -> None:
    text = explain(Peaks(allocated, allocated, 1, size, 1), [ProcessPeak(1, Role.MAIN)], True)
    assert expected in text
    assert "\n" not in text


def test_the_explanation_names_arrows_arena_only_where_it_can_be_it() -> None:
    arrow = ProcessPeak(1, Role.MAIN, arrow=5 * MIB, arrow_pool="mimalloc")
    peaks = Peaks(1100 * MIB, 1100 * MIB, 1, 200 * MIB, 1)
    text = explain(peaks, [arrow], True)
    assert "mimalloc pool reserves 1.0 GiB" in text
    assert "held at most 5.0 MiB" in text
    for other in (replace(arrow, arrow_pool="system"), replace(arrow, arrow=None)):
        assert "mimalloc" not in explain(peaks, [other], True)
    assert "mimalloc" not in explain(replace(peaks, resident=1000 * MIB), [arrow], True)


# --- files ---------------------------------------------------------------------------------------------------


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    made = profile(tasks=tuple(tasks(traced(tasks=(Task("a|<b>`\n", 0, 9, True),)), 0)), flow_runs=("x",))
    (tmp_path / report.JSON).write_bytes(report.encode(made))
    assert report.load(tmp_path) == made == report.load(tmp_path / report.JSON)
    plain = json.loads((tmp_path / report.JSON).read_text())
    assert (plain["format"], plain["version"]) == (FORMAT, VERSION)
    assert plain["peaks"]["allocated"] == 100 * MIB


def test_a_field_that_a_later_version_adds_does_not_hinder_reading(tmp_path: Path) -> None:
    plain = json.loads(report.encode(profile())) | {"weather": "fair"}
    (tmp_path / report.JSON).write_text(json.dumps(plain))
    assert report.load(tmp_path) == profile()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a profile that can be read"),
        (b"[1]", "not a profile that can be read"),
        (b'{"format": "other"}', "no profile of this program"),
        (json.dumps({"format": FORMAT, "version": VERSION + 1}).encode(), f"version {VERSION + 1}"),
        (json.dumps({"format": FORMAT, "version": VERSION}).encode(), "not a profile that can be read"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "one.json"
    path.write_bytes(content)
    with pytest.raises(ProfileFileError, match=expected) as error:
        report.load(path)
    assert "one.json" in str(error.value)


def test_no_profile_is_said_where(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=re.escape(str(tmp_path))):
        report.load(tmp_path)


def test_a_sparse_giant_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "giant.json"
    with path.open("wb") as file:
        file.truncate(report.LARGEST + 1)
    with pytest.raises(ProfileFileError, match=re.escape("64.0 MiB")):
        report.load(path)


def test_signs_of_markdown_in_names_stay_text() -> None:
    text = report.markdown(profile(sites=(Site("<module>|x", "a`b.py", 1, 5, 1),)))
    assert "&lt;module&gt;&#124;x" in text
    assert "a&#96;b.py:1" in text


def test_only_an_earlier_profile_is_replaced(tmp_path: Path) -> None:
    ours, others, empty = tmp_path / "ours", tmp_path / "others", tmp_path / "empty"
    for one in (ours, others, empty):
        one.mkdir()
    (ours / report.JSON).write_bytes(report.encode(profile()))
    (others / "thesis.txt").write_text("years of work")
    folder.require_free(tmp_path / "new", overwrite=False)
    folder.require_free(empty, overwrite=False)
    folder.require_free(ours, overwrite=True)
    with pytest.raises(DestinationExistsError, match="there already"):
        folder.require_free(ours, overwrite=False)
    with pytest.raises(DestinationExistsError, match="no profile, so it is not replaced"):
        folder.require_free(others, overwrite=True)
    with pytest.raises(DestinationExistsError):
        folder.require_free(others / "thesis.txt", overwrite=True)


def test_a_profile_that_is_replaced_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / report.JSON).write_bytes(report.encode(profile()))

    def broken(*_: object) -> bytes:
        raise OSError("the disk is full")

    monkeypatch.setattr(report, "markdown", broken)
    with pytest.raises(OSError, match="full"), folder.space(Profiling(str(ours), overwrite=True)) as place:
        place.write(profile(command="later"), [])
    assert report.load(ours) == profile()
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_what_a_killed_profile_left_is_swept_and_what_is_at_work_is_not(tmp_path: Path) -> None:
    with folder.space(Profiling(str(tmp_path / "out"))) as at_work:
        dead = tmp_path / at_work.root.name.replace(".tmp-", ".tmp-dead", 1)
        (dead / "raw").mkdir(parents=True)
        (dead / folder.LOCK).touch()
        other = tmp_path / ".tmp-123-out"
        other.mkdir()  # without a lock: not ours to judge
        with folder.space(Profiling(str(tmp_path / "out"))):
            assert at_work.root.is_dir()
            assert not dead.exists()
            assert other.exists()
    assert not at_work.root.exists()


# --- comparison ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "figure", "too_much"),
    [
        ({"allocated": 110 * MIB}, Figure.ALLOCATED, False),  # just as much as is tolerated
        ({"allocated": 110 * MIB + 1}, Figure.ALLOCATED, True),
        ({"allocated": 110 * MIB + 1}, Figure.RESIDENT, False),
        ({"allocated": 110 * MIB + 1}, Figure.BOTH, True),
        ({"resident": 221 * MIB}, Figure.BOTH, True),
        ({"resident": 221 * MIB}, Figure.ALLOCATED, False),
        ({"allocated": 1, "resident": 1}, Figure.BOTH, False),
    ],
)
def test_growth_beyond_the_tolerance(after: dict[str, int], figure: Figure, too_much: bool) -> None:
    found = compare.compare(profile(), profile(**after), figure, 0.1)
    assert found.too_much is too_much
    assert any("GREW BY MORE THAN the tolerance of 10%" in line for line in compare.lines(found)) is too_much


def test_growth_from_nothing_is_growth() -> None:
    found = compare.compare(profile(allocated=0), profile(allocated=1), Figure.ALLOCATED, 5.0)
    assert found.too_much
    assert "new" in compare.lines(found)[0]
    assert not compare.compare(profile(allocated=0), profile(allocated=0), Figure.ALLOCATED, 0).too_much


def test_the_places_that_grew_are_told_without_their_lines() -> None:
    before = profile(sites=(Site("read", "a.py", 1, 50 * MIB, 1), Site("gone", "b.py", 2, 9 * MIB, 1)))
    after = profile(sites=(Site("read", "a.py", 99, 80 * MIB, 1), Site("same", "c.py", 2, 1, 1)))
    found = compare.compare(before, after, Figure.BOTH, 0.1)
    assert found.places == (("read (a.py)", 30 * MIB), ("gone (b.py)", -9 * MIB))
    text = "\n".join(compare.lines(found))
    assert re.search(r"more allocated at the peak:\n  \+30.0 MiB +read \(a.py\)\nless.*\n  -9.0 MiB +gone", text)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"status": 1}, {}, "before is of a run that ended with exit status 1"),
        ({}, {"status": 137}, "after is of a run that ended with exit status 137"),
        ({}, {"processes": (ProcessPeak(1, Role.MAIN, complete=False),)}, "after lacks the allocations"),
        ({"allocated": None}, {}, "before does not tell the peak allocated"),
        ({}, {"resident": None}, "after does not tell the peak resident"),
        ({}, {"python_allocators": True}, "python_allocators is False before and True after"),
        ({}, {"arrow_allocations": True}, "arrow_allocations"),
        ({"whole_process": False}, {}, "whole_process"),
    ],
)
def test_what_cannot_be_compared_is_refused(before: dict[str, Any], after: dict[str, Any], expected: str) -> None:
    with pytest.raises(NotComparableError, match=expected):
        compare.compare(profile(**before), profile(**after), Figure.BOTH, 0.1)


def test_resident_sizes_of_a_profile_with_a_lost_worker_can_be_compared() -> None:
    lost = profile(processes=(ProcessPeak(1, Role.MAIN, complete=False),))
    assert not compare.compare(profile(), lost, Figure.RESIDENT, 0.1).too_much


def test_what_else_changed_is_noted() -> None:
    before = profile(tools={"memray": "1.19.0", "python": "3.11.7"})
    after = profile(
        tools={"memray": "1.20.0", "python": "3.11.7"},
        command="concat",
        processes=(ProcessPeak(1, Role.MAIN, allocated=1), ProcessPeak(2, Role.WORKER, allocated=1)),
    )
    text = compare.lines(compare.compare(before, after, Figure.BOTH, 0.1))
    assert "note: memray was 1.19.0 and is 1.20.0" in text
    assert "note: the command was convert before and is concat" in text
    assert "note: 1 process(es) were tracked before, 2 after" in text
    assert not any("python was" in line for line in text)


def test_an_arena_that_hides_growth_is_noted() -> None:
    hidden = profile(processes=(ProcessPeak(1, Role.MAIN, allocated=1, arrow=5, arrow_pool="mimalloc"),))
    assert any("--arrow-allocations" in note for note in compare.compare(hidden, hidden, Figure.BOTH, 0.1).notes)
    assert compare.compare(profile(), profile(), Figure.BOTH, 0.1).notes == ()


@pytest.mark.parametrize("text", ["", "much", "-1%", "5", "nan", "inf", "inf%", "10%%", "1.01"])
def test_a_tolerance_that_is_no_part(text: str) -> None:
    with pytest.raises(ArgumentError, match="tolerance"):
        compare.parse_tolerance(text)


# --- the process tree ----------------------------------------------------------------------------------------


def test_descendants_end_where_a_branch_is_left_out() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20, 99: 1}
    assert resident.descendants(parents, 10) == [10, 11, 12]
    assert sorted(resident.descendants(parents, 1, without=20)) == [1, 10, 11, 12, 99]
    assert resident.descendants(parents, 5) == []


def test_a_number_that_is_used_again_is_another_process() -> None:
    old, new = resident.Found(5, "monday"), resident.Found(5, "tuesday")
    assert resident.merged([old, resident.Found(6, "monday")], [new]) == [new, resident.Found(6, "monday")]
    seen = resident.Resident()
    resident.add(seen, {old: 70}, 1.0)
    resident.add(seen, {new: 30}, 2.0)
    assert seen.of(5) is seen.seen[new]
    assert (seen.peak, seen.processes) == (70, 1)


def test_ps_is_read_where_there_is_no_proc() -> None:
    text = (
        "    1     0   100 Mon Jan  1 00:00:00 2026\n"
        "   50     1  2048 Mon Jan  1 00:00:01 2026\n"
        "   51    50  1024 Mon Jan  1 00:00:02 2026\n"
        "nonsense\n"
        "   52    51     0 Mon Jan  1 00:00:02 2026\n"
    )
    source = resident._Ps(50, None, run=lambda: text)
    found = source.find()
    assert [one.pid for one in found] == [50, 51, 52]
    assert source.sizes(found) == {found[0]: 2 * MIB, found[1]: MIB}
    other = resident._Ps(50, None, run=lambda: text.replace("00:00:02", "00:00:09"))
    assert other.sizes(found) == {found[0]: 2 * MIB}, "another process has the number now"
