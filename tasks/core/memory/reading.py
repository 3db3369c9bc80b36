"""What the processes of a run left, read: memray's captures and the files of events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from prefect_cytotable.tasks.core.memory.errors import ProfileFailedError
from prefect_cytotable.tasks.core.memory.model import Role, Site
from prefect_cytotable.tasks.core.memory.tracking import CAPTURE, EVENTS, Begun, Ended, Event, FlowRun, Task

if TYPE_CHECKING:
    from memray import AllocationRecord, FileReader

SAMPLES = 1_000_000
"""Of heap and RSS that are read of a capture: nearly three hours; of a longer one memray's reader leaves out some."""

NO_STACK = ("no Python stack", "a library's own thread", 0)
"""The place of allocations that no Python code made."""

_EVENT = msgspec.json.Decoder(Event)

_ALLOCATORS = (
    "_mi_", "mi_", "unix_mmap", "mmap", "je_", "rallocx", "mallocx", "malloc", "calloc", "realloc", "posix_memalign",
    "aligned_alloc", "memalign", "operator new", "std::", "__gnu_cxx::", "void* ", "PyMem_", "_PyMem_", "PyObject_",
    "_PyObject_", "<unknown>",
)  # fmt: skip
"""How functions begin that hand memory on: with native stacks, the place is who asked them."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Of one process, in the order of time: milliseconds since 1970, bytes allocated, RSS."""

    at: Ints
    heap: Ints
    rss: Ints


@dataclass(frozen=True)
class Capture:
    """What memray recorded of one process.

    Attributes:
        peak: The most that was allocated at one moment.
        allocations: How many allocations were alive then.
        sites: All places where those were made, largest first.
        samples: Heap and RSS over time.
        total: Allocations from beginning to end; None where only the peak was recorded.
    """

    peak: int
    allocations: int
    sites: tuple[Site, ...]
    samples: Samples
    total: int | None


@dataclass(frozen=True)
class Traced:
    """One process of the run: its events, and its capture where that could be read."""

    path: Path
    begun: Begun
    tasks: tuple[Task, ...]
    flow_runs: tuple[str, ...]
    ended: Ended | None
    capture: Capture | None


def read_all(folder: Path) -> list[Traced]:
    """Every process that left something in the folder, the main one first, the others as they began."""
    found = [_traced(path) for path in folder.glob(f"*{EVENTS}")]
    processes = [one for one in found if one is not None]
    return sorted(processes, key=lambda one: (one.begun.role is not Role.MAIN, one.begun.at, one.begun.pid))


def _traced(path: Path) -> Traced | None:
    events = read_events(path)
    begun = next((one for one in events if isinstance(one, Begun)), None)
    if begun is None:
        return None  # killed before it had written a line
    capture = path.with_suffix(CAPTURE)
    return Traced(
        path=capture,
        begun=begun,
        tasks=tuple(one for one in events if isinstance(one, Task)),
        flow_runs=tuple(one.id for one in events if isinstance(one, FlowRun)),
        ended=next((one for one in events if isinstance(one, Ended)), None),
        capture=read_capture(capture),
    )


def read_events(path: Path) -> list[Event]:
    """The events of a process; a last line that it could not write to its end is left out.

    Raises:
        ProfileFailedError: Another line is no event.
    """
    lines = path.read_bytes().split(b"\n")
    try:
        return [_EVENT.decode(line) for line in lines[:-1]]
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ProfileFailedError(f"{path.name}: not what a tracked process writes ({error}).") from error


def opened(path: Path) -> FileReader | None:
    """A reader of memray's file; None where that has nothing, since its process was killed."""
    import memray

    if not path.is_file() or not path.stat().st_size:
        return None
    try:
        return memray.FileReader(path, max_memory_records=SAMPLES)
    except OSError:
        return None  # memray writes the beginning of a file last where only the peak is recorded


def read_capture(path: Path) -> Capture | None:
    """A process's capture; None where its process was killed before there was one."""
    import memray

    reader = opened(path)
    if reader is None:
        return None
    with reader:
        about = reader.metadata
        every = about.file_format == memray.FileFormat.ALL_ALLOCATIONS
        records = list(reader.get_high_watermark_allocation_records(merge_threads=True))
        sites = by_place(records, _native_place if about.has_native_traces else _python_place)
        samples = np.array([(one.time, one.heap, one.rss) for one in reader.get_memory_snapshots()], dtype=np.int64)
    samples = samples.reshape(-1, 3)
    return Capture(
        peak=max(about.peak_memory, sum(one.size for one in sites)),
        allocations=sum(one.allocations for one in sites),
        sites=sites,
        samples=Samples(samples[:, 0], samples[:, 1], samples[:, 2]),
        total=about.total_allocations if every else None,
    )


Place = tuple[str, str, int]


def by_place(records: Iterable[AllocationRecord], place: Callable[[AllocationRecord], Place]) -> tuple[Site, ...]:
    """Records added up by place, largest first."""
    sizes: dict[Place, list[int]] = {}
    for record in records:
        function, file, line = place(record)
        sums = sizes.setdefault((function, short(file), line), [0, 0])
        sums[0] += record.size
        sums[1] += record.n_allocations
    return largest_first(Site(*where, size, count) for where, (size, count) in sizes.items())


def largest_first(sites: Iterable[Site]) -> tuple[Site, ...]:
    """In an order that depends on nothing else."""
    return tuple(sorted(sites, key=lambda one: (-one.size, one.file, one.line, one.function)))


def _python_place(record: AllocationRecord) -> Place:
    stack = record.stack_trace(max_stacks=1)
    return stack[0] if stack else NO_STACK


def _native_place(record: AllocationRecord) -> Place:
    """The innermost Python function; where there is none, the compiled function that asked an allocator."""
    stack = record.stack_trace(max_stacks=1)
    return stack[0] if stack else asking(record.hybrid_stack_trace())


def asking(stack: Sequence[Place]) -> Place:
    """The innermost function of a compiled stack that is no allocator's.

    >>> asking([("mi_malloc", "alloc.c", 3), ("arrow::MakeBuilder", "builder.cc", 9), ("start_thread", "", 0)])
    ('arrow::MakeBuilder', 'builder.cc', 9)
    """
    return next((frame for frame in stack if not frame[0].startswith(_ALLOCATORS)), stack[0] if stack else NO_STACK)


def short(file: str) -> str:
    """A file from its package's folder on: it is then the same in every environment.

    >>> short("/home/me/.venv/lib/python3.11/site-packages/pyarrow/parquet/core.py")
    'pyarrow/parquet/core.py'
    >>> short("/usr/lib/python3.11/json/decoder.py"), short("/home/me/study.py")
    ('json/decoder.py', '/home/me/study.py')
    """
    for mark in ("/site-packages/", "/dist-packages/"):
        if mark in file:
            return file.rpartition(mark)[2]
    _, mark, tail = file.rpartition("/lib/python3.")
    if mark and "/" in tail:
        return tail.partition("/")[2]
    if file.startswith(_OURS):
        return f"prefect_cytotable/{file.removeprefix(_ROOT)}"
    return file


_ROOT = str(Path(__file__).resolve().parents[3]) + "/"
_OURS = (f"{_ROOT}tasks/", f"{_ROOT}flows/")
"""Our folders, which in a checkout that is installed in place lie outside of any package's."""
