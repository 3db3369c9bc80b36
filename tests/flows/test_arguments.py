"""Each argument of `convert` does what it says; what cannot be done is refused in words that help."""

from __future__ import annotations

import inspect
import random
import re
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import converted, copy_of, database_of, edited, executed, folder_of, listing, rows_of, sites_of, without

from prefect_cytotable.flows import convert, plan
from prefect_cytotable.tasks.core.demo import PlateShape
from prefect_cytotable.tasks.core.errors import (
    ArgumentError,
    BadSourceError,
    CastError,
    LayoutError,
    MemoryBudgetError,
    PresetError,
    SourceNotFoundError,
    UnknownArgumentError,
    UnmatchedError,
)

pytestmark = pytest.mark.usefixtures("local")


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("plate") / "plate")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sites_of(tmp_path_factory.mktemp("sites") / "sites")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return database_of(tmp_path_factory.mktemp("database") / "plate.sqlite")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist()
    return values


def set_value(path: Path, name: str, row: int, value: str) -> None:
    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[row + 1][rows[0].index(name)] = value
        return rows

    edited(path, change)


# What comes back


def test_joined_and_concatenated_returns_the_path(plate: Path, out: Path) -> None:
    result = convert(plate, out)
    assert result == str(out)
    assert pq.read_table(out).num_rows == rows_of(plate / "Cytoplasm.csv")


def test_a_relative_destination_comes_back_absolute(plate: Path, tmp_path: Path) -> None:
    assert convert(plate, "out.parquet") == str(tmp_path / "out.parquet")


def test_joined_without_concat_returns_a_file_for_each_chunk(plate: Path, tmp_path: Path, out: Path) -> None:
    paths: Any = convert(plate, tmp_path / "parts", concat=False, chunk_size=10)
    assert len(paths) > 1
    assert all(isinstance(path, str) for path in paths)
    assert [Path(path).relative_to(tmp_path / "parts").as_posix() for path in paths] == listing(tmp_path / "parts")
    pieces = [pq.read_table(path) for path in paths]
    assert all(0 < piece.num_rows <= 10 for piece in pieces)
    whole = pa.concat_tables(without(piece) for piece in pieces)
    assert whole.equals(without(converted(plate, out)))


def test_unjoined_csv_returns_tables_by_file_name(plate: Path, tmp_path: Path) -> None:
    result: Any = convert(plate, tmp_path / "tables", join=False)
    assert set(result) == {"Image.csv", "Cells.csv", "Nuclei.csv", "Cytoplasm.csv"}
    for name, entries in result.items():
        assert [entry["source_path"] for entry in entries] == [plate]
        ((path,),) = [entry["table"] for entry in entries]
        assert pq.read_table(path).num_rows == rows_of(plate / name)


def test_unjoined_sqlite_returns_tables_by_table_name(database: Path, tmp_path: Path) -> None:
    result: Any = convert(database, tmp_path / "tables", preset="cellprofiler_sqlite", join=False)
    assert set(result) == {"Per_Image.sqlite", "Per_Cells.sqlite", "Per_Nuclei.sqlite", "Per_Cytoplasm.sqlite"}
    for entries in result.values():
        assert [entry["source_path"] for entry in entries] == [database]
        assert all(path.is_file() for entry in entries for path in entry["table"])


def test_unjoined_and_unconcatenated_returns_an_entry_for_each_dataset(sites: Path, tmp_path: Path) -> None:
    result: Any = convert(sites, tmp_path / "tables", join=False, concat=False)
    folders = sorted(path for path in sites.iterdir())
    for name, entries in result.items():
        assert sorted(entry["source_path"] for entry in entries) == folders
        for entry in entries:
            rows = sum(pq.read_table(path).num_rows for path in entry["table"])
            assert rows == rows_of(entry["source_path"] / name)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_source_path_of_an_only_dataset_is_what_was_named(
    plate: Path, database: Path, tmp_path: Path, kind: str
) -> None:
    source, preset = (plate, "cellprofiler_csv") if kind == "folder" else (database, "cellprofiler_sqlite")
    result: Any = convert(source, tmp_path / "tables", preset=preset, join=False, concat=False)
    assert {entry["source_path"] for entries in result.values() for entry in entries} == {source}


# CytoTable's arguments


