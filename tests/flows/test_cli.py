"""The command line as a user meets it: a process of its own, its output and its exit status."""

from __future__ import annotations

import argparse
import inspect
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from plates import copy_of, database_of, edited, folder_of, listing, rows_of, sites_of

from prefect_cytotable.flows import cli, convert
from prefect_cytotable.tasks.core.demo import PlateShape

pytestmark = pytest.mark.usefixtures("local")

COMMAND = [sys.executable, "-m", "prefect_cytotable.flows.cli"]
TRACEBACK = "Traceback (most recent call last)"


def called(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, called from the test's own folder."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites_of(tmp_path_factory.mktemp("sites") / "sites")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return database_of(tmp_path_factory.mktemp("database") / "plate.sqlite")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def total(folder: Path) -> int:
    return sum(rows_of(path) for path in folder.rglob("Cytoplasm.csv"))


# convert


def test_convert(sites: Path, out: Path) -> None:
    done = called("convert", sites, out)
    rows = total(sites)
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("No Prefect server: running here. `prefect-cytotable server start`")
    assert re.fullmatch(rf"chunks 1/1, cells {rows}, [\d,]+ cells/s", lines[1])
    assert lines[2] == f"rows: {rows} in, {rows} out, 0 dropped"
    assert lines[-2].startswith(f"wrote {out}: {rows} rows x ")
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    assert pq.read_table(out).num_rows == rows


def test_convert_with_every_option(database: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "join.sql").write_text("SELECT * FROM read_parquet('cytoplasm.parquet')")
    done = called(
        "convert", database, out, "--preset", "cellprofiler_sqlite", "--runner", "sequential", "--workers", "1",
        "--memory-budget", "2GiB", "--chunk-size", "10", "--work-dir", tmp_path / "work", "--keep-chunks",
        "--source-datatype", "sqlite", "--compartments", "cells", "nuclei", "cytoplasm", "--metadata", "image",
        "--identifying-columns", "ImageNumber", "--relation", "Cytoplasm.Cytoplasm_Parent_Cells=Cells",
        "Cytoplasm.Cytoplasm_Parent_Nuclei=Nuclei", "--page-key", "cells=Cells_Number_Object_Number",
        "--image-columns", "filenames", "--joins", tmp_path / "join.sql", "--cast", "float=float32", "--unmatched",
        "keep", "--on-bad-source", "error", "--tablenumber", "--drop-null", "--concat", "--join", "--no-sort-output",
        "--no-infer-common-schema", "--overwrite", "--debug",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pq.read_table(out)
    assert table.column_names[0] == "Metadata_TableNumber"
    assert str(table.schema.field("Cytoplasm_AreaShape_Area").type) == "float"
    assert list((tmp_path / "work").rglob("*.parquet"))


def test_convert_quietly(sites: Path, out: Path) -> None:
    done = called("convert", sites, out, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.exists()


def test_image_columns_on_the_command_line(sites: Path, out: Path) -> None:
    for given, expected in (
        (["Image_Count_Cells"], {"Image_Count_Cells"}),
        (["Image_Count_C*", "Image_FileName_ER"], {"Image_Count_Cells", "Image_Count_Cytoplasm", "Image_FileName_ER"}),
    ):
        assert called("convert", sites, out, "--overwrite", "--quiet", "--image-columns", *given).returncode == 0
        assert {name for name in pq.read_schema(out).names if name.startswith("Image_")} == expected


def test_a_run_that_fails_is_status_1_without_a_traceback(sites: Path, tmp_path: Path, out: Path) -> None:
    source = copy_of(sites, tmp_path / "damaged")
    (sorted(source.iterdir())[0] / "Cells.csv").write_bytes(b"")
    done = called("convert", source, out, "--on-bad-source", "error")
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Cells.csv: the file is empty" in last
    assert TRACEBACK not in done.stderr


def test_debug_shows_the_traceback(sites: Path, out: Path) -> None:
    out.write_text("mine")
    done = called("convert", sites, out, "--debug")
    assert done.returncode == 1
    assert TRACEBACK in done.stderr
    assert "DestinationExistsError" in done.stderr
    without = called("convert", sites, out)
    assert (without.returncode, TRACEBACK in without.stderr) == (1, False)
    assert "overwrite" in without.stderr
    assert out.read_text() == "mine"


def test_a_defect_is_said_to_be_one(sites: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong unforeseen: no traceback either, and a word on how to report it."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(import_module("prefect_cytotable.flows.convert"), "convert", broken)
    assert cli.main(["convert", str(sites), str(out)]) == 1
    with pytest.raises(RuntimeError):
        cli.main(["convert", str(sites), str(out), "--debug"])


def test_a_defect_in_words(
    sites: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(import_module("prefect_cytotable.flows.convert"), "convert", broken)
    cli.main(["convert", str(sites), str(out)])
    told = capsys.readouterr().err
    assert "error: RuntimeError: unforeseen" in told
    assert "--debug" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "required: source, destination"),
        (["convret", "a", "b"], "invalid choice: 'convret'"),
        (["convert", "SITES", "OUT", "--chunksize", "3"], "no option --chunksize. Did you mean '--chunk-size'?"),
        (["convert", "SITES", "OUT", "--overwirte"], "no option --overwirte. Did you mean '--overwrite'?"),
        (["convert", "SITES", "OUT", "--memory-budgte=1GiB"], "Did you mean '--memory-budget'?"),
        (["plan", "SITES", "--perset", "x"], "Did you mean '--preset'?"),
        (["convert", "SITES", "OUT", "--chunk-size", "many"], "--chunk-size: invalid int value: 'many'"),
        (["convert", "SITES", "OUT", "--chunk-size", "0"], "chunk_size is 0"),
        (["convert", "SITES", "OUT", "--preset", "cellprofiler_cvs"], "Did you mean 'cellprofiler_csv'?"),
        (["convert", "SITES", "OUT", "--unmatched", "kep"], "Did you mean 'keep'?"),
        (["convert", "SITES", "OUT", "--runner", "procces"], "Did you mean 'process'?"),
        (["convert", "SITES", "OUT", "--cast", "float"], "not of the form NAME=VALUE"),
        (
            ["concat", "in.h5ad", "OUT", "--storage-option", "x="],
            "--storage-option: 'x=' is not of the form NAME=VALUE",
        ),
        (["convert", "SITES", "OUT", "--joins", "nowhere.sql"], "--joins nowhere.sql: the file cannot be read"),
        (["convert", "SITES", "OUT", "--image-columns", "metdata"], "Did you mean 'metadata'?"),
        (["convert", "SITES", "OUT", "--memory-budget", "much"], "not a size such as '1GiB'"),
        (["convert", "nowhere", "OUT"], "there is no such file or folder"),
        (["plan", "nowhere"], "there is no such file or folder"),
        (["presets", "cellprofiler_cvs"], "Did you mean 'cellprofiler_csv'?"),
        ([], "COMMAND"),
    ],
)
def test_wrong_arguments_are_status_2(sites: Path, out: Path, arguments: list[str], message: str) -> None:
    given = [{"SITES": str(sites), "OUT": str(out)}.get(one, one) for one in arguments]
    done = called(*given)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert TRACEBACK not in done.stderr
    assert not out.exists()


def test_without_joins_that_can_be_decoded(sites: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "join.sql").write_bytes(b"SELECT '\xff'")
    done = called("convert", sites, out, "--joins", tmp_path / "join.sql")
    assert (done.returncode, TRACEBACK in done.stderr) == (2, False)
    assert "not foreseen" not in done.stderr


# progress


def on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Exit status and output of the command line on a terminal of its own."""
    main, other = pty.openpty()
    command = [*COMMAND, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, close_fds=True)
    os.close(other)
    pieces = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([main], [], [], 1)[0]:
            continue
        try:
            piece = os.read(main, 65536)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(main)
    return process.wait(60), b"".join(pieces).decode()


def test_live_progress_on_a_terminal(tmp_path: Path, out: Path) -> None:
    source = folder_of(tmp_path / "plate", PlateShape(wells=4, sites=2, cells=10))
    rows = rows_of(source / "Cytoplasm.csv")
    status, text = on_a_terminal("convert", source, out, "--chunk-size", 10, "--runner", "sequential")
    assert status == 0
    drawn = re.findall(r"\r\x1b\[K\[([# ]{20})\] chunks (\d+)/(\d+), cells ([\d,]+), [\d,]+ cells/s", text)
    assert len(drawn) >= 2
    assert drawn[0][0].strip() == ""
    assert drawn[0][1] == "0"
    bar, done, chunks, cells = drawn[-1]
    assert (bar, done, cells) == ("#" * 20, chunks, str(rows))
    assert int(chunks) > 1
    left = text.rpartition("cells/s")[2].replace("\r\x1b[K", "").splitlines()
    assert left[0] == f"rows: {rows} in, {rows} out, 0 dropped", "the moving line is wiped before the report"


def test_progress_in_a_log_is_plain_lines(tmp_path: Path, out: Path) -> None:
    source = folder_of(tmp_path / "plate")
    done = called("convert", source, out, "--chunk-size", 10)
    drawn = [line for line in done.stderr.splitlines() if line.startswith("chunks ")]
    assert drawn
    chunks = re.match(r"chunks (\d+)/(\d+), ", drawn[-1])
    assert chunks
    assert chunks[1] == chunks[2]


# plan


def test_plan_of_csv(sites: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    done = called("plan", sites, tmp_path / "new" / "cells.parquet", "--work-dir", tmp_path / "scratch")
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert f"source       {sites}: 4 dataset(s), 16 table(s)" in text
    assert "preset       cellprofiler_csv" in text
    assert "relation     Cytoplasm.Parent_Cells -> Cells" in text
    assert "relation     Cytoplasm.Parent_Nuclei -> Nuclei" in text
    for label in ("Cells", "Nuclei", "Cytoplasm"):
        assert re.search(rf"table +{label}: \d+ columns, keys ImageNumber \+ ObjectNumber", text)
        assert re.search(rf"keys +{label}: .*check", text)
    assert re.search(r"base +Cytoplasm: (about )?\d+ rows", text)
    assert re.search(r"output +joined: \d+ columns", text)
    assert all(re.search(rf"dataset +{folder.name}, TableNumber \d+", text) for folder in sites.iterdir())
    assert re.search(r"chunks +\d+, \d+ at a time", text)
    assert re.search(r"memory +[\d.]+ MiB projected, budget 1\.0 GiB", text)
    assert re.search(rf"disk +up to [\d.]+ KiB of parts in {re.escape(str(tmp_path / 'scratch'))}", text)
    assert f"destination  {tmp_path / 'new' / 'cells.parquet'}" in text
    assert listing(tmp_path) == before


def test_plan_of_sqlite_counts_rows_and_knows_that_keys_are_unique(database: Path, tmp_path: Path) -> None:
    done = called("plan", database, "--preset", "cellprofiler_sqlite", "--chunk-size", 10)
    assert done.returncode == 0
    table = pq.read_table(convert(database, tmp_path / "out.parquet", preset="cellprofiler_sqlite"))
    assert f"base         Cytoplasm: {table.num_rows} rows" in done.stdout
    assert re.search(r"keys +Cells: .*unique", done.stdout)
    assert re.search(r"chunks +([2-9]|\d\d)", done.stdout)


def test_plan_tells_of_keys_that_are_not_unique(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "plate")
    edited(source / "Cells.csv", lambda rows: [*rows, rows[3]])
    done = called("plan", source, "--chunk-size", 10)
    assert done.returncode == 1
    assert "not unique" in done.stderr
    assert "image 1, object 3" in done.stderr


def test_plan_tells_what_it_would_skip(sites: Path, tmp_path: Path) -> None:
    source = copy_of(sites, tmp_path / "damaged")
    bad = sorted(source.iterdir())[0] / "Cells.csv"
    bad.write_bytes(b"")
    done = called("plan", source)
    assert done.returncode == 0
    assert f"skipped      {bad}: the file is empty" in done.stdout


def test_plan_reads_no_rows(tmp_path: Path) -> None:
    """Of a large file only its head, its middle and its end: damage elsewhere is not seen."""
    source = folder_of(tmp_path / "plate", PlateShape(wells=2, sites=1, cells=10))
    path = source / "Cells.csv"
    header, *rows = path.read_bytes().splitlines(keepends=True)
    filler = [re.sub(rb"^1,\d+", f"1,{number}".encode(), rows[0]) for number in range(1, 16_000)]
    filler[6000:6100] = [b"x" * len(line) for line in filler[6000:6100]]
    path.write_bytes(b"".join((header, *filler)))
    assert path.stat().st_size > 8_000_000
    done = called("plan", source)
    assert done.returncode == 0, done.stderr
    assert "skipped" not in done.stdout


# presets


def test_presets(tmp_path: Path, sites: Path, out: Path) -> None:
    done = called("presets")
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"cellprofiler_csv", "cellprofiler_sqlite", "cellprofiler_sqlite_pycytominer"} <= set(names)
    for name in names:
        one = called("presets", name)
        assert one.returncode == 0
        assert tomllib.loads(one.stdout)["compartments"]
    shown = called("presets", "cellprofiler_csv").stdout
    (tmp_path / "mine.toml").write_text(shown.replace('["cells", "nuclei", "cytoplasm"]', '["cells", "nuclei"]')
                                        .replace('base = "cytoplasm"', 'base = "cells"').split("[[relations]]")[0]
                                        + "relations = []\n")  # fmt: skip
    assert called("convert", sites, out, "--preset", tmp_path / "mine.toml", "--quiet").returncode == 0
    assert not any(name.startswith("Cytoplasm_") for name in pq.read_schema(out).names)


# demo


def test_demo(tmp_path: Path) -> None:
    done = called("demo", tmp_path / "here")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "here" / "cells.parquet")
    assert table.num_rows == total(tmp_path / "here" / "plate") > 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "Metadata_ImageNumber", "Metadata_ObjectNumber", "Metadata_Plate", "Metadata_Well",
        "Cells_AreaShape_Area", "Nuclei_AreaShape_Area",
    ]  # fmt: skip
    assert lines[1].split()[-1] == f"{table['Nuclei_AreaShape_Area'][0].as_py():.2f}"
    assert f"The table: {tmp_path / 'here' / 'cells.parquet'}" in done.stdout
    told = re.search(r"Read it: +python (.*)", done.stdout)
    assert told
    read = subprocess.run([sys.executable, *shlex.split(told[1])], capture_output=True, text=True, check=False)
    assert f"[{table.num_rows} rows x {table.num_columns} columns]" in read.stdout, read.stderr
    assert called("demo", tmp_path / "here").returncode == 0


def test_demo_without_a_folder_lies_here(tmp_path: Path) -> None:
    assert called("demo").returncode == 0
    assert (tmp_path / "prefect-cytotable-demo" / "cells.parquet").is_file()


# help


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Each command's parser by name."""
    (action,) = [one for one in cli._parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(action.choices)


def test_help_lists_every_command() -> None:
    done = called("--help")
    assert done.returncode == 0
    assert set(parsers()) == {
        "convert",
        "plan",
        "presets",
        "demo",
        "server",
        "serve",
        "profile",
        "memory",
        "fetch",
        "concat",
        "reprocess",
        "cache",
    }
    for name in parsers():
        assert re.search(rf"^ +{name}\s+\S", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "name",
    [
        *("convert", "plan", "reprocess", "cache", "fetch", "concat", "presets", "demo"),
        *("server", "serve", "profile", "memory"),
    ],
)
def test_the_help_of_each_command_documents_each_option(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    done = called(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    for action in parsers()[name]._actions:
        assert action.help, f"{action.dest} has no help"
        assert all(option in shown for option in action.option_strings)
        if "%" not in action.help and action.dest != "help":
            assert " ".join(action.help.split()) in shown


def test_every_argument_of_convert_is_an_option() -> None:
    options = {action.dest for action in parsers()["convert"]._actions}
    arguments = set(inspect.signature(convert).parameters)
    elsewhere = {"source_path": "source", "dest_path": "destination", "progress": "quiet"}
    missing = {elsewhere.get(name, name) for name in arguments} - options
    assert missing == {"profile"}, "a profile is a command of its own"


def test_every_option_of_plan_is_one_of_convert() -> None:
    of_plan, of_convert = ({one.dest for one in parsers()[name]._actions} for name in ("plan", "convert"))
    assert of_plan <= of_convert
    assert of_convert - of_plan == {"overwrite", "quiet"}


def readme_commands(root: Path) -> list[list[str]]:
    """The calls of the command line that the README's code blocks show."""
    text = (root / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [shlex.split(line, comments=True) for line in lines if line.startswith("prefect-cytotable ")]
    return [call[1:] for call in calls]


def test_the_commands_of_the_readme_exist(root: Path) -> None:
    calls = readme_commands(root)
    if not calls and not (root / "README.md").read_text(encoding="utf-8").strip():
        pytest.skip("the README is not written yet")
    assert "convert" in {call[0] for call in calls}
    for call in calls:
        cli._parser().parse_args(call)


def test_the_command_line_without_a_server_does_not_import_prefect(sites: Path, out: Path) -> None:
    code = (
        "import sys; from prefect_cytotable.flows import cli; "
        f"status = cli.main(['convert', {str(sites)!r}, {str(out)!r}, '--quiet']); "
        "print(status, 'prefect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "0 False\n", done.stderr


WRAPPED = """
import os, signal, sys
import pydantic
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from prefect_cytotable.flows import cli
class Interrupted(pydantic.BaseModel):
    @pydantic.model_serializer
    def written(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
cli._plan = lambda arguments: Interrupted().model_dump_json()
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX signal")
def test_an_interruption_that_a_library_takes_for_an_error_is_one() -> None:
    done = subprocess.run([sys.executable, "-c", WRAPPED, "plan", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        130,
        "Interrupted; what is done is kept, and the same command goes on from there.\n",
    )
