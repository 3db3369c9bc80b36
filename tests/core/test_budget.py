"""Sizes, shares of the memory budget, and how many chunks fit at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.budget import (
    LARGEST_CHUNK,
    MIB,
    SMALLEST_CHUNK,
    chunk_bytes,
    max_threads,
    parse_bytes,
    projected,
    show_bytes,
    workers_within,
)
from prefect_cytotable.tasks.core.errors import ArgumentError, MemoryBudgetError


@pytest.mark.parametrize(
    ("size", "expected"),
    [("1GiB", 1 << 30), ("1 gib", 1 << 30), ("1.5GB", 1_500_000_000), ("800", 800), (4096, 4096), ("2k", 2000),
     ("2 KiB", 2048), (2.7, 2)],
)  # fmt: skip
def test_sizes(size: str | int, expected: int) -> None:
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "abc", "1XB", "-1GiB", 0, -5, True, None, "1 G B", "0GiB"])
def test_what_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(ArgumentError, match="memory_budget is"):
        parse_bytes(size)  # type: ignore[arg-type]


@given(st.integers(0, 1 << 60))
def test_a_size_for_people_is_short_and_near(size: int) -> None:
    text = show_bytes(size)
    assert len(text) <= 14
    number, unit = text.split()
    factor = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[unit]
    assert float(number) * factor == pytest.approx(size, rel=0.06, abs=0.5)


@given(st.integers(1, 1 << 50), st.integers(1, 1 << 50))
def test_a_chunk_grows_with_the_budget_within_its_limits(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert SMALLEST_CHUNK <= chunk_bytes(small) <= chunk_bytes(large) <= LARGEST_CHUNK


@given(
    st.integers(600, 1 << 20), st.integers(1, 2000), st.integers(1, 64), st.booleans(), st.booleans()
)  # fmt: skip
def test_what_is_promised_fits_the_budget(
    budget: int, chunk: int, wanted: int, processes: bool, orchestrated: bool
) -> None:
    budget, chunk = budget * MIB, chunk * MIB
    try:
        workers = workers_within(budget, chunk, wanted, processes, orchestrated)
    except MemoryBudgetError as error:
        assert projected(chunk, 1, processes, orchestrated) > budget
        assert show_bytes(budget) in str(error)
        assert show_bytes(projected(chunk, 1, processes, orchestrated)) in str(error)
        return
    assert 1 <= workers <= wanted
    assert projected(chunk, workers, processes, orchestrated) <= budget
    if workers < wanted:
        assert projected(chunk, workers + 1, processes, orchestrated) > budget


def test_threads_are_bounded_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYTOTABLE_MAX_THREADS", "1")
    assert max_threads() == 1
    monkeypatch.delenv("CYTOTABLE_MAX_THREADS")
    assert max_threads() >= 1
    for wrong in ("0", "-1", "two", "", "1.5"):
        monkeypatch.setenv("CYTOTABLE_MAX_THREADS", wrong)
        with pytest.raises(ArgumentError, match="CYTOTABLE_MAX_THREADS"):
            max_threads()