def test_the_first_arguments_are_those_of_cytotable() -> None:
    parameters = inspect.signature(convert).parameters
    assert list(parameters)[:18] == [
        "source_path", "dest_path", "dest_datatype", "source_datatype", "metadata", "compartments",
        "identifying_columns", "concat", "join", "joins", "chunk_size", "infer_common_schema", "drop_null",
        "data_type_cast_map", "add_tablenumber", "page_keys", "sort_output", "preset",
    ]  # fmt: skip
    assert not any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def test_dest_datatype_names_what_can_be_written(plate: Path, out: Path) -> None:
    with pytest.raises(ArgumentError, match=r"'parquett'.*Did you mean 'parquet'"):
        convert(plate, out, dest_datatype="parquett")


def test_source_datatype_chooses_among_the_files_that_are_there(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "both"
    folder_of(source / "csv", PlateShape(wells=1, sites=1, cells=5))
    path = database_of(source / "one.sqlite", PlateShape(wells=1, sites=2, cells=9))
    renamed = [f"ALTER TABLE Per_{name} RENAME TO {name}" for name in ("Image", "Cells", "Nuclei", "Cytoplasm")]
    executed(path, *renamed)
    csv, sqlite = (plan(source, out, source_datatype=kind) for kind in ("csv", "sqlite"))
    assert [one.name for one in csv.datasets] == ["csv"]
    assert [one.name for one in sqlite.datasets] == ["one.sqlite"]
    with pytest.raises(ArgumentError, match="Did you mean 'sqlite'"):
        convert(source, out, source_datatype="sqllite")


def test_metadata_names_the_image_table(plate: Path, tmp_path: Path, out: Path) -> None:
    source = copy_of(plate, tmp_path / "renamed")
    (source / "Image.csv").rename(source / "Picture.csv")
    table = converted(source, out, metadata=["Picture"])
    assert set(column(table, "Picture_Metadata_Site")) == {1, 2}
    assert all(name.endswith("_DNA.tif") for name in column(table, "Picture_FileName_DNA"))
    assert table.num_rows == rows_of(plate / "Cytoplasm.csv")


def test_compartments_replace_those_of_the_preset(plate: Path, out: Path) -> None:
    table = converted(plate, out, compartments=["Cells", "Nuclei"])
    prefixes = {name.split("_")[0] for name in table.column_names}
    assert prefixes == {"Metadata", "Image", "Cells", "Nuclei"}
    assert table.num_rows == rows_of(plate / "Cells.csv")


def test_one_compartment_may_be_named_as_text(plate: Path, out: Path) -> None:
    table = converted(plate, out, compartments="nuclei")
    assert table.num_rows == rows_of(plate / "Nuclei.csv")


def test_a_compartment_that_is_not_there_names_the_nearest(plate: Path, out: Path) -> None:
    with pytest.raises(LayoutError, match=r"'nuclie'.*Did you mean 'Nuclei'"):
        convert(plate, out, compartments=["cells", "nuclie"])


def test_identifying_columns_get_metadata_before_their_name(plate: Path, out: Path) -> None:
    columns = ["ImageNumber", "ObjectNumber", "AreaShape_Area"]
    table = converted(plate, out, identifying_columns=columns, compartments=["cells"])
    assert "Metadata_Cells_AreaShape_Area" in table.column_names
    assert "Cells_AreaShape_Area" not in table.column_names
    assert {"Cells_Parent_Nuclei", "Metadata_ImageNumber", "Metadata_ObjectNumber"} <= set(table.column_names)


@pytest.mark.parametrize("kind", ["folder", "sites", "database"])
def test_every_chunk_size_gives_the_same_rows_in_the_same_order(
    plate: Path, sites: Path, database: Path, tmp_path: Path, kind: str
) -> None:
    source = {"folder": plate, "sites": sites, "database": database}[kind]
    preset = "cellprofiler_sqlite" if kind == "database" else "cellprofiler_csv"
    whole = converted(source, tmp_path / "whole.parquet", preset=preset)
    for size in (1, 7, 20):
        heard = Ear()
        table = converted(source, tmp_path / f"{size}.parquet", preset=preset, chunk_size=size, progress=heard)
        assert table.equals(whole)
        assert heard.chunks == len(heard.results) > 1
        assert sum(one.rows for one in heard.results) == whole.num_rows
        if kind != "sites":
            assert max(one.rows for one in heard.results) <= size


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "100"])
def test_a_chunk_size_that_is_no_number_of_rows_is_refused(plate: Path, out: Path, size: Any) -> None:
    with pytest.raises(ArgumentError, match="chunk_size"):
        convert(plate, out, chunk_size=size)


