"""The stages of a conversion as Prefect tasks: names, retries and caching around one call into the library each.

Prefect ships the body of a task to processes and Dask by value, with copies of the module's globals. A body is
therefore one call of a function of the library, which travels by reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import msgspec
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from prefect_cytotable.tasks.caching import BatchJob, ByChunkKeys
from prefect_cytotable.tasks.core import gather as gathering
from prefect_cytotable.tasks.core import inspection, output
from prefect_cytotable.tasks.core import plan as planning
from prefect_cytotable.tasks.core import report as reports
from prefect_cytotable.tasks.core.model import (
    ChunkResult,
    ColumnType,
    Gathered,
    Inspected,
    Options,
    OutputFile,
    Plan,
    Report,
    Skipped,
)
from prefect_cytotable.tasks.core.work import ATTEMPTS, convert_jobs, may_pass


class _Patience(TypedDict):
    """How often, and after which failures, a task is tried again."""

    retries: int
    retry_delay_seconds: Callable[[int], list[float]]
    retry_jitter_factor: float
    retry_condition_fn: Callable[[Task[..., Any], TaskRun, State[Any]], bool]


def failure_may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect should try a task again: for locks and faults of a disk, never for bad data."""
    try:
        state.result()
    except Exception as error:
        return may_pass(error)
    return False


PATIENT: _Patience = {
    "retries": ATTEMPTS - 1,
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": failure_may_pass,
}


@task(task_run_name="gather", cache_policy=NO_CACHE, persist_result=False, **PATIENT)
def gather(options: Options) -> Gathered:
    """Stage 1: the datasets at the source path."""
    return gathering.gather(options)


@task(task_run_name="inspect", cache_policy=NO_CACHE, persist_result=False, **PATIENT)
def inspect(
    gathered: Gathered,
    options: Options,
    widened: tuple[tuple[str, str, ColumnType], ...],
    bad: tuple[Skipped, ...],
) -> Inspected:
    """Stage 2: schemas and relations."""
    return inspection.inspect(gathered, options, widened, bad)


@task(task_run_name="plan", cache_policy=NO_CACHE, persist_result=False, **PATIENT)
def plan(inspected: Inspected, options: Options) -> Plan:
    """Stage 3: the chunks."""
    return planning.plan(inspected, options)


@task(
    task_run_name="{job.name}",
    cache_policy=ByChunkKeys(),
    persist_result=True,
    result_serializer="json",
    **PATIENT,
)
def convert_chunks(job: BatchJob) -> list[dict[str, Any]]:
    """Stage 4: some chunks, in turn. Gives their records (`ChunkResult`) as plain values."""
    result: list[dict[str, Any]] = msgspec.to_builtins(convert_jobs(job.place, job.numbers))
    return result


@task(task_run_name="report", cache_policy=NO_CACHE, persist_result=False)
def report(converted: Plan, results: Sequence[ChunkResult]) -> Report:
    """Stage 6: the account of the rows, made and checked before the output is written."""
    return reports.build(converted, results)


@task(task_run_name="write", cache_policy=NO_CACHE, persist_result=False)
def write(converted: Plan, results: Sequence[ChunkResult], account: Report) -> tuple[OutputFile, ...]:
    """Stage 5: the output."""
    return output.write_output(converted, results, account)
