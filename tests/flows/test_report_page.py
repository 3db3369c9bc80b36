"""The report for a browser: its numbers are those of the output, it needs nothing else, and it costs nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import SMALL, converted, database_of, edited, executed, folder_of, sites_of

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core import report_page
from prefect_cytotable.tasks.core.demo import PlateShape
from prefect_cytotable.tasks.core.html.page import mark
from prefect_cytotable.tasks.core.html.wells import Well

pytestmark = pytest.mark.usefixtures("local")

PLATE = PlateShape(wells=30, sites=1, cells=9)


class Page(HTMLParser):
    """The tables of a page by their captions, as rows of texts; and all that could load or run something."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: Counter[str] = Counter()
        self._caption = self._cell = False
        self._name = self._text = ""
        self._rows: list[list[str]] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self._rows, self._name = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell, self._text = True, ""
        elif tag == "caption":
            self._caption = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.tables[self._name] = self._rows
        elif tag in ("td", "th"):
            self._cell = False
            self._rows[-1].append(self._text)
        elif tag == "caption":
            self._caption = False

    def handle_data(self, data: str) -> None:
        if self._caption:
            self._name += data
        elif self._cell:
            self._text += data

    def table(self, beginning: str) -> list[list[str]]:
        (found,) = [rows for name, rows in self.tables.items() if name.startswith(beginning)]
        return found


def cells_of(table: pa.Table) -> dict[str, int]:
    (column,) = [name for name in table.column_names if name.endswith("Metadata_Well")]
    return {one["values"]: one["counts"] for one in pc.value_counts(table[column]).to_pylist()}


def map_of(page: Page, plate: str) -> dict[str, int]:
    """Cells of each well, as the map shows them."""
    rows = page.table(plate)
    found = {}
    for number, row in enumerate(rows[1:], start=1):
        for column, cell in zip(rows[0][1:], row[1:], strict=True):
            if cell != "·":
                found[Well(number, int(column)).name] = int(cell)
    return found


@pytest.mark.parametrize("kind", ["csv", "sqlite", "sites"])
@pytest.mark.parametrize("size", [None, 40])
def test_the_numbers_of_the_page_are_those_of_the_output(tmp_path: Path, kind: str, size: int | None) -> None:
    make = {"csv": folder_of, "sqlite": database_of, "sites": sites_of}[kind]
    source = make(tmp_path / "plate.sqlite" if kind == "sqlite" else tmp_path / "plate", PLATE)
    preset = "cellprofiler_sqlite" if kind == "sqlite" else "cellprofiler_csv"
    if kind == "sqlite":
        executed(
            source,
            "UPDATE Per_Cells SET Cells_AreaShape_Area = NULL WHERE Cells_Number_Object_Number = 3",
            "UPDATE Per_Nuclei SET Nuclei_AreaShape_Area = 4.5",
            "UPDATE Per_Cells SET Cells_AreaShape_Solidity = NULL",
        )
    out = tmp_path / "cells.parquet"
    table = converted(source, out, preset=preset, chunk_size=size)
    page = Page(tmp_path / "cells.report.html")
    assert map_of(page, "demo-plate") == cells_of(table)
    assert sum(map_of(page, "demo-plate").values()) == table.num_rows
    assert len(page.table("demo-plate")) == 17  # thirty wells reach beyond A12: 384
    assert page.table("Output")[1][1:3] == [f"{table.num_rows:,}", f"{table.num_columns:,}"]
    if kind != "sqlite":
        return
    nulls = {name: table[name].null_count for name in table.column_names if 0 < table[name].null_count < table.num_rows}
    assert {row[0]: int(row[1]) for row in page.table("Columns with the most missing values")[1:]} == nulls
    assert nulls.keys() == {"Cells_AreaShape_Area"}
    gone = [name for name in table.column_names if table[name].null_count == table.num_rows]
    assert [row[0] for row in page.table("Columns without any value")[1:]] == gone == ["Cells_AreaShape_Solidity"]
    same = {name for name in table.column_names if pc.count_distinct(table[name]).as_py() == 1}
    shown = {row[0]: row[1] for row in page.table("Columns with one value")[1:]}
    assert set(shown) == same >= {"Nuclei_AreaShape_Area"}
    assert shown["Nuclei_AreaShape_Area"] == "4.5"