@pytest.fixture
def unequal(sites: Path, tmp_path: Path) -> tuple[Path, int]:
    """Sites of which one lacks a column of its cells; and its number of cells."""
    source = copy_of(sites, tmp_path / "unequal")
    cells = sorted(source.iterdir())[0] / "Cells.csv"

    def drop(rows: list[list[str]]) -> list[list[str]]:
        position = rows[0].index("AreaShape_Solidity")
        return [row[:position] + row[position + 1 :] for row in rows]

    edited(cells, drop)
    return source, rows_of(cells)


def test_columns_that_differ_are_united(unequal: tuple[Path, int], out: Path, ear: Ear) -> None:
    source, lacking = unequal
    table = converted(source, out, progress=ear)
    assert table["Cells_AreaShape_Solidity"].null_count == lacking
    assert "Cells: 1 column(s) are absent from some sources" in ear.text


def test_columns_that_differ_are_refused_without_a_common_schema(unequal: tuple[Path, int], out: Path) -> None:
    with pytest.raises(LayoutError, match=r"(?s)Cells\.csv.*AreaShape_Solidity.*infer_common_schema=False"):
        convert(unequal[0], out, infer_common_schema=False)
    assert not out.exists()


def test_the_same_columns_in_another_order_are_a_common_schema(sites: Path, tmp_path: Path, out: Path) -> None:
    source = copy_of(sites, tmp_path / "reordered")
    edited(sorted(source.iterdir())[0] / "Cells.csv", lambda rows: [row[::-1] for row in rows])
    expected = converted(sites, tmp_path / "expected.parquet")
    assert converted(source, out, infer_common_schema=False).equals(expected)


def test_drop_null_drops_and_counts(plate: Path, tmp_path: Path, out: Path, ear: Ear) -> None:
    source = copy_of(plate, tmp_path / "gaps")
    for row, gap in enumerate(("", "nan")):
        set_value(source / "Cytoplasm.csv", "AreaShape_Area", row, gap)
    rows = rows_of(source / "Cytoplasm.csv")
    kept = converted(source, tmp_path / "kept.parquet")
    assert (kept.num_rows, kept["Cytoplasm_AreaShape_Area"].null_count) == (rows, 2)
    table = converted(source, out, drop_null=True, progress=ear)
    assert table.num_rows == rows - 2
    assert sum(one.null_count for one in table.columns) == 0
    assert "dropped 2: a value is missing (drop_null)" in ear.text
    assert f"rows: {rows} in, {rows - 2} out, 2 dropped" in ear.text


def test_types_can_be_cast_by_group(plate: Path, tmp_path: Path, out: Path) -> None:
    before = converted(plate, tmp_path / "before.parquet")
    casts = {"float": "float32", "integer": "int32", "string": "large_string"}
    table = converted(plate, out, data_type_cast_map=casts)
    names = {"double": pa.float32(), "int64": pa.int32(), "string": pa.large_string()}
    assert [one.type for one in table.schema] == [names[str(one.type)] for one in before.schema]
    assert (
        before.select(["Cells_AreaShape_Area"])
        .cast(table.select(["Cells_AreaShape_Area"]).schema)
        .equals(table.select(["Cells_AreaShape_Area"]))
    )
    assert column(table, "Metadata_ObjectNumber") == column(before, "Metadata_ObjectNumber")


@pytest.mark.parametrize(
    ("name", "value", "casts"),
    [
        ("Texture_Contrast_DNA_3_00_256", "3000000000", {"integer": "int32"}),
        ("Texture_Contrast_DNA_3_00_256", "-1", {"integer": "uint8"}),
        ("AreaShape_Area", "1e300", {"float": "float32"}),
    ],
)
def test_a_value_that_does_not_fit_a_cast_is_an_error_that_names_the_column(
    plate: Path, tmp_path: Path, out: Path, name: str, value: str, casts: dict[str, str]
) -> None:
    source = copy_of(plate, tmp_path / "large")

    def whole_numbers(rows: list[list[str]]) -> list[list[str]]:
        position = rows[0].index(name)
        for row in rows[1:]:
            row[position] = "1"
        return rows

    if "integer" in casts:
        edited(source / "Cells.csv", whole_numbers)
    set_value(source / "Cells.csv", name, 0, value)
    with pytest.raises(CastError, match=f"Cells_{name}"):
        convert(source, out, data_type_cast_map=casts)
    assert not out.exists()


