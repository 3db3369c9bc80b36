"""The documentation holds: its code runs, and it names what is there, all of it and nothing else."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from waiting import clear

from prefect_cytotable.flows import cli, convert, fetch_obs, reprocess
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites, write_sqlite
from prefect_cytotable.tasks.core.model import Cause, Preset
from prefect_cytotable.tasks.core.naming import Namer, label_of
from prefect_cytotable.tasks.core.presets import load_preset, preset_names

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "pages"
README = ROOT / "README.md"
DOCUMENTS = sorted(
    [README, ROOT / "CHANGELOG.md", *(ROOT / one / "README.md" for one in ("deployments", "benchmarks"))]
)
DOCUMENTS += sorted(PAGES.rglob("*.md"))
COMMANDS = (
    *("convert", "plan", "reprocess", "cache", "concat", "fetch", "presets", "demo"),
    *("server", "serve", "profile", "memory"),
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is where its code begins."""

    language: str
    line: int
    code: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(match[1], text.count("\n", 0, match.start()) + 2, match[2])


def rows(page: Path, heading: str = "") -> Iterator[list[str]]:
    """The cells of every table row of a page, or of what stands below one of its headings."""
    text = page.read_text(encoding="utf-8")
    if heading:
        text = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|-: "):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture
def plates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the plates that the pages speak of, and no Prefect server."""
    clear(monkeypatch, "PREFECT_", "CYTOTABLE_")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))
    place = tmp_path / "place"
    write_csv_sites(tables(PlateShape(wells=2)), place / "prefect-cytotable-demo" / "plate")
    write_sqlite(tables(PlateShape(wells=2)), place / "plate.sqlite")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize(
    "page",
    [page for page in DOCUMENTS if any(block.language in ("python", "bash") for block in blocks(page))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_code_blocks_run(page: Path, plates: Path) -> None:
    """Python as one script a page; commands of ours as they stand, in between."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
        elif block.language == "bash":
            for line in block.code.splitlines():
                if line.startswith("prefect-cytotable "):
                    assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line


