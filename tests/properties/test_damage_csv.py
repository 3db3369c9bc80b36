"""Damaged CSV files: a right table with what is missing accounted for, or a named error; never anything else."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from damage_judge import Shape
from damage_plate import CSV_LAYOUTS, Files, Layout, sites
from damage_run import Example, examples, files_of, judged, seconds
from damage_said import World, csv_world, in_carta_world
from damage_text import FILE_KINDS, STORED, TEXT, harms
from hypothesis import event, given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.presets import load_preset

IDENTIFYING = frozenset(load_preset("cellprofiler_csv").identifying)
SEPARATE = Shape(dict.fromkeys(("cells", "nuclei", "cytoplasm"), "ObjectNumber"), IDENTIFYING)
COMBINED = Shape(dict.fromkeys(("cells", "nuclei", "cytoplasm"), "Number_Object_Number"), IDENTIFYING)
IN_CARTA = Shape({}, frozenset(), keyed=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which examples are made; what is being tried lies there as example.txt."""
    return tmp_path_factory.mktemp("damage")


def csv_examples(
    kinds: tuple[str, ...], layouts: st.SearchStrategy[Layout] = CSV_LAYOUTS
) -> st.SearchStrategy[Example]:
    return st.builds(
        Example,
        sites(),
        layouts,
        st.lists(harms(kinds), min_size=1, max_size=3).map(tuple),
        st.one_of(st.none(), st.none(), st.none(), st.integers(1, 4)),
        st.sampled_from([False] * 5 + [True]),
        st.sampled_from([False] * 7 + [True]),
    )


def check(example: Example, place: Path, touched: bool = True) -> str:
    """Judge an example; returns a word for its outcome."""
    delimiter = example.layout.delimiter

    def world(files: Files, root: Path) -> World:
        return csv_world(files, delimiter, root.name)

    shape = COMBINED if example.layout.kind == "combined" else SEPARATE
    return judged(example, files_of(example), place, shape, world, touched)


@pytest.mark.timeout(seconds(450))
@examples(450)
@given(example=csv_examples((*TEXT, *STORED, *FILE_KINDS)))
def test_any_damage(example: Example, place: Path) -> None:
    event(check(example, place))


@pytest.mark.timeout(seconds(150))
@examples(150)
@given(example=csv_examples(("value", "key", "whole column", "line twice", "shuffle columns", "reverse")))
def test_wrong_values_and_keys(example: Example, place: Path) -> None:
    event(check(example, place))


@pytest.mark.timeout(seconds(30))
@examples(30)
@given(example=st.builds(Example, sites(3), CSV_LAYOUTS, st.just(()), st.one_of(st.none(), st.integers(1, 4))))
def test_no_damage_at_all(example: Example, place: Path) -> None:
    event(check(example, place, touched=False))


@pytest.mark.timeout(seconds(500))
@examples(500)
@given(
    example=csv_examples(
        (*TEXT, *STORED, "empty", "folder", "swap", "other format"),
        st.builds(partial(Layout, "in carta"), st.sampled_from([".csv", ".csv.gz"]), st.sampled_from([",", ";"])),
    )
)
def test_in_carta(example: Example, place: Path) -> None:
    def world(files: Files, _: Path) -> World:
        return in_carta_world(files, example.layout.delimiter)

    event(judged(example, files_of(example), place, IN_CARTA, world, preset="in-carta"))
