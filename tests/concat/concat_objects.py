"""AnnData objects of every kind for the tests of concatenation, written, read again, and compared."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import awkward
import numpy as np
import pandas as pd
from hypothesis import strategies as st
from scipy import sparse

DTYPES = ("f4", "f8", "i8", "i4", "u1", "?")
SPARSE_DTYPES = ("f4", "f8", "i8", "i4", "?")
POOL = [f"name {one}" for one in range(7)]


def write(one: Any, path: Path, zarr_format: int = 2) -> Path:
    """Write an object: the path's ending tells the format."""
    with warnings.catch_warnings(), anndata.settings.override(allow_write_nullable_strings=True):
        warnings.simplefilter("ignore")
        if path.suffix == ".h5ad":
            one.write_h5ad(path)
        else:
            with anndata.settings.override(zarr_write_format=zarr_format):
                one.write_zarr(path)
    return path


def read(path: Path | str) -> Any:
    """Read an object into memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.io.read_h5ad(path) if Path(path).suffix == ".h5ad" else anndata.io.read_zarr(path)


def expected(objects: Sequence[Any], **arguments: Any) -> Any:
    """What `anndata.concat` gives; X that only some objects have is treated as any layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some = 0 < sum(one.X is not None for one in objects) < len(objects)
        if some:
            objects = [one.copy() for one in objects]
            for one in objects:
                if one.X is not None:
                    one.layers["what was X"] = one.X
                    del one.X
        keys = arguments.pop("keys", None)
        result = anndata.concat(list(objects), keys=keys, **arguments)
        if some and "what was X" in result.layers:
            result.X = result.layers.pop("what was X")
        return result


def assert_same(got: Any, wanted: Any) -> None:
    """Refuse any difference in names, values or types."""
    assert got.shape == wanted.shape
    for axis in ("obs", "var"):
        assert_frames(getattr(got, axis), getattr(wanted, axis), axis)
        for suffix in "mp":
            assert_mappings(getattr(got, axis + suffix), getattr(wanted, axis + suffix), axis + suffix)
    assert_mappings(got.layers, wanted.layers, "layers")
    assert (got.X is None) == (wanted.X is None)
    if wanted.X is not None:
        assert_arrays(got.X, wanted.X, "X")
    assert plain(got.uns) == plain(wanted.uns)
    assert (got.raw is None) == (wanted.raw is None)
    if wanted.raw is not None:
        assert_arrays(got.raw.X, wanted.raw.X, "raw/X")
        assert_frames(got.raw.var, wanted.raw.var, "raw/var")
        assert_mappings(got.raw.varm, wanted.raw.varm, "raw/varm")


