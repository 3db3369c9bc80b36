"""The SQL of ``joins`` comes from whoever starts a run: it sees the tables of one chunk, and nothing of the machine."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core import query
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites
from prefect_cytotable.tasks.core.errors import JoinQueryError

CELLS = {"cells": pa.table({"a": [1, 2]})}
NAMES = {"cells": "cells"}


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Files of many kinds that no query may read, beside which none may write."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "s.txt").write_text("hunter2\n")
    (folder / "s.csv").write_text("a\nhunter2\n")
    (folder / "s.json").write_text('{"a": "hunter2"}\n')
    pq.write_table(pa.table({"a": ["hunter2"]}), folder / "s.parquet")
    with sqlite3.connect(folder / "s.sqlite") as base:
        base.execute("CREATE TABLE t AS SELECT 'hunter2' AS a")
    base.close()
    with duckdb.connect(str(folder / "s.duckdb")) as other:
        other.execute("CREATE TABLE t AS SELECT 'hunter2' AS a")
    return folder


def ran(sql: str) -> pa.Table:
    return query.run(query.prepared(sql, NAMES), CELLS)


WAYS = {
    "a view of metadata of a file": "SELECT * FROM parquet_schema('{0}/s.parquet')",
    "a file's metadata": "SELECT * FROM parquet_file_metadata('{0}/s.parquet')",
    "key values of a file": "SELECT * FROM parquet_kv_metadata('{0}/s.parquet')",
    "json objects": "SELECT * FROM read_json_objects('{0}/s.json')",
    "ndjson": "SELECT * FROM read_ndjson('{0}/s.json')",
    "another database": "SELECT * FROM read_duckdb('{0}/s.duckdb', table_name = 't')",
    "a table of another database": "SELECT * FROM '{0}/s.duckdb'.t",
    "sqlite": "SELECT * FROM sqlite_query('{0}/s.sqlite', 'SELECT * FROM t')",
    "a list of files": "SELECT file FROM glob(['{0}/*.txt'])",
    "a file URL": "SELECT * FROM read_text('file://{0}/s.txt')",
    "an object": "SELECT * FROM read_parquet(['s3://bucket/s.parquet'])",
    "in a common table": "WITH x AS (SELECT * FROM read_csv('{0}/s.csv')) SELECT * FROM x",
    "in a lateral join": "SELECT * FROM cells, LATERAL (SELECT content FROM read_text('{0}/s.txt')) AS t",
    "in a filter": "SELECT * FROM cells WHERE a IN (SELECT length(content) FROM read_text('{0}/s.txt'))",
    "in a pivot": "PIVOT (FROM read_csv('{0}/s.csv')) ON a USING count(*)",
    "from first": "FROM '{0}/s.csv'",
    "by a name that is computed": "SELECT * FROM query_table(['{0}/s.parquet'])",
    "as serialized SQL": (
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{0}/s.txt'')'))"
    ),
    "python's variables": "SELECT * FROM private",
    "the environment": "SELECT getenv('PATH') AS a",
    "a log file": "SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = '{0}/log')",
    "a call": "CALL enable_logging(storage = 'file', storage_path = '{0}/log')",
    "copy in an explanation": "EXPLAIN ANALYZE COPY cells TO '{0}/new.csv'",
    "copy from": "COPY cells FROM '{0}/s.csv'",
    "copy a database": "COPY FROM DATABASE memory TO other",
    "attach": "ATTACH '{0}/s.duckdb' AS other (READ_ONLY)",
    "use": "USE other",
    "import": "IMPORT DATABASE '{0}'",
    "install": "FORCE INSTALL httpfs FROM 'http://127.0.0.1:9'",
    "load": "LOAD '{0}/x.duckdb_extension'",
    "set": "SET lock_configuration = false",
    "reset": "RESET enable_external_access",
    "global": "SET GLOBAL enable_external_access = true",
    "pragma": "PRAGMA enable_logging",
    "secrets": "SELECT * FROM duckdb_secrets()",
    "secret": "CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')",
    "macro": "CREATE MACRO f() AS TABLE SELECT * FROM read_text('{0}/s.txt')",
    "prepare": "PREPARE x AS SELECT * FROM read_text('{0}/s.txt')",
    "variable": "SET VARIABLE x = (SELECT content FROM read_text('{0}/s.txt'))",
    "transaction": "BEGIN TRANSACTION",
    "vacuum": "VACUUM",
    "update": "UPDATE cells SET a = 3",
    "insert": "INSERT INTO cells VALUES (3) RETURNING *",
    "a data-changing common table": "WITH x AS (DELETE FROM cells RETURNING *) SELECT * FROM x",
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_out(private: Path, way: str) -> None:
    before = {path.name: path.read_bytes() for path in private.iterdir()}
    with pytest.raises(JoinQueryError) as caught:
        ran(WAYS[way].format(private))
    assert "hunter2" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in private.iterdir()} == before


def test_what_the_ways_are_held_against_works() -> None:
    assert ran("SELECT sum(a) AS a FROM read_parquet('cells.parquet')")["a"].to_pylist() == [3]


def test_the_catalogue_has_the_chunks_tables_and_no_path() -> None:
    assert ran("SELECT table_name AS t FROM information_schema.tables")["t"].to_pylist() == ["cells"]
    assert ran("SELECT path FROM duckdb_databases() WHERE NOT internal")["path"].drop_null().to_pylist() == []


def test_the_fence_is_shut_while_a_query_runs() -> None:
    rows = ran("SELECT name, value FROM duckdb_settings()").to_pylist()
    found = {row["name"]: row["value"] for row in rows}
    assert found["enable_external_access"] == "false"
    assert found["lock_configuration"] == "true"
    assert found["python_enable_replacements"] == "false"
    assert found["autoinstall_known_extensions"] == found["autoload_known_extensions"] == "false"
    assert found["temp_directory"] in ("", None)


def test_a_query_sees_its_own_chunk_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PREFECT_API_URL", "")
    plate = write_csv_sites(tables(PlateShape(wells=2, sites=2, cells=6)), tmp_path / "plate")
    sql = (
        "SELECT Metadata_ImageNumber, (SELECT count(DISTINCT Metadata_ImageNumber) FROM cells) AS images, "
        "(SELECT count(*) FROM cells) AS seen FROM read_parquet('cells.parquet')"
    )
    convert(plate, tmp_path / "out.parquet", joins=sql, chunk_size=6)
    table = pq.read_table(tmp_path / "out.parquet")
    images = set(table["Metadata_ImageNumber"].to_pylist())
    assert len(images) > 1
    assert max(table["images"].to_pylist()) < len(images)
    assert max(table["seen"].to_pylist()) < table.num_rows
