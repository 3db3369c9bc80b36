"""What any worker does, whatever its work: finds its plan, and tries again where trying again can help."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from prefect_cytotable.tasks.core.errors import CytotableError

T = TypeVar("T")

ATTEMPTS = 3
FIRST_DELAY = 0.5
"""Seconds before the second attempt; each later one waits twice as long, and up to half as long again by chance."""

_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class PlanPlace:
    """Where a plan lies, and how that place is reached; never with a secret."""

    path: str
    storage: tuple[tuple[str, str], ...] = ()


def with_retries(action: Callable[[], T]) -> T:
    """What `action` gives, tried up to three times where its error may pass."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if attempt == ATTEMPTS or not may_pass(error):
                raise
            time.sleep(FIRST_DELAY * 2 ** (attempt - 1) * random.uniform(1, 1.5))
    raise AssertionError("unreachable")


def may_pass(error: BaseException) -> bool:
    """Whether the same work may succeed when it is tried again: a lock or a fault of the disk, never bad data."""
    if isinstance(error, CytotableError):
        return error.retriable
    return isinstance(error, OSError) and error.errno not in _HOPELESS
