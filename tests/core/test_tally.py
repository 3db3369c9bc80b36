from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core import tally
from prefect_cytotable.tasks.core.arrays import from_numpy
from prefect_cytotable.tasks.core.tally import Merged, Tally, merge, read, well_columns

FLOATS = st.sampled_from([None, 1.5, 1.5, 1.5, 2.0, 0.0, -0.0, math.nan, math.inf])
WHOLE = st.sampled_from([None, 3, 3, 3, 4])
TEXTS = st.sampled_from([None, "a", "a", "a", "b", "x" * 100, "x" * 99 + "y"])
WELLS = st.sampled_from([None, "A01", "A02", "B01", " A01 "])
PLATES = st.sampled_from([None, "p", "q"])
ROWS = st.lists(st.tuples(FLOATS, WHOLE, TEXTS, WELLS, PLATES), max_size=25)
NAMES = ("Cells_A", "Cells_B", "Metadata_C", "Image_Metadata_Well", "Image_Metadata_Plate")
TYPES = (pa.float64(), pa.int64(), pa.string(), pa.string(), pa.string())


def table_of(rows: list[tuple[Any, ...]]) -> pa.Table:
    arrays = [pa.array([row[at] for row in rows], type_) for at, type_ in enumerate(TYPES)]
    return pa.table(arrays, names=list(NAMES))


def tally_of(rows: list[tuple[Any, ...]], chunks: int = 1) -> str:
    one = Tally()
    table = table_of(rows)
    one.add(0, table)
    one.add_wells(table, from_numpy(np.zeros(len(rows), np.int32)), ["dataset"])
    return one.text(chunks)


def same(one: Any, other: Any) -> bool:
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@given(ROWS, st.lists(st.integers(0, 25), max_size=4), st.randoms())
def test_chunks_together_tell_what_is_true_of_all_rows(
    rows: list[tuple[Any, ...]], cuts: list[int], order: Any
) -> None:
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    texts = [tally_of(rows[start:stop], 4) for start, stop in pairwise(bounds)]
    order.shuffle(texts)
    merged = merge(texts)
    assert merged.rows.total() == len(rows)
    assert not merged.untold
    expected_nulls = {(0, at): sum(row[at] is None for row in rows) for at in range(5)}
    assert dict(merged.nulls) == {key: count for key, count in expected_nulls.items() if count}
    assert merged.wells == Counter((row[4] or "", (row[3] or "").strip()) for row in rows)
    constant = {}
    for at in range(5):
        values = [row[at] for row in rows if row[at] is not None]
        if rows and all(same(value, values[0]) for value in values):
            constant[0, at] = values[0] if values else None
    assert set(merged.constants) == set(constant)
    for key, value in constant.items():
        told = merged.constants[key]
        if isinstance(value, float):
            assert same(float(str(told)), value + 0.0)
        elif isinstance(value, str) and len(value) > tally.SHOWN:
            assert str(told).startswith("x" * tally.SHOWN + "… (")
        else:
            assert told == (None if value is None else str(value))


def test_a_column_in_several_pieces_some_of_them_empty() -> None:
    column = pa.chunked_array(
        [pa.array([], pa.float64()), pa.array([2.0]), pa.array([2.0, 2.0]), pa.array([], pa.float64())]
    )
    other = pa.chunked_array([pa.array([1.0]), pa.array([2.0, 1.0])])
    one = Tally()
    one.add(0, pa.table([column, other], names=["a", "b"]))
    assert one.constants == {0: [(0, "2.0")]}


def test_where_no_column_tells_the_plate_its_dataset_does() -> None:
    one = Tally()
    table = pa.table({"Metadata_Well": ["A01", "A01", "B02"]})
    one.add_wells(table, from_numpy(np.array([1, 0, 1], np.int32)), ["first", "second"])
    assert sorted(one.wells) == [("first", "A01", 1), ("second", "A01", 1), ("second", "B02", 1)]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["Metadata_Plate", "Metadata_Well"], ("Metadata_Plate", "Metadata_Well")),
        (["Image_Metadata_Well", "Image_Metadata_WellRow"], (None, "Image_Metadata_Well")),
        (["WELL LABEL", "Row"], (None, "WELL LABEL")),
        (
            ["Image_Metadata_PlateBarcode", "Image_Metadata_Well_ID"],
            ("Image_Metadata_PlateBarcode", "Image_Metadata_Well_ID"),
        ),
        (["Cells_Swell", "Cells_Plates"], (None, None)),
    ],
)
def test_the_columns_of_wells_and_plates(names: list[str], found: tuple[str | None, str | None]) -> None:
    assert well_columns(names) == found


def test_a_tally_of_many_chunks_stays_small_and_says_what_it_left_out() -> None:
    wide = pa.table({f"Cells_{at}": [None if at % 2 else at / 7, at / 7] for at in range(2000)})
    one = Tally()
    one.add(0, wide)
    few, many = one.text(10), one.text(10_000)
    assert read(few).lacking == []
    assert len(few) <= tally.MOST_BYTES
    assert len(many) <= tally.TOTAL_BYTES // 10_000
    assert read(many).lacking == ["constants"]
    assert len(read(many).nulls[0]) == 1000
    merged = merge([many, many, few])
    assert merged.untold == {"constants": 2}
    assert merged.nulls[0, 1] == 3


def test_a_chunk_of_an_earlier_version_could_not_tell_anything() -> None:
    merged = merge([tally_of([(1.5, 3, "a", "A01", "p")]), ""])
    assert merged.chunks == 2
    assert merged.untold == {"wells": 1, "nulls": 1, "constants": 1}


def test_more_wells_than_are_told_apart_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST_WELLS", 2)
    merged = Merged()
    for name in ("A01", "A02", "A03", "A01"):
        merged.add(Tally(rows={0: 5}, wells=[("p", name, 5)]))
    assert merged.wells == {("p", "A01"): 10, ("p", "A02"): 5}
    assert merged.untold["rows of wells"] == 5
