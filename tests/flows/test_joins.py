"""`joins=`: SQL as CytoTable's users have written it, over the chunk's tables and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import converted, copy_of, database_of, edited, executed, folder_of, listing, rows_of, sites_of

from prefect_cytotable.flows import convert, plan
from prefect_cytotable.tasks.core.demo import PlateShape
from prefect_cytotable.tasks.core.errors import CytotableError, JoinQueryError

pytestmark = pytest.mark.usefixtures("local")

CSV_JOIN = """
    SELECT
        image.Metadata_ImageNumber,
        COLUMNS('Image_FileName_.*'),
        cytoplasm.* EXCLUDE (Metadata_ImageNumber),
        cells.* EXCLUDE (Metadata_ImageNumber, Metadata_ObjectNumber),
        nuclei.* EXCLUDE (Metadata_ImageNumber, Metadata_ObjectNumber)
    FROM
        read_parquet('cytoplasm.parquet') AS cytoplasm
    LEFT JOIN read_parquet('cells.parquet') AS cells USING (Metadata_ImageNumber)
    LEFT JOIN read_parquet('nuclei.parquet') AS nuclei USING (Metadata_ImageNumber)
    LEFT JOIN read_parquet('image.parquet') AS image USING (Metadata_ImageNumber)
    WHERE
        cells.Metadata_ObjectNumber = cytoplasm.Metadata_Cytoplasm_Parent_Cells
        AND nuclei.Metadata_ObjectNumber = cytoplasm.Metadata_Cytoplasm_Parent_Nuclei
"""
"""The join of CytoTable's preset cellprofiler_csv, word for word."""

SQLITE_JOIN = """
    SELECT
        per_image.Metadata_ImageNumber,
        per_image.Image_Metadata_Well,
        per_image.Image_Metadata_Plate,
        COLUMNS('Image_FileName_.*'),
        per_cytoplasm.* EXCLUDE (Metadata_ImageNumber),
        per_cells.* EXCLUDE (Metadata_ImageNumber),
        per_nuclei.* EXCLUDE (Metadata_ImageNumber)
    FROM
        read_parquet('per_cytoplasm.parquet') AS per_cytoplasm
    LEFT JOIN read_parquet('per_cells.parquet') AS per_cells USING (Metadata_ImageNumber)
    LEFT JOIN read_parquet('per_nuclei.parquet') AS per_nuclei USING (Metadata_ImageNumber)
    LEFT JOIN read_parquet('per_image.parquet') AS per_image USING (Metadata_ImageNumber)
    WHERE
        per_cells.Cells_Number_Object_Number = per_cytoplasm.Cytoplasm_Parent_Cells
        AND per_nuclei.Nuclei_Number_Object_Number = per_cytoplasm.Cytoplasm_Parent_Nuclei
"""
"""The join of CytoTable's preset cellprofiler_sqlite, word for word."""

PRESETS = {"csv": ("cellprofiler_csv", CSV_JOIN), "sqlite": ("cellprofiler_sqlite", SQLITE_JOIN)}


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("plate") / "plate")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "out.parquet"


def two_plates(folder: Path, kind: str) -> Path:
    """Two datasets whose images have the same numbers."""
    for name, seed in (("a", 1), ("b", 2)):
        shape = PlateShape(plate=name, wells=2, sites=2, cells=8, seed=seed)
        if kind == "csv":
            folder_of(folder / name, shape)
        else:
            database_of(folder / f"{name}.sqlite", shape)
    return folder


@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.parametrize("kind", PRESETS)
def test_the_joins_of_cytotable_give_what_the_built_in_join_gives(
    tmp_path: Path, kind: str, chunk_size: int | None
) -> None:
    preset, sql = PRESETS[kind]
    shape = PlateShape(wells=2, sites=2, cells=10)
    source = folder_of(tmp_path / "p", shape) if kind == "csv" else database_of(tmp_path / "p.sqlite", shape)
    built_in = converted(source, tmp_path / "a.parquet", preset=preset, image_columns="filenames")
    custom = converted(source, tmp_path / "b.parquet", preset=preset, joins=sql, chunk_size=chunk_size)
    assert custom.column_names == built_in.column_names
    assert custom.equals(built_in)


