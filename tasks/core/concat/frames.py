"""Data frames of the output, one column of all inputs at a time; their index in pieces."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem, write_elem
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat import zarr_making
from prefect_cytotable.tasks.core.concat.model import Element, FramePlan, Input, Options, StoreFormat
from prefect_cytotable.tasks.core.concat.names import as_names
from prefect_cytotable.tasks.core.concat.probe import concatenated, refusals
from prefect_cytotable.tasks.core.concat.stores import (
    Group,
    create_group,
    encoding,
    has_old_categories,
    index_name,
    opened,
    quiet,
)
from prefect_cytotable.tasks.core.concat.zarr_making import is_plain, write_texts
from prefect_cytotable.tasks.core.concat.zarr_nodes import ZarrNode
from prefect_cytotable.tasks.core.concat.zarr_store import folder_of, zarr_format_of
from prefect_cytotable.tasks.core.concat.zarr_values import consolidated, read_values, text_pieces
from prefect_cytotable.tasks.core.errors import LayoutError

OPEN_AT_ONCE = 64
"""Inputs that stay open: far fewer than the files that a process may have open."""

PIECE = 1 << 15
"""Names that are read and written at a time."""

RESERVED = "_index"


class Inputs:
    """The inputs, opened when they are needed; those that were not used for longest are closed."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.all = tuple(inputs)
        self._open: OrderedDict[int, tuple[ExitStack, Group]] = OrderedDict()
        self._nodes: OrderedDict[int, ZarrNode | None] = OrderedDict()

    def root(self, number: int) -> Group:
        """The root group of an input."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number][1]
        while len(self._open) >= OPEN_AT_ONCE:
            self._open.popitem(last=False)[1][0].close()
        stack = ExitStack()
        one = self.all[number]
        self._open[number] = stack, stack.enter_context(opened(one.path, one.format))
        return self._open[number][1]

    def node(self, number: int) -> ZarrNode | None:
        """The root of an input whose annotations can be read past zarr."""
        one = self.all[number]
        if one.format is not StoreFormat.ZARR:
            return None
        if number not in self._nodes:
            while len(self._nodes) >= OPEN_AT_ONCE:
                self._nodes.popitem(last=False)
            self._nodes[number] = consolidated(Path(one.path))
        return self._nodes[number]

    def read(self, number: int, path: str) -> Any:
        """An annotation of an input, as anndata reads it."""
        node = self.node(number)
        found = read_values(Path(self.all[number].path), node[path]) if node and path in node else None
        return read_elem(self.root(number)[path]) if found is None else found

    def index_name(self, number: int, path: str) -> str:
        """The name under which the index of a data frame of an input is stored."""
        return index_name((self.node(number) or self.root(number))[path])

    def close(self) -> None:
        """Close all."""
        while self._open:
            self._open.popitem()[1][0].close()


def write_frame(
    root: Group, frame: FramePlan, index: str, inputs: Inputs, options: Options, format: StoreFormat
) -> None:
    """Write a data frame.

    Args:
        root: Of the output; the group above the frame is there.
        frame: Which columns.
        index: Path of the data frame in the inputs whose index becomes this one's.
        inputs: Of all of it.
        options: The keys, the axis.
        format: Of the output.

    Raises:
        LayoutError: A column's values have no type that can be written.
    """
    columns = list(frame.columns)
    if frame.label is not None and frame.label not in columns:
        columns.append(frame.label)
    if RESERVED in columns:
        raise LayoutError(f"{frame.path}: a column is called {RESERVED!r}, which is the index's name. Rename it.")
    stored = _stored_name(columns, index, inputs)
    told = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "column-order": columns, "_index": stored}
    group = create_group(root, frame.path, told)
    _write_index(group, stored, index, inputs, options, format)
    extents = [_extent(one, index) for one in inputs.all]
    for name in columns:
        if name == frame.label:
            codes = np.repeat(np.arange(len(extents), dtype=_codes_type(len(extents))), extents)
            values: Any = pd.Categorical.from_codes(codes, categories=list(options.keys))
        else:
            values = _column(frame, name, inputs, extents)
        what = f"{frame.path}: the column {name!r}"
        write_values(group, name, writable(values, what), what)


def _codes_type(count: int) -> np.dtype[Any]:
    return np.min_scalar_type(-max(count, 1))


def _extent(one: Input, path: str) -> int:
    found = one.element(path)
    assert found is not None, (one.path, path)
    return found.shape[0]


def _stored_name(columns: list[str], path: str, inputs: Inputs) -> str:
    """The name of the index: that of the inputs, where they have the same and no column is called so."""
    names = {inputs.index_name(number, path) for number in range(len(inputs.all))}
    name = names.pop() if len(names) == 1 else RESERVED
    return RESERVED if name in columns else name


def _write_index(group: Group, name: str, path: str, inputs: Inputs, options: Options, format: StoreFormat) -> None:
    """Write the names of all inputs, one after the other, with their keys where that is asked for."""
    total = sum(_extent(one, path) for one in inputs.all)
    if format is StoreFormat.ZARR and is_plain(name):
        write_texts(folder_of(group) / name, zarr_format_of(group), total, _pieces(path, inputs, options))
        return
    target = _text_array(group, name, total, format)
    done = 0
    for piece in _pieces(path, inputs, options):
        target[done : done + len(piece)] = piece
        done += len(piece)


def _pieces(path: str, inputs: Inputs, options: Options) -> Iterator[NDArray[np.object_]]:
    """The output's names, so many at a time."""
    held: list[Any] = []
    for number, key in enumerate(options.keys):
        suffix = "" if options.index_unique is None else f"{options.index_unique}{key}"
        for names in _names_of(inputs, number, path, options.format is StoreFormat.H5AD and not suffix):
            held += [name + suffix for name in names] if suffix else list(names)
            while len(held) >= PIECE:
                yield np.array(held[:PIECE], dtype=object)
                held = held[PIECE:]
    if held:
        yield np.array(held, dtype=object)


