"""Types: which holds both of two, and what a cast map may ask for."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.schema import (
    cast_type,
    check_casts,
    from_arrow,
    merge,
    to_arrow,
    widest,
    widest_of,
)

TYPES = st.sampled_from([None, *ColumnType])
TABLES = st.dictionaries(st.sampled_from("abcde"), TYPES)


@given(TYPES, TYPES)
def test_widest_is_commutative(one: ColumnType | None, other: ColumnType | None) -> None:
    assert widest(one, other) == widest(other, one)


@given(TYPES, TYPES, TYPES)
def test_widest_is_associative(one: ColumnType | None, two: ColumnType | None, three: ColumnType | None) -> None:
    assert widest(widest(one, two), three) == widest(one, widest(two, three))


@given(TYPES)
def test_widest_is_idempotent_and_nothing_is_neutral(one: ColumnType | None) -> None:
    assert widest(one, one) == widest(one, None) == one


def test_text_holds_everything_and_double_holds_whole_numbers() -> None:
    assert widest(ColumnType.INT64, ColumnType.DOUBLE) is ColumnType.DOUBLE
    assert all(widest(one, ColumnType.STRING) is ColumnType.STRING for one in ColumnType)
    assert widest_of([]) is None


@given(st.permutations(range(3)), st.tuples(TABLES, TABLES, TABLES))
def test_merging_many_is_free_of_their_order(order: list[int], parts: tuple[dict, dict, dict]) -> None:
    first = merge(merge(parts[0], parts[1]), parts[2])
    assert merge(merge(parts[order[0]], parts[order[1]]), parts[order[2]]) == first
    assert set(first) == set().union(*parts)


@given(st.sampled_from(list(ColumnType)))
def test_a_type_comes_back_from_arrow(type_: ColumnType) -> None:
    assert from_arrow(to_arrow(type_)) is type_
    assert from_arrow(pa.null()) is None


@pytest.mark.parametrize(
    ("casts", "message"),
    [
        ({"floats": "float32"}, "type group 'floats'. Did you mean 'float'"),
        ({"float": "float23"}, "casts 'float' to 'float23'. Did you mean 'float32'"),
        ({"float": "int32"}, "casts 'float' to 'int32'"),
        ({"string": "float32"}, "casts 'string' to 'float32'"),
        ({"integer": 32}, "casts 'integer' to 32"),
        ({"float": ["float32"]}, "casts 'float' to"),
    ],
)
def test_a_cast_that_cannot_be_is_refused(casts: dict, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_casts(casts)
    assert message in str(caught.value)


def test_a_cast_changes_its_group_alone() -> None:
    casts = check_casts({"float": "float32", "integer": "int32"})
    assert cast_type(ColumnType.DOUBLE, casts) == "float"
    assert cast_type(ColumnType.INT64, casts) == "int32"
    assert cast_type(ColumnType.STRING, casts) == "string"
    assert cast_type(ColumnType.BOOL, casts) == "bool"
