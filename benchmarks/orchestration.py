"""What Prefect's part of a run costs: beside the plain local run, on every runner, against a server on SQLite.

    python orchestration.py ratio plate.sqlite --preset cellprofiler_sqlite
    python orchestration.py many --chunks 10000

`ratio` converts the source on each runner without a server and with one, and a plate of one chunk too, whose run is
the start: the program, Prefect, the workers. What is left after the start is the work of the chunks. Printed is how
many processor seconds the work costs more with Prefect than without, those of the server included, as a share of the
work. Processor seconds, because wall seconds of a shared machine tell little.

`many` converts a plate of so many tiny chunks in one run, and tells how many tasks the server knows, what it
costs, and how often the server's log or the run's output speaks of a locked database.

Both start a server of their own in a temporary folder, and end it.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from measure import Measurement, run

from prefect_cytotable.flows import plan, server
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_sqlite

SQLITE = "cellprofiler_sqlite"
RUNNERS = ("concurrent", "process", "dask")
LOCKED = re.compile(r"database is locked", re.IGNORECASE)


@dataclass(frozen=True)
class Served:
    """A server, and the folder with its log and state."""

    url: str
    pid: int
    log: Path

    def cpu(self) -> float:
        """Processor seconds so far."""
        processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return sum(sum(one.cpu_times()[:4]) for one in processes)


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """A server with a database of its own."""
    os.environ["PREFECT_CYTOTABLE_HOME"] = str(folder / "state")
    with socket.socket() as probe:
        probe.bind((server.HOST, 0))
        port: int = probe.getsockname()[1]
    state = server.start(port, home=folder / "server", timeout=240)
    try:
        yield Served(state.url, state.pid, state.log)
    finally:
        server.stop()


def converted(source: Path, folder: Path, runner: str, url: str | None, options: Sequence[str]) -> Measurement:
    """One conversion, in a process of its own; its output is removed."""
    out = folder / "out.parquet"
    command = [sys.executable, "-m", "prefect_cytotable.flows.cli", "convert", str(source), str(out)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(folder / "user"), "PREFECT_CYTOTABLE_HOME": str(folder / "nothing")}
    environment |= {"PREFECT_API_URL": url} if url else {}
    log = folder / "run.log"
    found = run([*command, "--runner", runner, *options], environment=environment, folder=folder, log=log)
    if found.exit_code:
        sys.exit(f"{runner}: exit code {found.exit_code}\n{log.read_text()}")
    out.unlink()
    return found


def ratio(source: Path, options: Sequence[str], runners: Sequence[str]) -> None:
    """Print what each runner costs more with a server than a local run."""
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as one:
        folder = Path(name)
        tiny = write_sqlite(tables(PlateShape(wells=1, sites=1, cells=3)), folder / "tiny.sqlite")
        chunks = len(plan(source, preset=options[options.index("--preset") + 1]).chunks)
        local: dict[str, float] = {}
        for runner in runners:
            plain = "process" if runner == "dask" else runner
            if plain not in local:
                start = converted(tiny, folder, plain, None, ("--preset", SQLITE))
                local[plain] = converted(source, folder, plain, None, options).cpu - start.cpu
            before = one.cpu()
            start_cpu = converted(tiny, folder, runner, one.url, ("--preset", SQLITE)).cpu + one.cpu() - before
            before = one.cpu()
            whole = converted(source, folder, runner, one.url, options)
            work = whole.cpu + one.cpu() - before - start_cpu
            print(
                f"{runner}: {chunks} chunks, work {local[plain]:.2f} s of CPU locally ({local[plain] / chunks:.2f} s a "
                f"chunk), {work:.2f} s with Prefect: {work / local[plain] - 1:+.1%}; start {start_cpu:.2f} s, wall "
                f"{whole.wall:.1f} s",
                flush=True,
            )


def many(chunks: int, runner: str) -> None:
    """Print what a run of so many tiny chunks costs, and what the server says."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with tempfile.TemporaryDirectory() as name, served(Path(name)) as one:
        folder = Path(name)
        source = write_sqlite(tables(PlateShape(wells=chunks, sites=1, cells=1)), folder / "plate.sqlite")
        before = one.cpu()
        done = converted(source, folder, runner, one.url, ("--preset", SQLITE, "--chunk-size", "1"))
        told = (folder / "run.log").read_text()
        (counted,) = re.findall(r"^(\d[\d,]*) chunk\(s\)", told, re.MULTILINE)
        with temporary_settings({PREFECT_API_URL: one.url}), get_client(sync_client=True) as client:
            tasks = int(client.request("POST", "/task_runs/count", json={}).json())
            (flow_run,) = client.read_flow_runs()
        cpu = one.cpu() - before
        print(
            f"{runner}: {counted} chunks in {tasks} tasks, {done.line()}; server {cpu:.1f} s of CPU; the "
            f"run is {flow_run.state_name}; locked databases: {len(LOCKED.findall(told))} told to the user, "
            f"{len(LOCKED.findall(one.log.read_text()))} in the server's log"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="What Prefect's part of a run costs.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("ratio", help="each runner beside the local run")
    one.add_argument("source", type=Path)
    one.add_argument("--preset", default=SQLITE)
    one.add_argument("--workers", type=int, default=2)
    one.add_argument("--runners", nargs="+", default=RUNNERS, choices=RUNNERS)
    other = commands.add_parser("many", help="one run of many tiny chunks")
    other.add_argument("--chunks", type=int, default=10_000)
    other.add_argument("--runner", default="concurrent", choices=RUNNERS)
    chosen = parser.parse_args()
    if chosen.command == "ratio":
        ratio(chosen.source, ("--preset", chosen.preset, "--workers", str(chosen.workers)), chosen.runners)
    else:
        many(chosen.chunks, chosen.runner)


if __name__ == "__main__":
    main()
