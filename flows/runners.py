"""Prefect task runners by name."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from prefect_cytotable.flows.clusters import DASK, cluster_of, cluster_runner
from prefect_cytotable.tasks.core.errors import CytotableError
from prefect_cytotable.tasks.core.local import Runner
from prefect_cytotable.tasks.core.memory.tracking import current
from prefect_cytotable.tasks.core.model import Gathered, Options
from prefect_cytotable.tasks.core.processes import end_with_run
from prefect_cytotable.tasks.core.work import clear_cache

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner

CONNECT_SECONDS = 10
"""How long a Dask scheduler may take to answer."""


class DaskUnreachableError(CytotableError, ConnectionError):
    """There is no Dask scheduler at the address that was given."""


@contextmanager
def started(name: str, workers: int) -> Iterator[TaskRunner[Any]]:
    """The runner of that name, running.

    Args:
        name: "sequential", "concurrent", "process", "dask", a cluster such as "dask:slurm", or the address of a Dask
            scheduler.
        workers: Chunks under way at once; of a cluster the number of its jobs; of one that runs already its own
            number of workers decides.
    """
    if name == Runner.PROCESS:
        with _process_pool(workers) as pool:
            yield pool
    elif name in list(Runner):
        threads: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1 if name == Runner.SEQUENTIAL else workers)
        with threads:
            yield threads
    else:
        with ExitStack() as stack:
            try:
                dask = stack.enter_context(_dask(name, workers))
                _ = dask.client  # connects
            except CytotableError:
                raise
            except OSError as error:
                raise DaskUnreachableError(
                    f"The Dask scheduler {name} does not answer: {error}. Start it, correct task_runner, or let "
                    f'task_runner="dask" start one on this machine.'
                ) from error
            if current() is not None and name != DASK:
                from prefect_cytotable.flows.profile_dask import tracked  # only where the run is profiled

                stack.enter_context(tracked(dask.client))
            yield dask


@contextmanager
def _process_pool(workers: int) -> Iterator[TaskRunner[Any]]:
    """A pool whose processes end at once when the run is broken off, instead of finishing what they do."""
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    try:
        with ProcessPoolTaskRunner(max_workers=workers, initializer=end_with_run, initargs=(reader,)) as pool:
            try:
                yield pool
            except (KeyboardInterrupt, SystemExit):
                writer.close()
                raise
    finally:
        reader.close()
        writer.close()


def _dask(name: str, workers: int) -> DaskTaskRunner:
    from prefect_dask.task_runners import DaskTaskRunner  # Dask takes 1 s to import

    if cluster := cluster_of(name):
        return cluster_runner(cluster, workers)
    if name != DASK:
        return DaskTaskRunner(address=name, client_kwargs={"timeout": CONNECT_SECONDS})
    settings = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": 0,
        "preload": end_with_run.__module__,
        "dashboard_address": "127.0.0.1:0",  # None would mean port 8787, with a warning where that is taken
    }
    return DaskTaskRunner(cluster_kwargs=settings)


def uses_processes(runner: str | TaskRunner[Any]) -> bool:
    """Whether chunks are converted outside this process."""
    if isinstance(runner, str):
        return runner not in (Runner.SEQUENTIAL, Runner.CONCURRENT)
    return not isinstance(runner, ThreadPoolTaskRunner)


class WorkerKind(StrEnum):
    """What a runner's workers are, by what giving them a task costs."""

    THREADS = "threads"
    PROCESSES = "processes"
    DASK = "dask"


def kind_of(runner: str | TaskRunner[Any]) -> WorkerKind:
    """What the workers of a runner are; one that is not known counts as a cluster."""
    if not uses_processes(runner):
        return WorkerKind.THREADS
    of_pool = runner == Runner.PROCESS if isinstance(runner, str) else isinstance(runner, ProcessPoolTaskRunner)
    return WorkerKind.PROCESSES if of_pool else WorkerKind.DASK


def slots(runner: TaskRunner[Any], workers: int) -> int:
    """How many tasks a runner that is started does at once.

    Args:
        runner: A Dask cluster is asked, which can grow and shrink.
        workers: The answer of any other, and of a cluster that has fewer.
    """
    threads = sum(cast("DaskTaskRunner", runner).client.nthreads().values()) if hasattr(runner, "client") else 0
    return max(threads, workers, 1)


def killed_worker(error: BaseException) -> int | None:
    """How many workers of a Dask cluster died over one task, where that is what the error tells."""
    scheduler = sys.modules.get("distributed.scheduler")
    if scheduler is None or not isinstance(error, scheduler.KilledWorker):
        return None
    return int(error.allowed_failures) + 1


def may_be_elsewhere(runner: str | TaskRunner[Any]) -> bool:
    """Whether chunks may be converted on machines that share no disk with this one."""
    if isinstance(runner, str):
        return "://" in runner or cluster_of(runner) is not None
    return not isinstance(runner, ThreadPoolTaskRunner | ProcessPoolTaskRunner)


def clear_on_workers(runner: TaskRunner[Any], gathered: Gathered, options: Options) -> None:
    """Remove the copies of remote sources from the machines of a Dask cluster; of another kind nothing is known."""
    if hasattr(runner, "client"):
        cast("DaskTaskRunner", runner).client.run(clear_cache, gathered, options)
