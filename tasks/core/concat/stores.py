"""AnnData files, h5ad and zarr: opened, told apart, described element by element without reading their values."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from prefect_cytotable.tasks.core.concat.model import OBS, VAR, Column, Element, Input, Kind, StoreFormat
from prefect_cytotable.tasks.core.concat.trust import check_h5, check_zarr, zarr_files
from prefect_cytotable.tasks.core.concat.zarr_making import can_be_made, is_plain, make_group
from prefect_cytotable.tasks.core.concat.zarr_nodes import ZarrNode, codec_of, read_nodes
from prefect_cytotable.tasks.core.concat.zarr_store import folder_of, open_store, zarr_format_of
from prefect_cytotable.tasks.core.errors import BadSourceError

Group = Any
"""A group of h5py or of zarr; what is used here they have in common."""

MAPPINGS = ("layers", "obsm", "varm", "obsp", "varp", "raw/varm")

REWRITE = "Read it with anndata and write it anew."

TEXT = 100
"""Bytes that a short text takes in memory, with its place in an array."""

_SPARSE = {"csr_matrix": Kind.CSR, "csc_matrix": Kind.CSC}


def format_of(path: Path) -> StoreFormat:
    """Whether a path holds HDF5 or zarr, by its content.

    Raises:
        BadSourceError: It holds neither.
    """
    if path.is_dir():
        if any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
            return StoreFormat.ZARR
        raise BadSourceError(str(path), "it is a folder, but no zarr group", "Name h5ad files or zarr stores.")
    if not h5py.is_hdf5(path):
        raise BadSourceError(str(path), "it is no HDF5 file", "Name h5ad files or zarr stores.")
    return StoreFormat.H5AD


@contextmanager
def opened(path: str | Path, format: StoreFormat) -> Iterator[Group]:
    """The root group of an AnnData file, to be read."""
    if format is StoreFormat.ZARR:
        yield open_store(Path(path))
        return
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadSourceError(
            str(path), f"HDF5 cannot open it ({error})", "Is it whole, and not being written?"
        ) from error
    with file:
        yield file


def look(path: str) -> Input:
    """What an AnnData file holds.

    Raises:
        BadSourceError: It is no AnnData file of anndata 0.7 or later, is damaged, or leads to other files.
    """
    place = Path(path)
    format = format_of(place)
    if format is StoreFormat.ZARR:
        names: list[str] = []
        mark, size = _state_of_zarr(place, names)
        check_zarr(place, names)
        nodes = read_nodes(place, names)
        if nodes is not None and is_anndata(nodes):
            return _described(path, format, nodes, mark, size)
    else:
        stat = place.stat()
        mark, size = f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_size
    with opened(path, format) as root:
        if format is StoreFormat.H5AD:
            check_h5(root)
        if not is_anndata(root):
            raise BadSourceError(path, "it is no AnnData file, or of before anndata 0.7", REWRITE)
        return _described(path, format, root, mark, size)


def is_anndata(root: Group) -> bool:
    """Whether a root is that of an AnnData, of anndata 0.8 and later or of 0.7, which did not mark roots."""
    if "encoding-type" in root.attrs:
        return encoding(root) == "anndata"
    return all(name in root and encoding(root[name]) == "dataframe" for name in (OBS, VAR))


def fingerprint(path: str, format: StoreFormat) -> str:
    """What changes when the file does."""
    if format is StoreFormat.ZARR:
        return _state_of_zarr(Path(path), [])[0]
    stat = Path(path).stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _state_of_zarr(path: Path, names: list[str]) -> tuple[str, int]:
    """A mark of all files of a store, and their bytes; their names are added to a list."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    for name, stat in zarr_files(path):
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        size += stat.st_size
        names.append(name)
    return digest.hexdigest(), size


def _described(path: str, format: StoreFormat, root: Group, mark: str, size: int) -> Input:
    elements = [_annotation(root, name, path) for name in (OBS, VAR)]
    shape = tuple(one.shape[0] for one in elements)
    if "X" in root and encoding(root["X"]) != "null":
        elements.append(describe(root, "X", path))
    has_raw = "raw" in root and encoding(root["raw"]) != "null"
    if has_raw:
        elements += [describe(root, name, path) for name in ("raw/X", "raw/var") if name in root]
    for mapping in MAPPINGS:
        if mapping in root:
            elements += [describe(root, f"{mapping}/{name}", path) for name in sorted(root[mapping])]
    found = Input(
        path=path,
        format=format,
        fingerprint=mark,
        shape=(shape[0], shape[1]),
        size=size,
        elements=tuple(elements),
        uns=_in_memory(root["uns"]) if "uns" in root else 0,
        has_raw=has_raw,
        zarr_format=_zarr_format(root) if format is StoreFormat.ZARR else 0,
    )
    _check_shapes(found)
    return found


def _zarr_format(root: Group) -> int:
    return root.zarr_format if isinstance(root, ZarrNode) else int(root.metadata.zarr_format)


def _check_shapes(one: Input) -> None:
    """Refuse elements that do not fit the names they are aligned to: anndata would, when it loads them."""
    observations, variables = one.shape
    raw = one.element("raw/var")
    expected: dict[str, tuple[int, ...]] = {"X": one.shape, "layers": one.shape, "obsp": (observations,) * 2}
    expected |= {"varp": (variables,) * 2, "obsm": (observations,), "varm": (variables,)}
    expected |= {"raw/X": (observations, raw.shape[0]), "raw/varm": (raw.shape[0],)} if raw else {}
    for element in one.elements:
        wanted = expected.get(element.path) or expected.get(element.path.rpartition("/")[0])
        if wanted and element.shape and element.shape[: len(wanted)] != wanted:
            raise BadSourceError(one.path, f"{element.path} has the shape {element.shape} instead of {wanted}", REWRITE)


