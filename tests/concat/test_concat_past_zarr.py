"""Zarr stores that are read, made and copied past zarr: annotations, whole chunks, codecs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import anndata
import numcodecs
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import read_elem, write_elem
from concat_objects import assert_same, expected, read, write
from scipy import sparse
from test_concat_runs import SMALL, made

from prefect_cytotable.flows.concat import concat
from prefect_cytotable.tasks.core.concat.model import StoreFormat
from prefect_cytotable.tasks.core.concat.stores import create_group, look
from prefect_cytotable.tasks.core.concat.zarr_making import is_plain, write_texts, write_values
from prefect_cytotable.tasks.core.concat.zarr_store import create_store
from prefect_cytotable.tasks.core.concat.zarr_values import consolidated, read_values, text_pieces
from prefect_cytotable.tasks.core.errors import ArgumentError, BadSourceError

pytestmark = pytest.mark.usefixtures("alone")

CHUNK = 1 << 16
VALUES: dict[str, Any] = {
    "integers": np.arange(-3, 40, dtype="i8"),
    "zeros": np.zeros(5, "f4"),
    "floats": np.array([0.5, np.nan, -0.0, np.inf], "f4"),
    "truth": np.array([True, False, True]),
    "none": np.empty(0, "u2"),
    "texts": np.array(["a", "", "Ünïcode 細胞", "x" * 300], object),
    "no texts": np.empty(0, object),
    "categories": pd.Categorical(["b", "a", None, "b"], categories=["b", "a", "c"]),
    "ordered": pd.Categorical([3, 1, 3], categories=[1, 2, 3], ordered=True),
}


def same(got: Any, wanted: Any) -> bool:
    """Whether two columns have the same type and values, the sign of zero and the order of categories included."""
    if isinstance(wanted, pd.Categorical):
        return got.dtype == wanted.dtype and same(got.codes, wanted.codes)
    texts = wanted.dtype.kind in "OT"
    return got.dtype == wanted.dtype and (
        got.tolist() == wanted.tolist() if texts else got.tobytes() == wanted.tobytes()
    )


@pytest.mark.parametrize("version", [2, 3])
def test_annotations_are_read_and_written_as_anndata_does(version: int, tmp_path: Path) -> None:
    theirs, ours = create_store(tmp_path / "theirs.zarr", version), create_store(tmp_path / "ours.zarr", version)
    for name, values in VALUES.items():
        write_elem(theirs, name, values)
        assert write_values(tmp_path / "ours.zarr" / name, version, values)
    for root in (theirs, ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(root.store)
    for name in VALUES:
        wanted = read_elem(theirs[name])
        assert same(read_elem(ours[name]), wanted), name
        for store in ("theirs.zarr", "ours.zarr"):
            node = consolidated(tmp_path / store)
            assert node is not None
            got = read_values(tmp_path / store, node[name])
            assert same(got, wanted), (store, name)
        assert dict(ours[name].attrs) == dict(theirs[name].attrs)


def test_what_is_left_to_anndata(tmp_path: Path) -> None:
    root = create_store(tmp_path / "a.zarr", 2)
    rare = {
        "lacking": pd.array(["a", None], dtype="string"),
        "numbers": pd.array([1, None], dtype="Int64"),
        "two": np.ones((2, 2)),
        "complex": np.array([1j]),
    }
    for name, values in rare.items():
        assert not write_values(tmp_path / "none" / name, 2, values)
        with anndata.settings.override(allow_write_nullable_strings=True):
            write_elem(root, name, values)
    zarr.consolidate_metadata(root.store)
    node = consolidated(tmp_path / "a.zarr")
    assert node is not None
    assert [read_values(tmp_path / "a.zarr", node[name]) is None for name in rare] == [True, True, True, False]
    assert consolidated(write_plainly(tmp_path / "b.zarr")) is None


def write_plainly(path: Path) -> Path:
    """A store without metadata in one file."""
    zarr.open_group(path, mode="w", zarr_format=3).create_group("obs")
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_texts_in_many_pieces(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_cytotable.tasks.core.concat.zarr_making.TEXTS", 4)
    texts = [f"name {one}" for one in range(23)]
    pieces = iter([np.array(texts[low:high], object) for low, high in ((0, 1), (1, 1), (1, 14), (14, 23))])
    root = create_store(tmp_path / "a.zarr", version)
    write_texts(tmp_path / "a.zarr" / "x", version, len(texts), pieces)
    assert root["x"].chunks == (4,)
    assert root["x"][...].tolist() == texts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(root.store)
    node = consolidated(tmp_path / "a.zarr")
    assert node is not None
    found = text_pieces(tmp_path / "a.zarr", node["x"])
    assert found is not None
    assert [list(piece) for piece in found] == [texts[low : low + 4] for low in range(0, 23, 4)]


def test_names_that_lead_elsewhere(tmp_path: Path) -> None:
    assert is_plain("Metadata Well (µ)")
    for name in ("", ".", "..", "a/b", "a\\b", ".zattrs", "zarr.json", "__x", "a\0", "a\n", None):
        assert not is_plain(name), name
    root = create_store(tmp_path / "a.zarr", 2)
    with pytest.raises(ValueError, match=r"\.\."):
        create_group(root, "../b", {})
    assert not (tmp_path / "b").exists()
    store = write(anndata.AnnData(np.ones((2, 2))), tmp_path / "c.zarr")
    metadata = store / ".zmetadata"
    found = json.loads(metadata.read_text())
    found["metadata"]["layers/../.zarray"] = found["metadata"]["X/.zarray"]
    metadata.write_text(json.dumps(found))
    assert consolidated(store) is None


@pytest.mark.parametrize("version", [2, 3])
def test_damaged_texts_are_named(version: int, tmp_path: Path) -> None:
    path = write(
        anndata.AnnData(np.ones((3, 2)), obs=pd.DataFrame(index=["a", "b", "c"])), tmp_path / "a.zarr", version
    )
    chunk = path / "var" / "_index" / ("0" if version == 2 else "c/0")
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(BadSourceError, match=r"_index/(c/)?0: the chunk cannot be decoded"):
        concat([path], tmp_path / "out.zarr")


# --- chunks that are copied ----------------------------------------------------------------------------------


def in_chunks(path: Path, seed: int, version: int, codec: Any = "auto", entries: int = 2 * CHUNK) -> Path:
    """A sparse object whose entries lie in chunks of `CHUNK`; the first of data is all zero."""
    rows, columns = 512, 1024
    random = np.random.default_rng(seed)
    places = np.sort(random.choice(rows * columns, entries, replace=False))
    values = random.random(entries, dtype=np.float32)
    values[:CHUNK] = 0
    starts = np.searchsorted(places, np.arange(rows + 1) * columns)
    matrix = sparse.csr_matrix((values, (places % columns).astype("i4"), starts.astype("i4")), (rows, columns))
    write(anndata.AnnData(matrix, obs=pd.DataFrame(index=[f"{seed}-{one}" for one in range(rows)])), path, version)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)["X"]
    for name in ("data", "indices"):
        values = group[name][...]
        group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=(CHUNK,), overwrite=True, compressors=codec
        )[...] = values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
    return path


def chunks_of(store: Path | str) -> dict[str, bytes]:
    """The bytes of the chunks of data and indices, by their names."""
    path = Path(store)
    files = sorted(one for name in ("data", "indices") for one in (path / "X" / name).rglob("*"))
    return {str(one.relative_to(path)): one.read_bytes() for one in files if one.is_file() and one.name.isdigit()}


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_that_fit_are_taken_over_as_they_are(version: int, tmp_path: Path) -> None:
    # each input has a level of its own: encoded anew, as the first one has it, the same values would be other bytes
    codecs = [
        numcodecs.Blosc("zstd", level, shuffle=0) if version == 2 else zarr.codecs.ZstdCodec(level=level)
        for level in (9, 1, 3, 1)
    ]
    inputs = [in_chunks(tmp_path / f"{seed}.zarr", seed, version, codecs[seed]) for seed in range(2)]
    inputs.append(in_chunks(tmp_path / "2.zarr", 2, version, codecs[2], entries=CHUNK + 1000))
    inputs.append(in_chunks(tmp_path / "3.zarr", 3, version, codecs[3]))  # begins within a chunk of the output
    out = concat(inputs, tmp_path / "out.zarr")
    assert_same(read(out), expected([read(path) for path in inputs]))
    got = chunks_of(out)
    data, place = ("X/data/c/", "X/indices/c/") if version == 3 else ("X/data/", "X/indices/")
    assert f"{data}0" not in got  # all zero
    for number, (one, chunk) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))):
        wanted = chunks_of(inputs[one])
        assert got[f"{place}{number}"] == wanted[f"{place}{chunk}"]
        assert got.get(f"{data}{number}") == wanted.get(f"{data}{chunk}")
    assert f"{place}6" in got


def test_a_chunk_that_is_taken_over_is_looked_at(tmp_path: Path) -> None:
    inputs = [in_chunks(tmp_path / f"{seed}.zarr", seed, 2, None) for seed in range(2)]
    place = inputs[1] / "X" / "indices" / "1"
    right = place.read_bytes()
    indices = np.frombuffer(right, "i4").copy()
    indices[77] = 1024
    place.write_bytes(indices.tobytes())
    with pytest.raises(BadSourceError, match="an index outside 0 to 1023"):
        concat(inputs, tmp_path / "out.zarr")
    place.write_bytes(right[:-8])
    with pytest.raises(BadSourceError, match=r"indices/1: the chunk cannot be decoded"):
        concat(inputs, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
    place.write_bytes(right)
    assert_same(read(concat(inputs, tmp_path / "out.zarr")), expected([read(path) for path in inputs]))


# --- the codec of the output ---------------------------------------------------------------------------------


def codec_of(store: Path | str, array: str) -> str:
    """The name of the codec in an array's metadata; "none" for none."""
    path = Path(store)
    if (path / array / ".zarray").exists():
        found = json.loads((path / array / ".zarray").read_text())["compressor"]
        return "none" if found is None else str(found.get("cname", found["id"]))
    codecs = json.loads((path / array / "zarr.json").read_text())["codecs"]
    return "none" if len(codecs) == 1 else str(codecs[1]["configuration"].get("cname", codecs[1]["name"]))