@pytest.mark.parametrize("casts", [{"flaot": "float32"}, {"float": "flaot32"}, {"integer": "string"}])
def test_a_cast_that_is_unknown_is_refused(plate: Path, out: Path, casts: dict[str, str]) -> None:
    with pytest.raises(ArgumentError, match="data_type_cast_map"):
        convert(plate, out, data_type_cast_map=casts)


def test_add_tablenumber(plate: Path, sites: Path, tmp_path: Path, ear: Ear) -> None:
    def numbers(source: Path, wanted: bool | None) -> set[int] | None:
        table = converted(source, tmp_path / "numbered.parquet", add_tablenumber=wanted, overwrite=True, progress=ear)
        name = "Metadata_TableNumber"
        return set(column(table, name)) if name in table.column_names else None

    assert numbers(plate, None) is None
    assert numbers(plate, False) is None
    assert numbers(plate, True) == {zlib.crc32((plate / "Image.csv").read_bytes())}
    every = {zlib.crc32(path.read_bytes()) for path in sites.rglob("Image.csv")}
    assert numbers(sites, None) == numbers(sites, True) == every
    assert "no Metadata_TableNumber" not in ear.text
    assert numbers(sites, False) is None
    assert "no Metadata_TableNumber" in ear.text


def test_page_keys_name_the_columns_that_number_images_and_objects(plate: Path, tmp_path: Path, out: Path) -> None:
    source = copy_of(plate, tmp_path / "renamed")
    names = {"ImageNumber": "Shot", "ObjectNumber": "Item"}
    for path in source.iterdir():
        edited(path, lambda rows: [[names.get(name, name) for name in rows[0]], *rows[1:]])
    keys = {"image": "Shot", "cells": "Item", "nuclei": "Item", "cytoplasm": "Item", "join": "Cytoplasm_Item"}
    identifying = ["Shot", "Item", "Parent_Cells", "Parent_Nuclei"]
    table = converted(source, out, page_keys=keys, identifying_columns=identifying)
    expected = converted(plate, tmp_path / "expected.parquet")
    assert column(table, "Cells_AreaShape_Area") == column(expected, "Cells_AreaShape_Area")
    assert column(table, "Nuclei_AreaShape_Area") == column(expected, "Nuclei_AreaShape_Area")
    assert column(table, "Image_FileName_DNA") == column(expected, "Image_FileName_DNA")


def test_cytotables_own_page_keys_change_nothing(plate: Path, tmp_path: Path, out: Path) -> None:
    keys = {
        "image": "ImageNumber",
        "cells": "ObjectNumber",
        "nuclei": "ObjectNumber",
        "cytoplasm": "ObjectNumber",
        "join": "Cytoplasm_Number_Object_Number",
    }
    assert converted(plate, out, page_keys=keys).equals(converted(plate, tmp_path / "expected.parquet"))


def test_page_keys_of_an_unknown_table_name_the_nearest(plate: Path, out: Path) -> None:
    with pytest.raises(ArgumentError, match=r"'cels'.*Did you mean 'cells'"):
        convert(plate, out, page_keys={"cels": "ObjectNumber"})


@pytest.fixture
def shuffled(plate: Path, tmp_path: Path) -> Path:
    source = copy_of(plate, tmp_path / "shuffled")
    for name in ("Cytoplasm", "Cells", "Nuclei", "Image"):
        edited(source / f"{name}.csv", lambda rows: [rows[0], *random.Random(7).sample(rows[1:], len(rows) - 1)])
    return source


def test_sort_output_sorts_by_image_and_object(plate: Path, shuffled: Path, tmp_path: Path, out: Path) -> None:
    table = converted(shuffled, out)
    assert table.equals(converted(plate, tmp_path / "expected.parquet"))
    keys = list(zip(column(table, "Metadata_ImageNumber"), column(table, "Metadata_ObjectNumber"), strict=True))
    assert keys == sorted(keys)