@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.parametrize("kind", PRESETS)
def test_datasets_with_the_same_image_numbers_are_not_crossed(
    tmp_path: Path, kind: str, chunk_size: int | None
) -> None:
    preset, sql = PRESETS[kind]
    source = two_plates(tmp_path / "plates", kind)
    built_in = converted(source, tmp_path / "a.parquet", preset=preset, image_columns="filenames")
    custom = converted(source, tmp_path / "b.parquet", preset=preset, joins=sql, chunk_size=chunk_size)
    assert custom.column_names == built_in.column_names
    assert custom.equals(built_in)
    assert len(set(custom["Metadata_TableNumber"].to_pylist())) == 2


@pytest.mark.parametrize("name", ["example_human", "nf1"])
def test_the_joins_of_cytotable_on_real_exports(samples: Path, tmp_path: Path, name: str) -> None:
    kind = "csv" if name == "example_human" else "sqlite"
    source = samples / ("cellprofiler_csv/ExampleHuman" if kind == "csv" else "cellprofiler_sqlite/nf1.sqlite")
    preset, sql = PRESETS[kind]
    built_in = converted(source, tmp_path / "a.parquet", preset=preset, image_columns="filenames")
    custom = converted(source, tmp_path / "b.parquet", preset=preset, joins=sql)
    assert custom.equals(built_in)
    assert sorted(custom.column_names) == sorted(pq.read_schema(samples / "expected" / f"{name}.parquet").names)


@pytest.mark.parametrize(
    "spelling",
    [
        "read_parquet('cells.parquet')",
        "READ_PARQUET ( 'cells.parquet' )",
        "read_parquet('Cells.parquet')",
        "read_parquet('per_cells.parquet')",
        "read_parquet('some/folder/cells.parquet')",
        "cells",
    ],
)
def test_ways_to_name_a_table(plate: Path, out: Path, spelling: str) -> None:
    table = converted(plate, out, joins=f"SELECT Metadata_ImageNumber, Metadata_ObjectNumber FROM {spelling} AS c;")
    assert table.num_rows == rows_of(plate / "Cells.csv")


def test_rows_that_the_query_leaves_out_are_accounted_for(plate: Path, out: Path, ear: Ear) -> None:
    rows = rows_of(plate / "Cytoplasm.csv")
    sql = CSV_JOIN + " AND cytoplasm.Metadata_ObjectNumber > 2"
    table = converted(plate, out, joins=sql, progress=ear)
    assert 0 < table.num_rows < rows
    lost = rows - table.num_rows
    assert f"rows: {rows} in, {table.num_rows} out, {lost} dropped" in ear.said
    assert f"  dropped {lost}: the joins query left it out" in ear.said


def test_rows_that_the_query_makes_are_accounted_for(plate: Path, out: Path, ear: Ear) -> None:
    rows = rows_of(plate / "Cytoplasm.csv")
    sql = "SELECT * FROM read_parquet('cytoplasm.parquet') UNION ALL SELECT * FROM read_parquet('cytoplasm.parquet')"
    assert converted(plate, out, joins=sql, progress=ear).num_rows == 2 * rows
    assert f"rows: {rows} in, {2 * rows} out, 0 dropped" in ear.said
    assert f"  added {rows} by the joins query" in ear.said


def test_a_query_that_finds_nothing_gives_an_empty_table_with_its_columns(plate: Path, out: Path) -> None:
    table = converted(plate, out, joins=CSV_JOIN + " AND false")
    assert table.num_rows == 0
    assert {"Metadata_ImageNumber", "Image_FileName_DNA", "Cells_AreaShape_Area"} <= set(table.column_names)


