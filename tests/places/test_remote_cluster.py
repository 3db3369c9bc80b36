"""A Dask cluster whose workers share nothing with the flow but the object store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from place_servers import Bucket
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from waiting import free_port

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites, write_sqlite
from prefect_cytotable.tasks.core.model import ChunkResult
from prefect_cytotable.tasks.core.progress import Silent

PLATE = PlateShape(wells=2, sites=2, cells=8)


@pytest.fixture
def cluster(bucket: Bucket, tmp_path: Path) -> Iterator[str]:
    """A scheduler and two workers, each a process with folders of its own."""
    address = f"tcp://127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    commands = [["scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]]
    commands += [["worker", address, "--nthreads", "1", "--no-dashboard", "--name", name] for name in ("one", "two")]
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            home = tmp_path / f"machine-{number}"
            (home / "tmp").mkdir(parents=True)
            log = stack.enter_context((home / "log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]],
                cwd=home,
                env={**os.environ, "DASK_LOGGING__DISTRIBUTED": "error", "TMPDIR": str(home / "tmp")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
        yield address


class Watching(Silent):
    """Remembers what lies in the bucket when the first chunk is done."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.seen: list[str] = []

    def advance(self, result: ChunkResult) -> None:
        self.seen = self.seen or self._bucket.keys()


@pytest.mark.parametrize("scheme", ["s3"])
def test_workers_that_share_no_disk(bucket: Bucket, cluster: str, tmp_path: Path) -> None:
    sites = write_csv_sites(tables(PLATE), tmp_path / "sites")
    database = write_sqlite(tables(PLATE), tmp_path / "plate.sqlite")
    for path in sites.rglob("*.csv"):
        bucket.put(f"sites/{path.relative_to(sites).as_posix()}", path.read_bytes())
    bucket.put("database/plate.sqlite", database.read_bytes())
    expected = {
        "sites": pq.read_table(convert(sites, tmp_path / "sites.parquet", chunk_size=8)),
        "database": pq.read_table(
            convert(database, tmp_path / "database.parquet", preset="cellprofiler_sqlite", chunk_size=8)
        ),
    }
    options = {**bucket.storage_options, "local_cache_dir": ""}
    with prefect_test_harness(server_startup_timeout=120):
        for name, preset in (("sites", "cellprofiler_csv"), ("database", "cellprofiler_sqlite")):
            heard = Watching(bucket)
            url = convert(
                bucket.url(name),
                bucket.url(f"out/{name}.parquet"),
                preset=preset,
                chunk_size=8,
                task_runner=cluster,
                storage_options=options,
                progress=heard,
            )
            assert url == bucket.url(f"out/{name}.parquet")
            found = pq.read_table(pa.BufferReader(bucket.get(f"out/{name}.parquet")))
            assert found.equals(expected[name])
            assert any(key.startswith(f"out/.{name}.parquet.prefect-cytotable/parts/") for key in heard.seen)
        with get_client(sync_client=True) as client:
            told = json.dumps([run.model_dump(mode="json") for run in client.read_flow_runs()])
    assert [key for key in bucket.keys() if key.startswith("out/.")] == []  # noqa: SIM118 - a method of ours
    secrets = [value for name, value in bucket.server.environment.items() if "SECRET" in name]
    assert secrets
    assert not [one for one in secrets if one in told]
    assert list(tmp_path.glob("machine-*/tmp/**/*.sqlite")) == []
