"""Plates in object storage, on a real server: one listing for all of them, marks instead of dates."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ears import Ear
from screens import again, cells_of, plate_of_sites, set_area
from waiting import clear

from prefect_cytotable.tasks.core.errors import ArgumentError, SourceNotFoundError
from prefect_cytotable.tasks.core.places.s3 import S3
from prefect_cytotable.tasks.core.reprocess.errors import PlatesFailedError

sys.path.append(str(Path(__file__).resolve().parents[1] / "places"))  # its servers are for these tests too
from place_servers import Bucket, running

CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running("s3", tmp_path_factory.mktemp("server")) as one:
        yield one


@pytest.fixture
def bucket(server: Any, local: None, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    clear(monkeypatch, *CREDENTIALS)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Bucket(server)


@pytest.fixture
def options(bucket: Bucket, tmp_path: Path) -> dict[str, Any]:
    return {"storage_options": {**bucket.storage_options, "local_cache_dir": str(tmp_path / "cache")}}


def put(bucket: Bucket, folder: Path) -> None:
    for path in folder.rglob("*.csv"):
        bucket.put(f"screen/{path.relative_to(folder.parent).as_posix()}", path.read_bytes())


def index_in(bucket: Bucket) -> dict[str, dict[str, Any]]:
    table = pq.read_table(pa.BufferReader(bucket.get("tables/index.parquet")))
    return {row["plate"]: row for row in table.to_pylist()}


@pytest.fixture
def screen(bucket: Bucket, tmp_path: Path) -> Path:
    """Two plates, here and in the bucket."""
    for number, name in enumerate(("a", "b")):
        put(bucket, plate_of_sites(tmp_path / "screen" / name, seed=number))
    bucket.put("screen/../escape/Cells.csv", b"x")
    bucket.put("screen/.hidden/Cells.csv", b"x")
    bucket.put("screen-2/other/Cells.csv", b"x")
    return tmp_path / "screen"


def test_plates_from_and_to_a_bucket(
    bucket: Bucket, screen: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = bucket.url("screen"), bucket.url("tables")
    assert again(root, out, settle="10min", **options).waiting == ("a", "b")
    assert again(root, out, **options).converted == ("a", "b")
    keys = bucket.keys()
    assert [key for key in keys if key.startswith("tables") and not key.endswith(".html")] == [
        "tables/a.parquet",
        "tables/b.parquet",
        "tables/index.parquet",
    ]
    again(screen, tmp_path / "local")
    table = pq.read_table(pa.BufferReader(bucket.get("tables/b.parquet"))).replace_schema_metadata()
    assert table.equals(cells_of(tmp_path / "local", "b"))
    row = index_in(bucket)["b"]
    assert (row["status"], row["path"], row["source"]) == ("converted", f"{out}/b.parquet", f"{root}/b")

    pages: list[str] = []
    page = S3.page

    def counted(self: S3, *arguments: Any) -> Any:
        pages.append(arguments[1])
        return page(self, *arguments)

    monkeypatch.setattr(S3, "page", counted)
    assert again(root, out, **options).unchanged == ("a", "b")
    assert sorted(pages) == ["screen/", "tables/"]  # one listing each, whatever the number of plates
    put(bucket, screen / "a")  # the same content again, with another date
    assert again(root, out, **options).unchanged == ("a", "b")

    set_area(screen / "b" / "b-A01-2", "4711")
    put(bucket, screen / "b")
    heard = Ear()
    assert again(root, out, progress=heard, **options).converted == ("b",)
    table = pq.read_table(pa.BufferReader(bucket.get("tables/b.parquet")))
    assert 4711 in table.column("Cells_AreaShape_Area").to_pylist()
    row = index_in(bucket)["b"]
    assert row["chunks_reused"] == row["chunks"] - 1 > 0  # every site was uploaded again, and one of them had changed


def test_from_a_bucket_to_this_machine(bucket: Bucket, screen: Path, options: dict[str, Any], tmp_path: Path) -> None:
    again(bucket.url("screen"), tmp_path / "out", **options)
    again(screen, tmp_path / "local")
    assert cells_of(tmp_path / "out", "a").equals(cells_of(tmp_path / "local", "a"))
    copied = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock"]
    assert copied == []


def test_what_a_bucket_has_of_others_stays(bucket: Bucket, screen: Path, options: dict[str, Any]) -> None:
    bucket.put("tables/a.parquet", b"mine")
    with pytest.raises(PlatesFailedError, match="1 of 2"):
        again(bucket.url("screen"), bucket.url("tables"), **options)
    assert bucket.get("tables/a.parquet") == b"mine"
    assert {name: row["status"] for name, row in index_in(bucket).items()} == {"a": "failed", "b": "converted"}


def test_wrong_places(bucket: Bucket, screen: Path, options: dict[str, Any]) -> None:
    with pytest.raises(SourceNotFoundError, match="there are no objects"):
        again(bucket.url("scren"), bucket.url("tables"), **options)
    with pytest.raises(ArgumentError, match="inside 'a', which may be a plate"):
        again(bucket.url("screen"), bucket.url("screen/a/tables"), **options)
    with pytest.raises(ArgumentError, match="an output is a folder, and folders in object storage"):
        again(bucket.url("screen"), bucket.url("tables"), **{**options, "options": {"join": False}})


def test_a_destination_in_the_root_is_no_plate(bucket: Bucket, screen: Path, options: dict[str, Any]) -> None:
    out = bucket.url("screen/tables")
    assert again(bucket.url("screen"), out, **options).converted == ("a", "b")
    assert again(bucket.url("screen"), out, **options).converted == ()


def test_the_services_clock_being_ahead_is_waited_for(
    bucket: Bucket, screen: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: earlier)
    done = again(bucket.url("screen"), bucket.url("tables"), **options)
    assert done.waiting == ("a", "b")
    assert "in the future" in done.outcomes[0].why
