"""Runs over many plates against a real Prefect server: a child run for each plate that is converted, and no other."""

from __future__ import annotations

import inspect
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from screens import Heard, again, cells_of, index_of, plate_of_sites, plate_of_sqlite, set_area

from prefect_cytotable.flows import reprocess, server
from prefect_cytotable.flows.reprocess_flow import reprocess_flow
from prefect_cytotable.tasks.core.reprocess.errors import PlatesFailedError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")

SECONDS = 150.0
"""How long anything is waited for; each takes a second on a machine that does nothing else."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((server.HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives, once it gives something."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Served:
    """The server, and what it knows."""

    folder: Path
    client: SyncPrefectClient

    def run(self, heard: Heard) -> FlowRun:
        """The flow run whose address was told."""
        address = re.search(r"Flow run: \S+/runs/flow-run/([0-9a-f-]{36})", heard.text)
        assert address is not None, heard.text
        return self.client.read_flow_run(UUID(address[1]))

    def children(self, run: FlowRun) -> dict[str, str]:
        """Name and state of the child runs."""
        parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))

        def ended() -> list[FlowRun] | None:
            found = self.client.read_flow_runs(flow_run_filter=parent)
            return found if all(one.state is not None and one.state.is_final() for one in found) else None

        found = until(ended) if self.client.read_flow_runs(flow_run_filter=parent) else []
        names = {one.name: one.state_name or "" for one in found}
        assert len(names) == len(found), "two child runs with one name"
        return names

    def plates(self, run: FlowRun) -> list[dict[str, Any]]:
        """The table of plates."""
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        (table,) = [one for one in self.client.read_artifacts(artifact_filter=chosen) if one.key == "plates"]
        found: list[dict[str, Any]] = json.loads(str(table.data))
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the module."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder / "state"))
        state = server.start(free_port(), home=folder / "server", timeout=240)
        try:
            with temporary_settings({PREFECT_API_URL: state.url, PREFECT_HOME: folder / "user"}):
                with get_client(sync_client=True) as client:
                    yield Served(folder, client)
                APILogWorker.instance().drain()
                EventsWorker.drain_all()
        finally:
            patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder / "state"))
            server.stop()


@pytest.fixture
def here(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """This process finds the server as our own, by its state file; relative paths lie in `tmp_path`."""
    for name in [name for name in os.environ if name.upper().startswith(("PREFECT_", "CYTOTABLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(served.folder / "state"))
    monkeypatch.chdir(tmp_path)
    with temporary_settings({PREFECT_HOME: served.folder / "user"}, restore_defaults={PREFECT_API_URL}):
        yield served


def test_a_child_run_for_each_plate_that_is_converted(here: Served, tmp_path: Path) -> None:
    root, out = tmp_path / "screen", tmp_path / "tables"
    for number in range(4):
        plate_of_sites(root / f"plate{number}", seed=number)
    (root / "plate2" / "plate2-A01-1" / "Image.csv").write_text("ImageNumber,Metadata_Well\n1,A01\n1,A01\n")
    heard = Heard()
    with pytest.raises(PlatesFailedError, match=r"1 of 4 plate\(s\) failed. plate2: .*Image.csv") as caught:
        again(root, out, plates_at_once=3, workers=3, progress=heard)
    assert [plate for plate, _ in caught.value.failures] == ["plate2"]
    run = here.run(heard)
    assert (run.name, run.state_name) == ("screen to tables", "Failed")
    assert here.children(run) == {
        "plate0 with cellprofiler_csv": "Completed",
        "plate1 with cellprofiler_csv": "Completed",
        "plate2 with cellprofiler_csv": "Failed",
        "plate3 with cellprofiler_csv": "Completed",
    }
    table = here.plates(run)
    assert [(row["plate"], row["status"]) for row in table] == [
        ("plate2", "failed"), ("plate0", "converted"), ("plate1", "converted"), ("plate3", "converted"),
    ]  # fmt: skip
    assert "Image.csv" in table[0]["error"]
    assert {name: row["status"] for name, row in index_of(out).items()} == {
        "plate0": "converted", "plate1": "converted", "plate2": "failed", "plate3": "converted",
    }  # fmt: skip

    plate_of_sites(root / "plate2", seed=2)
    set_area(root / "plate1" / "plate1-A01-2", "4711")
    later = Heard()
    done = again(root, out, plates_at_once=3, workers=3, progress=later)
    assert (done.converted, done.unchanged) == (("plate1", "plate2"), ("plate0", "plate3"))
    run = here.run(later)
    assert run.state_name == "Completed"
    assert set(here.children(run)) == {"plate1 with cellprofiler_csv", "plate2 with cellprofiler_csv"}
    assert 4711 in cells_of(out, "plate1").column("Cells_AreaShape_Area").to_pylist()
    (one,) = [one for one in done.outcomes if one.plate == "plate1"]
    assert one.chunks is not None
    assert one.chunks_reused == one.chunks - 1

    last = Heard()
    assert again(root, out, progress=last).converted == ()
    assert here.children(here.run(last)) == {}


def test_the_flow_itself_as_a_deployment_calls_it(here: Served, tmp_path: Path) -> None:
    root, out = tmp_path / "screen", tmp_path / "tables"
    plate_of_sqlite(root / "a.sqlite")
    arguments: dict[str, Any] = {"preset": "cellprofiler_sqlite", "settle": 0}
    with temporary_settings({PREFECT_API_URL: str(here.client.api_url)}):
        planned = reprocess_flow(str(root), str(out), dry_run=True, **arguments)
        assert planned.converted == ("a",)
        assert not out.exists()
        done = reprocess_flow(str(root), str(out), **arguments)
    assert done.converted == ("a",)
    assert cells_of(out, "a").num_rows == index_of(out)["a"]["rows"] > 0


def test_the_flow_has_the_arguments_and_defaults_of_the_function_with_titles() -> None:

    ours = {name: one.default for name, one in inspect.signature(reprocess_flow.fn).parameters.items()}
    theirs = {name: one.default for name, one in inspect.signature(reprocess).parameters.items()}
    theirs.pop("progress")  # an object, which no server can hold
    assert ours == theirs
    shown = reprocess_flow.parameters.properties
    assert set(shown) == set(ours)
    assert all(one["title"] != name and one["description"] and one["examples"] for name, one in shown.items())