def test_without_sort_output_rows_stay_as_they_were_read(
    shuffled: Path, plate: Path, tmp_path: Path, out: Path
) -> None:
    table = converted(shuffled, out, sort_output=False)
    lines = (shuffled / "Cytoplasm.csv").read_text().splitlines()[1:]
    read = [tuple(map(int, line.split(",")[:2])) for line in lines]
    keys = list(zip(column(table, "Metadata_ImageNumber"), column(table, "Metadata_ObjectNumber"), strict=True))
    assert keys == read
    expected = converted(plate, tmp_path / "expected.parquet")
    names = ["Metadata_ImageNumber", "Metadata_ObjectNumber"]
    assert table.sort_by([(name, "ascending") for name in names]).equals(expected)


@pytest.mark.parametrize("preset", ["cellprofiler_csvv", "CellProfiler-CSV"])
def test_an_unknown_preset_names_the_nearest(plate: Path, out: Path, preset: str) -> None:
    with pytest.raises(PresetError, match="Did you mean 'cellprofiler_csv'"):
        convert(plate, out, preset=preset)


def test_without_a_preset_relations_come_from_the_parent_columns(plate: Path, tmp_path: Path, out: Path) -> None:
    table = converted(plate, out, preset=None, compartments=["cells", "nuclei", "cytoplasm"])
    expected = converted(plate, tmp_path / "expected.parquet")
    assert column(table, "Cells_AreaShape_Area") == column(expected, "Cells_AreaShape_Area")
    assert column(table, "Nuclei_AreaShape_Area") == column(expected, "Nuclei_AreaShape_Area")


def test_joins_and_join_false_exclude_each_other(plate: Path, out: Path) -> None:
    with pytest.raises(ArgumentError, match="joins"):
        convert(plate, out, join=False, joins="SELECT 1")


# Ours


def image_columns_of(table: pa.Table) -> set[str]:
    return {name for name in table.column_names if name.startswith("Image_")}


def test_image_columns(plate: Path, out: Path) -> None:
    def chosen(value: Any) -> set[str]:
        return image_columns_of(converted(plate, out, image_columns=value, overwrite=True))

    files = {f"Image_FileName_{channel}" for channel in ("DNA", "ER", "AGP")}
    assert chosen("filenames") == files
    assert chosen("metadata") == files | {"Image_Metadata_Site"}
    assert chosen("all") == files | {
        "Image_Metadata_Site", "Image_Count_Cells", "Image_Count_Nuclei", "Image_Count_Cytoplasm",
        "Image_Intensity_MeanIntensity_DNA",
    }  # fmt: skip
    assert chosen(["Image_Count_*", "Image_FileName_ER"]) == {
        "Image_Count_Cells", "Image_Count_Nuclei", "Image_Count_Cytoplasm", "Image_FileName_ER",
    }  # fmt: skip
    assert chosen("Image_Count_C*") == {"Image_Count_Cells", "Image_Count_Cytoplasm"}
    assert chosen("Image_Metadata_Site") == {"Image_Metadata_Site"}
    assert chosen([]) == set()


def test_an_image_columns_mode_that_does_not_exist_names_the_nearest(plate: Path, out: Path) -> None:
    with pytest.raises(ArgumentError, match=r"'metdata'.*Did you mean 'metadata'"):
        convert(plate, out, image_columns="metdata")


@pytest.fixture
def orphans(plate: Path, tmp_path: Path) -> Path:
    """A plate with two cytoplasms whose cell does not exist, and one that names no nucleus."""
    source = copy_of(plate, tmp_path / "orphans")
    for row in (0, 1):
        set_value(source / "Cytoplasm.csv", "Parent_Cells", row, "999")
    set_value(source / "Cytoplasm.csv", "Parent_Nuclei", 2, "0")
    return source


def test_unmatched_rows_are_dropped_and_counted_by_cause(orphans: Path, out: Path, ear: Ear) -> None:
    rows = rows_of(orphans / "Cytoplasm.csv")
    table = converted(orphans, out, progress=ear)
    assert table.num_rows == rows - 3
    assert {"  dropped 2: the parent it names does not exist", "  dropped 1: it names no parent"} <= set(ear.said)
    assert f"rows: {rows} in, {rows - 3} out, 3 dropped" in ear.said