def plain(value: Any) -> Any:
    """Nested mappings and arrays as values that can be compared."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return (str(value.dtype), value.tolist()) if isinstance(value, np.ndarray) else value


def assert_mappings(got: Any, wanted: Any, where: str) -> None:
    assert set(got) == set(wanted), where
    for key, value in wanted.items():
        if isinstance(value, pd.DataFrame):
            assert_frames(got[key], value, f"{where}/{key}")
        elif isinstance(value, awkward.Array):
            assert awkward.almost_equal(got[key], value), f"{where}/{key}"
        else:
            assert_arrays(got[key], value, f"{where}/{key}")


def assert_arrays(got: Any, wanted: Any, where: str) -> None:
    assert sparse.issparse(got) == sparse.issparse(wanted), where
    assert got.dtype == wanted.dtype, (where, got.dtype, wanted.dtype)
    assert got.shape == wanted.shape, where
    if sparse.issparse(wanted):
        if where.startswith(("X", "layers", "raw")):
            assert got.has_sorted_indices, where
        got, wanted = got.toarray(), wanted.toarray()
    np.testing.assert_array_equal(got, wanted, err_msg=where)


def assert_frames(got: pd.DataFrame, wanted: pd.DataFrame, where: str) -> None:
    assert list(got.index) == list(wanted.index), where
    assert list(got.columns) == list(wanted.columns), where
    for name in wanted.columns:
        one, other = got[name].reset_index(drop=True), wanted[name].reset_index(drop=True)
        if other.dtype == object:  # texts with gaps come back as nullable texts, numbers as numbers
            assert list(one.isna()) == list(other.isna()), (where, name)
            assert list(one.dropna()) == list(other.dropna()), (where, name)
        else:
            pd.testing.assert_series_equal(one, other, obj=f"{where}/{name}")


# --- objects that are drawn ---------------------------------------------------------------------------------


def array(random: np.random.Generator, kind: str, shape: tuple[int, int], dtype: str) -> Any:
    """Dense, or sparse with a third of the values."""
    values = (random.random(shape) * 9 * (random.random(shape) < (1 if kind == "dense" else 0.35))).astype(dtype)
    return {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}[kind](values)


def column(random: np.random.Generator, kind: str, size: int) -> Any:
    """A column of a data frame."""
    some = random.random(size) < 0.3
    if kind == "category":
        return pd.Categorical(random.choice(list("abc") if some.any() else list("bcd"), size))
    if kind == "ordered":
        return pd.Categorical(random.choice(list("lmh"), size), categories=list("lmh"), ordered=True)
    if kind == "text":
        return [f"text {one}" for one in random.integers(0, 3, size)]
    if kind == "nullable":
        return pd.array(np.where(some, None, random.integers(0, 9, size)), dtype="Int64")
    if kind == "nullable bool":
        return pd.array(np.where(some, None, random.random(size) < 0.5), dtype="boolean")
    if kind == "bool":
        return random.random(size) < 0.5
    return random.integers(0, 99, size) if kind == "integer" else random.random(size)


COLUMNS = ("category", "ordered", "text", "nullable", "nullable bool", "bool", "integer", "float")


def frame(random: np.random.Generator, index: list[str], kinds: Sequence[str]) -> pd.DataFrame:
    """A data frame in which each column is called as its kind."""
    return pd.DataFrame({kind: column(random, kind, len(index)) for kind in kinds}, index=pd.Index(index, dtype=object))


@st.composite
def objects(draw: st.DrawFn, axis: int) -> list[Any]:
    """One to three objects that can be put together along an axis, mostly."""
    count = draw(st.integers(1, 3))
    kinds = draw(st.sampled_from([("dense",), ("csr",), ("csc",), ("csr", "csc"), ("dense", "csr", "csc")]))
    dtypes = draw(st.sampled_from([("f4",), ("i4", "f8"), SPARSE_DTYPES]))
    names = draw(st.sampled_from(["same", "shuffled", "different"]))
    parts = draw(st.sets(st.sampled_from(["raw", "pair", "mapped", "frame", "awkward", "layers", "no X", "empty"])))
    every = draw(st.booleans())  # whether each object has all parts
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for number in range(count):
        here = {part for part in parts if every or random.random() < 0.7}
        other = {"same": POOL, "shuffled": list(random.permutation(POOL))}.get(names)
        if other is None:
            other = list(random.permutation(POOL)[: random.integers(0 if "empty" in here else 2, len(POOL))])
        size = int(random.integers(0 if "empty" in here else 1, 6))
        own = [f"{number} {one}" for one in range(size)]
        found.append(_object(random, axis, own, [str(one) for one in other], here, kinds, dtypes, number))
    return found


def _object(
    random: np.random.Generator,
    axis: int,
    own: list[str],
    other: list[str],
    parts: set[str],
    kinds: Sequence[str],
    dtypes: Sequence[str],
    number: int,
) -> Any:
    obs, var = (own, other) if axis == 0 else (other, own)
    shape = (len(obs), len(var))

    def drawn(size: tuple[int, int]) -> Any:
        return array(random, str(random.choice(kinds)), size, str(random.choice(dtypes)))

    def columns() -> list[str]:
        return [one for one in COLUMNS if random.random() < 0.6]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = anndata.AnnData(
            None if "no X" in parts else drawn(shape),
            obs=frame(random, obs, columns()),
            var=frame(random, var, columns()),
            shape=shape if "no X" in parts else None,
        )
        if "layers" in parts:
            one.layers["first"] = drawn(shape)
            one.layers[f"of {number % 2}"] = array(random, "dense", shape, "f8")
        if "mapped" in parts:
            one.obsm["array"] = array(random, "dense", (shape[0], int(random.integers(1, 4))), "f8")
            one.obsm["sparse"] = drawn((shape[0], 3))
            one.varm["array"] = array(random, "dense", (shape[1], int(random.integers(1, 4))), "f4")
        if "frame" in parts:
            one.obsm["frame"] = frame(random, obs, columns())
            one.varm["frame"] = frame(random, var, columns())
        if "awkward" in parts:
            lists = [list(range(int(random.integers(0, 3)))) for _ in range(shape[axis])]
            (one.obsm if axis == 0 else one.varm)["awkward"] = (
                awkward.Array(lists) if lists else awkward.Array([[0]])[:0]
            )
        if "pair" in parts:
            one.obsp["pair"] = drawn((shape[0], shape[0]))
            one.varp["pair"] = drawn((shape[1], shape[1]))
        if "raw" in parts and "no X" not in parts and shape[0]:
            one.raw = one.copy()
        one.uns = {"same": 1, "number": number, "nested": {"array": np.arange(number), "same": "text"}}
    return one
