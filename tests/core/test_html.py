"""The pieces of the page for a browser."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.html.heatmap import LEVELS, MOST_WELLS, heat_maps, level
from prefect_cytotable.tasks.core.html.timeline import NAMED_BARS, Bar, timeline
from prefect_cytotable.tasks.core.html.wells import FORMATS, Well, parse, plates_of
from prefect_cytotable.tasks.core.html.writing import text
from prefect_cytotable.tasks.core.model import Options
from prefect_cytotable.tasks.core.presets import load_preset
from prefect_cytotable.tasks.core.report_page import page_place
from prefect_cytotable.tasks.core.report_tables import escape_markdown
from prefect_cytotable.tasks.core.roots import OutsideRootsError


def full(rows: int, columns: int) -> dict[tuple[str, str], int]:
    return {("p", Well(row, column).name): 7 for row in range(1, rows + 1) for column in range(1, columns + 1)}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_full_plate_is_of_its_own_format(format_: tuple[int, int]) -> None:
    (plate,) = plates_of(full(*format_))
    assert (plate.rows, plate.columns) == format_
    assert plate.total == 7 * format_[0] * format_[1]


@pytest.mark.parametrize(
    ("wells", "format_"),
    [
        (["B02", "C03"], (8, 12)),
        (["H12"], (8, 12)),
        (["A13"], (16, 24)),
        (["I01"], (16, 24)),
        (["p24"], (16, 24)),
        (["A25"], (32, 48)),
        (["Q01"], (32, 48)),
        (["AF48"], (32, 48)),
    ],
)
def test_few_wells_are_of_the_smallest_usual_plate_that_has_them(wells: list[str], format_: tuple[int, int]) -> None:
    (plate,) = plates_of({("p", well): 1 for well in wells})
    assert (plate.rows, plate.columns) == format_


@given(st.integers(1, 32), st.integers(1, 48))
def test_every_well_is_found_by_every_name_it_has(row: int, column: int) -> None:
    well = Well(row, column)
    letters = well.name.rstrip(string.digits)
    for name in (
        well.name,
        well.name.lower(),
        f"{letters}{column}",
        f"{letters}-{column:03d}",
        f"r{row:02d}c{column:02d}",
    ):
        assert parse(name) == well


@pytest.mark.parametrize("name", ["", "A", "7", "A00", "A49", "AG01", "ZZ1", "A1B2", "A01 ctrl", "Ä01", "A\n01", "A١"])
def test_what_is_no_well(name: str) -> None:
    assert parse(name) is None


def test_the_same_well_under_two_names_is_one() -> None:
    (plate,) = plates_of({("p", "A1"): 2, ("p", "A01"): 3, ("p", "odd"): 4})
    assert dict(plate.cells) == {Well(1, 1): 5}
    assert plate.unplaced == (("odd", 4),)
    assert plate.total == 9


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7))
def test_more_cells_never_have_a_lower_colour(one: int, two: int, three: int) -> None:
    low, middle, high = sorted((one, two, three))
    assert 0 <= level(low, low, high) <= level(middle, low, high) <= level(high, low, high) == LEVELS - 1


def test_as_many_plates_are_drawn_as_the_page_can_hold() -> None:
    counts = {(f"p{number:02d}", "P24"): number + 1 for number in range(20)}
    page = heat_maps(plates_of(counts))
    drawn = page.count('<table class="map"')
    assert drawn == MOST_WELLS // 384
    assert f"{20 - drawn:,} more plate(s) are not shown" in page
    assert len(page) < 150_000


def test_one_plate_of_1536_wells_is_drawn_however_large() -> None:
    page = heat_maps(plates_of(full(32, 48)))
    assert page.count('<td class="h11">7</td>') + page.count('<td tabindex="0" class="h11">7</td>') == 1536
    assert len(page) < 60_000


@given(st.text())
def test_no_text_becomes_markup(value: str) -> None:
    shown = text(value)
    assert not set(shown) & set("<>\"'")
    assert (
        shown.replace("&amp;", "")
        .replace("&lt;", "")
        .replace("&gt;", "")
        .replace("&quot;", "")
        .replace("&#x27;", "")
        .count("&")
        == 0
    )
    assert shown.isprintable()
    assert not set(escape_markdown(value)) & set("<>\n\r")


def test_the_timeline_keeps_apart_what_overlaps_and_joins_what_is_many() -> None:
    bars = [Bar(f"chunk {at}", at * 0.5, 1.0, "a/1", 10) for at in range(6)]
    page = timeline(bars, reused=3)
    assert page.count("<rect") == 6
    assert len({part.split('"')[0] for part in page.split(' y="')[1:] if part}) >= 2
    assert "3 chunk(s) were done by an earlier run" in page
    assert "6 chunk(s) in 3.5 s on 1 process(es); on average 1.7 at a time, 1.0 s each" in page
    many = timeline([Bar(f"chunk {at}", at * 0.1, 0.1, f"a/{at % 4}", 10) for at in range(10_000)], reused=0)
    assert len(many) < 40_000
    assert many.count("<rect") == 0 < many.count('<path class="b0"')
    assert NAMED_BARS < 10_000
    assert "No chunk was converted by this run" in timeline([], reused=4)


def test_the_page_stays_inside_the_allowed_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_CYTOTABLE_ALLOWED_ROOTS", "s3://bucket/out")
    options = Options("s3://bucket/in", "s3://bucket/out", "/work", load_preset("cellprofiler_csv"), 1 << 30)
    with pytest.raises(OutsideRootsError, match="the report of dest_path"):
        page_place(options)