def test_unmatched_rows_can_be_kept_with_nulls(orphans: Path, out: Path, ear: Ear) -> None:
    rows = rows_of(orphans / "Cytoplasm.csv")
    table = converted(orphans, out, unmatched="keep", progress=ear)
    assert table.num_rows == rows
    assert table["Cells_AreaShape_Area"].null_count == 2
    assert table["Nuclei_AreaShape_Area"].null_count == 1
    assert table["Cytoplasm_AreaShape_Area"].null_count == 0
    assert f"rows: {rows} in, {rows} out, 0 dropped" in ear.said
    assert re.search(r"\b[23] .*(parent|orphan)", ear.text), "kept orphans are counted too (DESIGN.md, section 5)"


def test_unmatched_rows_can_be_an_error(orphans: Path, out: Path) -> None:
    with pytest.raises(
        UnmatchedError, match=r'orphans: [12] row\(s\) of Cytoplasm would be dropped .*unmatched="error"'
    ):
        convert(orphans, out, unmatched="error")
    assert not out.exists()


def test_unmatched_error_is_content_where_every_row_has_its_parents(plate: Path, out: Path) -> None:
    assert converted(plate, out, unmatched="error").num_rows == rows_of(plate / "Cytoplasm.csv")


def test_on_bad_source(sites: Path, tmp_path: Path, out: Path, ear: Ear) -> None:
    source = copy_of(sites, tmp_path / "damaged")
    bad = sorted(source.iterdir())[1]
    lost = rows_of(bad / "Cytoplasm.csv")
    (bad / "Cells.csv").write_bytes(b"")
    with pytest.raises(BadSourceError, match=rf"{re.escape(str(bad / 'Cells.csv'))}: the file is empty"):
        convert(source, out, on_bad_source="error")
    rows = sum(rows_of(path) for path in source.rglob("Cytoplasm.csv"))
    assert converted(source, out, on_bad_source="skip", progress=ear).num_rows == rows - lost
    assert f"skipped {bad / 'Cells.csv'}: the file is empty" in ear.said


@pytest.mark.parametrize("name", ["unmatched", "on_bad_source"])
def test_a_choice_that_does_not_exist_names_the_nearest(plate: Path, out: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name} is 'erorr'. Did you mean 'error'"):
        convert(plate, out, **{name: "erorr"})


def test_keep_chunks_makes_the_second_run_reuse_every_part(plate: Path, out: Path, ear: Ear) -> None:
    convert(plate, out, chunk_size=10, keep_chunks=True, progress=ear)
    assert not any(one.reused for one in ear.results)
    assert "done before" not in ear.text
    before = out.read_bytes()
    again = Ear()
    convert(plate, out, chunk_size=10, keep_chunks=True, overwrite=True, progress=again)
    assert [one.reused for one in again.results] == [True] * ear.chunks
    assert f"{ear.chunks} chunk(s), {ear.chunks} of them done before" in again.text
    assert out.read_bytes() == before


def test_kept_chunks_of_a_source_that_changed_are_done_anew(sites: Path, tmp_path: Path, out: Path) -> None:
    source = copy_of(sites, tmp_path / "changing")
    arguments: dict[str, Any] = {"chunk_size": 1, "keep_chunks": True, "overwrite": True}
    convert(source, out, **arguments)
    changed = sorted(source.iterdir())[2]
    set_value(changed / "Cells.csv", "AreaShape_Area", 0, "123456.5")
    heard = Ear()
    table = converted(source, out, progress=heard, **arguments)
    anew = {part.dataset for one in heard.results if not one.reused for part in one.parts}
    assert anew == {changed.name}
    assert 123456.5 in column(table, "Cells_AreaShape_Area")


