"""What a profile of a run's memory says. All sizes are bytes, all times seconds.

The dataclasses are the schema of ``profile.json``, whose fields have the same names; `VERSION` changes when a field
changes its meaning or goes. A field that is added has a default, so that an older file can still be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FORMAT = "prefect-cytotable memory profile"
VERSION = 1


class Role(StrEnum):
    """What a process of the run does."""

    MAIN = "main"
    WORKER = "worker"
    OTHER = "other"
    """A helper that is not tracked: a resource tracker, a server of Prefect's own."""


@dataclass(frozen=True)
class Profiling:
    """What is recorded, and where the profile goes.

    Attributes:
        folder: The folder to write, which appears when the run has ended.
        native: Whether stacks go on into compiled code. Names what else is "no Python stack"; takes more time.
        python_allocators: Whether every small object of Python is recorded, instead of the arenas they lie in.
        arrow_allocations: Whether every buffer of Arrow is recorded, by the system's allocator for this run, instead of
            the address space that Arrow's own allocator reserves for all of them: their places are then known.
        every_allocation: Whether memray's complete format is written: the number of allocations of the whole run, and
            records that can be read even of a process that was killed; large files on the way.
        keep_raw: Whether memray's own files are kept, in the folder's ``raw``, for memray's own reports.
        overwrite: Whether an earlier profile there is replaced.
    """

    folder: str
    native: bool = False
    python_allocators: bool = False
    arrow_allocations: bool = False
    every_allocation: bool = False
    keep_raw: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Site:
    """A place in the code, and what the allocations made there held at the peak of their processes.

    Attributes:
        function: The innermost function of the stack.
        file: Its file, from the package's folder on where it is installed.
        line: Its line in there.
        size: Bytes.
        allocations: How many allocations those bytes are.
    """

    function: str
    file: str
    line: int
    size: int
    allocations: int


@dataclass(frozen=True)
class ProcessPeak:
    """One process.

    Attributes:
        pid: Its number.
        role: What it did.
        machine: The machine's name where it is not this one, else empty.
        seconds: How long it was tracked, or seen.
        allocated: Its peak by memray, exact; None where it was not tracked, or ended before that was written.
        allocations: Allocations alive at that peak.
        resident: Its peak RSS; exact on Linux where `resident_exact`, else the largest of the samples.
        resident_exact: Whether the system itself told that peak.
        outside: Whether it is no descendant of the run's main process: a worker of a Dask cluster that ran already.
        arrow: The most that Arrow's memory pool held, since the process began; None where Arrow was not used.
        arrow_pool: That pool's allocator.
        complete: Whether its allocations are known to the end.
    """

    pid: int
    role: Role
    machine: str = ""
    seconds: float = 0.0
    allocated: int | None = None
    allocations: int | None = None
    resident: int | None = None
    resident_exact: bool = False
    outside: bool = False
    arrow: int | None = None
    arrow_pool: str = ""
    complete: bool = True


@dataclass(frozen=True)
class TaskPeak:
    """One task (a chunk, a stage), as the process that ran it saw it.

    Attributes:
        name: The chunk's or the stage's.
        pid: The process.
        start: When it began, from the beginning of the profile.
        seconds: How long it took.
        before: What the process had allocated when it began.
        allocated: The most that the process had allocated while it ran, of samples every 10 ms; None where it was
            too short for one.
        resident: The same for the process's RSS.
        beside: How many other tasks ran at some time meanwhile in the same process. Where it is not 0, the figures are
            those of all of them together: memory belongs to a process, not to a thread.
        failed: Whether it raised.
    """

    name: str
    pid: int
    start: float
    seconds: float
    before: int | None
    allocated: int | None
    resident: int | None
    beside: int
    failed: bool = False


@dataclass(frozen=True)
class Peaks:
    """The peaks of the whole run.

    Attributes:
        allocated: Heap and reserved address space by memray. Exact for one process; of several, their largest sum at
            one moment, of samples every 10 ms. None where no process was tracked to its end.
        allocated_sum: The processes' exact peaks added up, whenever each was: an upper bound.
        allocations: Allocations alive at the processes' peaks.
        resident: RSS of the process tree and of the workers outside it, the largest sum at one moment, of samples
            every 20 ms; at least the peak of each process. Pages that processes share count in each. None where the
            system does not tell.
        processes: How many processes there were at that moment.
    """

    allocated: int | None
    allocated_sum: int | None
    allocations: int | None
    resident: int | None
    processes: int


@dataclass(frozen=True)
class Profile:
    """A run's memory.

    Attributes:
        command: What ran, without its arguments.
        status: The exit status of a command, 0 or 1 of a call; 128 + N for one that signal N ended.
        started: When, in ISO 8601 with the zone.
        seconds: How long the run took, tracked as it was.
        peaks: The figures.
        explanation: Why allocated and resident differ, in one line.
        total_allocations: Allocations of the whole run; only with `every_allocation`.
        sites: Where the memory of the peaks was allocated, largest first, over all processes.
        processes: Each process, the main one first.
        tasks: Each task, in the order of beginning.
        native, python_allocators, arrow_allocations, every_allocation: What was recorded.
        whole_process: Whether the main process was tracked from its first import on, or for a call only.
        flow_runs: The Prefect flow runs inside.
        tools: Versions, by name.
    """

    command: str
    status: int
    started: str
    seconds: float
    peaks: Peaks
    explanation: str
    sites: tuple[Site, ...]
    processes: tuple[ProcessPeak, ...]
    tasks: tuple[TaskPeak, ...]
    total_allocations: int | None = None
    native: bool = False
    python_allocators: bool = False
    arrow_allocations: bool = False
    every_allocation: bool = False
    whole_process: bool = True
    flow_runs: tuple[str, ...] = ()
    tools: dict[str, str] | None = None
    format: str = FORMAT
    version: int = VERSION

    @property
    def complete(self) -> bool:
        """Whether the allocations of every process of ours are known to its end."""
        return all(one.complete for one in self.processes)
