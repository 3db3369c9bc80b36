"""New groups and arrays of a zarr store, made past zarr, and annotations written into them.

What a group or an array is stands in a small file, as zarr's specifications (versions 2 and 3) tell. zarr takes some
milliseconds of its event loop for each, and anndata a few of those for each column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numcodecs import VLenUTF8
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.chunks import ChunkFiles
from prefect_cytotable.tasks.core.concat.targets import ZarrTarget
from prefect_cytotable.tasks.core.concat.zarr_values import as_bytes

Array = NDArray[Any]
Attributes = Mapping[str, Any]

CODECS: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]] = {
    "lz4": (
        {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
        {
            "name": "blosc",
            "configuration": {"typesize": 4, "cname": "lz4", "clevel": 5, "shuffle": "shuffle", "blocksize": 0},
        },
    ),
    "zstd": (
        {"id": "zstd", "level": 0, "checksum": False},
        {"name": "zstd", "configuration": {"level": 0, "checksum": False}},
    ),
    "gzip": ({"id": "gzip", "level": 4}, {"name": "gzip", "configuration": {"level": 4}}),
    "none": (None, None),
}
"""By the user's name, the codec of version 2 and that of version 3."""

USUAL = {2: "lz4", 3: "zstd"}
"""The codec that anndata's files have, by version."""

VALUES = 1 << 18
"""Values of a chunk of an annotation, at most."""

TEXTS = 1 << 15
"""Texts of a chunk, at most."""


def is_plain(name: Any) -> bool:
    """Whether a name may become a folder's as it is: it leads nowhere else, and is no file of zarr's own."""
    if not isinstance(name, str) or not name.isprintable() or not name:
        return False
    return not set("/\\").intersection(name) and not name.startswith((".", "__")) and name != "zarr.json"


def codec(name: str, version: int) -> dict[str, Any] | None:
    """The metadata of a codec: by the user's name, or as JSON text of an input; "" is the usual one."""
    if name.startswith("{"):
        found: dict[str, Any] = json.loads(name)
        return found
    return CODECS[name or USUAL[version]][version - 2]


def can_be_made(name: str, version: int) -> bool:
    """Whether chunks can be compressed past zarr by what `codec` gives for a name."""
    try:
        packed = codec(name, version)
        made = _array_metadata(version, (1,), np.dtype(np.uint8), (1,), {}, packed)
        return ChunkFiles.described(Path(), made, version) is not None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False


def make_group(folder: Path, version: int, attributes: Attributes) -> None:
    """Make a group."""
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        _write(folder / ".zgroup", {"zarr_format": 2})
        _write(folder / ".zattrs", attributes)
    else:
        _write(folder / "zarr.json", {"attributes": attributes, "zarr_format": 3, "node_type": "group"})


