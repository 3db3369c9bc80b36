"""A store in S3, behind a real server: cut into chunks, killed midway, gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ears import Ear
from fetching_tools import EXPERIMENT, listing
from pyarrow.feather import read_table

from prefect_cytotable.flows import fetch_obs

sys.path.append(str(Path(__file__).resolve().parents[1] / "places"))  # its servers are for these tests too
from place_servers import Bucket, running

pytestmark = pytest.mark.usefixtures("local")

CHUNK = 3_000
CHUNKS = 10


@pytest.fixture(scope="module")
def bucket(census: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A bucket with obs and var of the small Census."""
    with running("s3", tmp_path_factory.mktemp("s3")) as server:
        one = Bucket(server)
        store = census / EXPERIMENT
        for path in sorted(store.rglob("*")):
            relative = path.relative_to(store).as_posix()
            if path.is_file() and not relative.startswith("ms/RNA/X/"):
                one.put(f"experiment/{relative}", path.read_bytes())
        yield one


@pytest.fixture
def reachable(bucket: Bucket, local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """TileDB finds the server and its credentials as it always does: in the environment."""
    for name, value in {
        **bucket.server.environment,
        "TILEDB_VFS_S3_ENDPOINT_OVERRIDE": f"127.0.0.1:{bucket.server.port}",
        "TILEDB_VFS_S3_SCHEME": "http",
        "TILEDB_VFS_S3_USE_VIRTUAL_ADDRESSING": "false",
        "TILEDB_VFS_S3_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


KILLED = f"""
import os, signal, sys
from ears import Ear
from prefect_cytotable.flows import fetch_obs

class Killer(Ear):
    def advance(self, result):
        super().advance(result)
        if len(self.results) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

fetch_obs(sys.argv[1], "out.feather", tissue="lung", chunk_size={CHUNK}, task_runner="sequential", progress=Killer())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of POSIX systems")
@pytest.mark.usefixtures("reachable")
def test_a_run_over_s3_that_is_killed_is_gone_on_with(bucket: Bucket, census: Path, tmp_path: Path) -> None:
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, bucket.url("experiment")],
        env=here,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "out.feather").exists()
    heard = Ear()
    fetched = fetch_obs(bucket.url("experiment"), "out.feather", tissue="lung", chunk_size=CHUNK, progress=heard)
    assert fetched.chunks == CHUNKS
    assert 2 <= fetched.chunks_reused < CHUNKS
    whole = fetch_obs(census, "whole.feather", tissue="lung")
    assert fetched.rows == whole.rows
    assert read_table(fetched.path).equals(read_table(whole.path))
    assert listing(tmp_path) == ["out.feather", "whole.feather"]
    assert "testing-secret" not in "\n".join(heard.said)


@pytest.mark.usefixtures("reachable")
def test_a_remote_store_is_cut_into_chunks_by_itself(bucket: Bucket, census: Path) -> None:
    fetched = fetch_obs(bucket.url("experiment"), "out.parquet", tissue="ureter", var_joinids=True)
    assert (fetched.chunks, fetched.chunks_reused) == (1, 0)
    assert fetched.rows == fetch_obs(census, "local.parquet", tissue="ureter").rows > 0
    assert fetched.var_rows == 400
    assert Path(fetched.var_path).name == "out.var.parquet"