def _names_of(inputs: Inputs, number: int, path: str, encoded: bool) -> Iterator[Any]:
    """The index of a frame of an input, so many names at a time."""
    node = inputs.node(number)
    if node is not None:
        stored = node[path][index_name(node[path])]
        texts = encoding(stored) == "string-array"
        pieces = text_pieces(Path(inputs.all[number].path), stored) if texts else None
        if pieces is not None:
            return pieces
    return _names(inputs.root(number)[path], encoded)


def _names(frame: Group, encoded: bool) -> Iterator[Any]:
    """The index of a frame, so many names at a time; where `encoded`, the bytes of each as HDF5 has them."""
    name = index_name(frame)
    stored = frame[name]
    if encoding(stored) != "string-array":
        yield as_names(read_elem(stored), name)
        return
    of_hdf5 = isinstance(stored, h5py.Dataset)
    texts = stored.asstr() if of_hdf5 and not encoded else stored
    for low in range(0, stored.shape[0], PIECE):
        found = np.asarray(texts[low : low + PIECE], dtype=object)
        if of_hdf5 and encoded:
            b"\n".join(found).decode()  # a name that is no UTF-8 is an error, here as elsewhere
        yield found


def _text_array(group: Group, name: str, length: int, format: StoreFormat) -> Any:
    """An array of texts, to be filled; as anndata makes it, but of a length that is known before its values are."""
    if format is StoreFormat.H5AD:
        array = group.create_dataset(name, shape=(length,), dtype=h5py.string_dtype())
    else:
        from numcodecs import VLenUTF8
        from zarr.core.dtype import VariableLengthUTF8

        old = group.metadata.zarr_format == 2
        array = group.create_array(
            name,
            shape=(length,),
            chunks=(max(min(length, PIECE), 1),),
            dtype=VariableLengthUTF8(),
            filters=[VLenUTF8()] if old else None,
            fill_value="" if old else None,
        )
    array.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    return array


def _column(frame: FramePlan, name: str, inputs: Inputs, extents: list[int]) -> Any:
    """A column of all inputs, as anndata puts them together."""
    parts = [
        pd.Series(_read_column(inputs, number, frame.path, name)) if _has(element, name) else None
        for number, element in enumerate(frame.elements)
    ]
    there = [one for one in parts if one is not None]
    kinds = [isinstance(one.dtype, pd.CategoricalDtype) or one.dtype == bool for one in there]
    dtype = _decided(parts, name) if any(kinds) else None
    if isinstance(dtype, pd.CategoricalDtype) and all(isinstance(one.dtype, pd.CategoricalDtype) for one in there):
        return _categories(parts, extents, dtype)
    if isinstance(dtype, pd.BooleanDtype) or dtype == np.dtype(object):
        parts = [None if one is None else one.astype(dtype) for one in parts]
    frames = [
        _lacking(element, name, extent) if one is None else one.to_frame(name)
        for one, element, extent in zip(parts, frame.elements, extents, strict=True)
    ]
    with quiet():
        return pd.concat(frames, ignore_index=True)[name]._values


def _read_column(inputs: Inputs, number: int, path: str, name: str) -> Any:
    """A column's values in one input."""
    frame = (inputs.node(number) or inputs.root(number))[path]
    if not has_old_categories(frame[name]):
        with quiet():  # anndata tells of each element that does not tell how it is stored
            return inputs.read(number, f"{path}/{name}")
    frame = inputs.root(number)[path]
    labels = frame[f"__categories/{name}"]
    with quiet():
        return pd.Categorical.from_codes(
            read_elem(frame[name]), categories=read_elem(labels), ordered=bool(labels.attrs.get("ordered", False))
        )