def test_without_keep_chunks_nothing_but_the_output_stays(plate: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    convert(plate, folder / "out.parquet", chunk_size=10)
    assert listing(folder) == ["out.parquet"]


def test_work_dir_holds_the_parts_and_loses_nothing_of_others(plate: Path, tmp_path: Path) -> None:
    work = tmp_path / "scratch"
    others = [work / "results" / "mine.csv", work / "parts" / "mine.parquet", work / "records" / "mine.json"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not yours")
    convert(plate, tmp_path / "results" / "out.parquet", work_dir=work, chunk_size=10, keep_chunks=True)
    parts = [path for path in work.rglob("*.parquet") if path.name != "mine.parquet"]
    assert len(parts) > 1
    assert listing(tmp_path / "results") == ["out.parquet"]
    convert(plate, tmp_path / "results" / "out.parquet", work_dir=work, chunk_size=10, overwrite=True)
    assert all(path.read_text() == "not yours" for path in others)
    assert sorted(path for path in work.rglob("*") if path.is_file()) == sorted(others)


def test_two_runs_may_share_a_work_dir(plate: Path, sites: Path, tmp_path: Path) -> None:
    work = tmp_path / "scratch"
    nested: dict[str, Any] = {}

    class Within(Ear):
        def advance(self, result: Any) -> None:
            super().advance(result)
            if "result" not in nested:
                nested["result"] = converted(sites, tmp_path / "b" / "out.parquet", work_dir=work, chunk_size=10)

    table = converted(plate, tmp_path / "a" / "out.parquet", work_dir=work, chunk_size=10, progress=Within())
    assert table.num_rows == nested["result"].num_rows == rows_of(plate / "Cytoplasm.csv")


def test_relations_of_the_user_replace_those_of_the_preset(plate: Path, tmp_path: Path, out: Path) -> None:
    source = copy_of(plate, tmp_path / "renamed")
    edited(source / "Cytoplasm.csv", lambda rows: [[n.replace("Parent_Cells", "Cell Of") for n in rows[0]], *rows[1:]])
    with pytest.raises(LayoutError, match="Nothing relates"):
        convert(source, out, compartments=["cells", "cytoplasm"])
    relations = {"Cytoplasm.Cell Of": "Cells", "Cytoplasm.Parent_Nuclei": "Nuclei"}
    table = converted(source, out, relations=relations)
    expected = converted(plate, tmp_path / "expected.parquet")
    assert column(table, "Cells_AreaShape_Area") == column(expected, "Cells_AreaShape_Area")


@pytest.mark.parametrize(
    ("relations", "message"),
    [
        ({"Cytoplasm": "Cells"}, "Child.Column"),
        ({"Cytoplasmm.Parent_Cells": "Cells"}, "Did you mean 'cytoplasm'"),
        ({"Cytoplasm.Parent_Cells": "Cels"}, "Did you mean 'cells'"),
        ({"Cytoplasm.Parent_Cels": "Cells"}, "Did you mean 'Parent_Cells'"),
    ],
)
def test_relations_that_do_not_fit_are_refused(plate: Path, out: Path, relations: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        convert(plate, out, relations=relations)


@pytest.mark.parametrize("runner", ["sequential", "concurrent"])
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_runners_give_the_same_bytes(plate: Path, tmp_path: Path, runner: str, workers: int) -> None:
    convert(plate, tmp_path / "expected.parquet", chunk_size=10)
    convert(plate, tmp_path / "out.parquet", chunk_size=10, workers=workers, task_runner=runner)
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    assert plan(plate, tmp_path / "p.parquet", chunk_size=10, workers=workers).workers == workers


@pytest.mark.parametrize("workers", [0, -2, 1.5, True, "2"])
def test_workers_that_are_no_number_are_refused(plate: Path, out: Path, workers: Any) -> None:
    with pytest.raises(ArgumentError, match="workers"):
        convert(plate, out, workers=workers)


def test_the_runner_must_exist(plate: Path, out: Path) -> None:
    with pytest.raises(ArgumentError, match=r"'procss'.*Did you mean 'process'"):
        convert(plate, out, task_runner="procss")
    with pytest.raises(ArgumentError, match="neither a name nor a Prefect TaskRunner"):
        convert(plate, out, task_runner=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", ["2GiB", "2 gib", "2048MiB", 2**31, "2147483648"])
def test_memory_budget_takes_sizes_and_numbers(plate: Path, out: Path, budget: Any) -> None:
    assert plan(plate, out, memory_budget=budget).options.memory_budget == 2**31


@pytest.mark.parametrize("budget", ["much", "-1GiB", 0, "0", "1XB", None, True, float("inf"), float("nan")])
def test_memory_budget_that_is_no_size_is_refused(plate: Path, out: Path, budget: Any) -> None:
    with pytest.raises(ArgumentError, match="memory_budget"):
        convert(plate, out, memory_budget=budget)


def test_a_memory_budget_that_is_too_small_is_refused_before_anything_is_read(
    plate: Path, tmp_path: Path, ear: Ear
) -> None:
    with pytest.raises(MemoryBudgetError, match=r"100\.0 MiB.*Give at least"):
        convert(plate, tmp_path / "new" / "out.parquet", memory_budget="100MiB", progress=ear)
    assert (ear.chunks, ear.results) == (0, [])


def test_overwrite(plate: Path, sites: Path, out: Path) -> None:
    first = converted(plate, out)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert(sites, out)
    assert pq.read_table(out).equals(first)
    assert "Metadata_TableNumber" in converted(sites, out, overwrite=True).column_names


def test_overwrite_of_a_folder(plate: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    convert(plate, folder, join=False)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert(plate, folder, join=False)
    convert(plate, folder, join=False, compartments=["cells"], overwrite=True)
    assert listing(folder) == ["cells", "cells/cells.parquet", "image", "image/image.parquet"]


def test_overwrite_puts_a_folder_in_the_place_of_a_file(plate: Path, out: Path) -> None:
    convert(plate, out)
    result: Any = convert(plate, out, join=False, overwrite=True)
    assert pq.read_table(result["Cells.csv"][0]["table"][0]).num_rows == rows_of(plate / "Cells.csv")


@pytest.mark.parametrize("name", ["notes.txt", "precious.parquet"])
def test_overwrite_never_deletes_what_this_program_did_not_make(plate: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"a": [1]}), folder / name)
    else:
        (folder / name).write_text("keep me")
    before = (folder / name).read_bytes()
    with pytest.raises(FileExistsError, match=name):
        convert(plate, folder, join=False, overwrite=True)
    assert (folder / name).read_bytes() == before


def test_tables_beside_their_folder_of_the_same_name_are_a_dataset_of_their_own(tmp_path: Path, out: Path) -> None:
    folder_of(tmp_path / "x", PlateShape(wells=1, sites=1, cells=6, seed=1))
    folder_of(tmp_path / "x" / "x", PlateShape(wells=1, sites=1, cells=9, seed=2))
    table = converted(tmp_path / "x", out)
    assert table.num_rows == sum(rows_of(path) for path in (tmp_path / "x").rglob("Cytoplasm.csv"))
    assert len(set(column(table, "Metadata_TableNumber"))) == 2


def test_no_metadata_means_no_image_table(plate: Path, out: Path) -> None:
    table = converted(plate, out, metadata=[])
    assert image_columns_of(table) == set()
    assert table.num_rows == rows_of(plate / "Cytoplasm.csv")


def test_two_image_tables_are_refused(plate: Path, out: Path) -> None:
    with pytest.raises(ArgumentError, match="one image table"):
        convert(plate, out, metadata=["image", "experiment"])


def test_a_folder_is_no_destination_for_one_file(plate: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"is a folder.*cells\.parquet"):
        convert(plate, tmp_path, overwrite=True)


def test_the_source_is_no_destination(database: Path) -> None:
    before = database.read_bytes()
    with pytest.raises(ArgumentError, match="the same"):
        convert(database, database, preset="cellprofiler_sqlite", overwrite=True)
    assert database.read_bytes() == before


# Names that do not exist


def keywords() -> list[str]:
    return list(inspect.signature(convert).parameters)


@pytest.mark.parametrize("name", keywords())
def test_a_misspelt_argument_names_the_nearest(plate: Path, out: Path, name: str) -> None:
    misspelt = name + name[-1]
    for function in (convert, plan):
        with pytest.raises(UnknownArgumentError, match=f"no argument '{misspelt}'. Did you mean '{name}'"):
            function(plate, out, **{misspelt: None})
    assert not out.exists()


def test_arguments_that_only_cytotable_has_are_explained(plate: Path, out: Path) -> None:
    with pytest.raises(UnknownArgumentError, match="task_runner="):
        convert(plate, out, parsl_config=object())  # type: ignore[call-arg]


def test_nothing_there_names_the_nearest(plate: Path, out: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="Did you mean 'plate'"):
        convert(plate.parent / "plaet", out)


def test_every_cell_stands_under_the_number_of_its_own_image_file(sites: Path, out: Path) -> None:
    table = converted(sites, out)
    for folder in sites.iterdir():
        mine = table.filter(pc.equal(table["Metadata_TableNumber"], zlib.crc32((folder / "Image.csv").read_bytes())))
        assert mine.num_rows == rows_of(folder / "Cytoplasm.csv")
        plate, well, site = folder.name.rsplit("-", 2)
        assert set(column(mine, "Image_FileName_DNA")) == {f"{plate}_{well}_s{site}_DNA.tif"}
