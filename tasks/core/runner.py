"""What does the chunks of a run without a server."""

from __future__ import annotations

from enum import StrEnum

POOL_ATTEMPTS = 3
"""How often a pool of processes is made anew after one of them was killed."""


class Runner(StrEnum):
    """What converts the chunks of a local run."""

    SEQUENTIAL = "sequential"
    CONCURRENT = "concurrent"
    PROCESS = "process"
