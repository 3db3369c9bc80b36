"""Files in which cytominer-database collected many datasets: ImageNumbers repeat, and TableNumber tells them apart."""

from __future__ import annotations

import json
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ears import Ear
from hypothesis import given, settings
from hypothesis import strategies as st
from plates import converted, executed
from small import Layout, Tables, numbered_tables, scattered, write_numbered

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.errors import DuplicateKeyError, LayoutError
from prefect_cytotable.tasks.core.sources import sqlite_index

pytestmark = pytest.mark.usefixtures("local")

CELL_HEALTH = "cell-health-cellprofiler-to-cytominer-database"
JUMP = "cellprofiler_sqlite_cpg0016_jump"
OBJECT = {CELL_HEALTH: "Cytoplasm_ObjectNumber", JUMP: "Metadata_ObjectNumber"}
TEXTS = ("1e5d8facac7508cfd4086f3e3e950182", "88ac13033d9baf49fda78c3458bef89e", "a text; with 'quotes' \"é\"", "7")
WHOLE = (1686980, 1879029464, -3, 7)
MIXED = {"Image": "TEXT", "Cells": "BIGINT", "Nuclei": "FLOAT", "Cytoplasm": ""}

IMAGES: tuple[dict[int, int], ...] = ({1: 3, 2: 2, 3: 0}, {1: 2, 2: 4, 7: 1}, {2: 1, 1: 1}, {1: 5})
"""Objects in each image of four datasets; one site has no cell, and images are numbered from 1 again and again."""


def layout(numbers: tuple[object, ...]) -> Layout:
    return dict(zip(numbers, IMAGES, strict=True))


def expected(path: Path, numbers: dict[str | None, Any] | None = None) -> list[tuple[Any, ...]]:
    """The join as Python's dictionaries make it, from what sqlite3 reads; sorted as the output is.

    Args:
        path: The database.
        numbers: What TableNumber a dataset has in the output, where that is not what the file says.
    """

    def rows(table: str) -> list[dict[str, Any]]:
        found = connection.execute(f'SELECT * FROM "{table}"')
        names = [one[0] for one in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]

    def text(number: Any) -> str | None:
        return None if number is None else str(int(number) if isinstance(number, float) else number)

    def by_key(table: str) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {(text(one["TableNumber"]), one["ImageNumber"], one["ObjectNumber"]): one for one in rows(table)}

    with closing(sqlite3.connect(path)) as connection:
        images = {(text(one["TableNumber"]), one["ImageNumber"]): one for one in rows("Image")}
        cells, nuclei = by_key("Cells"), by_key("Nuclei")
        joined = []
        for one in rows("Cytoplasm"):
            at = (text(one["TableNumber"]), one["ImageNumber"])
            cell, nucleus = (
                cells.get((*at, one["Cytoplasm_Parent_Cells"])),
                nuclei.get((*at, one["Cytoplasm_Parent_Nuclei"])),
            )
            if cell is None or nucleus is None:
                continue
            image = images.get(at, {})
            joined.append(
                (
                    (numbers or {}).get(at[0], at[0]),
                    at[1],
                    one["ObjectNumber"],
                    one["Cytoplasm_AreaShape_Area"],
                    cell["Cells_AreaShape_Area"],
                    nucleus["Nuclei_AreaShape_Area"],
                    image.get("Image_Metadata_Plate"),
                    image.get("Image_Metadata_Well"),
                    image.get("Image_FileName_DNA"),
                )
            )
    return sorted(joined, key=lambda row: row[:3])


def found(table: pa.Table, preset: str) -> list[tuple[Any, ...]]:
    """The same columns of a conversion, in its order."""
    names = [
        *("Metadata_TableNumber", "Metadata_ImageNumber", OBJECT[preset], "Cytoplasm_AreaShape_Area"),
        *("Cells_AreaShape_Area", "Nuclei_AreaShape_Area"),
        *("Image_Metadata_Plate", "Image_Metadata_Well", "Image_FileName_DNA"),
    ]
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def accounts(path: Path) -> list[dict[str, Any]]:
    return json.loads(pq.read_schema(path).metadata[b"prefect-cytotable"])["datasets"]


def as_whole(path: Path, *others: str | None) -> dict[str | None, Any]:
    """The whole numbers that texts of whole numbers become in the output."""
    numbers: dict[str | None, Any] = {str(number): number for number in WHOLE}
    return {**numbers, **dict.fromkeys(others, zlib.crc32(path.read_bytes()))}


