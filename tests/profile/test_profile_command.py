"""``prefect-cytotable profile`` and ``memory`` as a user meets them: processes, files, words and exit status."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from waiting import clear, until

from prefect_cytotable.flows import cli
from prefect_cytotable.tasks.core.memory import report
from prefect_cytotable.tasks.core.memory.model import Profile, Role

pytestmark = pytest.mark.usefixtures("local")

MIB = 1 << 20
EXACT = ("--arrow-allocations",)
"""Without the address space that Arrow's allocator reserves, beside which all else is small."""

TRACEBACK = "Traceback (most recent call last)"
Called = Callable[..., subprocess.CompletedProcess[str]]
Here = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int | str | None, str, str]]:
    """The command line in this process: exit status, output and error output."""

    def call(*arguments: object) -> tuple[int | str | None, str, str]:
        status: int | str | None
        try:
            status = cli.main([str(one) for one in arguments])
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return call


class References(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset") or (name == "href" and tag == "link"):
                self.found.append(f"{tag} {value}")


def fetched(path: Path) -> list[str]:
    """What a page would fetch from elsewhere; its own data, in the address itself, is not."""
    page = References()
    page.feed(path.read_text(encoding="utf-8"))
    return [one for one in page.found if not one.split(" ", 1)[1].startswith("data:")]


@pytest.fixture(scope="module")
def before(
    sites: Path, called: Called, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A profile of a small conversion, and what the command said."""
    folder = tmp_path_factory.mktemp("before")
    with pytest.MonkeyPatch.context() as patch:
        clear(patch, "PREFECT_", "CYTOTABLE_", "ARROW_")
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder / "state"))
        patch.setenv("PREFECT_HOME", str(folder / "prefect-home"))
        done = called("profile", "--out", folder / "out", *EXACT, "--", "convert", sites, folder / "cells.parquet")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_conversion_has_a_profile(before: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = before
    assert pq.read_table(folder / "cells.parquet").num_rows > 0
    made = report.load(folder / "out")
    assert (made.command, made.status, made.whole_process, made.complete) == ("convert", 0, True, True)
    assert made.peaks.allocated is not None
    assert made.peaks.resident is not None
    assert 50 * MIB < made.peaks.resident < 1024 * MIB
    assert made.peaks.allocations is not None
    assert made.peaks.allocations > 1000
    assert sum(site.size for site in made.sites) == made.peaks.allocated == made.peaks.allocated_sum
    assert {"gather", "inspect", "plan", "report", "write", "page"} < {one.name for one in made.tasks}
    assert len(made.tasks) == 7, "one chunk beside the stages"
    assert done.stdout == ""
    assert re.search(r"^  peak allocated +[\d.]+ [MG]iB  memray$", done.stderr, re.MULTILINE)
    assert re.search(r"^  peak resident +[\d.]+ MiB  RSS of", done.stderr, re.MULTILINE)
    assert made.explanation in done.stderr
    assert "rows: " in done.stderr, "the command's own words are there too"
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".tmp-")) == []


def test_the_files_of_a_profile(before: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder = before[0] / "out"
    assert {path.name for path in folder.iterdir()} == {report.JSON, report.MARKDOWN, report.FLAMEGRAPH}
    made = report.load(folder)
    text = (folder / report.MARKDOWN).read_text()
    assert made.explanation in text
    assert "| write |" in text
    assert "prefect_cytotable/tasks/core/" in text
    page = (folder / report.FLAMEGRAPH).read_text()
    assert "packed_data" in page, "the stacks are in the page"
    assert fetched(folder / report.FLAMEGRAPH) == [], "a page that works without a network"
    assert f"main at process:{made.processes[0].pid}" in page
    assert str(before[0]) not in page, "arguments are nobody's business"
    assert str(before[0]) not in (folder / report.JSON).read_text()


def test_a_page_that_fetches_would_be_seen(tmp_path: Path) -> None:
    text = '<script src="https://example.org/d3.js"></script><link href="a.css"><img src="data:x">'
    (tmp_path / "page.html").write_text(text)
    assert fetched(tmp_path / "page.html") == ["script https://example.org/d3.js", "link a.css"]


def test_worker_processes_are_in_the_profile(database: Path, called: Called) -> None:
    done = called(
        "profile", "--arrow-allocations", "convert", database, "cells.parquet", "--preset", "cellprofiler_sqlite",
        "--runner", "process", "--workers", "2", "--chunk-size", "40",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = report.load(Path("memory-profile"))
    workers = {one.pid: one for one in made.processes if one.role is Role.WORKER}
    assert made.processes[0].role is Role.MAIN
    assert 1 <= len(workers) <= 2, "a pool starts its second process only where the first is busy"
    assert made.complete
    chunks = [one for one in made.tasks if "images" in one.name]
    assert len(chunks) > 3
    assert {one.pid for one in chunks} <= set(workers)
    assert {one.beside for one in chunks} == {0}, "a process runs one chunk at a time"
    assert all(one.allocated is None or one.allocated <= (workers[one.pid].allocated or 0) for one in chunks)
    assert {one.arrow_pool for one in workers.values()} == {"system"}
    assert made.peaks.allocated is not None
    assert made.peaks.allocated_sum is not None
    exact = [one.allocated or 0 for one in made.processes]
    assert max(exact) <= made.peaks.allocated <= made.peaks.allocated_sum == sum(exact)
    assert f"{1 + len(workers)} processes at one moment" in done.stderr


def test_a_command_that_fails_keeps_its_status_and_has_a_profile(sites: Path, called: Called, here: Here) -> None:
    Path("cells.parquet").write_text("mine")
    done = called("profile", "--out", "out", "--", "convert", sites, "cells.parquet")
    assert done.returncode == 1
    assert "cells.parquet exists" in done.stderr
    assert TRACEBACK not in done.stderr
    assert report.load(Path("out")).status == 1
    assert Path("cells.parquet").read_text() == "mine"
    status, out, error = here("memory", "out", "out")
    assert (status, out) == (2, "")
    assert "ended with exit status 1" in error


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A profile under way, which ends with the test, its processes too."""
    command = [sys.executable, "-m", "prefect_cytotable.flows.cli", *map(str, arguments)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, preexec_fn=_interruptible
    )
    below: list[psutil.Process] = []
    try:
        yield process
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()
        for one in below:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def _interruptible() -> None:
    """Whoever runs the tests may ignore interrupts, as a shell's background does, and hand that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


SCALE = ("--preset", "cellprofiler_sqlite", "--chunk-size", "1", "--runner", "sequential")
"""As many chunks as cells, so that there is time to end the run."""


def begun(process: subprocess.Popen[str]) -> psutil.Process:
    """The process of the command, once it is done with a chunk: the next one's record is there."""

    def working() -> bool:
        assert process.poll() is None, process.communicate()[1]
        return len(list(Path(".cells.parquet.prefect-cytotable").glob("records/*.json"))) > 1

    until(working)
    (child,) = psutil.Process(process.pid).children()
    return child


def test_a_command_that_is_killed_has_a_profile_of_its_sizes(database: Path) -> None:
    with started("profile", "--out", "out", "--", "convert", database, "cells.parquet", *SCALE) as process:
        begun(process).kill()
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGKILL
    made = report.load(Path("out"))
    assert (made.status, made.complete, made.peaks.allocated) == (137, False, None)
    assert made.peaks.resident is not None
    assert made.peaks.resident > 50 * MIB
    assert any(one.name.startswith("plate.sqlite, ") for one in made.tasks), "what it did until then is known"
    assert "1 process was killed" in said


@pytest.mark.parametrize("to", ["watcher", "command"])
def test_a_terminated_command_has_a_whole_profile(database: Path, to: str) -> None:
    with started("profile", "--out", "out", "--", "convert", database, "cells.parquet", *SCALE) as process:
        child = begun(process)
        (process if to == "watcher" else child).send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    made = report.load(Path("out"))
    assert (made.status, made.complete) == (143, True)
    assert made.peaks.allocated is not None
    assert not child.is_running()


def test_an_interrupt_is_the_commands_to_handle(database: Path) -> None:
    with started("profile", "--out", "out", "--", "convert", database, "cells.parquet", *SCALE) as process:
        child = begun(process)
        process.send_signal(signal.SIGINT)  # as a terminal does: to both
        child.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "Interrupted; what is done is kept" in said
    assert report.load(Path("out")).status == 130


def test_a_command_does_not_outlive_its_watcher(database: Path, called: Called) -> None:
    with started("profile", "--out", "out", "--", "convert", database, "cells.parquet", *SCALE) as process:
        child = begun(process)
        process.kill()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
        process.communicate(timeout=120)
    assert not Path("out").exists()
    assert len(list(Path().glob(".tmp-*-out"))) == 1
    assert called("profile", "--out", "out", "--", "presets").returncode == 0
    assert list(Path().glob(".tmp-*-out")) == [], "the next profile of that name clears up"


def test_an_earlier_profile_is_replaced_on_request_alone(called: Called, here: Here) -> None:
    assert called("profile", "--out", "out", "presets").returncode == 0
    first = report.load(Path("out"))
    status, out, error = here("profile", "--out", "out", "presets")
    assert (status, out) == (1, "")
    assert "--overwrite" in error
    assert report.load(Path("out")) == first
    done = called("profile", "--out", "out", "--overwrite", "presets")
    assert done.returncode == 0
    assert "cellprofiler_csv" in done.stdout, "what the command prints is its own"
    assert report.load(Path("out")) != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile"], "no command to profile"),
        (["profile", "--"], "no command to profile"),
        (["profile", "--", "profile", "presets"], "'profile' is not profiled"),
        (["profile", "server", "start"], "'server' is not profiled"),
        (["profile", "--", "convert"], "required: source, destination"),
        (["profile", "--", "convert", "a", "b", "--chunksize", "1"], "Did you mean '--chunk-size'?"),
        (["profile", "--nativ", "--", "presets"], "--native"),
        (["memory", "nowhere", "nowhere"], "there is no profile.json"),
        (["memory", "one.json", "one.json"], "not a profile that can be read"),
        (["memory", "one.json"], "required: after"),
        (["memory", "a", "b", "--tolerance", "much"], "not a part such as '10%'"),
        (["memory", "a", "b", "--of", "everything"], "invalid choice"),
    ],
)
def test_wrong_arguments_are_status_2_and_run_nothing(here: Here, arguments: list[str], message: str) -> None:
    Path("one.json").write_text("{")
    status, out, error = here(*arguments)
    assert (status, out) == (2, ""), error
    assert message in error
    assert not Path("memory-profile").exists()


