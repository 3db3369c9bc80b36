"""What the tests of profiles share: small plates, an environment without a server, and memray itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites, write_sqlite

COMMAND = [sys.executable, "-m", "prefect_cytotable.flows.cli"]
SECONDS = 120.0
"""How long anything is waited for; each takes a second or two on a machine that does nothing else."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests of profiles out where memray does not exist."""
    if sys.platform == "win32":
        for item in items:
            item.add_marker(pytest.mark.skip(reason="memray runs on Linux and macOS"))


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plate of four images, a folder of CSV files for each."""
    return write_csv_sites(tables(PlateShape(wells=2, sites=2, cells=10)), tmp_path_factory.mktemp("sites") / "sites")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plate of 24 images as a SQLite file."""
    return write_sqlite(tables(PlateShape(wells=12, sites=2, cells=12)), tmp_path_factory.mktemp("db") / "plate.sqlite")


@pytest.fixture(scope="session")
def called() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, called from the test's own folder."""

    def call(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **variables},
            timeout=2 * SECONDS,
        )

    return call