# One file, many datasets


@pytest.mark.parametrize("chunk_size", [1, 3, None])
@pytest.mark.parametrize("order", ["in order", "scattered"])
@pytest.mark.parametrize("index", ["whole", "number", "none"])
@pytest.mark.parametrize("preset", [CELL_HEALTH, JUMP])
def test_every_cell_gets_the_image_and_the_parents_of_its_own_dataset(
    tmp_path: Path, preset: str, index: str, order: str, chunk_size: int | None
) -> None:
    content = numbered_tables(layout(TEXTS))
    source = write_numbered(tmp_path / "a.sqlite", content if order == "in order" else scattered(content), index=index)
    out = tmp_path / "out.parquet"
    table = converted(source, out, preset=preset, chunk_size=chunk_size)
    assert table.num_rows == sum(sum(images.values()) for images in IMAGES)
    assert found(table, preset) == expected(source)
    assert {one["rows_out"] for one in accounts(out)} == {5, 7, 2}
    assert all(one["rows_in"] == one["rows_out"] and not one["dropped"] for one in accounts(out))


@pytest.mark.parametrize("chunk_size", [2, None])
@pytest.mark.parametrize("types", [MIXED, dict.fromkeys(MIXED, "BIGINT"), dict.fromkeys(MIXED, "FLOAT"), {}])
@pytest.mark.parametrize("index", ["whole", "none"])
def test_a_number_may_be_declared_otherwise_in_each_table(
    tmp_path: Path, index: str, types: dict[str, str], chunk_size: int | None
) -> None:
    content = scattered(numbered_tables(layout(WHOLE)))
    source = write_numbered(tmp_path / "a.sqlite", content, types, index)
    table = converted(source, tmp_path / "out.parquet", preset=JUMP, chunk_size=chunk_size)
    assert table.schema.field("Metadata_TableNumber").type == pa.int64()
    assert found(table, JUMP) == expected(source, as_whole(source))


@pytest.mark.parametrize("chunk_size", [2, None])
@pytest.mark.parametrize("index", ["whole", "number", "none"])
def test_rows_without_a_number_are_a_dataset_of_their_own(tmp_path: Path, index: str, chunk_size: int | None) -> None:
    """Its number is the file's checksum; null never equals a number, nor the text that says so."""
    for name, numbers in (("texts", (None, "None", "", "x")), ("whole", (5, None, 6, -1))):
        source = write_numbered(tmp_path / f"{name}.sqlite", scattered(numbered_tables(layout(numbers))), index=index)
        table = converted(source, tmp_path / f"{name}.parquet", preset=CELL_HEALTH, chunk_size=chunk_size)
        checksum = zlib.crc32(source.read_bytes())
        known: dict[str | None, Any] = {None: str(checksum)} if name == "texts" else {None: checksum}
        known |= {str(number): number for number in (5, 6, -1)} if name == "whole" else {}
        assert found(table, CELL_HEALTH) == expected(source, known)


@pytest.mark.parametrize("runner", ["sequential", "concurrent", "process"])
def test_every_runner_gives_the_same_bytes(tmp_path: Path, runner: str) -> None:
    source = write_numbered(tmp_path / "a.sqlite", scattered(numbered_tables(layout(TEXTS))), index="none")
    out = tmp_path / "out.parquet"
    arguments: dict[str, Any] = {"preset": JUMP, "chunk_size": 3, "workers": 2}
    once = converted(source, tmp_path / "once.parquet", **arguments)
    table = converted(source, out, task_runner=runner, **arguments)
    assert table.equals(once)
    assert found(table, JUMP) == expected(source)


def test_a_dataset_larger_than_a_chunk_is_cut_by_images(tmp_path: Path, ear: Ear) -> None:
    images = dict.fromkeys(range(1, 7), 4)
    source = write_numbered(
        tmp_path / "a.sqlite", numbered_tables({"small": {1: 2}, "large": images, "other": {1: 1, 2: 1}})
    )
    table = converted(source, tmp_path / "out.parquet", preset=CELL_HEALTH, chunk_size=8, progress=ear)
    assert found(table, CELL_HEALTH) == expected(source)
    assert sorted(result.rows for result in ear.results) == [4, 8, 8, 8]  # the two small ones share a chunk