def test_without_memray_the_command_says_how_to_install_it(called: Called) -> None:
    Path("memray.py").write_text("raise ImportError('no such thing')")
    done = called("profile", "--", "presets", PYTHONPATH=str(Path.cwd()))
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'prefect-cytotable[profile]'" in done.stderr
    assert TRACEBACK not in done.stderr
    assert not Path("memory-profile").exists()


# --- memory --------------------------------------------------------------------------------------------------


def changed(folder: Path, source: Path, **peaks: float) -> None:
    """A copy of a profile with peaks of so many times the size."""
    plain = json.loads((source / report.JSON).read_text())
    for name, times in peaks.items():
        plain["peaks"][name] = round(plain["peaks"][name] * times)
    folder.mkdir()
    (folder / report.JSON).write_text(json.dumps(plain))


def test_growth_beyond_the_tolerance_is_status_1(
    before: tuple[Path, subprocess.CompletedProcess[str]], here: Here, called: Called
) -> None:
    old = before[0] / "out"
    changed(Path("grown"), old, allocated=1.2)
    changed(Path("resident"), old, resident=1.2)
    for after, more, status in (
        (old, (), 0),
        ("grown", (), 1),
        ("grown/profile.json", ("--tolerance", "10%"), 1),
        ("grown", ("--tolerance", "0.25"), 0),
        ("grown", ("--of", "resident"), 0),
        ("resident", ("--of", "allocated"), 0),
        ("resident", ("--of", "resident"), 1),
        ("resident", ("--of", "both"), 1),
    ):
        found, out, error = here("memory", old, after, *more)
        assert found == status, (after, more, out, error)
        assert ("GREW BY MORE THAN" in out) == bool(status)
        assert re.search(r"^peak allocated +[\d.]+ [MG]iB -> +[\d.]+ [MG]iB +[+-]\d", out)
    assert here("memory", "grown", old)[0] == 0, "less is no failure"
    assert called("memory", old, "grown").returncode == 1, "the exit status of the process itself"


def test_a_profile_is_what_its_schema_says(before: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    plain = json.loads((before[0] / "out" / report.JSON).read_text())
    assert set(plain) == set(Profile.__dataclass_fields__)
    assert plain["version"] == 1
