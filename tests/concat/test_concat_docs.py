"""The page on concatenation names what is there, all of it and nothing else."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from prefect_cytotable.flows import cli
from prefect_cytotable.flows.concat import concat
from prefect_cytotable.flows.concat_orchestrated import concat_flow

OPTION = r"--[a-z][a-z-]*[a-z]"


def test_every_option_is_documented_and_no_other(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main(["concat", "--help"])
    shown = set(re.findall(OPTION, capsys.readouterr().out)) - {"--help", "--debug"}
    page = (root / "docs" / "pages" / "concat.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if re.match(rf"\| `{OPTION}", line)]
    assert {re.findall(OPTION, row[1])[0] for row in rows} == shown
    named = {row[2].strip(" `") for row in rows} - {""}
    assert named | {"in_files", "out_file", "progress"} == set(inspect.signature(concat).parameters)


def test_the_flow_has_the_arguments_of_the_function() -> None:
    ours = dict(inspect.signature(concat).parameters)
    ours.pop("progress")
    flow = inspect.signature(concat_flow.fn).parameters
    assert set(flow) == set(ours)
    assert {name: one.default for name, one in flow.items()} == {name: one.default for name, one in ours.items()}


def test_the_interface_is_that_of_anndata() -> None:
    from anndata.experimental import concat_on_disk

    theirs, ours = inspect.signature(concat_on_disk).parameters, inspect.signature(concat).parameters
    assert set(theirs) <= set(ours)
    assert {name: ours[name].default for name in theirs} == {name: one.default for name, one in theirs.items()}
