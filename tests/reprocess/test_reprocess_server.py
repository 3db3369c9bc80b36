"""Runs over many plates against a real Prefect server: a child run for each plate that is converted, and no other."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ears import Ear
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from screens import again, cells_of, index_of, plate_of_sites, plate_of_sqlite, set_area
from servers import Served
from waiting import until

from prefect_cytotable.flows import reprocess
from prefect_cytotable.flows.reprocess_flow import reprocess_flow
from prefect_cytotable.tasks.core.reprocess.errors import PlatesFailedError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")


def children(served: Served, run: FlowRun) -> dict[str, str]:
    """Name and state of the child runs."""
    parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))

    def ended() -> list[FlowRun] | None:
        found = served.client.read_flow_runs(flow_run_filter=parent)
        return found if all(one.state is not None and one.state.is_final() for one in found) else None

    found = until(ended) if served.client.read_flow_runs(flow_run_filter=parent) else []
    names = {one.name: one.state_name or "" for one in found}
    assert len(names) == len(found), "two child runs with one name"
    return names


def plates(served: Served, run: FlowRun) -> list[dict[str, Any]]:
    """The table of plates."""
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    (table,) = [one for one in served.client.read_artifacts(artifact_filter=chosen) if one.key == "plates"]
    found: list[dict[str, Any]] = json.loads(str(table.data))
    return found


def test_a_child_run_for_each_plate_that_is_converted(here: Served, tmp_path: Path) -> None:
    root, out = tmp_path / "screen", tmp_path / "tables"
    for number in range(4):
        plate_of_sites(root / f"plate{number}", seed=number)
    (root / "plate2" / "plate2-A01-1" / "Image.csv").write_text("ImageNumber,Metadata_Well\n1,A01\n1,A01\n")
    heard = Ear()
    with pytest.raises(PlatesFailedError, match=r"1 of 4 plate\(s\) failed. plate2: .*Image.csv") as caught:
        again(root, out, plates_at_once=3, workers=3, progress=heard)
    assert [plate for plate, _ in caught.value.failures] == ["plate2"]
    run = here.flow_run(heard.text)
    assert (run.name, run.state_name) == ("screen to tables", "Failed")
    assert children(here, run) == {
        "plate0 with cellprofiler_csv": "Completed",
        "plate1 with cellprofiler_csv": "Completed",
        "plate2 with cellprofiler_csv": "Failed",
        "plate3 with cellprofiler_csv": "Completed",
    }
    table = plates(here, run)
    assert [(row["plate"], row["status"]) for row in table] == [
        ("plate2", "failed"), ("plate0", "converted"), ("plate1", "converted"), ("plate3", "converted"),
    ]  # fmt: skip
    assert "Image.csv" in table[0]["error"]
    assert {name: row["status"] for name, row in index_of(out).items()} == {
        "plate0": "converted", "plate1": "converted", "plate2": "failed", "plate3": "converted",
    }  # fmt: skip

    plate_of_sites(root / "plate2", seed=2)
    set_area(root / "plate1" / "plate1-A01-2", "4711")
    later = Ear()
    done = again(root, out, plates_at_once=3, workers=3, progress=later)
    assert (done.converted, done.unchanged) == (("plate1", "plate2"), ("plate0", "plate3"))
    run = here.flow_run(later.text)
    assert run.state_name == "Completed"
    assert set(children(here, run)) == {"plate1 with cellprofiler_csv", "plate2 with cellprofiler_csv"}
    assert 4711 in cells_of(out, "plate1").column("Cells_AreaShape_Area").to_pylist()
    (one,) = [one for one in done.outcomes if one.plate == "plate1"]
    assert one.chunks is not None
    assert one.chunks_reused == one.chunks - 1

    last = Ear()
    assert again(root, out, progress=last).converted == ()
    assert children(here, here.flow_run(last.text)) == {}


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
