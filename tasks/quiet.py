"""Keeps a plate's log short: what Prefect says at the end of every chunk task is for those who debug.

A plate can have ten thousand chunks, and the lines that matter would be lost among theirs. States and times of the
chunks are in the list of task runs anyway.
"""

from __future__ import annotations

import logging

LOGGER = "prefect.task_runs"
ROUTINE = ("Finished in state Completed", "Finished in state Cached")
TASKS = "convert_chunk"
"""Beginning of the names of the tasks that are many; those of a flow around ours are none of our business."""


class Routine(logging.Filter):
    """Makes lines of routine those of debugging."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is told; those of routine only where debugging is on."""
        ours = str(getattr(record, "task_name", "")).startswith(TASKS)
        if not ours or record.levelno != logging.INFO or not str(record.msg).startswith(ROUTINE):
            return True
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger("prefect").isEnabledFor(logging.DEBUG)


def quieten() -> None:
    """Do so in this process; again does nothing."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(one, Routine) for one in logger.filters):
        logger.addFilter(Routine())
