"""The stages of a concatenation as Prefect tasks: names, retries and caching around one call into the library each.

Prefect ships the body of a task to processes and Dask by value, with copies of the module's globals. A body is
therefore one call of a function of the library, which travels by reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from prefect_cytotable.tasks.caching import BatchJob, ByChunkKeys
from prefect_cytotable.tasks.core.concat import pipeline
from prefect_cytotable.tasks.core.concat import plan as planning
from prefect_cytotable.tasks.core.concat import prepare as preparing
from prefect_cytotable.tasks.core.concat.model import ConcatReport, Input, JobResult, Layout, Options, Plan
from prefect_cytotable.tasks.core.concat.request import Merges
from prefect_cytotable.tasks.core.concat.work import write_jobs
from prefect_cytotable.tasks.stages import PATIENT


@task(task_run_name="look", cache_policy=NO_CACHE, persist_result=False)
def look(options: Options) -> tuple[Input, ...]:
    """Stage 1: what the inputs hold."""
    return pipeline.look_at_all(options)


@task(task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan(inputs: tuple[Input, ...], options: Options, processes: bool) -> Plan:
    """Stage 2: what the output will hold."""
    return planning.plan_concat(inputs, options, processes, orchestrated=True)


@task(task_run_name="prepare", cache_policy=NO_CACHE, persist_result=False)
def prepare(planned: Plan, merges: Merges, folder: Path) -> Layout:
    """Stage 3: the output without the values of its large arrays."""
    return preparing.prepare(planned, merges, folder)


@task(
    task_run_name="{job.name}",
    cache_policy=ByChunkKeys(),
    persist_result=True,
    result_serializer="json",
    **PATIENT,
)
def write_blocks(job: BatchJob) -> list[dict[str, Any]]:
    """Stage 4: some blocks, in turn. Gives their records (`JobResult`) as plain values."""
    result: list[dict[str, Any]] = msgspec.to_builtins(write_jobs(job.place.path, job.numbers))
    return result


@task(task_run_name="finish", cache_policy=NO_CACHE, persist_result=False)
def finish(planned: Plan, layout: Layout, results: list[JobResult]) -> int:
    """Stage 5: the output in its place."""
    return pipeline.put_in_place(planned, layout, results)


def publish(planned: Plan, report: ConcatReport) -> None:
    """Show what was put together as a table artifact of the run."""
    keys = planned.options.keys
    rows = [
        {"key": str(key), "input": one.name, "obs": one.shape[0], "vars": one.shape[1]}
        for key, one in zip(keys, planned.inputs, strict=True)
    ]
    description = "\n".join(f"- {line}" for line in (*pipeline.report_lines(report), *report.notes))
    create_table_artifact(table=rows[:500], key="concatenated", description=description)
