"""What is asked of inputs past their libraries tells the same as the libraries do, and never what was true before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from concat_objects import write
from scipy import sparse

from prefect_cytotable.tasks.core.concat import chunks_h5, stores
from prefect_cytotable.tasks.core.concat.chunks_h5 import places_of
from prefect_cytotable.tasks.core.concat.dense import NEAR, take_columns
from prefect_cytotable.tasks.core.concat.reading import opened_rows
from prefect_cytotable.tasks.core.concat.zarr_nodes import read_nodes
from prefect_cytotable.tasks.core.concat.zarr_store import create_store, open_store
from prefect_cytotable.tasks.core.errors import BadSourceError


def one_of_all() -> Any:
    """An object with elements of all kinds."""
    random = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "category": pd.Categorical(random.choice(["a", "b"], 20)),
            "integer": pd.array([1, None] * 10, dtype="Int64"),
            "truth": pd.array([True, None] * 10, dtype="boolean"),
            "text": ["é"] * 20,
            "plain": [True] * 20,
        },
        index=[f"o{one}" for one in range(20)],
    )
    made = anndata.AnnData(sparse.random(20, 9, 0.3, "csr", random_state=random), obs=obs)
    made.layers["dense"] = random.random((20, 9))
    made.obsm["frame"] = pd.DataFrame({"q": [1] * 20}, index=made.obs_names)
    made.obsm["complex"] = random.random((20, 3)).astype("c16")
    made.obsm["small"] = random.integers(0, 9, (20, 2)).astype("i1")
    made.obsp["pairs"] = sparse.random(20, 20, 0.1, "csc", random_state=random)
    made.uns["told"] = {"number": 1, "text": "t", "texts": np.array(["x", "y"])}
    made.raw = made.copy()
    return made


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_metadata_of_zarr_without_zarr(
    version: int, consolidated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(one_of_all(), tmp_path / "a.zarr", version)
    zarr.open_group(path, mode="r+", use_consolidated=False).create_array(
        "layers/sharded", shape=(20, 9), dtype="i2", chunks=(5, 3), shards=(10, 9) if version == 3 else None
    )
    zarr.consolidate_metadata(path)
    if not consolidated and version == 2:
        (path / ".zmetadata").unlink()
    elif not consolidated:
        top = json.loads((path / "zarr.json").read_bytes())
        del top["consolidated_metadata"]
        (path / "zarr.json").write_text(json.dumps(top))
    files = [one.relative_to(path).as_posix() for one in path.rglob("*")]
    assert read_nodes(path, files) is not None
    found = stores.look(str(path))
    monkeypatch.setattr(stores, "read_nodes", lambda *_: None)
    assert found == stores.look(str(path))
    assert found.element("layers/sharded").chunks == (5, 3)
    assert len(found.elements) == 11


@pytest.mark.parametrize("damage", ["no JSON", "no array", "a stray node"])
def test_metadata_that_only_zarr_can_judge(damage: str, tmp_path: Path) -> None:
    path = write(one_of_all(), tmp_path / "a.zarr")
    (path / ".zmetadata").unlink(missing_ok=True)
    if damage == "no JSON":
        (path / "X" / "data" / ".zarray").write_text("{")
    elif damage == "no array":
        (path / "X" / "data" / ".zarray").write_text('{"shape": 3}')
    else:
        (path / "stray" / "array").mkdir(parents=True)
        (path / "stray" / "array" / ".zarray").write_bytes((path / "X" / "data" / ".zarray").read_bytes())
    assert read_nodes(path, [one.relative_to(path).as_posix() for one in path.rglob("*")]) is None


def test_what_is_no_anndata_is_told(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2).create_group("obs")
    with pytest.raises(BadSourceError, match="it is no AnnData file"):
        stores.look(str(tmp_path / "a.zarr"))
    path = write(anndata.AnnData(np.eye(2)), tmp_path / "b.h5ad")
    with h5py.File(path, "r+") as file:
        del file["var"]
    with pytest.raises(BadSourceError, match="var is missing, or is no data frame"):
        stores.look(str(path))


def test_places_in_hdf5_are_asked_anew_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for number, chunks in enumerate([(5, 4), None, (7, 11)]):
        values = np.full((23, 11), number, "f4")
        values[number] = 9
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=values, chunks=chunks)
        os.utime(path, ns=(number, number))  # a change is seen however coarse the clock is
        for _ in range(2):
            with opened_rows(str(path), "h5ad", ("x",), 1 << 16) as (rows,):
                np.testing.assert_array_equal(rows.read(0, 23), values)


def test_places_in_hdf5_are_asked_once_and_not_all_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "abc":
            file.create_dataset(name, data=np.arange(40), chunks=(4,))
    asked: list[str] = []
    of = chunks_h5.H5Place.of
    monkeypatch.setattr(chunks_h5.H5Place, "of", lambda dataset: asked.append(dataset.name) or of(dataset))
    monkeypatch.setattr(chunks_h5, "_known", chunks_h5._Known())
    monkeypatch.setattr(chunks_h5, "MOST_KNOWN_CHUNKS", 20)
    for names in (("a", "b"), ("b", "a"), ("c",), ("a",), ("b",)):
        places = places_of(str(tmp_path / "a.h5"), names)
        assert [place.name.rpartition("/")[2] for place in places] == list(names)
        assert all(len(place.where) == 10 for place in places)
    assert asked == ["/a", "/b", "/c", "/b"]  # "b" was not asked for for longest when "c" came


@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "?", "c16"])
@pytest.mark.parametrize("target", ["same", "f8", "strided"])
def test_columns_of_many_rows(dtype: str, target: str) -> None:
    random = np.random.default_rng(1)
    found = (random.random((3 * NEAR // 1000, 125)) * 9).astype(dtype)
    indexer = random.integers(-1, 125, 70)
    fill = np.dtype(dtype).type(1)
    part = np.empty((len(found), 140), found.dtype)[:, ::2]
    if target != "strided":
        part = np.empty((len(found), 70), found.dtype if target == "same" or dtype == "c16" else target)
    take_columns(part, found, indexer, fill)
    np.testing.assert_array_equal(part, np.where(indexer < 0, fill, found[:, indexer]))


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_that_is_written_directly(version: int, tmp_path: Path) -> None:
    root = create_store(tmp_path / "a.zarr", version)
    group = root.create_group("group", attributes={"a": 1})
    group.create_array("x", shape=(7, 3), dtype="f4", chunks=(4, 2))[...] = np.arange(21).reshape(7, 3)
    group.attrs.update({"b": 2})
    del group
    for opened in (open_store(tmp_path / "a.zarr"), zarr.open_group(tmp_path / "a.zarr", mode="r")):
        assert dict(opened["group"].attrs) == {"a": 1, "b": 2}
        np.testing.assert_array_equal(opened["group/x"][2:5], np.arange(6, 15).reshape(3, 3))
    with pytest.raises(ValueError, match="read"):
        open_store(tmp_path / "a.zarr").create_group("other")
    del root["group/x"]
    assert "x" not in open_store(tmp_path / "a.zarr")["group"]
