"""The new output in the place of the old: at every moment one of them is whole, there or aside."""

from __future__ import annotations

import os
from pathlib import Path

from prefect_cytotable.tasks.core.store import discard


def move_in(new: Path, destination: Path, aside: Path) -> None:
    """Make a new file or folder the destination; one that is there is replaced.

    A folder cannot be replaced in one step: the old one goes aside first, from where `put_back` fetches it if this
    process is killed in between.

    Args:
        new: On the file system of the destination.
        destination: What it shall be called.
        aside: A path that is free, on the same file system.
    """
    if not os.path.lexists(destination) or not (destination.is_dir() or new.is_dir()):
        new.replace(destination)
        return
    destination.rename(aside)
    try:
        new.rename(destination)
    except BaseException:
        aside.rename(destination)
        raise
    discard(aside)


def put_back(destination: Path, aside: Path) -> bool:
    """Undo what a killed run had begun: the old output is the destination again where no new one is.

    Returns:
        Whether it was put back.
    """
    if not os.path.lexists(aside):
        return False
    if os.path.lexists(destination):
        discard(aside)
        return False
    aside.rename(destination)
    return True
