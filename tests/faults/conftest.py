"""What the tests of faults share: a server each file, a plate of forty chunks, and the bytes of an undisturbed run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ears import Ear
from fault_tools import FORTY, ROWS, SQLITE, Place, Served, connected_to
from servers import serving

from prefect_cytotable.flows import plan
from prefect_cytotable.tasks.core.demo import tables, write_sqlite
from prefect_cytotable.tasks.core.model import Chunk


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests of faults out where there are no signals."""
    if sys.platform == "win32":
        for item in items:
            item.add_marker(pytest.mark.skip(reason="the local server and SIGKILL are for POSIX systems"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server of one file, to be stopped and started."""
    with serving(tmp_path_factory.mktemp("served")) as one:
        yield Served(one.url, one.folder, one.client)


@pytest.fixture(scope="session")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plate of forty chunks as a SQLite file."""
    return write_sqlite(tables(FORTY), tmp_path_factory.mktemp("plate") / "plate.sqlite")


@pytest.fixture(scope="session")
def chunks(plate: Path) -> tuple[Chunk, ...]:
    """The chunks of the plate."""
    found = plan(plate, preset=SQLITE, chunk_size=ROWS).chunks
    assert len(found) == 40
    return found


@pytest.fixture(scope="session")
def undisturbed(plate: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of the table that a local run writes."""
    place = Place(plate, tmp_path_factory.mktemp("undisturbed"), "sequential", None)
    with connected_to(None, place.folder):
        return place.again(Ear())