def encoding(node: Any) -> str:
    """The name that anndata has for how an element is stored; "" where there is none."""
    return _text(node.attrs.get("encoding-type", ""))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def index_name(frame: Group) -> str:
    """The name under which a data frame's index is stored."""
    return _text(frame.attrs["_index"])


def create_group(parent: Group, path: str, attributes: Mapping[str, Any]) -> Group:
    """A new group with its attributes."""
    if isinstance(parent, zarr.Group) and all(map(is_plain, path.split("/"))):
        make_group(folder_of(parent) / path, zarr_format_of(parent), attributes)
        return parent[path]
    group = parent.create_group(path)
    group.attrs.update(attributes)
    return group


def _annotation(root: Group, name: str, path: str) -> Element:
    """The data frame of an axis."""
    found = describe(root, name, path) if name in root else None
    if found is None or found.kind is not Kind.FRAME:
        raise BadSourceError(path, f"{name} is missing, or is no data frame", REWRITE)
    return found


def _rows(node: Any) -> int:
    """How many values a column has, however it is stored."""
    if hasattr(node, "shape"):
        return int(node.shape[0])
    return int(node["codes" if "codes" in node else "values"].shape[0])


def describe(root: Group, name: str, path: str) -> Element:
    """One element, by its metadata.

    Raises:
        BadSourceError: It lacks what its encoding asks for.
    """
    node = root[name]
    how = encoding(node)
    try:
        if how in _SPARSE:
            return _sparse(node, name, _SPARSE[how], path)
        if how == "dataframe":
            return _frame(node, name)
        if hasattr(node, "shape") and how in ("array", "") and node.dtype.kind in "biufc" and len(node.shape) >= 2:
            shape = tuple(map(int, node.shape))
            chunks = tuple(map(int, getattr(node, "chunks", None) or ()))
            return Element(
                name,
                Kind.DENSE,
                shape,
                node.dtype.str,
                _bytes(node),
                _piece(node),
                chunks,
                compression=_compression(node),
                codec=_codec(node),
            )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadSourceError(path, f"{name} is no {how or 'array'} as anndata writes it ({error})", REWRITE) from error
    return Element(name, Kind.OTHER, (), size=_in_memory(node))


def _sparse(node: Group, name: str, kind: Kind, path: str) -> Element:
    rows, columns = map(int, node.attrs["shape"])
    data, indices, indptr = node["data"], node["indices"], node["indptr"]
    major = rows if kind is Kind.CSR else columns
    if data.shape != indices.shape or indptr.shape != (major + 1,) or data.dtype.kind not in "biufc":
        raise BadSourceError(path, f"{name}: data, indices and indptr do not fit together", REWRITE)
    nnz = int(data.shape[0])
    size = sum(map(_bytes, (data, indices, indptr)))
    piece = max(map(_piece, (data, indices)))
    return Element(
        name,
        kind,
        (rows, columns),
        data.dtype.str,
        size,
        piece,
        tuple(map(int, data.chunks or ())),
        nnz,
        compression=_compression(data),
        codec=_codec(data),
    )


def _compression(dataset: Any) -> str:
    """How HDF5 compresses a dataset."""
    return dataset.compression or "" if isinstance(dataset, h5py.Dataset) else ""


def _codec(node: Any) -> str:
    """What compresses an array of zarr, where another can be made like it."""
    if isinstance(node, zarr.Array):
        array, version = node.metadata.to_dict(), int(node.metadata.zarr_format)
    elif isinstance(node, ZarrNode) and node.array is not None:
        array, version = node.array, node.zarr_format
    else:
        return ""
    found = codec_of(array, version)
    return found if can_be_made(found, version) else ""


def _frame(node: Group, name: str) -> Element:
    columns = []
    for value in np.asarray(node.attrs["column-order"]).ravel():
        column = _text(value)
        stored = node[column]
        how = encoding(stored) or _old_encoding(stored)
        dtype = stored.dtype.str if how in ("array", "") and hasattr(stored, "dtype") else ""
        columns.append(Column(column, how, dtype))
    rows = _rows(node[index_name(node)])
    return Element(name, Kind.FRAME, (rows, len(columns)), size=_in_memory(node), columns=tuple(columns))


def has_old_categories(column: Any) -> bool:
    """Whether a column is a categorical as anndata 0.7 stored it: codes, and labels in the frame's `__categories`."""
    return "categories" in column.attrs and hasattr(column, "shape")


def _old_encoding(column: Any) -> str:
    """How a column is stored that does not tell, as those of anndata 0.7."""
    if has_old_categories(column):
        return "categorical"
    return "" if not hasattr(column, "dtype") or column.dtype.kind in "biufc" else "string-array"


def _bytes(array: Any) -> int:
    return int(np.prod(array.shape, dtype=np.int64)) * max(int(array.dtype.itemsize), 1)


def _piece(array: Any) -> int:
    """Bytes that must be decoded at once."""
    chunks = getattr(array, "chunks", None)
    if chunks is None:
        return 0
    return int(np.prod(np.minimum(chunks, np.maximum(array.shape, 1)), dtype=np.int64)) * int(array.dtype.itemsize)


def _in_memory(node: Any) -> int:
    """About how many bytes an element takes in memory."""
    if hasattr(node, "shape"):
        count = int(np.prod(node.shape or (), dtype=np.int64))  # None in `uns` has no shape in HDF5
        return count * int(node.dtype.itemsize if node.dtype.kind in "biufcV" else TEXT)
    return sum((_in_memory(node[name]) for name in node), 0)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of anndata and pandas about names that repeat, deprecated joins and the like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
