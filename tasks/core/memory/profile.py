"""From what the processes left and what the samples saw to the profile: pure functions."""

from __future__ import annotations

import platform
import socket
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.memory.model import Peaks, ProcessPeak, Profile, Profiling, Role, Site, TaskPeak
from prefect_cytotable.tasks.core.memory.reading import Ints, Samples, Traced, largest_first
from prefect_cytotable.tasks.core.memory.resident import Resident
from prefect_cytotable.tasks.core.memory.tracking import Task

KEPT_SITES = 100
"""Places that a profile names; what all others hold is one more entry."""

REST = ("all other places", "", 0)

ARENA = 1 << 30
"""Address space that Arrow's mimalloc pool reserves at its first use (measured: pyarrow 26). What Arrow allocates in
there, memray does not see."""


@dataclass(frozen=True)
class Run:
    """What is known of a run beside its processes: see `Profile`. Times are milliseconds since 1970."""

    command: str
    status: int
    begun: int
    ended: int
    whole_process: bool


def build(run: Run, how: Profiling, traced: Sequence[Traced], resident: Resident) -> Profile:
    """The profile of a run that has ended."""
    processes = (*(_process(one, resident) for one in traced), *_others(traced, resident))
    captures = [one.capture for one in traced if one.capture is not None]
    totals = [one.capture.total if one.capture is not None and one.ended is not None else None for one in traced]
    peaks = _peaks(traced, processes, resident)
    return Profile(
        command=run.command,
        status=run.status,
        started=datetime.fromtimestamp(run.begun / 1000, UTC).isoformat(timespec="milliseconds"),
        seconds=round((run.ended - run.begun) / 1000, 3),
        peaks=peaks,
        explanation=explain(peaks, processes, run.whole_process),
        sites=most(site for one in captures for site in one.sites),
        processes=processes,
        tasks=tuple(sorted((one for each in traced for one in tasks(each, run.begun)), key=lambda one: one.start)),
        total_allocations=sum(one for one in totals if one) if totals and all(totals) else None,
        native=how.native,
        python_allocators=how.python_allocators,
        arrow_allocations=how.arrow_allocations,
        every_allocation=how.every_allocation,
        whole_process=run.whole_process,
        flow_runs=tuple(dict.fromkeys(run for one in traced for run in one.flow_runs)),
        tools=_tools(),
    )


def most(sites: Iterable[Site]) -> tuple[Site, ...]:
    """The places of several processes added up, the largest of them, and the rest as one."""
    sums: dict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0, 0])
    for site in sites:
        both = sums[site.function, site.file, site.line]
        both[0] += site.size
        both[1] += site.allocations
    ordered = largest_first(Site(*place, size, count) for place, (size, count) in sums.items())
    rest = ordered[KEPT_SITES:]
    if not rest:
        return ordered
    return (*ordered[:KEPT_SITES], Site(*REST, sum(one.size for one in rest), sum(one.allocations for one in rest)))


def together(processes: Sequence[tuple[Ints, Ints]]) -> int:
    """The largest sum at one moment of values that are sampled at times of their own.

    A value counts from its sample to the next one of its process; a process without a next one counts no more.

    Args:
        processes: Times in order and values, of each process.

    >>> one = (np.array([0, 10, 20]), np.array([5, 50, 5]))
    >>> other = (np.array([12, 22]), np.array([7, 9]))
    >>> together([one, other])
    57
    """
    times, changes = [], []
    for at, values in processes:
        if len(at):
            times += [at, at[-1:] + 1]
            changes += [np.diff(values, prepend=0), -values[-1:]]
    if not times:
        return 0
    at, change = np.concatenate(times), np.concatenate(changes)
    order = np.argsort(at, kind="stable")
    at, sums = at[order], np.cumsum(change[order])
    settled = np.append(at[1:] != at[:-1], True)  # of changes at one time, only all of them together are a state
    return int(sums[settled].max())


def tasks(traced: Traced, begun: int) -> list[TaskPeak]:
    """The peaks of a process's tasks; `begun` is when the run began."""
    starts = np.sort(np.array([one.start for one in traced.tasks], dtype=np.int64))
    ends = np.sort(np.array([one.end for one in traced.tasks], dtype=np.int64))
    return [
        TaskPeak(
            name=one.name,
            pid=traced.begun.pid,
            start=round((one.start - begun) / 1000, 3),
            seconds=round((one.end - one.start) / 1000, 3),
            before=_before(traced, one),
            allocated=_within(traced, one, "heap"),
            resident=_within(traced, one, "rss"),
            beside=_beside(one, starts, ends),
            failed=one.failed,
        )
        for one in traced.tasks
    ]


def _beside(task: Task, starts: Ints, ends: Ints) -> int:
    """How many others began before its end and ended after its beginning."""
    begun = int(np.searchsorted(starts, task.end, "left"))
    over = int(np.searchsorted(ends, task.start, "right"))
    return max(begun - over - 1, 0)


def _samples(traced: Traced) -> Samples | None:
    return traced.capture.samples if traced.capture is not None else None


