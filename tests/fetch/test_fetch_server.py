"""A fetch as a Prefect flow run, against a real server: what it sees, and that nothing else is different."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from ears import Ear
from fetching_tools import listing
from prefect import flow
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
)
from prefect.settings import PREFECT_API_URL, temporary_settings
from servers import Served

from prefect_cytotable.flows import fetch_obs
from prefect_cytotable.tasks.core.errors import ArgumentError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")


@pytest.fixture(scope="module")
def undisturbed(census: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a fetch without a server writes; made before there is one."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder / "state"))
        with temporary_settings(restore_defaults={PREFECT_API_URL}):
            heard = Ear()
            path = fetch_obs(census, folder / "out.feather", tissue="lung", progress=heard).path
    assert any("No Prefect server" in line for line in heard.said)
    return Path(path).read_bytes()


def test_rows_stream_in_one_task_and_the_summary_is_an_artifact(
    here: Served, census: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    heard = Ear()
    fetched = fetch_obs(census, tmp_path / "out.feather", tissue="lung", progress=heard)
    assert Path(fetched.path).read_bytes() == undisturbed
    run = here.flow_run(heard.text)
    assert (run.name, run.state_name) == ("lung of census to out.feather", "Completed")
    assert run.parameters["source_path"] == str(census)
    assert here.states(run, 2) == {"plan obs": "Completed", "fetch obs": "Completed"}
    (artifact,) = here.client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    )
    summary = {row["what"]: row["value"] for row in json.loads(str(artifact.data))}
    assert artifact.key == "fetch-summary"
    assert (summary["rows"], summary["columns"], summary["table rows"]) == (fetched.rows, 28, 30_000)
    assert {"open seconds", "query seconds", "fetch seconds"} <= summary.keys()


def test_chunks_are_tasks_whose_results_serve_a_later_run_on_another_runner(
    here: Served, census: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    def again(runner: str) -> tuple[int, dict[str, str]]:
        heard = Ear()
        fetched = fetch_obs(
            census,
            tmp_path / "out.feather",
            tissue="lung",
            chunk_size=10_000,
            workers=2,
            task_runner=runner,
            keep_chunks=True,
            overwrite=True,
            progress=heard,
        )
        assert Path(fetched.path).read_bytes() == undisturbed
        states = here.states(here.flow_run(heard.text), 5)
        assert states.pop("plan obs") == states.pop("write") == "Completed"
        return fetched.chunks_reused, states

    names = ["joinids 0 to 9,999", "joinids 10,000 to 19,999", "joinids 20,000 to 29,999"]
    assert again("process") == (0, dict.fromkeys(names, "Completed"))
    (part, *_) = sorted(tmp_path.rglob("parts/*"))
    part.unlink()
    reused, states = again("concurrent")
    assert reused == 2
    assert sorted(states.values()) == ["Cached", "Cached", "Completed"]
    assert sorted(states) == names
    sorted(tmp_path.rglob("parts/*"))[-1].unlink()
    reused, states = again("dask")
    assert reused == 2
    assert sorted(states.values()) == ["Cached", "Cached", "Completed"]


def test_inside_a_flow_it_is_a_subflow_and_an_error_is_told(
    here: Served, census: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    @flow
    def outer(tissue: str) -> str:
        return fetch_obs(census, tmp_path / "inner.feather", tissue=tissue).path

    with temporary_settings({PREFECT_API_URL: here.url}):
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
