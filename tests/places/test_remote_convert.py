"""Conversions from and to object storage: the table that local files give, nothing left behind, no secret told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty import Fault, Faulty
from place_servers import Bucket, Server

from prefect_cytotable.flows import convert, plan
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites, write_sqlite
from prefect_cytotable.tasks.core.errors import ArgumentError, DestinationExistsError, SourceNotFoundError
from prefect_cytotable.tasks.core.model import ChunkResult
from prefect_cytotable.tasks.core.places import PlaceDeniedError, base
from prefect_cytotable.tasks.core.progress import Silent

SHAPE = PlateShape(wells=2, sites=2, cells=8)
ROWS = 8
"""Rows of a chunk: one site."""
Converter = Callable[..., Any]


class Counting(Silent):
    """Progress that remembers the chunks that were done, and what was said."""

    def __init__(self, after: int = 0, action: Callable[[], object] = lambda: None) -> None:
        self.results: list[ChunkResult] = []
        self.said: list[str] = []
        self._after, self._action = after, action

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, result: ChunkResult) -> None:
        self.results.append(result)
        if len(self.results) == self._after:
            self._action()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def remote(bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Converter:
    """`convert` with this bucket's options, and without a Prefect server."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))

    def converted(source: str | Path, destination: str | Path, **arguments: Any) -> Any:
        options = {**bucket.storage_options, "local_cache_dir": str(cache), **arguments.pop("storage_options", {})}
        return convert(source, destination, storage_options=options, **arguments)

    return converted


def put(bucket: Bucket, folder: Path, below: str) -> None:
    """Upload a file or a folder."""
    for path in [folder] if folder.is_file() else [one for one in folder.rglob("*") if one.is_file()]:
        relative = path.name if folder.is_file() else path.relative_to(folder).as_posix()
        bucket.put(f"{below}/{relative}", path.read_bytes())


def keys(bucket: Bucket) -> list[str]:
    return bucket.keys()


def table_in(bucket: Bucket, key: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(bucket.get(key)))


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*")) if cache.exists() else []


def sites(tmp_path: Path, bucket: Bucket) -> Path:
    """A plate as folders of CSV files, here and in the bucket."""
    folder = write_csv_sites(tables(SHAPE), tmp_path / "plate")
    put(bucket, folder, "data/plate")
    return folder


def test_sites_from_and_to_object_storage(remote: Converter, bucket: Bucket, cache: Path, tmp_path: Path) -> None:
    local = convert(sites(tmp_path, bucket), tmp_path / "local.parquet", chunk_size=ROWS)
    url = remote(bucket.url("data/plate"), bucket.url("out/cells.parquet"), chunk_size=ROWS)
    assert url == bucket.url("out/cells.parquet")
    assert table_in(bucket, "out/cells.parquet").equals(pq.read_table(local))
    remote(bucket.url("data/plate"), tmp_path / "here.parquet", chunk_size=ROWS)
    assert pq.read_table(tmp_path / "here.parquet").equals(pq.read_table(local))
    assert left(cache) == []
    made = [key for key in keys(bucket) if not key.startswith("data/")]
    assert made == ["out/cells.parquet", "out/cells.report.html"]


def test_parts_in_object_storage(remote: Converter, bucket: Bucket, cache: Path, tmp_path: Path) -> None:
    local = convert(sites(tmp_path, bucket), tmp_path / "local.parquet", chunk_size=ROWS)
    work = {"work_dir": bucket.url("work"), "chunk_size": ROWS, "keep_chunks": True}
    first, second = Counting(), Counting()
    remote(bucket.url("data/plate"), bucket.url("out.parquet"), progress=first, **work)
    parts = [key for key in keys(bucket) if key.startswith("work/") and key.endswith(".parquet")]
    assert len(parts) == len(first.results) > 2
    assert table_in(bucket, "out.parquet").equals(pq.read_table(local))
    bucket.put(parts[0], b"x" * len(bucket.get(parts[0])))  # altered: as long as before, but something else
    remote(bucket.url("data/plate"), bucket.url("out.parquet"), progress=second, overwrite=True, **work)
    assert sum(one.reused for one in second.results) == len(first.results) - 1
    assert table_in(bucket, "out.parquet").equals(pq.read_table(local))
    remote(bucket.url("data/plate"), bucket.url("out.parquet"), overwrite=True, **{**work, "keep_chunks": False})
    assert [key for key in keys(bucket) if key.startswith("work/")] == []
    assert left(cache) == []


