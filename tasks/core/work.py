"""What a worker does: find the plan, convert one chunk of it, try again where trying again can help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from prefect_cytotable.tasks.core.chunk import convert_chunk
from prefect_cytotable.tasks.core.memory.tracking import marked
from prefect_cytotable.tasks.core.model import ChunkResult, Gathered, Options, Plan
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.retries import ATTEMPTS as ATTEMPTS
from prefect_cytotable.tasks.core.retries import FIRST_DELAY as FIRST_DELAY
from prefect_cytotable.tasks.core.retries import PlanPlace as PlanPlace
from prefect_cytotable.tasks.core.retries import may_pass as may_pass
from prefect_cytotable.tasks.core.retries import with_retries as with_retries
from prefect_cytotable.tasks.core.sources.registry import forget
from prefect_cytotable.tasks.core.store import load_plan, store_of


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


def clear_cache(gathered: Gathered, options: Options) -> None:
    """Remove this machine's copies of what was gathered: objects, and what was unpacked."""
    sources = (source for dataset in gathered.datasets for source in dataset.sources)
    forget(sources, Places(options.storage))