def test_a_site_larger_than_a_chunk_is_cut_by_objects(tmp_path: Path, ear: Ear) -> None:
    content = numbered_tables({"a": {1: 30, 2: 2}, "b": {1: 25}})
    source = write_numbered(tmp_path / "a.sqlite", scattered(content), index="none")
    table = converted(source, tmp_path / "out.parquet", preset=CELL_HEALTH, chunk_size=8, progress=ear)
    assert found(table, CELL_HEALTH) == expected(source)
    assert max(result.rows for result in ear.results) <= 8


@pytest.mark.parametrize("chunk_size", [3, None])
def test_more_stretches_than_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_size: int | None
) -> None:
    """Each image then has one stretch of rows, with rows of other images and datasets in it."""
    source = write_numbered(tmp_path / "a.sqlite", scattered(numbered_tables(layout(TEXTS))), index="none")
    monkeypatch.setattr(sqlite_index, "STRETCHES", 5)
    sqlite_index.groups.cache_clear()
    table = converted(source, tmp_path / "out.parquet", preset=CELL_HEALTH, chunk_size=chunk_size)
    sqlite_index.groups.cache_clear()
    assert found(table, CELL_HEALTH) == expected(source)


# What is missing


def without_rows(content: Tables, table: str, number: object) -> Tables:
    header, rows = content[table]
    return {**content, table: (header, [row for row in rows if row[0] != number])}


@pytest.mark.parametrize("chunk_size", [2, None])
@pytest.mark.parametrize(
    ("table", "cause"),
    [("Image", None), ("Cells", "the parent it names does not exist"), ("Cytoplasm", None)],
)
def test_a_dataset_of_which_one_table_has_no_row(
    tmp_path: Path, table: str, cause: str | None, chunk_size: int | None
) -> None:
    """Accounted for by dataset, and never completed from another dataset's rows."""
    content = without_rows(numbered_tables(layout(TEXTS)), table, TEXTS[1])
    source = write_numbered(tmp_path / "a.sqlite", content)
    out = tmp_path / "out.parquet"
    result = converted(source, out, preset=CELL_HEALTH, chunk_size=chunk_size)
    mine = [one for one in accounts(out) if TEXTS[1] in one["name"]]
    others = [row for row in expected(source) if row[0] != TEXTS[1]]
    if table == "Image":  # its cells are kept, as those of any image without a row
        ours = [row for row in found(result, CELL_HEALTH) if row[0] == TEXTS[1]]
        assert len(ours) == 7
        assert {row[6:] for row in ours} == {(None, None, None)}
        assert all(row[4] - row[3] == -65_536 for row in ours)
    assert [row for row in found(result, CELL_HEALTH) if row[0] != TEXTS[1]] == others
    rows_in = 0 if table == "Cytoplasm" else 7
    assert sum(one["rows_in"] for one in mine) == rows_in
    assert sum(one["dropped"].get(cause, 0) for one in mine) == (7 if cause else 0)


def test_a_number_that_only_one_table_has(tmp_path: Path) -> None:
    content = numbered_tables(layout(TEXTS))
    header, rows = content["Cells"]
    content["Cells"] = (header, [*rows, ("stray", 1, 1, 0.5, 1), ("stray", 1, 2, 0.5, 2)])
    source = write_numbered(tmp_path / "a.sqlite", content)
    out = tmp_path / "out.parquet"
    assert found(converted(source, out, preset=CELL_HEALTH), CELL_HEALTH) == expected(source)
    assert [(one["rows_in"], one["rows_out"]) for one in accounts(out) if "stray" in one["name"]] == [(0, 0)]


@pytest.mark.parametrize("table", ["Image", "Cells"])
def test_a_table_without_the_column_is_a_clear_error(tmp_path: Path, table: str) -> None:
    content = numbered_tables(layout(TEXTS))
    header, rows = content[table]
    content[table] = (header[1:], [row[1:] for row in rows])
    source = write_numbered(tmp_path / "a.sqlite", content)
    with pytest.raises(LayoutError, match=rf"table {table} has no column TableNumber, .* rows of 4 datasets"):
        convert(source, tmp_path / "out.parquet", preset=CELL_HEALTH)
    assert [path.name for path in tmp_path.iterdir()] == ["a.sqlite"]


def test_one_number_alone_needs_it_in_no_other_table(tmp_path: Path) -> None:
    content = numbered_tables({TEXTS[0]: IMAGES[0]})
    header, rows = content["Cells"]
    source = write_numbered(tmp_path / "a.sqlite", {**content, "Cells": (header[1:], [row[1:] for row in rows])})
    table = converted(source, tmp_path / "out.parquet", preset=CELL_HEALTH)
    assert table.num_rows == 5
    assert table["Cells_AreaShape_Area"].to_pylist() == [row[3] for row in rows]


