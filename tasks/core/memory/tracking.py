"""One process under memray: its tracking begun, its tasks noted, its tracking ended.

memray follows the one process that it is begun in. A run's folder of captures is therefore named by a variable of the
environment, which worker processes inherit; each begins its own capture in there. Beside each capture lies a file of
events, a line for each as it happens, so that a process that is killed leaves what it did.

Importing this module does not import memray.
"""

from __future__ import annotations

import atexit
import importlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from prefect_cytotable.tasks.core.memory.errors import MemrayMissingError, ProfilerBusyError
from prefect_cytotable.tasks.core.memory.model import Role

if TYPE_CHECKING:
    import memray

VARIABLE = "CYTOTABLE_MEMORY_TRACKING"
"""Names the folder of captures to the processes of a run that is profiled."""

ARROW_POOL, SYSTEM_POOL = "ARROW_DEFAULT_MEMORY_POOL", "system"
"""Arrow's own variable, and the allocator whose every buffer memray sees."""

INTERVAL_MS = 10
"""Between two of memray's samples of heap and RSS."""

INSTALL = "pip install 'prefect-cytotable[profile]'"

SETTINGS = "settings.json"
CAPTURE, EVENTS = ".bin", ".events"


class How(msgspec.Struct, frozen=True):
    """What memray records."""

    native: bool = False
    python_allocators: bool = False
    every_allocation: bool = False


class Begun(msgspec.Struct, frozen=True, tag=True):
    """Tracking began.

    Times are milliseconds since 1970, as memray's; `highest` is the peak RSS until then; `outside` is a worker that was
    not started by the run.
    """

    pid: int
    role: Role
    machine: str
    at: int
    highest: int | None
    outside: bool = False


class Task(msgspec.Struct, frozen=True, tag=True):
    """A task ended."""

    name: str
    start: int
    end: int
    failed: bool


class FlowRun(msgspec.Struct, frozen=True, tag=True):
    """A Prefect flow run goes on in this process."""

    id: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Tracking ended, and the capture is whole."""

    at: int
    highest: int | None
    arrow_pool: str
    arrow: int | None


Event = Begun | Task | FlowRun | Ended

# Made while one thread imports this module: see `store`.
_ENCODER = msgspec.json.Encoder()
_HOW = msgspec.json.Decoder(How)


def require_memray() -> None:
    """See that the profiler can be imported.

    Raises:
        MemrayMissingError: It cannot.
    """
    if sys.platform == "win32":
        raise MemrayMissingError("Profiling uses memray, which runs on Linux and macOS only. Run without it here.")
    try:
        importlib.import_module("memray")
    except ImportError as error:
        raise MemrayMissingError(f"Profiling needs memray, which is not installed ({error}). {INSTALL}") from error


def now() -> int:
    """Milliseconds since 1970: the clock of memray's samples."""
    return time.time_ns() // 1_000_000


class Tracking:
    """This process, tracked into a folder."""

    def __init__(self, folder: Path, role: Role, how: How, outside: bool) -> None:
        stem = f"{role}-{os.getpid()}-{secrets.token_hex(4)}"
        self.folder, self.how, self.pid = folder, how, os.getpid()
        self.stem = stem
        self._lock = threading.Lock()
        self._tracker = _begun(folder / (stem + CAPTURE), how)
        self._events = (folder / (stem + EVENTS)).open("xb")
        self.note(Begun(self.pid, role, socket.gethostname(), now(), highest_resident(), outside))

    def note(self, event: Event) -> None:
        """Write an event, at once and as a whole."""
        with self._lock:
            if not self._events.closed:  # a task of another thread can outlast the profile
                self._events.write(_ENCODER.encode(event) + b"\n")
                self._events.flush()

    def end(self) -> None:
        """Stop tracking; the capture is written."""
        pool, arrow = _arrow()
        self._tracker.__exit__(None, None, None)
        self.note(Ended(now(), highest_resident(), pool, arrow))
        with self._lock:
            self._events.close()


