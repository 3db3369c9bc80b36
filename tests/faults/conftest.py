"""What the tests of faults share: a server each file, a plate of forty chunks, and the bytes of an undisturbed run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_tools import FORTY, ROWS, SQLITE, Ear, Place, Served, connected_to, free_port
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

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
    """A server for the tests of one file: a longer one would be found by runs of other tests."""
    folder = tmp_path_factory.mktemp("served")
    port = free_port()
    settings = {PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_HOME: folder / "user"}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        one = Served(port, folder, client)
        one.start()
        try:
            yield one
            APILogWorker.instance().drain()
            EventsWorker.drain_all()
        finally:
            one.stop()


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