def make_array(
    folder: Path,
    version: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | None,
    chunks: tuple[int, ...],
    attributes: Attributes,
    packed: dict[str, Any] | None,
) -> dict[str, Any]:
    """Make an array without values, all of it zero or empty texts; gives its metadata.

    Args:
        folder: A new one.
        version: Of zarr.
        shape: Of the array.
        dtype: Of numbers; None for texts.
        chunks: Shape of a chunk.
        attributes: Of the array.
        packed: The codec's metadata; None stores chunks plainly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _array_metadata(version, shape, dtype, chunks, attributes, packed)
    _write(folder / (".zarray" if version == 2 else "zarr.json"), found)
    if version == 2:
        _write(folder / ".zattrs", attributes)
    return found


def _array_metadata(
    version: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | None,
    chunks: tuple[int, ...],
    attributes: Attributes,
    packed: dict[str, Any] | None,
) -> dict[str, Any]:
    zero: Any = "" if dtype is None else np.zeros((), dtype).item()
    if isinstance(zero, complex):
        zero = [0.0, 0.0]
    if version == 2:
        return {
            "shape": shape,
            "chunks": chunks,
            "dtype": "|O" if dtype is None else dtype.str,
            "fill_value": zero,
            "order": "C",
            "filters": [{"id": "vlen-utf8"}] if dtype is None else None,
            "dimension_separator": ".",
            "compressor": packed,
            "zarr_format": 2,
        }
    first: dict[str, Any] = {"name": "vlen-utf8", "configuration": {}}
    if dtype is not None:
        endian = {"configuration": {"endian": "big" if dtype.str.startswith(">") else "little"}}
        first = {"name": "bytes", **(endian if dtype.itemsize > 1 else {})}
    if packed and packed["name"] == "blosc":
        size = 1 if dtype is None else dtype.itemsize
        packed = {"name": "blosc", "configuration": {**packed["configuration"], "typesize": size}}
    return {
        "shape": shape,
        "data_type": "string" if dtype is None else dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": zero,
        "codecs": [first, packed] if packed else [first],
        "attributes": attributes,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _write(path: Path, metadata: Attributes) -> None:
    path.write_text(json.dumps(metadata), encoding="utf-8")


def write_values(folder: Path, version: int, values: Any) -> bool:
    """Write numbers, truth values, texts or categories as anndata does; False where anndata itself has to."""
    if isinstance(values, pd.Categorical):
        categories = values.categories._values
        if not _can_be_written(categories):
            return False
        attributes = {"ordered": bool(values.ordered), "encoding-type": "categorical", "encoding-version": "0.2.0"}
        make_group(folder, version, attributes)
        return write_values(folder / "codes", version, values.codes) and write_values(
            folder / "categories", version, categories
        )
    if not _can_be_written(values):
        return False
    if values.dtype == object:
        write_texts(folder, version, len(values), iter([values]))
        return True
    write_numbers(folder, version, values, {"encoding-type": "array", "encoding-version": "0.2.0"})
    return True


def write_numbers(folder: Path, version: int, values: Array, attributes: Attributes, packed: str = "") -> None:
    """Write an array of numbers in one dimension; `packed` is the codec, as `codec` takes it."""
    chunks = (max(min(len(values), VALUES), 1),)
    made = make_array(folder, version, values.shape, values.dtype, chunks, attributes, codec(packed, version))
    files = ChunkFiles.described(folder, made, version)
    assert files is not None, folder
    target = ZarrTarget(files)
    for low in range(0, len(values), VALUES):
        target.write(low, values[low : low + VALUES])


def _can_be_written(values: Any) -> bool:
    if not isinstance(values, np.ndarray) or values.ndim != 1:
        return False
    if values.dtype == object:
        return all(type(one) is str for one in values)
    return values.dtype.kind in "biuf" and values.dtype.isnative and values.dtype.itemsize <= 8


def write_texts(folder: Path, version: int, length: int, pieces: Iterator[Array]) -> None:
    """Write texts, given in pieces of any length, as anndata does."""
    size = max(min(length, TEXTS), 1)
    attributes = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
    made = make_array(folder, version, (length,), None, (size,), attributes, codec("", version))
    files = as_bytes(folder, made, version)
    assert files is not None, folder
    held: list[Any] = []
    number = 0
    for piece in pieces:
        for low in range(0, len(piece), size):
            held += piece[low : low + size].tolist()
            if len(held) >= size:
                _store(files, number, held[:size])
                held, number = held[size:], number + 1
    if held:
        _store(files, number, held + [""] * (size - len(held)))
    assert number * size + len(held) == length, (folder, length)


def _store(files: ChunkFiles, number: int, texts: list[str]) -> None:
    joined = VLenUTF8().encode(np.array(texts, object))
    files.store((number,), bytes(joined if files.codec is None else files.codec.encode(joined)))


def write_names(folder: Path, version: int, names: Any) -> bool:
    """Write a data frame without columns as anndata does; False where anndata itself has to."""
    stored, values = "_index" if names.name is None else names.name, names._values
    if not is_plain(stored) or not _can_be_written(values) or values.dtype != object:
        return False
    told: Attributes = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "column-order": [], "_index": stored}
    make_group(folder, version, told)
    write_texts(folder / stored, version, len(values), iter([values]))
    return True