def test_computed_columns_and_aggregates(plate: Path, out: Path) -> None:
    sql = (
        "SELECT Metadata_ImageNumber, count(*) AS cells, avg(Cells_AreaShape_Area)::DECIMAL(18, 3) AS area, "
        "list(Metadata_ObjectNumber) AS numbers FROM read_parquet('cells.parquet') GROUP BY 1"
    )
    table = converted(plate, out, joins=sql)
    assert sum(table["cells"].to_pylist()) == rows_of(plate / "Cells.csv")
    assert table["area"].type == pa.float64()
    assert table["numbers"][0].as_py().startswith("[1, 2, 3")


def test_a_wrong_column_is_an_error_before_rows_are_read(plate: Path, out: Path, ear: Ear) -> None:
    with pytest.raises(JoinQueryError, match="Cels_AreaShape_Area"):
        convert(plate, out, joins="SELECT Cels_AreaShape_Area FROM read_parquet('cells.parquet')", progress=ear)
    assert (ear.chunks, ear.results) == (0, [])
    with pytest.raises(JoinQueryError, match="Cels_AreaShape_Area"):
        plan(plate, out, joins="SELECT Cels_AreaShape_Area FROM read_parquet('cells.parquet')")


def test_a_wrong_table_names_the_nearest(plate: Path, out: Path) -> None:
    with pytest.raises(JoinQueryError, match=r"'cels\.parquet'.*Did you mean 'cells'"):
        convert(plate, out, joins="SELECT * FROM read_parquet('cels.parquet')")


def test_what_is_no_sql_is_refused(plate: Path, out: Path) -> None:
    with pytest.raises(JoinQueryError, match="not valid SQL"):
        convert(plate, out, joins="SELEC * FROM cells")


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Files that no query may read."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "secret.txt").write_text("password\n")
    (folder / "secret.csv").write_text("a,b\n1,2\n")
    (folder / "secret.json").write_text('{"a": 1}\n')
    pq.write_table(pa.table({"a": [1]}), folder / "secret.parquet")
    executed(folder / "secret.db", "CREATE TABLE t (a)")
    return folder


