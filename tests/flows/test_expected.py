"""The output for real exports, held against what CytoTable 1.2.6 writes for them where it is right."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from plates import converted, copy_of, differences, executed, without

from prefect_cytotable.flows import convert

pytestmark = pytest.mark.usefixtures("local")

CSV_KEYS = ["Metadata_ImageNumber", "Metadata_ObjectNumber"]
SQLITE_KEYS = ["Metadata_ImageNumber", "Cytoplasm_Number_Object_Number"]
HEALTH_KEYS = ["Metadata_TableNumber", "Metadata_ImageNumber", "Cytoplasm_ObjectNumber"]
IN_CARTA_KEYS = ["OBJECT ID", "WELL LABEL", "FOV", "Primary Target cg X wv1", "Primary Target cg Y wv1"]
JOINED = {
    "example_human": ("cellprofiler_csv/ExampleHuman", "cellprofiler_csv", CSV_KEYS),
    "nf1": ("cellprofiler_sqlite/nf1.sqlite", "cellprofiler_sqlite", SQLITE_KEYS),
    "nf1_pycytominer": ("cellprofiler_sqlite/nf1.sqlite", "cellprofiler_sqlite_pycytominer", SQLITE_KEYS),
    "cell_health": (
        "cytominer_database/cell_health.sqlite",
        "cell-health-cellprofiler-to-cytominer-database",
        HEALTH_KEYS,
    ),
}


def expected_of(samples: Path, name: str) -> pa.Table:
    return pq.read_table(samples / "expected" / f"{name}.parquet")


@pytest.mark.parametrize("chunk_size", [None, 50, 4])
@pytest.mark.parametrize("name", JOINED)
def test_every_expected_column_has_the_expected_values(
    samples: Path, tmp_path: Path, name: str, chunk_size: int | None
) -> None:
    path, preset, keys = JOINED[name]
    if chunk_size == 4 and name != "cell_health":
        pytest.skip("the others have images enough for 50")
    table = converted(samples / path, tmp_path / "out.parquet", preset=preset, chunk_size=chunk_size)
    assert differences(table, expected_of(samples, name), keys) == []


@pytest.mark.parametrize("name", JOINED)
def test_the_only_further_columns_are_image_metadata(samples: Path, tmp_path: Path, name: str) -> None:
    path, preset, _ = JOINED[name]
    table = converted(samples / path, tmp_path / "out.parquet", preset=preset)
    further = set(table.column_names) - set(expected_of(samples, name).column_names)
    assert further
    assert all(column.startswith("Image_") and "Metadata_" in column for column in further)


@pytest.mark.parametrize("name", JOINED)
def test_filenames_gives_exactly_the_columns_of_cytotable(samples: Path, tmp_path: Path, name: str) -> None:
    path, preset, _ = JOINED[name]
    table = converted(samples / path, tmp_path / "out.parquet", preset=preset, image_columns="filenames")
    assert sorted(table.column_names) == sorted(expected_of(samples, name).column_names)


def test_the_unjoined_tables_are_the_expected_ones(samples: Path, tmp_path: Path) -> None:
    result: Any = convert(samples / "cellprofiler_csv" / "ExampleHuman", tmp_path / "out", join=False)
    assert sorted(result) == ["Cells.csv", "Cytoplasm.csv", "Image.csv", "Nuclei.csv"]
    for name, entries in result.items():
        (entry,) = entries
        (path,) = entry["table"]
        stem = name.removesuffix(".csv").lower()
        expected = expected_of(samples, f"example_human_tables/{stem}")
        table = pq.read_table(path)
        keys = CSV_KEYS if stem != "image" else CSV_KEYS[:1]
        assert differences(table, expected, keys) == []
        assert set(table.column_names) == set(expected.column_names)


@pytest.mark.parametrize("chunk_size", [None, 100])
def test_in_carta_is_as_expected_joined_or_not(samples: Path, tmp_path: Path, chunk_size: int | None) -> None:
    arguments: dict[str, Any] = {"preset": "in-carta", "chunk_size": chunk_size}
    expected = expected_of(samples, "in_carta")
    table = converted(samples / "in_carta", tmp_path / "out.parquet", **arguments)
    assert differences(table, expected, IN_CARTA_KEYS) == []
    assert table.column_names == ["Metadata_TableNumber", *expected.column_names]
    unjoined: Any = convert(samples / "in_carta", tmp_path / "tables", join=False, **arguments)
    ((entry,),) = unjoined.values()
    assert pq.read_table(entry["table"][0]).equals(table)


def test_deepprofiler_is_as_expected_in_the_precision_of_its_archive(samples: Path, tmp_path: Path) -> None:
    """CytoTable writes float32 features as doubles; they are the same numbers."""
    expected = expected_of(samples, "deepprofiler_a01_5")
    source, arguments = samples / "deepprofiler", {"preset": "deepprofiler"}
    table = converted(source, tmp_path / "out.parquet", **arguments)
    assert table.column_names == expected.column_names
    features = [name for name in expected.column_names if name.startswith("efficientnet_")]
    assert len(features) == 6400
    assert {table.schema.field(name).type for name in features} == {pa.float32()}
    doubles = dict.fromkeys(features, "double")
    wide = table.cast(pa.schema([(one.name, doubles.get(one.name, one.type)) for one in table.schema]))
    assert differences(wide, expected, ["Location_Center_X", "Location_Center_Y"]) == []
    unjoined: Any = convert(source, tmp_path / "tables", join=False, **arguments)
    ((entry,),) = unjoined.values()
    assert pq.read_table(entry["table"][0]).equals(table)


def parents_of(folder: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """(cell, nucleus) of each cytoplasm of a folder of CSV files, as Python's csv module tells."""
    with (folder / "Cytoplasm.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (int(one["ImageNumber"]), int(one["ObjectNumber"])): (int(one["Parent_Cells"]), int(one["Parent_Nuclei"]))
        for one in rows
    }


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_data_a_is_the_same_as_folders_and_as_one_file(samples: Path, tmp_path: Path, chunk_size: int | None) -> None:
    """Two datasets of four images each; the database is what cytominer-database made of the folders."""
    folders, database = samples / "cytominer_database" / "data_a", samples / "cytominer_database" / "data_a.sqlite"
    as_csv = converted(folders, tmp_path / "csv.parquet", chunk_size=chunk_size)
    as_sqlite = converted(
        database, tmp_path / "sqlite.parquet", preset="cellprofiler_sqlite_cpg0016_jump", chunk_size=chunk_size
    )
    assert as_csv.num_rows == as_sqlite.num_rows == 40
    assert set(as_sqlite["Metadata_TableNumber"].to_pylist()) == {1686980, 1879029464}
    shared = sorted(set(as_csv.column_names) & set(as_sqlite.column_names) - {"Metadata_TableNumber"})
    assert len(shared) > 500
    assert differences(as_csv.select(shared), as_sqlite.select(shared), CSV_KEYS) == []
    known = parents_of(folders / "1") | parents_of(folders / "2")
    keys = ("Metadata_ImageNumber", "Metadata_ObjectNumber")
    for table, prefix in ((as_csv, "Metadata_Cytoplasm_Parent_"), (as_sqlite, "Cytoplasm_Parent_")):
        names = (*keys, f"{prefix}Cells", f"{prefix}Nuclei")
        rows = zip(*(table[name].to_pylist() for name in names), strict=True)
        assert {row[:2]: row[2:] for row in rows} == known


