"""Workers of Dask in a profile: those that the run starts, and those of a cluster that runs already."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from prefect_cytotable.tasks.core.memory import report
from prefect_cytotable.tasks.core.memory.model import Role

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("local")

SCRIPT = """
    import os, sys, time
    from distributed import Client, LocalCluster
    from prefect_cytotable.flows.profile import profiled
    from prefect_cytotable.flows.runners import started
    from prefect_cytotable.tasks.core import processes
    from prefect_cytotable.tasks.core.memory import tracking
    from prefect_cytotable.tasks.core.memory.tracking import marked

    MIB = 1 << 20
    SETTINGS = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "memory_limit": 0}

    def task(size):
        from prefect_cytotable.tasks.core.memory.tracking import marked
        with marked(f"task {size}"):
            one = bytearray(size * MIB)
            for _ in range(12):
                time.sleep(0.05)
            return os.getpid()

    def tracked():
        from prefect_cytotable.tasks.core.memory import tracking
        return tracking.current() is not None

    if __name__ == "__main__":
        with LocalCluster(**SETTINGS) as there, Client(there) as client:
            with profiled("out"):
                with LocalCluster(**SETTINGS, preload=processes.__name__) as own, Client(own) as inside:
                    assert inside.submit(tracked).result(60)
                    first = inside.submit(task, 30).result(60)
                assert not client.submit(tracked, pure=False).result(60)
                with started(there.scheduler_address, 1) as runner:
                    assert runner.client.submit(tracked, pure=False).result(60)
                    second = runner.client.submit(task, 50).result(60)
                assert not client.submit(tracked, pure=False).result(60)
            client.submit(task, 70).result(60)  # after the profile: in none
        print(first, second)
"""


def test_workers_of_both_kinds_are_in_the_profile() -> None:
    Path("script.py").write_text(textwrap.dedent(SCRIPT))
    scratch = Path("scratch").absolute()
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={**os.environ, "TMPDIR": str(scratch), "DASK_LOGGING__DISTRIBUTED": "critical"},
    )
    assert done.returncode == 0, done.stderr
    own, other = map(int, done.stdout.split())
    made = report.load(Path("out"))
    workers = {one.pid: one for one in made.processes if one.role is Role.WORKER}
    assert set(workers) == {own, other}
    assert made.complete
    assert (workers[own].outside, workers[other].outside) == (False, True)
    for pid, size in ((own, 30), (other, 50)):
        worker = workers[pid]
        assert worker.allocated is not None
        assert size * MIB <= worker.allocated < (size + 40) * MIB
        assert worker.resident is not None
        assert worker.resident > size * MIB
    assert {(one.name, one.pid) for one in made.tasks} == {("task 30", own), ("task 50", other)}
    assert made.peaks.resident is not None
    assert made.peaks.resident >= max(one.resident or 0 for one in made.processes)
    assert "of a running cluster" in report.markdown(made)
    left = [path for path in scratch.iterdir() if path.name.startswith("prefect-cytotable-memory")]
    assert left == [], f"a worker of another machine has to clear up after itself: {left}, {tempfile.gettempdir()}"
