"""Damaged SQLite databases: a right table with what is missing accounted for, or a named error."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage_judge import Shape
from damage_plate import Files, Layout, sites
from damage_run import Example, examples, files_of, judged, seconds
from damage_said import World, database_world, sqlite_said
from damage_sql import KINDS, sql_harmed, sql_harms
from damage_text import STORED, harms
from hypothesis import event, given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.presets import load_preset

LABELS = ("Cells", "Nuclei", "Cytoplasm")
EXPORT = Shape(
    {one.lower(): f"{one}_Number_Object_Number" for one in LABELS},
    frozenset(load_preset("cellprofiler_sqlite").identifying),
)
PRESET = "cell-health-cellprofiler-to-cytominer-database"
CYTOMINER = Shape(dict.fromkeys(map(str.lower, LABELS), "ObjectNumber"), frozenset(load_preset(PRESET).identifying))
ENDINGS = (".sqlite", ".sqlite3", ".db")
BYTES = (*STORED, "empty", "gone", "folder", "swap", "other format")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which examples are made; what is being tried lies there as example.txt."""
    return tmp_path_factory.mktemp("damage")


def sqlite_examples(kind: str, damage: st.SearchStrategy[object], most: int) -> st.SearchStrategy[Example]:
    return st.builds(
        Example,
        sites(most),
        st.builds(lambda ending, index: Layout(kind, ending, index=index), st.sampled_from(ENDINGS), st.booleans()),
        st.lists(damage, min_size=1, max_size=3).map(tuple),
        st.one_of(st.none(), st.none(), st.none(), st.integers(1, 4)),
        st.sampled_from([False] * 5 + [True]),
        st.sampled_from([False] * 7 + [True]),
    )


def check(example: Example, place: Path, shape: Shape, preset: str, prefixes: tuple[str, ...]) -> str:
    """Judge an example; returns a word for its outcome."""

    def world(files: Files, root: Path) -> World:
        return database_world(files, ENDINGS, prefixes, lambda path: sqlite_said(root / path))

    return judged(example, files_of(example, sql_harmed), place, shape, world, preset=preset)


@pytest.mark.timeout(seconds(220))
@examples(220)
@given(example=sqlite_examples("export", st.one_of(sql_harms(), sql_harms(), harms(BYTES)), 2))
def test_exported_databases(example: Example, place: Path) -> None:
    event(check(example, place, EXPORT, "cellprofiler_sqlite", ("per_", "")))


@pytest.mark.timeout(seconds(160))
@examples(160)
@given(
    example=sqlite_examples("cytominer", st.one_of(sql_harms((*KINDS, *["table number"] * 6)), harms(tuple(STORED))), 3)
)
def test_databases_of_several_datasets(example: Example, place: Path) -> None:
    event(check(example, place, CYTOMINER, PRESET, ("", "per_")))