def test_a_database_is_fetched_once_for_all_processes(
    remote: Converter, bucket: Bucket, server: Server, proxy: Faulty, cache: Path, tmp_path: Path
) -> None:
    file = write_sqlite(tables(SHAPE), tmp_path / "plate.sqlite")
    put(bucket, file, "data")
    size = file.stat().st_size
    local = convert(file, tmp_path / "local.parquet", preset="cellprofiler_sqlite", add_tablenumber=True)
    remote(
        bucket.url("data"),
        tmp_path / "out.parquet",
        preset="cellprofiler_sqlite",
        add_tablenumber=True,
        chunk_size=ROWS,
        task_runner="process",
        workers=2,
        storage_options=server.options(proxy.port),
    )
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(local))
    assert size < base.BLOCK  # so that the file is one request
    assert proxy.count("GET", "plate.sqlite") == 1
    assert left(cache) == []


@pytest.mark.parametrize("scheme", ["s3"])
def test_nothing_but_wanted_files_is_read_and_none_is_asked_for_twice(
    remote: Converter, bucket: Bucket, server: Server, proxy: Faulty, tmp_path: Path
) -> None:
    sites(tmp_path, bucket)
    bucket.put("data/plate/Experiment.csv", b"Key,Value\n")
    bucket.put("data/plate2/Cells.csv", b"not of this plate")
    files = 4 * SHAPE.wells * SHAPE.sites
    remote(
        bucket.url("data/plate"),
        tmp_path / "out.parquet",
        add_tablenumber=False,
        storage_options=server.options(proxy.port),
    )
    assert proxy.count("HEAD") == 0
    assert proxy.count("GET", "Cells.csv") <= 3 * files // 4  # its header, its rows, and for some a sample
    assert proxy.count("GET", "Experiment.csv") == proxy.count("GET", "plate2") == 0


def test_the_network_fails_for_a_while(
    remote: Converter, bucket: Bucket, server: Server, proxy: Faulty, cache: Path, tmp_path: Path
) -> None:
    local = convert(sites(tmp_path, bucket), tmp_path / "local.parquet", chunk_size=ROWS)

    def break_off() -> None:
        proxy.stop()
        threading.Timer(1.5, proxy.listen).start()

    heard = Counting(2, break_off)
    remote(
        bucket.url("data/plate"),
        bucket.url("out.parquet"),
        chunk_size=ROWS,
        task_runner="sequential",
        work_dir=bucket.url("work"),
        progress=heard,
        storage_options=server.options(proxy.port),
    )
    assert len(heard.results) > 2
    assert table_in(bucket, "out.parquet").equals(pq.read_table(local))
    assert left(cache) == []


@pytest.mark.parametrize("scheme", ["s3"])
def test_a_missing_permission_ends_the_run_at_once_and_keeps_what_is_done(
    remote: Converter, bucket: Bucket, server: Server, proxy: Faulty, tmp_path: Path
) -> None:
    local = convert(sites(tmp_path, bucket), tmp_path / "local.parquet", chunk_size=ROWS)
    arguments: dict[str, Any] = {
        "chunk_size": ROWS,
        "task_runner": "sequential",
        "storage_options": server.options(proxy.port),
    }
    heard = Counting(2, lambda: proxy.add(Fault("status", status=403, path="Nuclei.csv", times=1000)))
    with pytest.raises(PlaceDeniedError, match=r"Nuclei\.csv"):
        remote(bucket.url("data/plate"), bucket.url("out.parquet"), progress=heard, **arguments)
    assert "out.parquet" not in keys(bucket)
    proxy.clear()
    again = Counting()
    remote(bucket.url("data/plate"), bucket.url("out.parquet"), progress=again, **arguments)
    assert sum(one.reused for one in again.results) == len(heard.results) == 2
    assert table_in(bucket, "out.parquet").equals(pq.read_table(local))


