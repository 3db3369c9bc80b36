"""Damaged Parquet files and DuckDB databases: a right table with what is missing accounted for, or a named error."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage_judge import Shape
from damage_plate import Files, Layout, sites
from damage_run import Example, examples, files_of, judged, seconds
from damage_said import World, database_world
from damage_text import STORED, Harm, harmed, harms
from damage_typed import PLATE, duckdb_file, duckdb_said, parquet_harmed, parquet_world, typed_harms
from hypothesis import event, given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.presets import load_preset

LABELS = ("Cells", "Nuclei", "Cytoplasm")
SEPARATE = Shape(
    dict.fromkeys(map(str.lower, LABELS), "ObjectNumber"), frozenset(load_preset("cellprofiler_csv").identifying)
)
EXPORT = Shape(
    {one.lower(): f"{one}_Number_Object_Number" for one in LABELS},
    frozenset(load_preset("cellprofiler_sqlite").identifying),
)
BYTES = (*STORED, "put in", "empty", "gone", "folder", "swap", "other format")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which examples are made; what is being tried lies there as example.txt."""
    return tmp_path_factory.mktemp("damage")


@pytest.mark.timeout(seconds(120))
@examples(120)
@given(
    example=st.builds(
        Example,
        sites(2),
        st.just(Layout("parquet", ".parquet")),
        st.lists(st.one_of(typed_harms(), typed_harms(), harms(BYTES)), min_size=1, max_size=3).map(tuple),
        st.one_of(st.none(), st.none(), st.none(), st.integers(1, 4)),
        st.sampled_from([False] * 5 + [True]),
        st.sampled_from([False] * 7 + [True]),
    )
)
def test_parquet(example: Example, place: Path) -> None:
    def world(files: Files, root: Path) -> World:
        return parquet_world(files, root.name)

    files = files_of(example, parquet_harmed)
    event(judged(example, files, place, SEPARATE, world, source_datatype="parquet"))


@pytest.mark.timeout(seconds(8))
@examples(8)
@given(
    statements=st.lists(
        st.one_of(st.none(), st.tuples(st.integers(0, 20), st.integers(0, 3), st.integers(0, 5))),
        min_size=1,
        max_size=2,
    ),
    damage=st.lists(harms(BYTES), max_size=2).map(tuple),
    chunk_size=st.one_of(st.none(), st.integers(1, 4)),
)
def test_duckdb(
    statements: list[tuple[int, int, int] | None], damage: tuple[Harm, ...], chunk_size: int | None, place: Path
) -> None:
    files: Files = {f"{site.name}.duckdb": duckdb_file(site, one) for site, one in zip(PLATE, statements, strict=False)}
    for one in damage:
        files = harmed(files, one)

    def world(files: Files, root: Path) -> World:
        return database_world(files, (".duckdb",), ("per_", ""), lambda path: duckdb_said(root / path))

    example = Example(PLATE[: len(statements)], Layout("duckdb", ".duckdb"), (*statements, *damage), chunk_size)
    arguments = {"preset": "cellprofiler_sqlite", "source_datatype": "duckdb"}
    event(judged(example, files, place, EXPORT, world, touched=any(example.harms), **arguments))