def test_readme_begins_with_the_commands_that_ci_runs() -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    shown = [block.code.strip() for block in blocks(README)][:2]
    run = subprocess.run([ROOT / ".ci" / "run", "--commands"], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == shown
    assert all(one.startswith("python3 -m venv .venv && .venv/bin/pip install ") for one in shown)
    assert README.read_text(encoding="utf-8").startswith(f"# prefect-cytotable\n\n```bash\n{shown[0]}\n```\n")


def options(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The long options that a command's help shows."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    return set(re.findall(r"--[a-z][a-z-]*[a-z]", capsys.readouterr().out))


def documented(heading: str, page: str = "command-line.md") -> set[str]:
    """The long options in the first column below a heading of the reference."""
    cells = [row[0] for row in rows(PAGES / page, heading)]
    return {option for cell in cells for option in re.findall(r"--[a-z][a-z-]*[a-z]", cell)}


def test_every_option_is_documented_and_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = documented("Everywhere")
    found = {command: options(command, capsys, monkeypatch) for command in COMMANDS}
    assert all(everywhere <= one for one in found.values())
    assert documented("convert and plan") == found["plan"] - everywhere
    assert documented("convert alone") == found["convert"] - found["plan"]
    for one in ("cache", "server", "serve", "profile", "memory"):
        assert documented(one) == found[one] - everywhere
    assert documented("reprocess") == found["reprocess"] - found["plan"]
    assert documented("Options", "fetch.md") == found["fetch"] - everywhere
    assert found["presets"] == found["demo"] == everywhere


def test_command_line_page_names_the_commands() -> None:
    text = " ".join(cell for row in rows(PAGES / "command-line.md") for cell in row[:1])
    assert {command for command in COMMANDS if f"`{command}" in text} == set(COMMANDS)


def test_options_have_the_arguments_that_they_are_said_to_have() -> None:
    table = [row for row in rows(PAGES / "command-line.md", "convert and plan") if row[0].startswith("`")]
    arguments = {name for row in table for name in quoted(row[1])}
    assert len(arguments) == len(table)
    assert arguments <= set(inspect.signature(convert).parameters)


def test_options_of_reprocess_have_the_arguments_and_defaults_that_they_are_said_to_have() -> None:
    parameters = inspect.signature(reprocess).parameters
    for row in [row for row in rows(PAGES / "command-line.md", "reprocess") if row[0].startswith("`") and row[1]]:
        (name,) = quoted(row[1])
        if found := re.search(r"Default `?([^`.]+)`?\.|`([^`]+)` \(default\)", row[2]):
            assert (found[1] or found[2]) in (str(parameters[name].default), "all"), name


def test_options_of_fetch_have_the_arguments_and_defaults_that_they_are_said_to_have() -> None:
    parameters = inspect.signature(fetch_obs).parameters
    table = [row for row in rows(PAGES / "fetch.md", "Options") if row[0].startswith("`")]
    named = {name: row[2] for row in table for name in quoted(row[1])}
    beside = {"source_path", "dest_path", "progress", "profile"}  # a command has its own for these
    assert set(named) == set(parameters) - beside
    for name, text in named.items():
        if found := re.search(r"Default `([^`]+)`|`([^`]+)` \(default\)", text):
            assert (found[1] or found[2]) == parameters[name].default, name


def test_options_of_the_study_name_options_that_are_there() -> None:
    known = documented("Options", "fetch.md") | documented("profile")
    shown = {
        option
        for row in rows(PAGES / "fetch.md", "Options of the study")
        for option in re.findall(r"--[a-z][a-z-]+", row[1])
    }
    assert shown
    assert shown <= known


def test_readme_options_are_documented() -> None:
    shown = set(re.findall(r"`(--[a-z][a-z-]*[a-z])", README.read_text(encoding="utf-8")))
    known = documented("convert and plan") | documented("convert alone")
    known |= {option for one in ("reprocess", "cache", "server", "profile", "memory") for option in documented(one)}
    known |= documented("Options", "fetch.md")
    assert shown <= known


def test_every_argument_of_convert_has_a_row() -> None:
    parameters = set(inspect.signature(convert).parameters)
    named, gone = set(), set()
    for cells in rows(PAGES / "migrating.md", "Arguments"):
        names = {name.strip("*") for name in quoted(cells[0])}
        (gone if cells[1] == "gone" else named).update(names)
    assert named == parameters
    assert not gone & parameters


def test_documented_defaults_are_those_of_convert() -> None:
    parameters = inspect.signature(convert).parameters
    for cells in rows(PAGES / "migrating.md", "Arguments"):
        if cells[1].startswith("`"):
            name, default = quoted(cells[0])[0], quoted(cells[1])[0]
            assert default == repr(parameters[name].default).replace("'", '"'), name


def test_every_cause_has_a_row() -> None:
    shown = {row[0] for row in rows(PAGES / "rows.md", "Causes")} - {"cause"}
    assert shown == {cause.value for cause in Cause}


def test_every_field_of_a_preset_has_a_row() -> None:
    shown = {name for row in rows(PAGES / "presets.md", "Fields") for name in quoted(row[0])}
    assert shown == {field.name for field in fields(Preset)} - {"name"}


def test_readme_names_the_presets() -> None:
    shown = {name for cells in rows(README) for name in quoted(cells[0])} & set(preset_names())
    assert shown == set(preset_names())


def test_worked_examples_of_names() -> None:
    examples = [cells for cells in rows(PAGES / "names.md") if len(cells) == 4 and cells[0] in preset_names()]
    assert len(examples) > 10
    for preset, table, column, becomes in examples:
        label = label_of(table.lower(), table)
        namer = Namer(label, frozenset(load_preset(preset).identifying))
        assert namer(column) == becomes, (preset, table, column)


def test_variables_that_are_documented_are_read() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("flows", "tasks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    )
    for page in DOCUMENTS:
        for name in re.findall(r"\b(?:PREFECT_)?CYTOTABLE_[A-Z_]+", page.read_text(encoding="utf-8")):
            assert name in code, f"{page}: {name}"


def test_modules_that_are_documented_exist() -> None:
    for page in PAGES.rglob("*.md"):
        for name in re.findall(r"\b([a-z_]+\.py)\b", page.read_text(encoding="utf-8")):
            assert any(list((ROOT / folder).rglob(name)) for folder in ("flows", "tasks", "benchmarks", "tests")), (
                f"{page}: {name}"
            )


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_internal_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        path = (page.parent / target.split("#")[0]).resolve()
        assert path.exists(), f"{page.name}: {target}"
        assert path.is_relative_to(PAGES if page.is_relative_to(PAGES) else ROOT), f"{page.name}: {target}"


def test_site_builds_strictly(tmp_path: Path) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings_handlers")):
        pytest.skip("the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q"]
    command += ["-f", str(ROOT / "docs" / "mkdocs.yml"), "-d", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    assert "memory_budget" in reference
    assert "DuplicateKeyError" in reference