def _before(traced: Traced, task: Task) -> int | None:
    if (samples := _samples(traced)) is None:
        return None
    index = int(np.searchsorted(samples.at, task.start, "right")) - 1
    return int(samples.heap[index]) if index >= 0 else None


def _within(traced: Traced, task: Task, which: str) -> int | None:
    if (samples := _samples(traced)) is None:
        return None
    low, high = np.searchsorted(samples.at, [task.start, task.end + 1])
    values = getattr(samples, which)[low:high]
    return int(values.max()) if len(values) else None


def _process(one: Traced, resident: Resident) -> ProcessPeak:
    here = one.begun.machine == socket.gethostname()
    seen = resident.of(one.begun.pid) if here else None
    samples = _samples(one)
    sampled = [int(samples.rss.max())] if samples is not None and len(samples.rss) else []
    if seen is not None:
        sampled.append(seen.largest)
    last = [int(samples.at[-1])] if samples is not None and len(samples.at) else []
    last += [int(seen.last * 1000)] if seen is not None else []
    end = one.ended.at if one.ended is not None else max([one.begun.at, *last])
    grown = _grown(one.begun.highest, one.ended.highest if one.ended is not None else seen.highest if seen else None)
    if grown is not None:
        sampled.append(grown)
    capture = one.capture
    return ProcessPeak(
        pid=one.begun.pid,
        role=one.begun.role,
        machine="" if here else one.begun.machine,
        seconds=round((end - one.begun.at) / 1000, 3),
        allocated=capture.peak if capture is not None else None,
        allocations=capture.allocations if capture is not None else None,
        resident=max(sampled, default=None),
        resident_exact=grown is not None and one.ended is not None,
        outside=one.begun.outside,
        arrow=one.ended.arrow if one.ended is not None else None,
        arrow_pool=one.ended.arrow_pool if one.ended is not None else "",
        complete=capture is not None and one.ended is not None,
    )


def _grown(before: int | None, after: int | None) -> int | None:
    """The peak that the system keeps, if it was reached while the process was tracked."""
    return after if after is not None and (before is None or after > before) else None


def _others(traced: Sequence[Traced], resident: Resident) -> tuple[ProcessPeak, ...]:
    known = {one.begun.pid for one in traced}
    return tuple(
        ProcessPeak(
            pid=found.pid,
            role=Role.OTHER,
            seconds=round(max(seen.last - seen.first, 0.0), 3),
            resident=max(seen.largest, seen.highest or 0),
        )
        for found, seen in resident.seen.items()
        if found.pid not in known
    )


def _peaks(traced: Sequence[Traced], processes: Sequence[ProcessPeak], resident: Resident) -> Peaks:
    captures = [one.capture for one in traced if one.capture is not None]
    exact = [one.peak for one in captures]
    allocated = max([*exact, together([(one.samples.at, one.samples.heap) for one in captures])]) if exact else None
    sizes = [one.resident for one in processes if one.resident is not None]
    outside = [
        one.capture.samples
        for one, process in zip(traced, processes, strict=False)
        if process.outside and one.capture is not None and len(one.capture.samples.at)
    ]
    tree = (np.array(resident.at, dtype=np.int64), np.array(resident.totals, dtype=np.int64))
    if len(resident.at):
        sizes.append(together([tree, *((one.at, one.rss) for one in outside)]))
    return Peaks(
        allocated=allocated,
        allocated_sum=sum(exact) if exact else None,
        allocations=sum(one.allocations for one in captures) if exact else None,
        resident=max(sizes, default=None) if len(resident.at) else None,
        processes=max(resident.processes, 1) + len(outside),
    )


def explain(peaks: Peaks, processes: Sequence[ProcessPeak], whole_process: bool) -> str:
    """Why the two peaks differ, in one line."""
    if peaks.allocated is None:
        return "No tracked process came to its end, so that only resident sizes are known."
    if peaks.resident is None:
        return "This system does not tell resident sizes: what was allocated may never have been touched."
    difference = show_bytes(abs(peaks.allocated - peaks.resident))
    if peaks.allocated >= peaks.resident:
        text = (
            f"Allocated is what was asked for, resident what was touched: at least {difference} of the allocated peak "
            f"had no memory behind it."
        )
        arenas = [one for one in processes if one.arrow is not None and one.arrow_pool == "mimalloc"]
        if arenas and peaks.allocated - peaks.resident > ARENA // 2:
            held = show_bytes(max(one.arrow or 0 for one in arenas))
            text += (
                f" Arrow's mimalloc pool reserves {show_bytes(ARENA)} in each process at its first use and held at "
                f"most {held} of it (--arrow-allocations shows whose)."
            )
        return text
    text = (
        f"Resident is larger by {difference}: it also counts the code and data of libraries and memory that was freed "
        f"but not given back"
    )
    if not whole_process:
        text += ", what the process held before it was tracked"
    if len(processes) > 1:
        text += ", and pages that processes share once in each"
    return f"{text}."


def _tools() -> dict[str, str]:
    tools = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in ("prefect-cytotable", "memray", "pyarrow", "prefect"):
        try:
            tools[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover - all of them are installed with this package
            continue
    return tools
