"""Concatenations from and to object storage: what local files give, all or nothing of it, nothing left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from place_servers import Bucket

from prefect_cytotable.flows import cli
from prefect_cytotable.flows.concat import concat, plan_concat
from prefect_cytotable.tasks.core.concat.model import JobResult
from prefect_cytotable.tasks.core.concat.progress import SilentBlocks
from prefect_cytotable.tasks.core.concat.remote import UPLOADING
from prefect_cytotable.tasks.core.errors import (
    ArgumentError,
    BadSourceError,
    DestinationExistsError,
    SourceChangedError,
    SourceNotFoundError,
)
from prefect_cytotable.tasks.core.store import scratch_of

pytestmark = [pytest.mark.parametrize("scheme", ["s3"]), pytest.mark.filterwarnings("ignore:Writing zarr v2")]

Concat = Callable[..., Any]


@pytest.fixture
def options(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Storage options of the bucket, and no Prefect server."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))
    return {**bucket.storage_options, "local_cache_dir": str(tmp_path / "cache")}


@pytest.fixture
def inputs(bucket: Bucket, tmp_path: Path) -> list[str]:
    """An h5ad file and a zarr store in the bucket."""
    urls = []
    for number, format in enumerate(("h5ad", "zarr")):
        random = np.random.default_rng(number)
        names = [f"v{one}" for one in random.permutation(30)[:20]]
        one = anndata.AnnData(
            random.random((40, 20)),
            obs=pd.DataFrame({"well": ["A01", "B02"] * 20}, index=[f"{number}-{one}" for one in range(40)]),
            var=pd.DataFrame(index=names),
        )
        path = tmp_path / f"in{number}.{format}"
        (one.write_h5ad if format == "h5ad" else one.write_zarr)(path)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                bucket.put(f"in/{file.relative_to(tmp_path).as_posix()}", file.read_bytes())
        urls.append(bucket.url(f"in/{path.name}"))
    return urls


def wanted(tmp_path: Path) -> anndata.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.concat(
            [anndata.io.read_h5ad(tmp_path / "in0.h5ad"), anndata.io.read_zarr(tmp_path / "in1.zarr")], join="outer"
        )


def assert_equal(got: anndata.AnnData, one: anndata.AnnData) -> None:
    assert list(got.var_names) == list(one.var_names)
    pd.testing.assert_frame_equal(got.obs, one.obs, check_dtype=False, check_categorical=False)
    np.testing.assert_array_equal(got.X, one.X)


def fetched(bucket: Bucket, below: str, folder: Path) -> anndata.AnnData:
    """What the bucket has below a key, read."""
    keys = bucket.keys()
    for key in keys:
        if key == below or key.startswith(f"{below}/"):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bucket.get(key))
    path = folder / below
    return anndata.io.read_h5ad(path) if path.suffix == ".h5ad" else anndata.io.read_zarr(path)


def outputs(bucket: Bucket) -> list[str]:
    keys = bucket.keys()
    return [key for key in keys if not key.startswith("in/")]


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_from_and_to_a_bucket(
    bucket: Bucket, inputs: list[str], options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out/all.zarr", "out/all.h5ad"):
        url = concat(inputs, bucket.url(name), join="outer", storage_options=options)
        assert url == bucket.url(name)
        assert_equal(fetched(bucket, name, tmp_path / "got"), wanted(tmp_path))
        with pytest.raises(DestinationExistsError, match="all"):
            concat(inputs, bucket.url(name), storage_options=options)
    assert "out/all.zarr/.zmetadata" in outputs(bucket)
    concat(inputs[:1], bucket.url("out/all.h5ad"), storage_options=options, overwrite=True)
    assert fetched(bucket, "out/all.h5ad", tmp_path / "new").n_obs == 40
    with pytest.raises(DestinationExistsError, match="is not replaced"):
        concat(inputs, bucket.url("out/all.zarr"), storage_options=options, overwrite=True)
    assert left(tmp_path) == []

    command = ["concat", *inputs, str(tmp_path / "here.h5ad"), "--join", "outer", "--storage-option"]
    command += [f"{name}={value}" for name, value in options.items()]
    assert cli.main([*command, "--plan"]) == 0
    assert f"input        {inputs[1]}: 40 obs x 20 vars, zarr" in capsys.readouterr().out
    assert left(tmp_path) == []
    assert cli.main(command) == 0
    assert_equal(anndata.io.read_h5ad(tmp_path / "here.h5ad"), wanted(tmp_path))


class Meddler(SilentBlocks):
    """Does something when the first block is done."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def advance(self, result: JobResult) -> None:
        action, self._action = self._action, None
        if action:
            action()


def test_all_or_nothing(bucket: Bucket, inputs: list[str], options: dict[str, Any], tmp_path: Path) -> None:
    out = bucket.url("out.zarr")
    meddler = Meddler(lambda: bucket.put("out.zarr/mine.txt", b"mine"))
    with pytest.raises(DestinationExistsError, match=r"mine\.txt"):
        concat(inputs, out, storage_options=options, progress=meddler)
    assert outputs(bucket) == ["out.zarr/mine.txt"]

    meddler = Meddler(lambda: bucket.put("in/in1.zarr/X/0.0", b"other"))
    with pytest.raises(SourceChangedError, match=r"in1\.zarr was written to"):
        concat(inputs, bucket.url("other.zarr"), storage_options=options, progress=meddler)
    assert outputs(bucket) == ["out.zarr/mine.txt"]


def test_an_upload_that_was_killed_is_made_again(
    bucket: Bucket, inputs: list[str], options: dict[str, Any], tmp_path: Path
) -> None:
    out = bucket.url("out.zarr")
    folder = scratch_of(out, (("local_cache_dir", options["local_cache_dir"]),))
    folder.mkdir(parents=True)
    (folder / UPLOADING).touch()
    bucket.put("out.zarr/X/9.9", b"half")
    concat(inputs, out, join="outer", storage_options=options)
    assert "out.zarr/X/9.9" not in outputs(bucket)
    assert_equal(fetched(bucket, "out.zarr", tmp_path / "got"), wanted(tmp_path))


def test_what_cannot_be_is_refused(bucket: Bucket, inputs: list[str], options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"none\.zarr"):
        plan_concat([bucket.url("in/none.zarr")], storage_options=options)
    bucket.put("in/bad.h5ad", b"no HDF5")
    with pytest.raises(BadSourceError, match=r"in/bad\.h5ad: it is no HDF5"):
        concat([bucket.url("in/bad.h5ad")], tmp_path / "out.h5ad", storage_options=options)
    bucket.put("in/in1.zarr/../../../trap", b"trap")
    with pytest.raises(BadSourceError, match="cannot be a file's name"):
        concat(inputs, tmp_path / "out.h5ad", storage_options=options)
    with pytest.raises(ArgumentError, match="secret"):
        concat(inputs, tmp_path / "out.h5ad", storage_options={"secret_access_key": "x"})
    with pytest.raises(ArgumentError, match="one of the inputs"):
        concat(inputs, inputs[1], storage_options=options)
    assert left(tmp_path) == []
    assert not list(tmp_path.rglob("trap"))