@pytest.mark.parametrize("scheme", ["s3"])
def test_a_destination_that_exists(remote: Converter, bucket: Bucket, tmp_path: Path) -> None:
    sites(tmp_path, bucket)
    bucket.put("out.parquet", b"older")
    with pytest.raises(DestinationExistsError, match=r"out\.parquet exists.*overwrite=True"):
        remote(bucket.url("data/plate"), bucket.url("out.parquet"))
    assert bucket.get("out.parquet") == b"older"
    remote(bucket.url("data/plate"), bucket.url("out.parquet"), overwrite=True)
    assert table_in(bucket, "out.parquet").num_rows > 0
    bucket.put("tables/strange.txt", b"mine")
    with pytest.raises(DestinationExistsError, match=r"strange\.txt"):
        remote(bucket.url("data/plate"), bucket.url("tables"), join=False, overwrite=True)


def test_tables_apart(remote: Converter, bucket: Bucket, tmp_path: Path) -> None:
    sites(tmp_path, bucket)
    found = remote(bucket.url("data/plate"), bucket.url("tables"), join=False)
    assert sorted(found) == ["Cells.csv", "Cytoplasm.csv", "Image.csv", "Nuclei.csv"]
    ((cells,),) = (one["table"] for one in found["Cells.csv"])
    assert str(cells) == bucket.url("tables/cells/cells.parquet")
    assert table_in(bucket, "tables/cells/cells.parquet").num_rows > 0
    local = convert(tmp_path / "plate", tmp_path / "apart", join=False)
    ((path,),) = (one["table"] for one in local["Cells.csv"])  # type: ignore[call-overload, index]
    assert table_in(bucket, "tables/cells/cells.parquet").equals(pq.read_table(path))


def test_an_upload_that_fails_leaves_no_table(
    remote: Converter, bucket: Bucket, server: Server, proxy: Faulty, tmp_path: Path
) -> None:
    sites(tmp_path, bucket)
    if bucket.scheme == "gs":  # the name is not in the address; the first one or two tables pass
        proxy.add(Fault("status", status=403, path="/upload/", method="POST|PUT", skip=2, times=1000))
    else:
        proxy.add(Fault("status", status=403, path="tables/image", method="POST|PUT", times=1000))
    with pytest.raises(PlaceDeniedError):
        remote(bucket.url("data/plate"), bucket.url("tables"), join=False, storage_options=server.options(proxy.port))
    assert [key for key in keys(bucket) if key.startswith("tables/")] == []


@pytest.mark.parametrize("scheme", ["s3"])
def test_there_is_nothing(remote: Converter, bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=bucket.url("nowhere")):
        remote(bucket.url("nowhere"), tmp_path / "out.parquet")
    with pytest.raises(SourceNotFoundError, match="no-such-bucket"):
        remote(f"{bucket.scheme}://no-such-bucket-here/plate", tmp_path / "out.parquet")


def test_secrets_are_refused_and_told_nowhere(remote: Converter, bucket: Bucket, tmp_path: Path) -> None:
    sites(tmp_path, bucket)
    with pytest.raises(ArgumentError) as caught:
        remote(bucket.url("data/plate"), tmp_path / "out.parquet", storage_options={"account_key": "hush-hush"})
    assert "hush-hush" not in str(caught.value)
    heard = Counting()
    remote(bucket.url("data/plate"), tmp_path / "out.parquet", progress=heard)
    known = [value for name, value in bucket.server.environment.items() if "KEY" in name or "CONNECTION" in name]
    told = "\n".join(heard.said) + json.dumps(str(pq.read_metadata(tmp_path / "out.parquet").metadata))
    assert not [value for value in known if value in told]


@pytest.mark.parametrize("scheme", ["s3"])
def test_the_plan_of_a_remote_source(bucket: Bucket, cache: Path, tmp_path: Path) -> None:
    sites(tmp_path, bucket)
    options = {**bucket.storage_options, "local_cache_dir": str(cache)}
    drafted = plan(bucket.url("data/plate"), bucket.url("out.parquet"), storage_options=options)
    assert len(drafted.datasets) == SHAPE.wells * SHAPE.sites
    assert [key for key in keys(bucket) if not key.startswith("data/")] == []
