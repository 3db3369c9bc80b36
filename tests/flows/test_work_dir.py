"""A work folder that several conversions use, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites
from prefect_cytotable.tasks.core.errors import DestinationExistsError
from prefect_cytotable.tasks.core.store import neighbour

Run = Callable[..., pa.Table]


@pytest.fixture
def plates(tmp_path: Path) -> list[Path]:
    shapes = [PlateShape(plate=f"plate{number}", wells=2, sites=1, cells=5, seed=number) for number in (1, 2)]
    return [write_csv_sites(tables(shape), tmp_path / shape.plate) for shape in shapes]


def test_parts_that_another_run_keeps_there_stay(run: Run, plates: list[Path], tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(plates[0], tmp_path / "one.parquet", work_dir=work, keep_chunks=True)
    kept = {path.name: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert kept
    run(plates[1], tmp_path / "two.parquet", work_dir=work)
    assert {path.name: path.read_bytes() for path in work.rglob("*") if path.is_file()} == kept


def test_without_kept_parts_nothing_stays_there(run: Run, plates: list[Path], tmp_path: Path) -> None:
    run(plates[0], tmp_path / "one.parquet", work_dir=tmp_path / "work")
    names = ["one.parquet", "one.report.html", "plate1", "plate2", "work"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert not list((tmp_path / "work").iterdir())


def test_an_output_that_a_killed_run_had_moved_aside_comes_back(run: Run, plates: list[Path], tmp_path: Path) -> None:
    destination = tmp_path / "tables"
    run(plates[0], destination, join=False)
    before = {path.relative_to(destination): path.read_bytes() for path in destination.rglob("*") if path.is_file()}
    neighbour(destination).mkdir()
    destination.rename(neighbour(destination) / "previous")
    with pytest.raises(DestinationExistsError, match="overwrite=True"):
        run(plates[1], destination, join=False)
    after = {path.relative_to(destination): path.read_bytes() for path in destination.rglob("*") if path.is_file()}
    assert after == before
