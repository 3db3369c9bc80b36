"""AnnData in object storage: whole or not at all, a zarr store's root last, and nothing replaced."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from anndata_tools import differences, read
from place_servers import Bucket, Server

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites
from prefect_cytotable.tasks.core.errors import DestinationExistsError
from prefect_cytotable.tasks.core.formats import in_upload_order


@pytest.fixture(params=["s3"])
def scheme(request: pytest.FixtureRequest) -> str:
    """One service: the others differ in what the tests of places are about."""
    return str(request.param)


@pytest.fixture
def plate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))
    return write_csv_sites(tables(PlateShape(wells=2, sites=1, cells=6)), tmp_path / "plate")


def test_h5ad_and_zarr_in_a_bucket(plate: Path, server: Server, bucket: Bucket, tmp_path: Path) -> None:
    table = pq.read_table(convert(plate, tmp_path / "out.parquet", chunk_size=6))
    options = {"storage_options": {**bucket.storage_options, "local_cache_dir": str(tmp_path / "cache")}}
    convert(plate, bucket.url("out/cells.h5ad"), "anndata_h5ad", chunk_size=6, **options)
    url = convert(plate, bucket.url("out/cells.zarr"), "anndata_zarr", chunk_size=6, x_chunk_rows=4, **options)
    assert url == bucket.url("out/cells.zarr")
    written = bucket.keys()
    for key in written:
        file = tmp_path / "copy" / key.rpartition("out/")[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bucket.get(key))
    for name in ("cells.h5ad", "cells.zarr"):
        assert differences(read(tmp_path / "copy" / name), table) == []
    with pytest.raises(DestinationExistsError, match="a folder in object storage is not replaced"):
        convert(plate, bucket.url("out/cells.zarr"), "anndata_zarr", overwrite=True, **options)
    assert bucket.keys() == written
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_makes_a_store_complete_goes_last(plate: Path, zarr_format: int, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    convert(plate, out, "anndata_zarr", zarr_format=zarr_format)
    first, last = in_upload_order(out)
    assert {path.name for path in last} == ({"zarr.json"} if zarr_format == 3 else {".zgroup", ".zattrs", ".zmetadata"})
    assert all(path.parent == out for path in last)
    assert sorted(first + last) == sorted(path for path in out.rglob("*") if path.is_file())
