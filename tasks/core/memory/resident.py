"""The resident size (RSS) of a process tree, sampled while it runs.

On Linux from ``/proc``: the sizes of the processes that are known every 20 ms, new processes every 200 ms, and of each
the peak that the system itself keeps (VmHWM). Elsewhere from ``ps``, twice a second.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

FAST_SECONDS, FIND_SECONDS, PS_SECONDS = 0.02, 0.2, 0.5

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True)
class Found:
    """A process of the tree: its number, and what tells it from a later one of the same number."""

    pid: int
    identity: str


@dataclass
class Seen:
    """What the samples say of one process; times are of `time.time`."""

    largest: int = 0
    highest: int | None = None
    first: float = 0.0
    last: float = 0.0


@dataclass
class Resident:
    """What the samples say of the tree.

    Attributes:
        peak: The largest sum at one moment; None where nothing could be sampled.
        processes: How many processes there were then.
        seen: Each process.
        at, totals: Every sample: milliseconds since 1970 and the sum, 16 bytes for each.
    """

    peak: int | None = None
    processes: int = 0
    seen: dict[Found, Seen] = field(default_factory=dict)
    at: array[int] = field(default_factory=lambda: array("q"))
    totals: array[int] = field(default_factory=lambda: array("q"))

    def of(self, pid: int) -> Seen | None:
        """The latest process of that number."""
        return next((seen for found, seen in reversed(self.seen.items()) if found.pid == pid), None)


class Source(Protocol):
    """Where the sizes come from."""

    pause: float

    def find(self) -> list[Found]:
        """The processes of the tree."""
        ...

    def sizes(self, found: list[Found]) -> dict[Found, int]:
        """RSS of those that are still there."""
        ...

    def highest(self, one: Found) -> int | None:
        """The peak RSS of a process that is there, where the system keeps it."""
        ...


class Sampler:
    """Samples a tree in a thread of its own, from `start` to `stop`."""

    def __init__(self, root: int, without: int | None = None) -> None:
        self._source = source(root, without)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resident-sampler", daemon=True)
        self.result = Resident()

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        found: list[Found] = []
        due = 0.0
        while True:
            last = self._stop.is_set()
            if last or time.monotonic() >= due:
                found = merged(found, self._source.find())
                self._keep_highest(found)
                due = time.monotonic() + FIND_SECONDS
            sizes = self._source.sizes(found)
            add(self.result, sizes, time.time())
            found = [one for one in found if one in sizes]
            if last:
                return
            self._stop.wait(self._source.pause)

    def _keep_highest(self, found: list[Found]) -> None:
        for one in found:
            highest = self._source.highest(one)
            if highest is not None:
                self.result.seen.setdefault(one, Seen(first=time.time())).highest = highest


def merged(known: list[Found], found: list[Found]) -> list[Found]:
    """Those that are known, a process whose parent has ended among them, and those that are new; one of a number."""
    return list({one.pid: one for one in [*known, *found]}.values())


def add(result: Resident, sizes: Mapping[Found, int], at: float) -> None:
    """Count a sample in."""
    for one, size in sizes.items():
        seen = result.seen.setdefault(one, Seen(first=at))
        seen.largest, seen.last = max(seen.largest, size), at
    if sizes:
        total = sum(sizes.values())
        result.at.append(round(at * 1000))
        result.totals.append(total)
        if result.peak is None or total > result.peak:
            result.peak, result.processes = total, len(sizes)


def descendants(parents: Mapping[int, int], root: int, without: int | None = None) -> list[int]:
    """A process and all that come from it, from the parent of each.

    >>> descendants({1: 0, 2: 1, 3: 2, 4: 1, 9: 0}, root=1, without=4)
    [1, 2, 3]
    """
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found = [root] if root in parents else []
    for pid in found:
        found += [child for child in sorted(children.get(pid, ())) if child != without and child not in found]
    return found


def source(root: int, without: int | None = None) -> Source:
    """Where this system tells of the processes below `root`; one of them, and what is below it, can be left out."""
    return _Proc(root, without) if sys.platform == "linux" and (_PROC / "self").exists() else _Ps(root, without)


class _Proc:
    """Linux."""

    pause = FAST_SECONDS

    def __init__(self, root: int, without: int | None) -> None:
        self._root, self._without = root, without

    def find(self) -> list[Found]:
        stats = {}
        for path in _PROC.iterdir():
            if path.name.isdigit() and (fields := _stat(path.name)) is not None:
                stats[int(path.name)] = fields
        pids = descendants({pid: int(fields[1]) for pid, fields in stats.items()}, self._root, self._without)
        return [Found(pid, stats[pid][19].decode("ascii")) for pid in pids]

    def sizes(self, found: list[Found]) -> dict[Found, int]:
        sizes = {}
        for one in found:
            pages = _read(f"{one.pid}/statm").split()
            if len(pages) > 1 and int(pages[1]):  # a process that ended and waits to be fetched has none
                sizes[one] = int(pages[1]) * _PAGE
        return sizes

    def highest(self, one: Found) -> int | None:
        fields = _stat(str(one.pid))
        if fields is None or fields[19].decode("ascii") != one.identity:
            return None
        for line in _read(f"{one.pid}/status").splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
        return None


def _read(name: str) -> bytes:
    """A file of ``/proc``; empty where the process is gone."""
    try:
        return (_PROC / name).read_bytes()
    except OSError:
        return b""


def _stat(pid: str) -> list[bytes] | None:
    """What follows a process's name in its ``stat``: state, parent, ..., its start time as the twentieth."""
    fields = _read(f"{pid}/stat").rpartition(b")")[2].split()
    return fields if len(fields) > 19 else None


class _Ps:
    """Any other system with a ``ps``; without one, nothing is found."""

    pause = PS_SECONDS

    def __init__(self, root: int, without: int | None, run: Callable[[], str] | None = None) -> None:
        self._root, self._without = root, without
        self._run = run or _ps

    def _rows(self) -> dict[int, tuple[int, int, str]]:
        rows = {}
        for line in self._run().splitlines():
            fields = line.split(maxsplit=3)
            if len(fields) == 4 and all(one.isdigit() for one in fields[:3]):
                rows[int(fields[0])] = (int(fields[1]), int(fields[2]) * 1024, fields[3].strip())
        return rows

    def find(self) -> list[Found]:
        rows = self._rows()
        pids = descendants({pid: row[0] for pid, row in rows.items()}, self._root, self._without)
        return [Found(pid, rows[pid][2]) for pid in pids]

    def sizes(self, found: list[Found]) -> dict[Found, int]:
        rows = self._rows()
        here = {Found(pid, row[2]): row[1] for pid, row in rows.items()}
        return {one: here[one] for one in found if here.get(one)}

    def highest(self, one: Found) -> int | None:
        return None


def _ps() -> str:
    """Number, parent, RSS in KiB and start time of every process, but for the ``ps`` itself."""
    try:
        with subprocess.Popen(
            ["ps", "-A", "-o", "pid=,ppid=,rss=,lstart="], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "LC_ALL": "C"},
        ) as process:  # fmt: skip
            text = process.communicate()[0]
    except OSError:
        return ""
    return "\n".join(line for line in text.splitlines() if line.split(maxsplit=1)[:1] != [str(process.pid)])
