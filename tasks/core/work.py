"""What a worker does: find the plan, convert one chunk of it, try again where trying again can help."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from prefect_cytotable.tasks.core.chunk import convert_chunk
from prefect_cytotable.tasks.core.errors import CytotableError
from prefect_cytotable.tasks.core.memory.tracking import marked
from prefect_cytotable.tasks.core.model import ChunkResult, Gathered, Options, Plan
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources.registry import forget
from prefect_cytotable.tasks.core.store import load_plan, store_of

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


@lru_cache(maxsize=4)
def _plan(place: PlanPlace) -> Plan:
    return load_plan(place.path, place.storage)


def convert_job(place: PlanPlace, number: int) -> ChunkResult:
    """Convert chunk `number` of the plan at `place`."""
    plan = _plan(place)
    chunk = plan.chunks[number]
    with marked(chunk.name):
        done = convert_chunk(plan, chunk, store_of(plan.options))
    return replace(done, number=number)  # the record of an earlier plan can have another: no key depends on it


def convert_jobs(place: PlanPlace, numbers: Sequence[int]) -> list[ChunkResult]:
    """Convert some chunks in turn. After a failure, those that are done are found done when it is tried again."""
    return [convert_job(place, number) for number in numbers]


def convert_job_with_retries(place: PlanPlace, number: int) -> ChunkResult:
    """The same, tried up to three times where the error may pass."""
    return with_retries(lambda: convert_job(place, number))


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


def clear_cache(gathered: Gathered, options: Options) -> None:
    """Remove this machine's copies of what was gathered: objects, and what was unpacked."""
    sources = (source for dataset in gathered.datasets for source in dataset.sources)
    forget(sources, Places(options.storage))
