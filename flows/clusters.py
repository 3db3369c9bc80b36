"""Dask clusters that a run starts for itself: a fixed table of names, so that no parameter can name a class to import.

What a cluster is like (queue, cores, memory, image) is told by Dask's own configuration files on the machine where the
flow runs, such as ``~/.config/dask/jobqueue.yaml``: never by a parameter. Nothing here imports Prefect or Dask.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_cytotable.tasks.core.errors import CytotableError
from prefect_cytotable.tasks.core.runner import Runner

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner

DASK = "dask"
"""Dask processes on this machine, for one run."""


class ClusterMissingError(CytotableError, ImportError):
    """The package for a kind of cluster is not installed."""


class ClusterError(CytotableError, RuntimeError):
    """A cluster cannot be started, or none of its workers came."""


@dataclass(frozen=True)
class Cluster:
    """A kind of cluster.

    Attributes:
        module: The module of its class.
        class_name: The class.
        package: What pip installs.
        settings: Its part of Dask's configuration.
        fixed: Arguments of the class that no configuration decides.
        jobs: Whether it is scaled by jobs of a queue, each of which may hold several workers.
    """

    module: str
    class_name: str
    package: str
    settings: str
    fixed: tuple[tuple[str, Any], ...] = ()
    jobs: bool = True

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.module}.{self.class_name}"


def _queue(class_name: str, settings: str) -> Cluster:
    return Cluster("dask_jobqueue", class_name, "dask-jobqueue", f"jobqueue.{settings}")


CLUSTERS: Mapping[str, Cluster] = {
    "slurm": _queue("SLURMCluster", "slurm"),
    "pbs": _queue("PBSCluster", "pbs"),
    "sge": _queue("SGECluster", "sge"),
    "lsf": _queue("LSFCluster", "lsf"),
    "oar": _queue("OARCluster", "oar"),
    "htcondor": _queue("HTCondorCluster", "htcondor"),
    "moab": _queue("MoabCluster", "moab"),
    "kubernetes": Cluster(
        "dask_kubernetes.operator", "KubeCluster", "dask-kubernetes", "kubernetes", (("n_workers", 0),), jobs=False
    ),
    "local-jobs": Cluster("dask_jobqueue.local", "LocalCluster", "dask-jobqueue", "jobqueue.local"),
}
"""By the name that follows ``dask:`` in ``task_runner``; "local-jobs" runs job scripts on this machine, for tries."""

RUNNERS = (*Runner, DASK, *(f"{DASK}:{name}" for name in CLUSTERS))
"""Every name that ``task_runner`` can be; besides, it can be the address of a Dask scheduler."""


def cluster_of(runner: str) -> Cluster | None:
    """The cluster that a runner's name means, if it is one.

    >>> cluster_of("dask:slurm").class_name, cluster_of("dask"), cluster_of("dask:os.system")
    ('SLURMCluster', None, None)
    """
    prefix, colon, name = runner.partition(":")
    return CLUSTERS.get(name) if prefix == DASK and colon else None


def cluster_runner(cluster: Cluster, workers: int) -> DaskTaskRunner:
    """A Prefect task runner that starts the cluster when it is entered, and ends it after the run.

    Args:
        cluster: The kind.
        workers: Jobs of the queue, or pods.

    Raises:
        ClusterMissingError: Its package is not installed.
    """
    from prefect_dask.task_runners import DaskTaskRunner  # Dask takes 1 s to import

    try:
        class_: Callable[..., Any] = getattr(importlib.import_module(cluster.module), cluster.class_name)
    except ImportError as error:
        raise ClusterMissingError(
            f"{cluster.title} cannot be imported ({error}). Install it where the flow runs and where the cluster's "
            f"workers run: pip install {cluster.package}."
        ) from error

    def start() -> Any:
        try:
            started = class_(**dict(cluster.fixed))
        except Exception as error:  # each kind has its own
            variables = f"DASK_{cluster.settings.upper().replace('.', '__')}__..."
            raise ClusterError(
                f"{cluster.title} cannot be started: {_first_line(error)}. Its settings are {cluster.settings} in "
                f"Dask's configuration on this machine (~/.config/dask/*.yaml, or {variables})."
            ) from error
        if cluster.jobs:
            started.scale(jobs=workers)
        else:
            started.scale(workers)
        return started

    return DaskTaskRunner(cluster_class=start)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")
