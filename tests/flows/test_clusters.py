"""Dask clusters by name: a fixed table of real classes, settings from Dask alone, errors that say what to do."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import dask
import pytest

from prefect_cytotable.flows.clusters import (
    CLUSTERS,
    RUNNERS,
    Cluster,
    ClusterError,
    ClusterMissingError,
    cluster_of,
    cluster_runner,
)
from prefect_cytotable.flows.limits import limit_names, machine
from prefect_cytotable.flows.runners import may_be_elsewhere, uses_processes
from prefect_cytotable.flows.running import checked_runner
from prefect_cytotable.tasks.core.errors import ArgumentError, CytotableError


@pytest.mark.parametrize("name", [name for name, one in CLUSTERS.items() if one.package == "dask-jobqueue"])
def test_the_classes_of_the_table_are_there_with_their_settings(name: str) -> None:
    one = CLUSTERS[name]
    class_ = getattr(importlib.import_module(one.module), one.class_name)
    assert class_.__name__ == one.class_name
    assert dask.config.get(one.settings)["death-timeout"] == 60


@pytest.mark.parametrize(
    "name",
    ["dask:", "dask:os.system", "dask:dask_jobqueue.SLURMCluster", "slurm", "DASK:slurm", "dask:slurm:x", "dask:/x"],
)
def test_a_name_that_is_not_in_the_table_imports_nothing(name: str) -> None:
    assert cluster_of(name) is None
    with pytest.raises(ArgumentError, match=r"Did you mean|Choose one of"):
        checked_runner(name)


def test_chunks_of_a_cluster_are_converted_elsewhere() -> None:
    for name in CLUSTERS:
        runner = f"dask:{name}"
        assert runner in RUNNERS
        assert checked_runner(runner) == runner
        assert uses_processes(runner)
        assert may_be_elsewhere(runner)
    assert not may_be_elsewhere("dask")


def test_a_package_that_is_not_installed_is_named_with_its_command() -> None:
    lacking = Cluster("dask_cluster_of_nobody", "Cluster", "dask-nobody", "nobody")
    with pytest.raises(ClusterMissingError, match="pip install dask-nobody") as caught:
        cluster_runner(lacking, 1)
    assert isinstance(caught.value, ImportError)


@pytest.mark.skipif(importlib.util.find_spec("dask_kubernetes") is not None, reason="dask-kubernetes is installed")
def test_kubernetes_needs_its_package() -> None:
    with pytest.raises(ClusterMissingError, match="pip install dask-kubernetes"):
        cluster_runner(CLUSTERS["kubernetes"], 1)


def test_a_queue_without_settings_says_where_they_belong() -> None:
    runner = cluster_runner(CLUSTERS["slurm"], 1)
    with (
        pytest.raises(ClusterError, match=r"cores and memory.*jobqueue\.slurm.*DASK_JOBQUEUE__SLURM__") as caught,
        runner,
    ):
        _ = runner.client
    assert isinstance(caught.value, CytotableError)


def test_the_table_is_read_without_dask_or_prefect() -> None:
    program = (
        "import sys; from prefect_cytotable.flows import clusters; "
        "print([one for one in ('prefect', 'dask', 'distributed') if one in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_limits_of_a_run_are_its_machines_and_its_stores() -> None:
    assert limit_names(["/data/plate", "/data/out.parquet", "rel"]) == [f"cytotable-machine-{machine()}"]
    paths = ["s3://lab/a/b", "S3://lab/c", "gs://other", "/data"]
    assert limit_names(paths)[1:] == ["cytotable-store-lab", "cytotable-store-other"]
    assert not set(machine()) & set("/%&<> ")
