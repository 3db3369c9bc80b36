"""Annotations of a zarr store, read past zarr: names, numbers, truth values, texts, categories.

zarr takes about a millisecond of its event loop for each column that it opens, and anndata opens a few for each. Arrays
that are stored in an uncommon way are left to them: the functions then give None.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numcodecs import VLenUTF8
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.chunks import BLOSC_HEADER, ChunkFiles
from prefect_cytotable.tasks.core.concat.trust import METADATA_LIMIT
from prefect_cytotable.tasks.core.concat.zarr_nodes import ZarrNode, read_nodes
from prefect_cytotable.tasks.core.errors import BadSourceError

Array = NDArray[Any]

_CONSOLIDATED = ((".zgroup", ".zmetadata"), ("zarr.json",))
"""The files that a store has whose metadata lies in one of them."""

_TEXT_CODECS = frozenset({"blosc", "zstd"})


def consolidated(root: Path) -> ZarrNode | None:
    """The root of a store with all its metadata in one file; None for any other."""
    for names in _CONSOLIDATED:
        if all((root / name).is_file() and (root / name).stat().st_size < METADATA_LIMIT for name in names):
            found = read_nodes(root, names)
            return found if found is not None and len(found.nodes) > 1 else None
    return None


def read_values(root: Path, node: ZarrNode) -> Any:
    """What anndata reads of an annotation: an array, or a categorical; None where anndata itself has to read it.

    Args:
        root: The folder of its store.
        node: Within that.

    Raises:
        BadSourceError: A chunk is damaged.
    """
    try:
        how = node.attrs.get("encoding-type")
        if how == "string-array":
            return _texts(root, node)
        if how == "array":
            return _numbers(root / node.path, node)
        if how == "categorical":
            codes, categories = read_values(root, node["codes"]), read_values(root, node["categories"])
            if codes is None or categories is None:
                return None
            return pd.Categorical.from_codes(codes, categories=categories, ordered=bool(node.attrs["ordered"]))
    except BadSourceError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        pass  # anndata tells what is wrong with it, if anything is
    return None


def _numbers(folder: Path, node: ZarrNode) -> Array | None:
    if node.array is None or len(node.shape) != 1:
        return None
    files = ChunkFiles.described(folder, node.array, node.zarr_format)
    if files is None or not files.dtype.isnative:
        return None
    found = np.empty(files.shape, files.dtype)
    files.read_band(0, len(found), found)
    return found


def text_pieces(root: Path, node: ZarrNode) -> Iterator[Array] | None:
    """The texts of an array in pieces, as they are stored; None where zarr itself has to read them.

    Args:
        root: The folder of its store.
        node: Within that.
    """
    try:
        files = None if node.array is None else as_bytes(root / node.path, node.array, node.zarr_format)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None
    return None if files is None or len(files.shape) != 1 else _decoded(files)


def _decoded(files: ChunkFiles) -> Iterator[Array]:
    (length,), (size,) = files.shape, files.chunks
    for numbers in files.numbers(0, length):
        here = min(size, length - numbers[0] * size)
        try:
            texts = VLenUTF8().decode(_unpacked(files, numbers))
            if len(texts) != size:
                raise ValueError(f"{len(texts)} texts instead of {size}")
        except FileNotFoundError:
            texts = np.full(here, "", object)
        except (ValueError, RuntimeError, TypeError, OSError) as error:
            raise BadSourceError(
                files.path(numbers), f"the chunk cannot be decoded ({error})", "Is the store whole? Copy it again."
            ) from error
        yield texts[:here]


def _texts(root: Path, node: ZarrNode) -> Array | None:
    """Texts of the type that zarr gives them."""
    pieces = text_pieces(root, node)
    if pieces is None:
        return None
    found, done = np.empty(node.shape, np.dtypes.StringDType()), 0
    for piece in pieces:
        found[done : done + len(piece)] = piece
        done += len(piece)
    return found


def as_bytes(folder: Path, array: dict[str, Any], version: int) -> ChunkFiles | None:
    """An array of texts as one of bytes, which its chunks are before they become texts."""
    if array["fill_value"] not in ("", None):
        return None
    if version == 2:
        if array["dtype"] != "|O" or [one["id"] for one in array["filters"] or []] != ["vlen-utf8"]:
            return None
        plain = {**array, "dtype": "|u1", "filters": None, "fill_value": 0}
    else:
        if array["data_type"] != "string" or array["codecs"][0]["name"] != "vlen-utf8":
            return None
        plain = {**array, "data_type": "uint8", "codecs": [{"name": "bytes"}, *array["codecs"][1:]], "fill_value": 0}
    files = ChunkFiles.described(folder, plain, version)
    return files if files is None or files.codec is None or files.codec.codec_id in _TEXT_CODECS else None


def _unpacked(files: ChunkFiles, numbers: tuple[int, ...]) -> bytes:
    stored = files.stored(numbers)
    if files.codec is None:
        return stored
    if files.codec.codec_id == "blosc" and (
        len(stored) < BLOSC_HEADER or int.from_bytes(stored[12:16], "little") != len(stored)
    ):
        raise ValueError("its header tells of another length")
    return cast(bytes, files.codec.decode(stored))
