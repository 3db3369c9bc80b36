"""Prefect task runners by name."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from prefect_cytotable.tasks.core.local import Runner
from prefect_cytotable.tasks.core.processes import end_with_run

DASK = "dask"


@contextmanager
def started(name: str, workers: int) -> Iterator[TaskRunner[Any]]:
    """The runner of that name, running.

    Args:
        name: "sequential", "concurrent", "process", "dask", or the address of a Dask scheduler.
        workers: Chunks under way at once; of a running Dask cluster its own number of workers decides.
    """
    if name == Runner.PROCESS:
        with _process_pool(workers) as pool:
            yield pool
    elif name in list(Runner):
        threads: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1 if name == Runner.SEQUENTIAL else workers)
        with threads:
            yield threads
    else:
        with _dask(name, workers) as dask:
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


def _dask(name: str, workers: int) -> TaskRunner[Any]:
    from prefect_dask.task_runners import DaskTaskRunner  # Dask takes 1 s to import

    if name != DASK:
        return DaskTaskRunner(address=name)
    settings = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": 0,
        "dashboard_address": "127.0.0.1:0",  # None would mean port 8787, with a warning where that is taken
    }
    return DaskTaskRunner(cluster_kwargs=settings)


def uses_processes(runner: str | TaskRunner[Any]) -> bool:
    """Whether chunks are converted outside this process."""
    if isinstance(runner, str):
        return runner not in (Runner.SEQUENTIAL, Runner.CONCURRENT)
    return not isinstance(runner, ThreadPoolTaskRunner)
