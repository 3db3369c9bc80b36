"""HDF5 files and zarr folders: the elements that anndata itself would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

from prefect_cytotable.tasks.core.sinks.container import Container, Encoding, texts, write_array
from prefect_cytotable.tasks.core.sinks.h5ad import H5adFile
from prefect_cytotable.tasks.core.sinks.zarr import ZarrFolder

KINDS = ("h5ad", "zarr2", "zarr3")


def container_at(path: Path, kind: str, compression: str = "none") -> Container:
    return H5adFile(path, compression) if kind == "h5ad" else ZarrFolder(path, compression, int(kind[-1]))


def opened(path: Path, kind: str) -> Any:
    return h5py.File(path) if kind == "h5ad" else zarr.open(path, mode="r")


def written(path: Path, kind: str, compression: str = "none") -> anndata.AnnData:
    """One of everything, as our own code writes it."""
    one = container_at(path, kind, compression)
    matrix = one.matrix(2, np.dtype(np.float64), 2)
    for number, chunk in enumerate(matrix.encoded([np.arange(4.0).reshape(2, 2), np.array([[4.0, 5.0], [0, 0]])])):
        matrix.put(number, chunk, 2 - number)
    matrix.close(3)
    one.group("obs", Encoding.DATAFRAME, **{"_index": "_index", "column-order": ["i", "b", "s", "n", "m", "c", "t"]})
    write_array(one, "obs/_index", texts(["r1", "r2", "r3"]))
    write_array(one, "obs/i", np.array([1, 2, 3]))
    write_array(one, "obs/b", np.array([True, False, True]))
    write_array(one, "obs/s", texts(["", "ü", "x" * 1000]))
    for name, encoding, dtype in (("n", Encoding.NULLABLE_INTEGER, np.int64), ("m", Encoding.NULLABLE_BOOLEAN, bool)):
        one.group(f"obs/{name}", encoding)
        write_array(one, f"obs/{name}/values", np.array([1, 0, 0], dtype))
        write_array(one, f"obs/{name}/mask", np.array([False, True, False]))
    one.group("obs/c", Encoding.CATEGORICAL, ordered=False)
    write_array(one, "obs/c/categories", texts(["a", "b"]))
    write_array(one, "obs/c/codes", np.array([1, -1, 0], np.int8))
    one.group("obs/t", Encoding.NULLABLE_STRING)
    write_array(one, "obs/t/values", texts(["p", "", "q"]))
    write_array(one, "obs/t/mask", np.array([False, True, False]))
    one.group("var", Encoding.DATAFRAME, **{"_index": "_index", "column-order": []})
    write_array(one, "var/_index", texts(["v1", "v2"]))
    one.group("uns", Encoding.DICT)
    one.scalar("uns/text", "ü")
    one.scalar("uns/number", 7)
    one.group("obsm", Encoding.DICT)
    growing = one.growing("obsm/spatial", np.dtype(np.float64), 3, 2)
    growing.append(np.ones((2, 2)))
    growing.append(np.full((1, 2), 2.0))
    growing.close()
    for name in ("layers", "obsp", "varm", "varp"):
        one.group(name, Encoding.DICT)
    one.finish(maker="me")
    return anndata.read_h5ad(path) if kind == "h5ad" else anndata.read_zarr(path)


@pytest.mark.parametrize("kind", KINDS)
def test_anndata_reads_what_was_meant(kind: str, tmp_path: Path) -> None:
    read = written(tmp_path / "a", kind)
    assert read.X.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert read.obs["i"].tolist() == [1, 2, 3]
    assert read.obs["b"].tolist() == [True, False, True]
    assert read.obs["s"].tolist() == ["", "ü", "x" * 1000]
    assert read.obs["n"].dtype == pd.Int64Dtype()
    assert read.obs["n"].tolist() == [1, pd.NA, 0]
    assert read.obs["m"].tolist() == [True, pd.NA, False]
    assert [None if pd.isna(one) else one for one in read.obs["c"]] == ["b", None, "a"]
    assert [None if pd.isna(one) else one for one in read.obs["t"]] == ["p", None, "q"]
    assert read.obsm["spatial"].tolist() == [[1, 1], [1, 1], [2, 2]]
    assert read.uns == {"text": "ü", "number": 7}
    assert read.var_names.tolist() == ["v1", "v2"]


@pytest.mark.parametrize("kind", KINDS)
def test_elements_are_encoded_as_anndata_encodes_them(kind: str, tmp_path: Path) -> None:
    read = written(tmp_path / "ours", kind)
    with anndata.settings.override(allow_write_nullable_strings=True):
        if kind == "h5ad":
            read.write_h5ad(tmp_path / "theirs", convert_strings_to_categoricals=False)
        else:
            with anndata.settings.override(zarr_write_format=int(kind[-1])):
                read.write_zarr(tmp_path / "theirs", convert_strings_to_categoricals=False)
    described = [_described(opened(tmp_path / name, kind), kind) for name in ("ours", "theirs")]
    described[1].pop("raw", None)  # anndata's zarr has an element that says there is none
    differing = {name for name in described[0] | described[1] if described[0].get(name) != described[1].get(name)}
    assert {name: [one.get(name) for one in described] for name in differing} == {}


def _described(root: Any, kind: str) -> dict[str, tuple[object, ...]]:
    """Type, version, shape and data type of every element, its name in front."""
    found: dict[str, tuple[object, ...]] = {}
    members = list(root.items()) if kind == "h5ad" else list(root.members())
    for name, element in members:
        attributes = {
            key: value.tolist() if hasattr(value, "tolist") else value for key, value in element.attrs.items()
        }
        shape = getattr(element, "shape", None)
        found[name] = (sorted(attributes.items(), key=str), shape, shape is not None and str(element.dtype))
        if shape is None:
            found |= {f"{name}/{inner}": value for inner, value in _described(element, kind).items()}
    return found


@pytest.mark.parametrize(
    ("kind", "compression"),
    [("h5ad", "gzip"), ("h5ad", "lzf"), ("zarr2", "lz4"), ("zarr2", "zstd"), ("zarr3", "lz4"), ("zarr3", "zstd")],
)
def test_every_compression_is_what_it_says_and_reads(kind: str, compression: str, tmp_path: Path) -> None:
    assert written(tmp_path / "a", kind, compression).X.tolist() == [[0, 1], [2, 3], [4, 5]]
    x = opened(tmp_path / "a", kind)["X"]
    assert x.chunks == (2, 2)
    if kind == "h5ad":
        assert (x.compression, x.shuffle) == (compression, True)
    else:
        assert compression in str(x.compressors)


def test_a_zarr_store_is_described_in_its_root_too(tmp_path: Path) -> None:
    for kind in ("zarr2", "zarr3"):
        written(tmp_path / kind, kind)
        consolidated = zarr.open_consolidated(str(tmp_path / kind))
        assert dict(consolidated.attrs)["maker"] == "me"
        assert consolidated["obs/c/codes"][:].tolist() == [1, -1, 0]
        assert {name for name, _ in consolidated.members()} == {
            name for name, _ in zarr.open(str(tmp_path / kind), use_consolidated=False).members()
        }


@pytest.mark.parametrize("kind", ["h5ad", "zarr2", "zarr3"])
def test_long_columns_are_cut_into_chunks(kind: str, tmp_path: Path) -> None:
    one = container_at(tmp_path / "a", kind)
    rows = np.arange(150_000)
    growing = one.growing("x", rows.dtype, len(rows))
    words = one.growing("words", None, len(rows))
    for piece in np.array_split(rows, 7):
        growing.append(piece)
        words.append(texts([str(number) for number in piece]))
    growing.close()
    words.close()
    one.finish()
    read = opened(tmp_path / "a", kind)
    assert read["x"].chunks == (65536,)
    assert np.array_equal(read["x"][:], rows)
    assert read["words"][149_999] in (b"149999", "149999")
    assert read["words"][65_536] in (b"65536", "65536")


def test_a_wide_data_frame_fits_an_attribute(tmp_path: Path) -> None:
    columns = [f"Image_Metadata_{number}" for number in range(6000)]
    one = H5adFile(tmp_path / "a.h5ad", "none", wide=True)
    one.group("obs", Encoding.DATAFRAME, **{"_index": "_index", "column-order": columns})
    one.finish()
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert file["obs"].attrs["column-order"].tolist() == columns