@pytest.mark.parametrize("index", ["whole", "none"])
def test_repeated_keys_are_refused_within_a_dataset_alone(tmp_path: Path, index: str) -> None:
    content = numbered_tables(layout(TEXTS))
    header, rows = content["Cells"]
    content["Cells"] = (header, [*rows, rows[0]])
    source = write_numbered(tmp_path / "a.sqlite", content, index=index)
    with pytest.raises(DuplicateKeyError, match="image 1, object 1: 2 rows"):
        convert(source, tmp_path / "out.parquet", preset=CELL_HEALTH)


# Several files


@pytest.mark.parametrize("chunk_size", [3, None])
def test_two_files_with_the_same_numbers_keep_their_identities(tmp_path: Path, chunk_size: int | None) -> None:
    content = numbered_tables(layout(TEXTS))
    one = write_numbered(tmp_path / "plates" / "a.sqlite", content)
    two = write_numbered(tmp_path / "plates" / "b.sqlite", content)
    executed(two, "UPDATE Image SET Image_Metadata_Plate = 'second'")
    table = converted(tmp_path / "plates", tmp_path / "out.parquet", preset=CELL_HEALTH, chunk_size=chunk_size)
    rows = found(table, CELL_HEALTH)
    assert len({row[:3] for row in rows}) == len(rows) == 38
    first, second = ([row for row in rows if (row[6] == "second") is other] for other in (False, True))
    assert first == expected(one)
    renamed = {number: f"{number}-{zlib.crc32(f'b.sqlite, TableNumber {number}'.encode()):08x}" for number in TEXTS}
    assert second == expected(two, dict(renamed))


def test_texts_in_one_file_make_the_numbers_of_another_texts(tmp_path: Path) -> None:
    write_numbered(tmp_path / "plates" / "a.sqlite", numbered_tables({"x": {1: 1}, "y": {1: 1}}))
    types = dict.fromkeys(MIXED, "BIGINT")
    write_numbered(tmp_path / "plates" / "b.sqlite", numbered_tables({10: {1: 1}, 9: {1: 1}}), types)
    table = converted(tmp_path / "plates", tmp_path / "out.parquet", preset=JUMP)
    assert table["Metadata_TableNumber"].to_pylist() == ["10", "9", "x", "y"]


# Any layout


@st.composite
def layouts(draw: st.DrawFn) -> Tables:
    numbers = draw(st.lists(st.sampled_from(["a", "b", "c", "1", None]), unique=True, min_size=1, max_size=4))
    images = st.dictionaries(st.integers(1, 4), st.integers(0, 5), min_size=1, max_size=3)
    content = numbered_tables({number: draw(images) for number in numbers})
    if draw(st.booleans()):
        content = scattered(content, draw(st.integers(0, 99)))
    for name in ("Image", "Nuclei", "Cells"):
        header, rows = content[name]
        content[name] = (header, [row for row in rows if draw(st.integers(0, 9))])
    return content


@settings(max_examples=25)
@given(
    content=layouts(),
    index=st.sampled_from(["whole", "number", "none"]),
    chunk_size=st.one_of(st.none(), st.integers(1, 9)),
    sort=st.booleans(),
)
def test_any_layout_is_joined_as_dictionaries_join_it(
    tmp_path_factory: pytest.TempPathFactory, content: Tables, index: str, chunk_size: int | None, sort: bool
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    source = write_numbered(folder / "a.sqlite", content, index=index)
    out = folder / "out.parquet"
    table = converted(source, out, preset=CELL_HEALTH, chunk_size=chunk_size, sort_output=sort, add_tablenumber=True)
    numbers = {row[0] for _, rows in content.values() for row in rows}
    checksum = zlib.crc32(source.read_bytes())
    known: dict[str | None, Any] = {None: checksum if numbers <= {None, "1"} else str(checksum)}
    if numbers <= {None, "1"}:
        known["1"] = 1
    rows = found(table, CELL_HEALTH)
    assert (rows if sort else sorted(rows, key=lambda row: row[:3])) == expected(source, known)
    count = len(content["Cytoplasm"][1])
    assert sum(one["rows_in"] for one in accounts(out)) == count
    assert sum(one["rows_out"] + sum(one["dropped"].values()) for one in accounts(out)) == count
