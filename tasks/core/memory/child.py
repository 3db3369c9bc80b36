"""A process that runs a command under memray from its first import on: ``python -m`` of this module.

Its arguments are the folder of captures, the descriptor of a pipe whose other end the watching process holds, the
module whose ``main`` is called, and that one's arguments. What it imports before tracking begins is small.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from prefect_cytotable.tasks.core.memory import tracking
from prefect_cytotable.tasks.core.memory.model import Role


def main(arguments: Sequence[str]) -> int:
    """Run a module's ``main``, tracked; returns its exit status."""
    folder, pipe, module, *rest = arguments
    signal.signal(signal.SIGTERM, _terminated)
    threading.Thread(target=_end_with, args=(int(pipe),), name="watcher", daemon=True).start()
    tracking.begin(Path(folder), Role.MAIN, tracking.load_settings(Path(folder)))
    try:
        sys.argv = [module, *rest]
        status: int = importlib.import_module(module).main(rest)
        return status
    finally:
        tracking.end()


def _end_with(pipe: int) -> None:
    """End when the watching process is gone. An interrupt would not do: it is ignored behind a shell's ``&``."""
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _terminated(number: int, _frame: FrameType | None) -> None:
    """End by the signal, as without this handler, but with the capture written."""
    tracking.end()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
