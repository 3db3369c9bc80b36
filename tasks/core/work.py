"""What a worker does: find the plan, convert one chunk of it, try again where trying again can help."""

from __future__ import annotations

import errno
import random
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from prefect_cytotable.tasks.core.chunk import convert_chunk
from prefect_cytotable.tasks.core.errors import CytotableError
from prefect_cytotable.tasks.core.memory.tracking import marked
from prefect_cytotable.tasks.core.model import ChunkResult, Plan
from prefect_cytotable.tasks.core.store import Store, load_plan

ATTEMPTS = 3
FIRST_DELAY = 0.5
"""Seconds before the second attempt; each later one waits twice as long, and up to half as long again by chance."""

_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@lru_cache(maxsize=4)
def _plan(path: str) -> Plan:
    return load_plan(Path(path))


def convert_job(plan_path: str, number: int) -> ChunkResult:
    """Convert chunk `number` of the plan in the file `plan_path`."""
    plan = _plan(plan_path)
    chunk = plan.chunks[number]
    with marked(chunk.name):
        done = convert_chunk(plan, chunk, Store(Path(plan.options.work_dir)))
    return replace(done, number=number)  # the record of an earlier plan can have another: no key depends on it


def convert_job_with_retries(plan_path: str, number: int) -> ChunkResult:
    """The same, tried up to three times where the error may pass."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return convert_job(plan_path, number)
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
