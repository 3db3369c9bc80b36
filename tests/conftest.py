"""What all tests share: the real samples, and conversions that run here, without any Prefect server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from waiting import clear, without_server

from prefect_cytotable.flows import convert

if TYPE_CHECKING:
    from servers import Served

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = Path(os.environ.get("CYTOTABLE_SAMPLES") or ROOT.parent / "shared" / "data")

# Time says nothing on a shared machine; what is slow to begin is the first example alone.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the servers and profiles of the person who runs the tests: Prefect settles on one when it is imported."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    home = tempfile.mkdtemp(prefix="prefect-home-")
    os.environ["PREFECT_HOME"] = home
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real exports of CellProfiler and its kin, where they are at hand."""
    if not SAMPLES.is_dir():
        pytest.skip("the real sample data is not here")
    return SAMPLES


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., pa.Table]:
    """Converts in this process and gives the table; of a folder that was written, its files by relative path."""
    home = tmp_path_factory.mktemp("home")

    def converted(source: str | Path, dest: str | Path, **arguments: Any) -> Any:
        with without_server(home):
            convert(source, dest, **arguments)
        dest = Path(dest)
        if dest.is_dir():
            files = sorted(dest.rglob("*.parquet"))
            return {file.relative_to(dest).as_posix(): pq.read_table(file, partitioning=None) for file in files}
        return pq.read_table(dest)

    return converted


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No server, no profile and no settings of the person who runs the tests; relative paths lie in `tmp_path`."""
    clear(monkeypatch, "PREFECT_", "CYTOTABLE_", "ARROW_", "AWS_")
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What the next two import imports Prefect, which must not happen before `pytest_configure`.


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for the tests of one file: a longer one would be found by runs of other tests."""
    from servers import serving

    with serving(tmp_path_factory.mktemp("served")) as one:
        yield one


@pytest.fixture
def here(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """This process finds the server as our own, by its state file; relative paths lie in `tmp_path`."""
    from servers import found_by_state

    monkeypatch.chdir(tmp_path)
    with found_by_state(served, monkeypatch):
        yield served


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a small Dask cluster that somebody else has started."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    ) as started:
        yield started.scheduler_address


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many KiB, where this system lets us make one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = False

    def sized(kib: int) -> Path:
        nonlocal made
        option = f"size={kib}k" + (",remount" if made else "")
        done = shutil.which("mount") and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)], capture_output=True, check=False
        )
        if not done or done.returncode:
            pytest.skip("a small file system cannot be made here")
        made = True
        return place

    yield sized
    if made:
        subprocess.run(["umount", "-l", str(place)], check=True)


LONG = (
    "faults",
    "service",
    "flows/test_orchestrated",
    "flows/test_ui",
    "reprocess",
    "properties",
    "concat",
    "profile",
    "places",
)
"""Tests that wait for servers or try many examples: begun first, so that none of them is the last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long ones first, where the order is kept (``--no-loadscope-reorder``)."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(here).as_posix()
        return next((number for number, prefix in enumerate(LONG) if name.startswith(prefix)), len(LONG))

    items.sort(key=place)
