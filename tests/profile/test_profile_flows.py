"""A profile of a Prefect flow run becomes its artifacts, against one real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from servers import Served

from prefect_cytotable.tasks.core.memory import report
from prefect_cytotable.tasks.core.memory.model import Role

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")

SCRIPT = """
from prefect_cytotable.flows import convert
from prefect_cytotable.flows.profile import Profiling
from prefect_cytotable.tasks.core.progress import Lines

if __name__ == "__main__":
    convert({source!r}, "call.parquet", preset="cellprofiler_sqlite", task_runner="process", workers=1, chunk_size=100,
            profile=Profiling("call", arrow_allocations=True), progress=Lines())
"""


def ran(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def artifacts(client: SyncPrefectClient, flow_run: str) -> dict[str, Any]:
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run)]))
    return {one.key or "": one for one in client.read_artifacts(artifact_filter=chosen)}


def test_profiles_of_flow_runs_are_their_artifacts(served: Served, local: Path, database: Path) -> None:
    """Of a call with ``profile=`` inside the run, of a command once it has ended."""
    client, environment = served.client, served.variables(PREFECT_API_URL=served.url)
    Path("script.py").write_text(SCRIPT.format(source=str(database)))
    said = {"call": ran([sys.executable, "script.py"], environment)}
    command = [sys.executable, "-m", "prefect_cytotable.flows.cli", "profile", "--out", "command", "--", "convert"]
    said["command"] = ran([*command, str(database), "c.parquet", "--preset", "cellprofiler_sqlite"], environment)
    for name, text in said.items():
        made = report.load(Path(name))
        assert made.complete
        assert made.status == 0
        (flow_run,) = made.flow_runs
        assert f"/flow-run/{flow_run}" in text
        found = artifacts(client, flow_run)
        ours = {"conversion-progress", "conversion-report", "row-account", "schema"}
        assert set(found) == {*ours, "memory-profile", "memory-allocations"}
        assert found["memory-profile"].type == "markdown"
        assert found["memory-profile"].data == (Path(name) / report.MARKDOWN).read_text()
        assert found["memory-allocations"].type == "table"
        rows = json.loads(found["memory-allocations"].data)
        assert len(rows) == len(made.sites)
        assert {"size", "share", "allocations", "function", "location"} == set(rows[0])
        assert made.explanation in text
    call = report.load(Path("call"))
    assert [one.role for one in call.processes if one.role is Role.WORKER] == [Role.WORKER]
    assert {one.arrow_pool for one in call.processes if one.role is Role.WORKER} == {"system"}
    assert call.whole_process is False
    chunks = [one for one in call.tasks if "images" in one.name]
    assert len(chunks) > 1
    run = client.read_flow_run(UUID(call.flow_runs[0]))
    assert run.parameters["profile"]["folder"] == "call"
    assert run.parameters["profile"]["arrow_allocations"] is True
