"""Damaged NPZ archives: a right table with what is missing accounted for, or a named error; nothing of them is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage_judge import Shape
from damage_npz import npz_harmed, npz_harms, npz_world
from damage_plate import Files, Layout, sites
from damage_run import Example, examples, files_of, judged, seconds
from damage_said import World
from damage_text import STORED, harms
from hypothesis import event, given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.naming import TABLE_NUMBER

SHAPE = Shape({}, frozenset(), keyed=False, unnumbered=frozenset({TABLE_NUMBER}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which examples are made; what is being tried lies there as example.txt."""
    return tmp_path_factory.mktemp("damage")


BYTES = (*STORED, "put in", "empty", "gone", "folder", "swap", "other format")


@pytest.mark.timeout(seconds(1000))
@examples(1000)
@given(
    example=st.builds(
        Example,
        sites(3),
        st.just(Layout("npz", ".npz")),
        st.lists(st.one_of(npz_harms(), npz_harms(), harms(BYTES)), min_size=1, max_size=3).map(tuple),
        st.one_of(st.none(), st.integers(1, 4)),
        st.sampled_from([False] * 5 + [True]),
        st.sampled_from([False] * 7 + [True]),
    )
)
def test_archives(example: Example, place: Path) -> None:
    trap = place / "trap"

    def world(files: Files, _: Path) -> World:
        return npz_world(files, example.plate)

    files = files_of(example, npz_harmed(example.plate, str(trap)))
    event(judged(example, files, place, SHAPE, world, preset="deepprofiler"))
    assert not trap.exists(), "an archive ran code"