@pytest.mark.parametrize(("kind", "version"), [("dense", 2), ("sparse", 3)])
def test_compressed_zarr(kind: str, version: int, tmp_path: Path) -> None:
    given = [read(path) for path in made(tmp_path / "in", kind)]
    inputs = [write(one, tmp_path / f"{number}.zarr", version) for number, one in enumerate(given)]
    wanted = expected(given, join="outer")
    array = "X" if kind == "dense" else "X/data"
    usual = "lz4" if version == 2 else "zstd"
    for asked, found in (("source", usual), ("lz4", "lz4"), ("zstd", "zstd"), ("gzip", "gzip"), (None, "none")):
        out = concat(inputs, tmp_path / f"{asked}.zarr", join="outer", compression=asked, max_loaded_elems=SMALL)
        assert_same(read(out), wanted)
        assert codec_of(out, array) == found
        assert codec_of(concat([out], tmp_path / f"{asked}-again.zarr"), array) == found  # as the input has it
        assert look(str(out)).format is StoreFormat.ZARR
    for name, format in (("lzf", "zarr"), ("zstd", "h5ad"), ("lz4", "h5ad")):
        with pytest.raises(ArgumentError, match="alone"):
            concat(inputs, tmp_path / f"a.{format}", compression=name)


def test_an_array_whose_name_is_not_plain(tmp_path: Path) -> None:
    one = anndata.AnnData(np.ones((3, 2), "f4"), layers={"__a b": np.ones((3, 2), "f4")})
    inputs = [write(one, tmp_path / f"{number}.zarr", 3) for number in range(2)]
    out = concat(inputs, tmp_path / "out.zarr", index_unique="-", compression="gzip")
    assert codec_of(out, "layers/__a b") == "gzip"
    assert_same(read(out), expected([one, one], index_unique="-", keys=["0", "1"]))
