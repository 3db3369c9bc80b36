"""The steps of a fetch as Prefect tasks: names, retries and caching around one call into the library each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from prefect_cytotable.tasks.caching import BatchJob, ByChunkKeys
from prefect_cytotable.tasks.core.model import ChunkResult, OutputFile
from prefect_cytotable.tasks.core.soma import planning, work
from prefect_cytotable.tasks.core.soma.model import Fetched, FetchOptions, FetchPlan
from prefect_cytotable.tasks.stages import PATIENT


@task(task_run_name="plan", cache_policy=NO_CACHE, persist_result=False, **PATIENT)
def plan(options: FetchOptions) -> FetchPlan:
    """Step 1: open the store, look at the table, decide."""
    return planning.plan(options)


@task(
    task_run_name="{job.name}",
    cache_policy=ByChunkKeys(),
    persist_result=True,
    result_serializer="json",
    **PATIENT,
)
def fetch_chunks(job: BatchJob) -> list[dict[str, Any]]:
    """Step 2: some chunks, each to a part, in turn. Gives their records (`ChunkResult`) as plain values."""
    result: list[dict[str, Any]] = msgspec.to_builtins(work.fetch_jobs(job.place, job.numbers))
    return result


@task(task_run_name="write", cache_policy=NO_CACHE, persist_result=False)
def assemble(fetched: FetchPlan, results: Sequence[ChunkResult]) -> OutputFile:
    """Step 3: the parts to the destination."""
    return work.assemble(fetched, results)


@task(task_run_name="fetch", cache_policy=NO_CACHE, persist_result=False, **PATIENT)
def stream(planned: FetchPlan, told: Callable[[FetchPlan], OutputFile]) -> OutputFile:
    """Steps 2 and 3 in one, where there are no chunks: rows stream into the destination."""
    return told(planned)


def publish(fetched: Fetched) -> None:
    """Show the summary as a table artifact of the run."""
    values = {**msgspec.to_builtins(fetched), "notes": " ".join(fetched.notes)}
    rows = [{"what": name.replace("_", " "), "value": value} for name, value in values.items()]
    create_table_artifact(table=rows, key="fetch-summary", description="What was fetched, and what it took.")
