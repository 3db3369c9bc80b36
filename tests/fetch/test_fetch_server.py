"""A fetch as a Prefect flow run, against a real server: what it sees, and that nothing else is different."""

from __future__ import annotations

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
from fetching_tools import Listener, listing
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from prefect_cytotable.flows import fetch_obs, server
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.memory.model import Role
from prefect_cytotable.tasks.core.memory.report import load

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")

SECONDS = 180.0


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
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Served:
    """The server, and the folder with its state."""

    url: str
    folder: Path
    client: SyncPrefectClient


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
                with get_client(sync_client=True) as connected:
                    yield Served(state.url, folder, connected)
                APILogWorker.instance().drain()
                EventsWorker.drain_all()
        finally:
            patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder / "state"))
            server.stop()


@pytest.fixture
def client(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """This process finds the server as our own, by its state file; relative paths lie in `tmp_path`."""
    for name in [name for name in os.environ if name.upper().startswith(("PREFECT_", "CYTOTABLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(served.folder / "state"))
    monkeypatch.chdir(tmp_path)
    with temporary_settings({PREFECT_HOME: served.folder / "user"}, restore_defaults={PREFECT_API_URL}):
        yield served.client


@pytest.fixture(scope="module")
def undisturbed(census: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a fetch without a server writes; made before there is one."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder / "state"))
        with temporary_settings(restore_defaults={PREFECT_API_URL}):
            heard = Listener()
            path = fetch_obs(census, folder / "out.feather", tissue="lung", progress=heard).path
    assert any("No Prefect server" in line for line in heard.said)
    return Path(path).read_bytes()


def run_told(client: SyncPrefectClient, listener: Listener) -> FlowRun:
    """The flow run whose address was told."""
    address = re.search(r"Flow run: \S+/runs/flow-run/([0-9a-f-]{36})", "\n".join(listener.said))
    assert address is not None, listener.said
    return client.read_flow_run(UUID(address[1]))


def artifacts(client: SyncPrefectClient, listener: Listener) -> dict[str, Artifact]:
    """The artifacts of the flow run whose address was told, by key."""
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_told(client, listener).id]))
    return {one.key or "": one for one in client.read_artifacts(artifact_filter=chosen)}


def fetched_by_workers(profile: str) -> set[str]:
    """The chunks that a profile saw in worker processes, each of which was tracked to its end."""
    made = load(Path(profile))
    workers = {one.pid for one in made.processes if one.role is Role.WORKER and one.allocated and one.complete}
    assert workers
    assert made.complete
    return {one.name for one in made.tasks if one.pid in workers and one.allocated}


def tasks_of(client: SyncPrefectClient, run: FlowRun, count: int) -> dict[str, str]:
    """The states of the run's tasks by name, which are recorded a little later than the run's own."""

    def recorded() -> list[TaskRun] | None:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), limit=50)
        ended = [one for one in found if one.state is not None and one.state.is_final()]
        return found if len(ended) >= count else None

    return {one.name: one.state_name or "" for one in until(recorded)}


def test_rows_stream_in_one_task_and_the_summary_is_an_artifact(
    client: SyncPrefectClient, census: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    heard = Listener()
    fetched = fetch_obs(census, tmp_path / "out.feather", tissue="lung", progress=heard)
    assert Path(fetched.path).read_bytes() == undisturbed
    run = run_told(client, heard)
    assert (run.name, run.state_name) == ("lung of census to out.feather", "Completed")
    assert run.parameters["source_path"] == str(census)
    assert tasks_of(client, run, 2) == {"plan obs": "Completed", "fetch obs": "Completed"}
    (artifact,) = artifacts(client, heard).values()
    summary = {row["what"]: row["value"] for row in json.loads(str(artifact.data))}
    assert artifact.key == "fetch-summary"
    assert (summary["rows"], summary["columns"], summary["table rows"]) == (fetched.rows, 28, 30_000)
    assert {"open seconds", "query seconds", "fetch seconds"} <= summary.keys()


def test_chunks_are_tasks_whose_results_serve_a_later_run_on_another_runner(
    client: SyncPrefectClient, census: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    def again(runner: str, profile: str | None = None) -> tuple[int, dict[str, str]]:
        heard = Listener()
        fetched = fetch_obs(
            census,
            tmp_path / "out.feather",
            tissue="lung",
            chunk_size=10_000,
            workers=1 if profile else 2,
            task_runner=runner,
            keep_chunks=True,
            overwrite=True,
            profile=profile,
            progress=heard,
        )
        assert Path(fetched.path).read_bytes() == undisturbed
        if profile is not None:
            assert {"fetch-summary", "memory-profile", "memory-allocations"} <= artifacts(client, heard).keys()
            assert load(Path(profile)).flow_runs == (str(run_told(client, heard).id),)
        states = tasks_of(client, run_told(client, heard), 5)
        assert states.pop("plan obs") == states.pop("write") == "Completed"
        return fetched.chunks_reused, states

    names = ["joinids 0 to 9,999", "joinids 10,000 to 19,999", "joinids 20,000 to 29,999"]
    assert again("process", "process") == (0, dict.fromkeys(names, "Completed"))
    assert fetched_by_workers("process") == set(names)
    (part, *_) = sorted(tmp_path.rglob("parts/*"))
    part.unlink()
    reused, states = again("concurrent")
    assert reused == 2
    assert sorted(states.values()) == ["Cached", "Cached", "Completed"]
    assert sorted(states) == names
    sorted(tmp_path.rglob("parts/*"))[-1].unlink()
    reused, states = again("dask", "dask")
    assert len(fetched_by_workers("dask") & set(names)) >= 1
    assert reused == 2
    assert sorted(states.values()) == ["Cached", "Cached", "Completed"]


def test_inside_a_flow_it_is_a_subflow_and_an_error_is_told(
    served: Served, client: SyncPrefectClient, census: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    @flow
    def outer(tissue: str) -> str:
        return fetch_obs(census, tmp_path / "inner.feather", tissue=tissue).path

    with temporary_settings({PREFECT_API_URL: served.url}):
        assert Path(outer("lung")).read_bytes() == undisturbed
        (tmp_path / "inner.feather").unlink()
        with pytest.raises(ArgumentError, match="Did you mean 'lung'"):
            outer("lugn")
    assert listing(tmp_path) == []


def test_the_flow_has_the_arguments_and_defaults_of_the_function() -> None:
    import inspect

    from prefect_cytotable.flows.fetch_flow import fetch_flow

    ours = {name: one.default for name, one in inspect.signature(fetch_flow.fn).parameters.items()}
    theirs = {name: one.default for name, one in inspect.signature(fetch_obs).parameters.items()}
    theirs.pop("progress")  # an object, which no server can hold
    assert ours == theirs