def test_data_a_gives_twenty_cells_of_each_folder(samples: Path, tmp_path: Path) -> None:
    source = samples / "cytominer_database" / "data_a"
    table = converted(source, tmp_path / "out.parquet")
    assert table.num_rows == 40
    counts = table.group_by("Metadata_TableNumber").aggregate([([], "count_all")])
    assert counts["count_all"].to_pylist() == [20, 20]
    images = {number: zlib.crc32((source / number / "image.csv").read_bytes()) for number in ("1", "2")}
    for folder, first, last in (("1", 1, 4), ("2", 19, 22)):
        mine = table.filter(pc.equal(table["Metadata_TableNumber"], images[folder]))
        bounds = pc.min_max(mine["Metadata_ImageNumber"]).as_py()
        assert (first <= bounds["min"], bounds["max"] <= last, mine.num_rows) == (True, True, 20)


@pytest.mark.parametrize("chunk_size", [None, 60])
def test_two_plates_in_one_folder_keep_their_cells_apart(samples: Path, tmp_path: Path, chunk_size: int | None) -> None:
    """CytoTable makes 3,872 rows of these 484, because both plates count their images from 1."""
    nf1 = samples / "cellprofiler_sqlite" / "nf1.sqlite"
    one, two = copy_of(nf1, tmp_path / "plates" / "a.sqlite"), copy_of(nf1, tmp_path / "plates" / "b.sqlite")
    executed(
        two,
        "UPDATE Per_Image SET Image_Metadata_Plate = '002'",
        "UPDATE Per_Cytoplasm SET Cytoplasm_AreaShape_Area = Cytoplasm_AreaShape_Area + 0.25",
    )
    preset = {"preset": "cellprofiler_sqlite"}
    table = converted(tmp_path / "plates", tmp_path / "both.parquet", chunk_size=chunk_size, **preset)
    assert table.num_rows == 484
    for path, plate in ((one, "001"), (two, "002")):
        number = zlib.crc32(path.read_bytes())
        mine = table.filter(pc.equal(table["Metadata_TableNumber"], number))
        assert set(mine["Image_Metadata_Plate"].to_pylist()) == {plate}
        alone = converted(path, tmp_path / f"{plate}.parquet", **preset)
        assert alone.num_rows == 242
        assert without(mine, "Metadata_TableNumber").equals(without(alone))
    assert len(set(table["Metadata_TableNumber"].to_pylist())) == 2


def test_one_site_in_two_folders_is_578_cells_with_identities_of_their_own(samples: Path, tmp_path: Path) -> None:
    """CytoTable makes 4,624 rows of these. The folders are alike, byte for byte: their names tell them apart."""
    human = samples / "cellprofiler_csv" / "ExampleHuman"
    for name in ("one", "two"):
        copy_of(human, tmp_path / "sites" / name)
    table = converted(tmp_path / "sites", tmp_path / "out.parquet")
    assert table.num_rows == 578
    identities = set(zip(*(table[name].to_pylist() for name in ("Metadata_TableNumber", *CSV_KEYS)), strict=True))
    assert len(identities) == 578
    counts = table.group_by("Metadata_TableNumber").aggregate([([], "count_all")])
    assert counts["count_all"].to_pylist() == [289, 289]
    for number in counts["Metadata_TableNumber"]:
        mine = table.filter(pc.equal(table["Metadata_TableNumber"], number))
        assert differences(mine, expected_of(samples, "example_human"), CSV_KEYS) == []
