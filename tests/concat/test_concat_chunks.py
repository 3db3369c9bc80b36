"""Chunks of zarr arrays and HDF5 datasets that are read and written past their libraries; compressed outputs."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from concat_objects import assert_same, expected, read
from ears import Ear
from test_concat_runs import SMALL, made
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from prefect_cytotable.flows.concat import concat
from prefect_cytotable.tasks.core.concat.chunks import ChunkFiles
from prefect_cytotable.tasks.core.concat.chunks_h5 import H5Place
from prefect_cytotable.tasks.core.concat.packing import BEGUN
from prefect_cytotable.tasks.core.concat.reading import DirectRows, opened_rows
from prefect_cytotable.tasks.core.errors import ArgumentError, BadSourceError

pytestmark = pytest.mark.usefixtures("alone")

RANDOM = np.random.default_rng(0)
VALUES = {
    "f4": RANDOM.random((23, 11), dtype=np.float32),
    ">i8": RANDOM.integers(-5, 5, (23, 11)).astype(">i8"),
    "?": RANDOM.random((23, 11)) < 0.5,
    "f8": np.where(RANDOM.random((23, 11)) < 0.9, 0, -0.0),
    "u2": RANDOM.integers(0, 9, 23).astype("u2"),
}
RANGES = ((0, 23), (0, 5), (3, 4), (4, 15), (20, 23), (7, 7))


def check(rows: Any, values: Any) -> None:
    """Reads all kinds of ranges, into arrays of the same type and of another."""
    for low, high in RANGES:
        found = rows.read(low, high)
        assert found.astype(values.dtype).tobytes() == values[low:high].tobytes()  # the sign of zero, too
        other = np.empty((high - low, *values.shape[1:]), "f8")
        rows.fill(low, other)
        np.testing.assert_array_equal(other, values[low:high])


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(
    ("version", "codec"),
    [
        (2, "auto"),
        (2, None),
        (3, None),
        (3, ZstdCodec(level=1, checksum=True)),
        (3, GzipCodec(level=1)),
        (3, BloscCodec(cname="lz4", shuffle="bitshuffle")),
    ],
)
def test_zarr_past_zarr(kind: str, version: int, codec: Any, tmp_path: Path) -> None:
    values = VALUES[kind]
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    array = root.create_array("x", shape=values.shape, dtype=kind, chunks=(5, 4)[: values.ndim], compressors=codec)
    array[...] = values
    files = ChunkFiles.of(tmp_path / "a.zarr" / "x")
    assert files is not None
    with opened_rows(str(tmp_path / "a.zarr"), "zarr", ("x",), 1 << 16) as (rows,):
        assert isinstance(rows, DirectRows)
        check(rows, values)


def test_what_is_left_to_zarr(tmp_path: Path) -> None:
    values = VALUES["f4"]
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    root.create_array("sharded", shape=values.shape, dtype="f4", chunks=(5, 4), shards=(10, 8))[...] = values
    with opened_rows(str(tmp_path / "a.zarr"), "zarr", ("sharded",), 1 << 16) as (rows,):
        assert not isinstance(rows, DirectRows)
        check(rows, values)


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    for name, codec in (("packed", "auto"), ("plain", None)):
        root.create_array(name, shape=(23, 11), dtype="f4", chunks=(5, 4), compressors=codec)[...] = VALUES["f4"]
        chunk = tmp_path / "a.zarr" / name / "1.2"
        chunk.write_bytes(chunk.read_bytes()[:-20])
        with (
            opened_rows(str(tmp_path / "a.zarr"), "zarr", (name,), 1 << 16) as (rows,),
            pytest.raises(BadSourceError, match=rf"{name}/1\.2: the chunk cannot be decoded"),
        ):
            rows.read(0, 23)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True},
        {"compression": "lzf"},
        {"fletcher32": True},
    ],
    ids=str,
)
def test_hdf5_past_hdf5(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    values = VALUES[kind]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made_ = file.create_dataset("x", values.shape, kind, chunks=(5, 4)[: values.ndim], **options)
        made_[5:] = values[5:]
        made_[:5] = values[:5]  # chunks do not lie in order
        if not options:
            file.create_dataset("holes", values.shape, kind, chunks=(5, 4)[: values.ndim], fillvalue=1)
    direct = "lzf" not in options.values() and "fletcher32" not in options
    with h5py.File(tmp_path / "a.h5") as file:
        assert (H5Place.of(file["x"]) is not None) == direct
    with opened_rows(str(tmp_path / "a.h5"), "h5ad", ("x",), 1 << 16) as (rows,):
        check(rows, values)
    if not options:
        with opened_rows(str(tmp_path / "a.h5"), "h5ad", ("holes",), 1 << 16) as (rows,):
            check(rows, np.ones_like(values))


def test_a_user_block_before_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file.create_dataset("x", data=VALUES["f4"], chunks=(5, 4))
        file.create_dataset("y", data=VALUES["f4"])
    with opened_rows(str(tmp_path / "a.h5"), "h5ad", ("x", "y"), 1 << 16) as found:
        for rows in found:
            check(rows, VALUES["f4"])


def test_a_chunk_that_unpacks_to_more_than_it_should(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    array = root.create_array("x", shape=(23, 11), dtype="f4", chunks=(5, 4), compressors=numcodecs.GZip(1))
    array[...] = VALUES["f4"]
    with opened_rows(str(tmp_path / "a.zarr"), "zarr", ("x",), 1 << 16) as (rows,):
        check(rows, VALUES["f4"])
    (tmp_path / "a.zarr" / "x" / "1.2").write_bytes(gzip.compress(bytes(1 << 24)))
    with (
        opened_rows(str(tmp_path / "a.zarr"), "zarr", ("x",), 1 << 16) as (rows,),
        pytest.raises(BadSourceError, match=r"x/1\.2: the chunk cannot be decoded"),
    ):
        rows.read(0, 23)


def test_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made_ = file.create_dataset("x", data=VALUES["f4"], chunks=(5, 4), compression="gzip")
        made_.id.write_direct_chunk((5, 8), b"no deflate")
    with (
        opened_rows(str(tmp_path / "a.h5"), "h5ad", ("x",), 1 << 16) as (rows,),
        pytest.raises(BadSourceError, match=r"a\.h5, /x: a chunk cannot be decoded"),
    ):
        rows.read(0, 23)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compressed_h5ad(kind: str, compression: str, tmp_path: Path) -> None:
    inputs = made(tmp_path / "in", kind)
    wanted = expected([read(path) for path in inputs], join="outer")
    out = concat(inputs, tmp_path / "a.h5ad", join="outer", compression=compression, max_loaded_elems=SMALL)
    again = concat([out], tmp_path / "b.h5ad", keys=["x"])
    plain = concat([out], tmp_path / "c.h5ad", compression=None, task_runner="sequential")
    for path, found in ((out, compression), (again, compression), (plain, None)):
        assert_same(read(path), wanted)
        with h5py.File(path) as file:
            array = file["X"] if kind == "dense" else file["X/data"]
            assert array.compression == found
    with pytest.raises(ArgumentError, match="for h5ad"):
        concat(inputs, tmp_path / "a.zarr", compression=compression)


def test_an_output_that_was_broken_off_while_it_was_packed(tmp_path: Path) -> None:
    inputs = made(tmp_path / "in", "sparse")

    class Deadly(Ear):
        def finish(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        concat(inputs, tmp_path / "a.h5ad", compression="gzip", progress=Deadly())
    (place,) = tmp_path.glob(".a*/concat-*")
    (place / BEGUN).touch()
    (place / "output.h5ad").write_bytes(b"damaged")
    out = concat(inputs, tmp_path / "a.h5ad", compression="gzip")
    assert_same(read(out), expected([read(path) for path in inputs]))