FORBIDDEN = {
    "read_csv": "SELECT * FROM read_csv('{0}/secret.csv')",
    "read_csv_auto": "SELECT * FROM read_csv_auto('{0}/secret.csv')",
    "read_text": "SELECT * FROM read_text('{0}/secret.txt')",
    "read_blob": "SELECT * FROM read_blob('{0}/secret.txt')",
    "read_json": "SELECT * FROM read_json('{0}/secret.json')",
    "glob": "SELECT * FROM glob('{0}/*')",
    "scalar subquery": "SELECT (SELECT content FROM read_text('{0}/secret.txt')) AS x, * FROM cells",
    "replacement scan": "SELECT * FROM '{0}/secret.csv'",
    "parquet replacement scan": "SELECT * FROM '{0}/secret.parquet'",
    "another parquet file": "SELECT * FROM read_parquet('{0}/secret.parquet')",
    "parquet list": "SELECT * FROM read_parquet(['{0}/secret.parquet'])",
    "parquet_scan": "SELECT * FROM parquet_scan('{0}/secret.parquet')",
    "parquet_metadata": "SELECT * FROM parquet_metadata('{0}/secret.parquet')",
    "sniff_csv": "SELECT * FROM sniff_csv('{0}/secret.csv')",
    "query function": "SELECT * FROM query('FROM read_csv(''{0}/secret.csv'')')",
    "query_table": "SELECT * FROM query_table('{0}/secret.csv')",
    "python variable": "SELECT * FROM hidden_table",
    "url": "SELECT * FROM read_csv('http://127.0.0.1:9/a.csv')",
    "sqlite_scan": "SELECT * FROM sqlite_scan('{0}/secret.db', 't')",
    "copy": "COPY (SELECT 1) TO '{0}/new.csv'",
    "attach": "ATTACH '{0}/secret.db' AS s",
    "install": "INSTALL httpfs",
    "load": "LOAD httpfs",
    "set": "SET enable_external_access = true",
    "pragma": "PRAGMA enable_external_access = true",
    "set in two statements": "SET enable_external_access = true; SELECT * FROM read_csv('{0}/secret.csv')",
    "two selects": "SELECT 1 AS a; SELECT 2 AS a",
    "select and copy": "SELECT * FROM cells; COPY cells TO '{0}/new.csv'",
    "create": "CREATE TABLE x AS SELECT * FROM cells",
    "delete": "DELETE FROM cells",
    "export": "EXPORT DATABASE '{0}/new'",
    "hidden in the replaced name": "SELECT * FROM read_parquet('cells.parquet''), read_csv(''{0}/secret.csv')",
    "hidden in a comment": "SELECT * FROM cells -- ' \n, read_csv('{0}/secret.csv')",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_query_reads_and_writes_nothing_else(plate: Path, secrets: Path, out: Path, name: str) -> None:
    hidden_table = pa.table({"a": [1]})
    before = listing(secrets)
    arguments: dict[str, Any] = {"joins": FORBIDDEN[name].format(secrets)}
    with pytest.raises(CytotableError) as caught:
        convert(plate, out, **arguments)
    assert "joins" in str(caught.value)
    assert "password" not in str(caught.value)
    assert listing(secrets) == before
    assert listing(out.parent) == []
    assert hidden_table.num_rows == 1


def test_the_chunks_tables_cannot_be_read_as_files_either(plate: Path, out: Path, tmp_path: Path) -> None:
    """A file that happens to be called cells.parquet is not what `read_parquet('cells.parquet')` means."""
    pq.write_table(pa.table({"a": [1]}), tmp_path / "cells.parquet")
    assert Path.cwd() == tmp_path
    table = converted(plate, out, joins="SELECT * FROM read_parquet('cells.parquet')")
    assert "a" not in table.column_names
    assert table.num_rows == rows_of(plate / "Cells.csv")


def test_the_environment_stays_hidden(plate: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TEST_SECRET", "password")
    with pytest.raises(CytotableError):
        convert(plate, out, joins="SELECT getenv('TEST_SECRET') AS x, Metadata_ImageNumber FROM cells")


def test_a_query_that_breaks_on_the_data_leaves_nothing(plate: Path, out: Path) -> None:
    sql = "SELECT Metadata_ImageNumber, error('no ' || Image_FileName_DNA) AS x FROM read_parquet('image.parquet')"
    with pytest.raises(JoinQueryError, match="no demo-plate"):
        convert(plate, out, joins=sql)
    assert listing(out.parent) == []


def test_a_dataset_without_a_compartment_gives_the_query_an_empty_table(tmp_path: Path, out: Path, ear: Ear) -> None:
    source = sites_of(tmp_path / "sites")
    lacking = sorted(source.iterdir())[0]
    lost = rows_of(lacking / "Cytoplasm.csv")
    (lacking / "Cells.csv").unlink()
    rows = sum(rows_of(path) for path in source.rglob("Cytoplasm.csv"))
    assert converted(source, out, joins=CSV_JOIN, progress=ear).num_rows == rows - lost
    assert f"rows: {rows} in, {rows - lost} out, {lost} dropped" in ear.said


def test_columns_with_quotes_and_blanks_can_be_queried(plate: Path, tmp_path: Path, out: Path) -> None:
    source = copy_of(plate, tmp_path / "odd")
    name = 'It\'s a "size"'
    edited(source / "Cells.csv", lambda rows: [[one.replace("AreaShape_Area", name) for one in rows[0]], *rows[1:]])
    quoted = "Cells_" + name.replace('"', '""')
    table = converted(source, out, joins=f'SELECT Metadata_ImageNumber, "{quoted}" AS area FROM cells')
    assert table["area"].null_count == 0