def _begun(path: Path, how: How) -> memray.Tracker:
    import memray  # an extra, and 80 ms

    kind = memray.FileFormat.ALL_ALLOCATIONS if how.every_allocation else memray.FileFormat.AGGREGATED_ALLOCATIONS
    tracker = memray.Tracker(
        path,
        native_traces=how.native,
        memory_interval_ms=INTERVAL_MS,
        trace_python_allocators=how.python_allocators,
        file_format=kind,
    )
    try:
        tracker.__enter__()
    except RuntimeError as error:
        path.unlink(missing_ok=True)
        raise ProfilerBusyError(
            f"Process {os.getpid()} is under memray already: {error}. End the other profile, or run without this one."
        ) from error
    return tracker


def _arrow() -> tuple[str, int | None]:
    """The allocator of Arrow's memory pool and the most that it held, where Arrow is used."""
    if "pyarrow" not in sys.modules:
        return "", None
    import pyarrow as pa

    pool = pa.default_memory_pool()
    return pool.backend_name, pool.max_memory()


def highest_resident() -> int | None:
    """The peak RSS of this process in its life; None where the system does not tell it to the page."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


_current: Tracking | None = None
_beginning = threading.Lock()


def current() -> Tracking | None:
    """The tracking of this process; that of a parent it was forked from does not count."""
    tracking = _current
    return tracking if tracking is not None and tracking.pid == os.getpid() else None


def begin(folder: Path, role: Role, how: How, outside: bool = False) -> Tracking:
    """Track this process from now on.

    Args:
        folder: Where its files go.
        role: What it does.
        how: What is recorded.
        outside: Whether it was there before the run.

    Raises:
        ProfilerBusyError: It is tracked already.
        MemrayMissingError: There is no memray.
    """
    global _current
    require_memray()
    with _beginning:
        if current() is not None:
            raise ProfilerBusyError("This process is being profiled already. Profile the whole, or a part, not both.")
        _current = Tracking(folder, role, how, outside)
        return _current


def end() -> None:
    """Stop tracking this process; nothing happens where it is not tracked."""
    global _current
    with _beginning:
        tracking, _current = current(), None
        if tracking is not None:
            tracking.end()


def save_settings(folder: Path, how: How) -> None:
    """Write what the processes of a run are to record, before they are started."""
    (folder / SETTINGS).write_bytes(_ENCODER.encode(how))


def load_settings(folder: Path) -> How:
    """What `save_settings` wrote."""
    return _HOW.decode((folder / SETTINGS).read_bytes())


def begin_where_asked() -> Tracking | None:
    """Track this process if it belongs to a run that is profiled; to be called in a worker as early as can be."""
    tracking = current()
    if tracking is not None or VARIABLE not in os.environ:
        return tracking
    folder = Path(os.environ[VARIABLE])
    if not (folder / SETTINGS).is_file():
        return None  # a worker that outlived the profile which it was started under
    try:
        tracking = begin(folder, Role.WORKER, load_settings(folder))
    except ProfilerBusyError:
        return current()  # another thread was first, or somebody else's memray has this process
    atexit.register(end)
    return tracking


@contextmanager
def marked(name: str) -> Iterator[None]:
    """Note the block as a task of this process, where that is profiled; else it costs a look at the environment.

    Args:
        name: What the profile calls it, such as "plate1 images 1-40".
    """
    tracking = begin_where_asked()
    if tracking is None:
        yield
        return
    start, failed = now(), True
    try:
        yield
        failed = False
    finally:
        if tracking is current():
            tracking.note(Task(name, start, now(), failed))


def note_flow_run(flow_run_id: str) -> None:
    """Note that this process runs a Prefect flow run, so that it gets the profile as an artifact."""
    tracking = begin_where_asked()
    if tracking is not None:
        tracking.note(FlowRun(flow_run_id))