def test_every_runner_and_every_chunk_size_shows_the_same_numbers(tmp_path: Path) -> None:
    source = database_of(tmp_path / "plate.sqlite", PLATE)
    shown = []
    for runner, size in (("sequential", None), ("concurrent", 25), ("process", 60)):
        out = tmp_path / f"{runner}.parquet"
        convert(source, out, preset="cellprofiler_sqlite", task_runner=runner, chunk_size=size, workers=2)
        page = Page(tmp_path / f"{runner}.report.html")
        names = ("demo-plate", "Columns with one value", "Rows by what became of them", "Rows read of 4")
        shown.append([page.table(name) for name in names])
    assert shown[0] == shown[1] == shown[2]


def test_rows_sources_and_columns_are_told(tmp_path: Path) -> None:
    source = sites_of(tmp_path / "sites", PLATE)
    first, second, third, *_ = sorted(source.iterdir())
    (first / "Cells.csv").write_bytes(b"")
    edited(second / "Nuclei.csv", lambda rows: [[*row[:-1]] for row in rows])
    edited(third / "Cytoplasm.csv", lambda rows: [rows[0], *([*row[:2], "9999", *row[3:]] for row in rows[1:])])
    ear = Ear()
    table = converted(source, tmp_path / "cells.parquet", progress=ear, data_type_cast_map={"float": "float32"})
    page = Page(tmp_path / "cells.report.html")
    (line,) = [one for one in ear.said if one.startswith("rows: ")]
    rows_in, rows_out, lost = (int(one.replace(",", "")) for one in re.findall(r"[\d,]*\d", line))
    assert rows_out == table.num_rows
    causes = {row[0]: int(row[1].replace(",", "")) for row in page.table("Rows by what became of them")[1:]}
    assert causes.pop("kept") == rows_out
    assert sum(causes.values()) == lost == rows_in - rows_out
    assert {row[0] for row in page.table("Datasets that lost rows")[1:]} == {first.name, third.name}
    assert page.table("Sources skipped")[1][:3] == [str(first / "Cells.csv"), "cells", "the file is empty"]
    (absent,) = page.table("Columns absent or widened")[1:]
    assert absent[3].startswith("absent from 1 of 30 sources (null there)")
    assert "were cast from double to float, as asked" in page.source
    assert f"wrote {tmp_path / 'cells.report.html'}: this report with more, for a browser" in ear.said


def test_the_page_is_one_file_that_loads_and_runs_nothing_of_others(tmp_path: Path) -> None:
    name = 'a"><script>window.hacked=1</script><img src=x onerror=alert(1)>&sig=TOPSECRET'
    plate = PlateShape(plate='<b onclick="x()">p', wells=3, sites=1, cells=5)
    source = folder_of(tmp_path / name.replace("/", "\N{DIVISION SLASH}"), plate)
    table = converted(source, tmp_path / "cells.parquet")
    page = Page(tmp_path / "cells.report.html")
    assert page.tags["script"] == page.tags["style"] == 1
    assert page.tags["img"] == page.tags["link"] == page.tags["b"] == page.tags["iframe"] == 0
    links = [value for _, attribute, value in page.attributes if attribute in ("href", "src", "action", "srcset")]
    assert links
    assert all(value.startswith("#") for value in links)
    assert not [one for one in page.attributes if one[1].startswith("on") or one[1] == "style"]
    assert not re.search(r"url\(|@import|https?://", page.source)
    assert "TOPSECRET" not in page.source
    assert sum(map_of(page, "<b onclick=").values()) == table.num_rows
    (policy,) = [
        value for tag, name, value in page.attributes if tag == "meta" and name == "content" and "-src" in value
    ]
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        inside = page.source.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_of_a_wide_full_plate_is_small(tmp_path: Path) -> None:
    converted(
        database_of(tmp_path / "plate.sqlite", PlateShape(wells=384, sites=1, cells=2)),
        tmp_path / "cells.parquet",
        preset="cellprofiler_sqlite",
        chunk_size=10,
    )
    page = tmp_path / "cells.report.html"
    assert 20_000 < page.stat().st_size < 300_000
    assert "384 of 384 wells" in page.read_text()


