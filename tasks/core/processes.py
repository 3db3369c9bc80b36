"""Worker processes that do not outlive the run they work for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, wait


def end_with_run(stop: Connection | None = None) -> None:
    """Make this worker end when its parent is gone, however that ended, or when `stop` is closed at its other end.

    To be called in the worker (as the initializer of a pool). Interrupts are the parent's to handle.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
