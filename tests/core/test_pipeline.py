"""The stages in turn: planning again, and what stays when a run fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import options, tables, write_csv

from prefect_cytotable.tasks.core import chunk as chunks
from prefect_cytotable.tasks.core.errors import AccountError, BadSourceError, SourceChangedError
from prefect_cytotable.tasks.core.local import LocalCaller, Runner
from prefect_cytotable.tasks.core.model import ChunkResult, ColumnType, Plan, Skipped
from prefect_cytotable.tasks.core.pipeline import run as run_stages
from prefect_cytotable.tasks.core.progress import Silent


class Amending(LocalCaller):
    """Chunks that ask for the same change of the plan again and again."""

    rounds = 0

    def __init__(self, **amendment: Any) -> None:
        super().__init__(Runner.SEQUENTIAL, Silent())
        self.amendment = amendment

    def convert(self, plan: Plan, plan_path: Path) -> list[ChunkResult]:
        self.rounds += 1
        return [ChunkResult("key", 0, **self.amendment)]


@pytest.mark.parametrize(
    "amendment",
    [
        {"widened": (("cells", "ImageNumber", ColumnType.DOUBLE),)},
        {"bad": (Skipped("plate", "cells", "elsewhere", "it is bad", 1),)},
    ],
)
def test_planning_again_ends_where_nothing_changes(tmp_path: Path, amendment: dict[str, Any]) -> None:
    source = write_csv(tmp_path / "plate", tables({1: 2}))
    caller = Amending(**amendment)
    with pytest.raises(AccountError, match="would change nothing"):
        run_stages(options(source), caller)
    assert caller.rounds == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plate"]


def test_a_source_that_only_reading_shows_to_be_bad_is_skipped_or_an_error(tmp_path: Path, run) -> None:
    for number in range(1, 30):  # more than are sampled
        write_csv(tmp_path / "plate" / f"{number:02d}", tables({number: 2}))
    bad = tmp_path / "plate" / "18" / "Cytoplasm.csv"
    bad.write_bytes(bad.read_bytes()[:-3])
    assert run(tmp_path / "plate", tmp_path / "out.parquet").num_rows == 28 * 2
    with pytest.raises(BadSourceError, match=r"18.Cytoplasm\.csv"):
        run(tmp_path / "plate", tmp_path / "strict.parquet", on_bad_source="error")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "out.report.html", "plate"]


def test_a_source_that_changes_while_it_is_read_is_an_error_and_no_output(
    tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_csv(tmp_path / "plate", tables({1: 2}))
    real = chunks.load_joined

    def slow(*arguments: Any) -> Any:
        loaded = real(*arguments)
        with (source / "Cells.csv").open("a") as file:
            file.write("9,9,9,9\n")
        return loaded

    monkeypatch.setattr(chunks, "load_joined", slow)
    with pytest.raises(SourceChangedError, match=r"Cells\.csv was changed"):
        run(source, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