@pytest.mark.parametrize("arguments", [{"join": False}, {"concat": False}])
def test_of_a_folder_it_lies_beside_it(tmp_path: Path, arguments: dict[str, Any]) -> None:
    convert(folder_of(tmp_path / "plate", SMALL), tmp_path / "tables", **arguments)
    page = Page(tmp_path / "tables.report.html")
    assert page.table("Output")
    assert not list((tmp_path / "tables").rglob("*.html"))
    if "join" in arguments:
        assert "cells cannot be counted by well" in page.source


def test_it_can_be_left_out(tmp_path: Path) -> None:
    convert(
        folder_of(tmp_path / "plate", SMALL), tmp_path / "cells.parquet", html_report=False, progress=(ear := Ear())
    )
    assert not list(tmp_path.glob("*.html"))
    assert ".html" not in ear.text


def test_it_replaces_its_own_and_nothing_else(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "plate", SMALL)
    convert(source, tmp_path / "cells.parquet")
    first = (tmp_path / "cells.report.html").read_text()
    convert(source, tmp_path / "cells.parquet", overwrite=True, chunk_size=5)
    assert (tmp_path / "cells.report.html").read_text() != first

    ear = Ear()
    convert(source, tmp_path / "cells", join=False, progress=ear)  # another destination, which would have the same name
    assert "cells.report.html exists and is no report of this output" in ear.text
    assert (tmp_path / "cells.report.html").read_text().startswith(mark("cells.parquet"))
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["cells.report.html"]


def test_what_somebody_else_made_stays(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "plate", SMALL)
    for name in ("cells.report.html", "cells.parquet.report.html"):
        (tmp_path / name).write_text("mine")
        ear = Ear()
        convert(source, tmp_path / "cells.parquet", overwrite=True, progress=ear)
        assert (tmp_path / name).read_text() == "mine"
    assert "note: the HTML report was not written" in ear.text
    assert "is no report of this output" in ear.text
    other = tmp_path / "elsewhere.txt"
    (tmp_path / "linked.report.html").symlink_to(other)
    convert(source, tmp_path / "linked.parquet")
    assert not other.exists()
    assert (tmp_path / "linked.parquet.report.html").is_file()


@pytest.mark.parametrize("error", [ValueError("no such colour"), MemoryError(), OSError(28, "No space left on device")])
def test_a_page_that_cannot_be_made_is_told_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> str:
        raise error

    monkeypatch.setattr(report_page, "render", broken)
    ear = Ear()
    path = convert(folder_of(tmp_path / "plate", SMALL), tmp_path / "cells.parquet", progress=ear)
    assert pq.read_table(str(path)).num_rows
    assert f"note: the HTML report was not written ({type(error).__name__}" in ear.text
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cells.parquet", "plate"]


def test_an_empty_output_has_a_page_too(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "plate", SMALL)
    edited(source / "Cells.csv", lambda rows: rows[:1])
    table = converted(source, tmp_path / "cells.parquet")
    assert table.num_rows == 0
    page = Page(tmp_path / "cells.report.html")
    assert "The output has no rows" in page.source
    assert page.table("Rows by what became of them")[1][:2] == ["kept", "0"]


def test_chunks_of_an_earlier_run_count_and_are_not_drawn(tmp_path: Path) -> None:
    source = database_of(tmp_path / "plate.sqlite", PLATE)
    pages = []
    options: dict[str, Any] = {"preset": "cellprofiler_sqlite", "chunk_size": 50, "keep_chunks": True}
    for overwrite in (False, True):
        convert(source, tmp_path / "cells.parquet", work_dir=tmp_path / "work", overwrite=overwrite, **options)
        pages.append(Page(tmp_path / "cells.report.html"))
    assert map_of(pages[0], "demo-plate") == map_of(pages[1], "demo-plate")
    assert "Chunks, the slowest first" in pages[0].tables
    assert "No chunk was converted by this run" in pages[1].source
