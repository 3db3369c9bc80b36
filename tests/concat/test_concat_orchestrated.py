"""Concatenations as Prefect flow runs, against one real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from concat_objects import assert_same, expected, read
from ears import Ear
from servers import Served
from test_concat_runs import SMALL, listing, made
from waiting import SECONDS

from prefect_cytotable.flows.concat import concat
from prefect_cytotable.tasks.core.concat.model import JobResult
from prefect_cytotable.tasks.core.errors import WorkerDiedError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")


@pytest.mark.parametrize("runner", ["concurrent", "dask"])  # processes: below, where one is killed
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


SIZE = 240
"""Rows of an input, with which the output is fifteen blocks: with one worker five tasks, with two workers fifteen."""

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
concat(sys.argv[2:], sys.argv[1], join="outer", max_loaded_elems=500, workers=1, progress=Deadly())
"""


def test_a_killed_run_goes_on_where_it_stopped(here: Served, tmp_path: Path) -> None:
    assert SMALL == 500
    inputs = made(tmp_path / "in", size=SIZE)
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
    done = {path.stem for path in tmp_path.glob(".out*/concat-*/records/[0-9]*.json")}  # no temporary one
    assert 3 <= len(done) < 15  # those of the first task, and some that were done meanwhile
    (left,) = tmp_path.glob(".out*")
    shutil.copytree(left, tmp_path / "aside")

    again = Ear()
    concat(inputs, out, join="outer", max_loaded_elems=SMALL, workers=1, progress=again)
    assert {one.record for one in again.results if one.reused} == done
    assert_same(read(out), expected([read(path) for path in inputs], join="outer"))
    states = here.states(here.flow_run(again.text), 3 + 5)  # nothing is prepared again
    assert "Cached" in states.values()
    assert sum("(3 chunks)" in name for name in states) == 5

    out.unlink()
    (tmp_path / "aside").rename(left)
    other = Ear()  # cut into other tasks, none of which Prefect knows: the blocks that are done are found all the same
    concat(inputs, out, join="outer", max_loaded_elems=SMALL, workers=2, progress=other)
    assert {one.record for one in other.results if one.reused} == done
    assert [one.number for one in other.results] == list(range(15))
    assert_same(read(out), expected([read(path) for path in inputs], join="outer"))
    assert set(here.states(here.flow_run(other.text), 3 + 15).values()) == {"Completed"}


class Killer(Ear):
    """Kills a worker process of the run once three blocks are done."""

    def start(self, chunks: int, rows: int) -> None:
        super().start(chunks, rows)
        self.others = psutil.Process().children(recursive=True)  # the cluster of another test is not meant

    def advance(self, result: JobResult) -> None:
        super().advance(result)
        if len(self.results) == 3:
            ours = (one for one in psutil.Process().children(recursive=True) if one not in self.others)
            next(one for one in ours if "spawn_main" in " ".join(one.cmdline())).kill()


def test_a_worker_that_is_killed_is_told_and_costs_its_blocks_alone(here: Served, tmp_path: Path) -> None:
    inputs = made(tmp_path / "in", size=SIZE)
    ear = Killer()
    arguments: dict[str, Any] = {"join": "outer", "max_loaded_elems": SMALL, "task_runner": "process", "workers": 2}
    out = concat(inputs, tmp_path / "out.h5ad", progress=ear, **arguments)
    assert_same(read(out), expected([read(path) for path in inputs], join="outer"))
    assert WorkerDiedError.AGAIN in ear.said
    assert [one.number for one in ear.results] == list(range(15))
    assert not any(one.reused for one in ear.results)  # what this run has done itself was not done before
    assert listing(tmp_path) == ["in", "out.h5ad"]