def _lacking(element: Element | None, name: str, extent: int) -> Any:
    """A frame without a column. pandas takes types from one without rows too, unless it has no columns at all."""
    found = pd.DataFrame(index=pd.RangeIndex(extent))
    if element is not None and element.columns and not extent:
        found[f"not {name}"] = np.empty(0)
    return found


def _has(element: Element | None, name: str) -> bool:
    return element is not None and any(one.name == name for one in element.columns)


def _decided(parts: Sequence[Any], name: str) -> Any:
    """The type that anndata gives to a column: it unites categories and makes room for missing truth values."""
    objects = []
    for one in _distinct(parts):
        frame = pd.DataFrame(index=["one"]) if one is None else one.head(1).to_frame(name)
        frame.index = frame.index.astype(str)
        objects.append(anndata.AnnData(obs=frame))
    return concatenated(objects, f"the column {name!r}", join="outer").obs[name].dtype


def _distinct(parts: Sequence[Any]) -> list[Any]:
    """Parts of a column without those whose type another one has: each costs a small AnnData object."""
    found: list[Any] = []
    for one in parts:
        if not any(_same_type(one, other) for other in found):
            found.append(one)
    return found


def _same_type(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    if bool(len(one)) is not bool(len(other)):
        return False
    if isinstance(one.dtype, pd.CategoricalDtype) and isinstance(other.dtype, pd.CategoricalDtype):
        mine, its = one.dtype.categories, other.dtype.categories
        return one.dtype.ordered == other.dtype.ordered and mine.dtype == its.dtype and bool(mine.equals(its))
    return bool(one.dtype == other.dtype == bool)


def _categories(parts: Sequence[Any], extents: list[int], dtype: Any) -> Any:
    codes = np.full(sum(extents), -1, _codes_type(len(dtype.categories)))
    done = 0
    for one, extent in zip(parts, extents, strict=True):
        if one is not None:
            places = np.append(dtype.categories.get_indexer(one.cat.categories), -1)
            codes[done : done + extent] = places[one.cat.codes.to_numpy()]
        done += extent
    return pd.Categorical.from_codes(codes, dtype=dtype)


def write_values(group: Group, name: str, values: Any, what: str) -> None:
    """Write an element with anndata.

    Raises:
        LayoutError: The format has no place for it.
    """
    direct = isinstance(group, zarr.Group) and is_plain(name)
    if direct and zarr_making.write_values(folder_of(group) / name, zarr_format_of(group), values):
        return
    with (
        refusals(f"{what} cannot be written. Rename it or leave it out of the inputs"),
        anndata.settings.override(allow_write_nullable_strings=True),
    ):
        write_elem(group, name, values)


def writable_frame(frame: Any, what: str) -> Any:
    """A data frame whose columns anndata can write."""
    changed = {name: writable(frame[name]._values, f"{what}: the column {name!r}") for name in frame.columns}
    return pd.DataFrame(changed, index=frame.index, columns=frame.columns)


def writable(values: Any, what: str) -> Any:
    """Values as a type that anndata can write: texts that lack some become nullable, numbers as objects numbers.

    Raises:
        LayoutError: There is none, since texts and numbers are mixed.
    """
    if isinstance(values, pd.Categorical):
        of_labels = pd.api.types.infer_dtype(values.categories)
        if of_labels.startswith("mixed"):
            raise LayoutError(
                f"{what} has categories of several kinds ({of_labels}), which no file can hold. Make them the same in "
                f"all inputs."
            )
        return values
    if isinstance(values.dtype, pd.Float32Dtype | pd.Float64Dtype):
        return values.to_numpy(values.dtype.numpy_dtype, na_value=np.nan)
    if values.dtype != object:
        return values
    kind = pd.api.types.infer_dtype(values, skipna=True)
    lacking = pd.isna(values)
    if kind in ("string", "empty") and not len(values[~lacking]) and len(values):
        return np.full(len(values), np.nan)
    if kind in ("string", "empty"):
        return pd.array(np.where(lacking, None, values), dtype="string") if lacking.any() else values
    if kind == "boolean":
        return pd.array(values, dtype="boolean") if lacking.any() else values.astype(bool)
    if kind in ("integer", "floating", "mixed-integer-float"):
        return pd.to_numeric(pd.Series(np.where(lacking, np.nan, values), dtype=object)).to_numpy()
    raise LayoutError(f"{what} mixes kinds of values ({kind}), which no file can hold. Make it the same in all inputs.")
