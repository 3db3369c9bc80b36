"""Worker processes that do not outlive the run they work for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, wait

from prefect_cytotable.tasks.core.memory.tracking import begin_where_asked, end


def end_with_run(stop: Connection | None = None) -> None:
    """Make this worker end when its parent is gone, however that ended, or when `stop` is closed at its other end.

    Where the run's memory is profiled, this worker's is from here on.

    To be called in the worker (as the initializer of a pool). Interrupts are the parent's to handle.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin_where_asked()
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    watched: list[Connection | int] = [parent.sentinel] if stop is None else [parent.sentinel, stop]

    def watch() -> None:
        wait(watched)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-run", daemon=True).start()


def dask_setup(_worker: object) -> None:
    """The same for a worker of Dask, which imports this module (its ``preload``) and calls what has this name."""
    end_with_run()


def dask_teardown(_worker: object) -> None:
    """The other end of the same: Dask may kill a worker that takes long to end, so that its capture is written now."""
    end()
