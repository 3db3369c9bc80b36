"""The command, its errors, places that do not answer, and how much memory it takes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.feather
import pytest
from fetching_tools import listing

from prefect_cytotable.flows import cli, fetch_obs
from prefect_cytotable.tasks.core.errors import ArgumentError, LayoutError
from prefect_cytotable.tasks.core.memory.model import Role
from prefect_cytotable.tasks.core.memory.report import load
from prefect_cytotable.tasks.core.soma.errors import SomaMissingError, SomaUnreachableError

pytestmark = pytest.mark.usefixtures("local")

GIB = 1 << 30


def run(*arguments: str | Path) -> int:
    return cli.main(["fetch", *map(str, arguments)])


def test_options_of_the_study_have_their_counterparts(census: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(census, "out.feather", "-t", "lung", "-c", "nnz,sex", "cell_type", "-b", "64MiB", "-B", "200kB") == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "buffers of 195.3 KiB for each column" in told.err
    assert re.search(r"^rows: [\d,]+ of 30,000, 3 columns$", told.err, re.MULTILINE)
    assert pyarrow.feather.read_table("out.feather").column_names == ["nnz", "sex", "cell_type"]
    assert run(census, "var.csv", "--axis", "var", "-c", "soma_joinid", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert Path("var.csv").read_text().splitlines() == ['"soma_joinid"', *map(str, range(400))]


def test_joinids_of_var_come_beside_the_rows(census: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(census, "ureter.feather", "-t", "ureter", "-V") == 0
    assert "ureter.var.feather: 400 joinids of var" in capsys.readouterr().err
    var = pyarrow.feather.read_table("ureter.var.feather")
    assert var.to_pydict() == {"soma_joinid": list(range(400))}
    assert set(pyarrow.feather.read_table("ureter.feather").column("tissue_general").to_pylist()) == {"ureter"}
    assert listing(tmp_path) == ["ureter.feather", "ureter.var.feather"]
    (tmp_path / "ureter.feather").unlink()
    assert run(census, "ureter.feather", "-t", "ureter", "-V") == 1  # what would be replaced is there
    assert "ureter.var.feather exists" in capsys.readouterr().err
    assert listing(tmp_path) == ["ureter.var.feather"]


def test_joinids_of_var_or_nothing(census: Path, tmp_path: Path) -> None:
    frame = census / "census_data" / "homo_sapiens" / "obs"
    with pytest.raises(LayoutError, match="no var beside it"):
        fetch_obs(frame, "out.csv", var_joinids=True)
    with pytest.raises(ArgumentError, match="has them already"):
        fetch_obs(census, "out.csv", axis="var", var_joinids=True)
    with pytest.raises(LayoutError, match="no measurement 'ATAC'"):
        fetch_obs(census, "out.csv", measurement="ATAC", var_joinids=True)
    assert listing(tmp_path) == []


def test_a_profile_of_the_command_names_its_steps(census: Path, tmp_path: Path) -> None:
    pytest.importorskip("memray")
    assert cli.main(["profile", "--out", "memory", "--", "fetch", str(census), "out.feather", "--quiet"]) == 0
    found = load(tmp_path / "memory")
    assert [task.name for task in found.tasks] == ["plan", "fetch"]
    (process,) = found.processes
    assert process.arrow_pool == "system"  # chosen before Arrow was imported
    assert found.peaks.allocated < GIB
    assert pyarrow.feather.read_table("out.feather").num_rows == 30_000


def test_a_call_is_profiled_with_its_chunks(census: Path, tmp_path: Path) -> None:
    pytest.importorskip("memray")
    fetch_obs(census, "out.feather", tissue="lung", chunk_size=15_000, workers=1, profile=tmp_path / "memory")
    names = {task.name for task in load(tmp_path / "memory").tasks}
    assert names == {"plan", "joinids 0 to 14,999", "joinids 15,000 to 29,999", "write"}


def test_worker_processes_of_a_fetch_are_in_its_profile(census: Path, tmp_path: Path) -> None:
    pytest.importorskip("memray")
    to = tmp_path / "memory"
    fetch_obs(census, "out.feather", chunk_size=15_000, task_runner="process", workers=2, profile=to)
    found = load(to)
    chunks = {task.name: task for task in found.tasks if task.name.startswith("joinids")}
    assert set(chunks) == {"joinids 0 to 14,999", "joinids 15,000 to 29,999"}
    workers = {process.pid: process for process in found.processes if process.role is Role.WORKER}
    assert {task.pid for task in chunks.values()} <= set(workers)
    assert all(process.complete and process.allocated for process in workers.values())
    assert any("tiledbsoma" in site.file or "soma/" in site.file for site in found.sites)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["CENSUS", "out.feather", "-t", "lugn"], 2, "Did you mean 'lung'?"),
        (["CENSUS", "out.xlsx"], 2, "ending tells no format"),
        (["out.feather"], 2, "No source was given"),
        (["CENSUS", "out.feather", "-C", "stable"], 2, "Leave one of them out"),
        (["nowhere", "out.feather"], 2, "there is nothing"),
        (["CENSUS", "out.feather", "--axis", "var", "--measurement", "ATAC"], 1, "no measurement 'ATAC'"),
    ],
)
def test_errors_are_one_line_and_a_status(
    census: Path, arguments: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(*[str(census) if one == "CENSUS" else one for one in arguments]) == status
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert text in line
    assert listing(tmp_path) == []


def test_a_misspelt_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("a", "b.csv", "--tisue", "lung")
    assert exit_.value.code == 2
    assert "Did you mean '--tissue'?" in capsys.readouterr().err


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['tiledbsoma'] = None\n"  # as where it is not installed
        "from prefect_cytotable.flows.cli import main; sys.exit(main(['fetch', '.', 'out.feather']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "pip install 'prefect-cytotable[soma]'" in done.stderr
    assert "Traceback" not in done.stderr


# --- places that do not answer ------------------------------------------------------------------------------


def test_a_store_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "hidden-word",
        "TILEDB_VFS_S3_ENDPOINT_OVERRIDE": "127.0.0.1:9",
        "TILEDB_VFS_S3_SCHEME": "http",
        "TILEDB_VFS_S3_CONNECT_MAX_TRIES": "1",
        "TILEDB_VFS_S3_REGION": "us-west-2",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SomaUnreachableError) as told:
        fetch_obs("s3://no-such-bucket/census", "out.feather")
    text = str(told.value)
    assert text.startswith("s3://no-such-bucket/census cannot be reached: ")
    assert "Tried to open it with TileDB" in text
    assert "hidden-word" not in text
    assert isinstance(told.value, ConnectionError)
    assert listing(tmp_path) == []


def test_the_census_without_its_package_or_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("cellxgene_census") is None:
        with pytest.raises(SomaMissingError, match=r"pip install 'prefect-cytotable\[census\]'"):
            fetch_obs("census:2024-07-01", "out.feather")
    else:
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
        with pytest.raises(SomaUnreachableError) as told:
            fetch_obs("census:2024-07-01", "out.feather")
        assert "Tried cellxgene_census.open_soma(census_version='2024-07-01')" in str(told.value)
        assert "give the path of a copy" in str(told.value)
    assert listing(tmp_path) == []


# --- memory -------------------------------------------------------------------------------------------------

LIMITED = f"import resource, sys; resource.setrlimit(resource.RLIMIT_AS, ({4 * GIB}, {4 * GIB}))\n"
PLAIN = """
import tiledbsoma
with tiledbsoma.open(sys.argv[1] + "/census_data/homo_sapiens") as experiment:
    experiment.obs.read().concat()
"""
OURS = """
from prefect_cytotable.flows.cli import main
sys.exit(main(["fetch", sys.argv[1], "out.feather", "--quiet"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit addresses")
def test_four_gib_of_addresses_are_enough(census: Path, tmp_path: Path) -> None:
    def run_limited(program: str) -> int:
        command = [sys.executable, "-c", LIMITED + program, str(census)]
        return subprocess.run(command, capture_output=True, env=dict(os.environ), timeout=300, check=False).returncode

    assert run_limited(OURS) == 0
    assert pyarrow.feather.read_table(tmp_path / "out.feather").num_rows == 30_000
    assert run_limited(PLAIN) != 0
