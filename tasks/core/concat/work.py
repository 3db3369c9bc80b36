"""What a worker does: find the layout, write one range of an array, remember it, try again where that can help."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from prefect_cytotable.tasks.core.concat.dense import write_dense
from prefect_cytotable.tasks.core.concat.model import ArrayLayout, Job, JobResult, Kind, Layout
from prefect_cytotable.tasks.core.concat.prepare import load_known_layout
from prefect_cytotable.tasks.core.concat.sizes import keep_freed_memory
from prefect_cytotable.tasks.core.concat.sparse import write_sparse
from prefect_cytotable.tasks.core.concat.targets import opened_targets
from prefect_cytotable.tasks.core.places.files import whole
from prefect_cytotable.tasks.core.work import ATTEMPTS, FIRST_DELAY, may_pass

_RESULT = msgspec.json.Decoder(JobResult)


@lru_cache(maxsize=2)
def _layout(folder: str) -> Layout:
    return load_known_layout(folder)


def done_before(layout: Layout, job: Job) -> JobResult | None:
    """The record of a range that lies on disk as it was written; None for any other."""
    try:
        found = _RESULT.decode(_record(layout, job).read_bytes())
    except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
        return None
    array = layout.arrays[job.array]
    if found.record != job.record or _checksum(layout, array, job) != found.checksum:
        return None
    return JobResult(job.number, job.record, job.size, found.checksum, reused=True)


def _checksum(layout: Layout, array: ArrayLayout, job: Job) -> int:
    if array.kind is Kind.DENSE:
        with opened_targets(layout, array, ("",)) as (target,):
            return target.checksum(job.start, job.stop)
    with opened_targets(layout, array, ("data", "indices")) as (data, indices):
        return data.checksum(job.start, job.stop) ^ indices.checksum(job.start, job.stop) << 32


def write_job(folder: str, number: int) -> JobResult:
    """Write job `number` of the layout in `folder`, unless that is done."""
    keep_freed_memory()
    layout = _layout(folder)
    job = layout.jobs[number]
    if done := done_before(layout, job):
        return done
    array = layout.arrays[job.array]
    write = write_dense if array.kind is Kind.DENSE else write_sparse
    result = JobResult(number, job.record, job.size, write(layout, array, job.start, job.stop))
    with whole(_record(layout, job)) as temporary:
        temporary.write_bytes(msgspec.json.encode(result))
    return result


def write_jobs(folder: str, numbers: Sequence[int]) -> list[JobResult]:
    """Write some jobs in turn. After a failure, those that are done are found done when it is tried again."""
    return [write_job(folder, number) for number in numbers]


def write_job_with_retries(folder: str, number: int) -> JobResult:
    """The same, tried up to three times where the error may pass."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return write_job(folder, number)
        except Exception as error:
            if attempt == ATTEMPTS or not may_pass(error):
                raise
            time.sleep(FIRST_DELAY * 2 ** (attempt - 1) * random.uniform(1, 1.5))
    raise AssertionError("unreachable")


def _record(layout: Layout, job: Job) -> Path:
    return Path(layout.folder) / "records" / f"{job.record}.json"
