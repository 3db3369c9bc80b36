"""The report for a browser of an output in object storage: beside it, and never over what is another's."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from place_servers import Bucket

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_sqlite
from prefect_cytotable.tasks.core.html.page import mark

SHAPE = PlateShape(wells=2, sites=1, cells=8)


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))


def test_it_lies_beside_the_output_and_spares_what_another_made(bucket: Bucket, tmp_path: Path) -> None:
    source = write_sqlite(tables(SHAPE), tmp_path / "plate.sqlite")
    options = {**bucket.storage_options, "local_cache_dir": str(tmp_path / "cache")}
    bucket.put("out/mine.report.html", b"mine")
    for name, page in (("cells", "cells.report.html"), ("mine", "mine.parquet.report.html")):
        for overwrite in (False, True):
            convert(
                source, bucket.url(f"out/{name}.parquet"), preset="cellprofiler_sqlite", storage_options=options,
                overwrite=overwrite, task_runner="sequential",
            )  # fmt: skip
        text = bucket.get(f"out/{page}").decode()
        assert text.startswith(mark(f"{name}.parquet"))
        rows = pq.read_table(pa.BufferReader(bucket.get(f"out/{name}.parquet"))).num_rows
        assert f"demo-plate: {rows} cells in 2 of 96 wells" in text
    assert bucket.get("out/mine.report.html") == b"mine"
    found = bucket.keys()
    names = ["cells.parquet", "cells.report.html", "mine.parquet", "mine.parquet.report.html", "mine.report.html"]
    assert sorted(found) == [f"out/{name}" for name in names]
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
