"""Concatenations as Prefect flow runs, against one real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concat_objects import assert_same, expected, read
from ears import Ear
from servers import Served
from test_concat_runs import SMALL, listing, made
from waiting import SECONDS

from prefect_cytotable.flows.concat import concat

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")


@pytest.mark.parametrize("runner", ["concurrent", "process", "dask"])
def test_a_flow_run_with_a_task_for_each_block(
    runner: str, here: Served, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    runner = request.getfixturevalue("cluster") if runner == "dask" else runner
    inputs = made(tmp_path / "in", format="zarr")

    def largest(mappings: Any) -> dict[str, Any]:
        return {"number": max(one["number"] for one in mappings)}

    arguments: dict[str, Any] = {"join": "outer", "fill_value": np.nan, "label": "plate", "uns_merge": largest}
    named = dict(zip("abc", inputs, strict=True))
    ear = Ear()
    out = concat(named, tmp_path / "out.h5ad", task_runner=runner, workers=2, progress=ear, **arguments)
    assert_same(read(out), expected([read(path) for path in inputs], keys=list("abc"), **arguments))
    assert listing(tmp_path) == ["in", "out.h5ad"]

    run = here.flow_run(ear.text)
    assert run.name == "3 files to out.h5ad"
    assert run.state is not None
    assert run.state.name == "Completed"
    assert (run.parameters["keys"], run.parameters["fill_value"], run.parameters["uns_merge"]) == (
        list("abc"),
        "nan",
        "given",
    )
    states = here.states(run, 4 + ear.chunks)
    assert {"look", "plan", "prepare", "finish"} < set(states)
    assert sum(name.startswith("X, rows ") for name in states) == ear.chunks
    assert set(states.values()) == {"Completed"}


KILLED = """
import os, signal, sys
from prefect_cytotable.flows.concat import concat
class Deadly:
    done = 0
    def say(self, text): pass
    def start(self, chunks, rows): pass
    def finish(self): pass
    def advance(self, result):
        self.done += 1
        if self.done == 2: os.kill(os.getpid(), signal.SIGKILL)
concat(sys.argv[2:], sys.argv[1], join="outer", max_loaded_elems=500, task_runner="sequential", progress=Deadly())
"""


def test_a_killed_run_goes_on_where_it_stopped(here: Served, tmp_path: Path) -> None:
    assert SMALL == 500
    inputs = made(tmp_path / "in")
    out = tmp_path / "out.h5ad"
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("PREFECT_")}
    environment |= {"PREFECT_API_URL": here.url, "PREFECT_HOME": str(here.home)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(out), *map(str, inputs)],
        env=environment,
        timeout=SECONDS,
        check=False,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -9, killed.stderr
    done = {path.stem for path in tmp_path.glob(".out*/concat-*/records/*.json")}
    assert len(done) >= 2
    ear = Ear()
    concat(inputs, out, join="outer", max_loaded_elems=SMALL, progress=ear)
    assert {one.record for one in ear.results if one.reused} == done
    assert_same(read(out), expected([read(path) for path in inputs], join="outer"))
    states = here.states(here.flow_run(ear.text), 3 + ear.chunks)  # nothing is prepared again
    assert sum(state == "Cached" for state in states.values()) >= 2
