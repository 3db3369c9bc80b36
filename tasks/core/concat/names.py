"""The names of the axis that is joined: read, put together as anndata does, and each input's place in the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata.io import read_elem
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.model import OBS, VAR, Input, Join, JoinedNames, Options, StoreFormat
from prefect_cytotable.tasks.core.concat.stores import Group, index_name, opened, quiet
from prefect_cytotable.tasks.core.concat.zarr_values import consolidated, read_values
from prefect_cytotable.tasks.core.errors import LayoutError

MAIN, RAW = "", "raw"

Indexer = NDArray[np.int64]


@dataclass(frozen=True)
class Joined:
    """Names of the other axis: of each input, and of the output.

    Attributes:
        node: `MAIN`, or `RAW` for the variables of `raw`.
    """

    node: str
    names: Any
    of_inputs: tuple[Any, ...]

    def indexer(self, number: int) -> Indexer | None:
        """For each name of the output the place in an input, -1 where it lacks it; None where they are the same."""
        own = self.of_inputs[number]
        return None if self.names.equals(own) else np.asarray(own.get_indexer(self.names), dtype=np.int64)

    def summary(self) -> JoinedNames:
        """In figures."""
        differing = tuple(number for number, own in enumerate(self.of_inputs) if not self.names.equals(own))
        common = union = len(self.names)
        if differing:
            common = len(reduce(lambda one, other: one.intersection(other, sort=False), self.of_inputs))
            union = len(reduce(lambda one, other: one.union(other, sort=False), self.of_inputs))
        return JoinedNames(self.node, len(self.names), differing, common, union)


def read_names(root: Group, path: str) -> Any:
    """The index of a data frame as AnnData has it: texts, with the index' name."""
    frame = root[path]
    stored = index_name(frame)
    with quiet():
        return as_names(read_elem(frame[stored]), stored)


def _names_of(one: Input, path: str) -> Any:
    """The same of an input, past zarr where that can be."""
    root = Path(one.path)
    node = consolidated(root) if one.format is StoreFormat.ZARR else None
    if node is not None:
        stored = index_name(node[path])
        values = read_values(root, node[f"{path}/{stored}"])
        if values is not None:
            return as_names(values, stored)
    with opened(one.path, one.format) as opened_root:
        return read_names(opened_root, path)


def as_names(values: Any, stored: str) -> Any:
    """Values of an index as AnnData has them when it has loaded them."""
    index = pd.Index(np.asarray(values, dtype=object), name=None if stored == "_index" else stored)
    if pd.api.types.infer_dtype(index) not in ("string", "empty"):
        index = index.astype(str)
    return index


def frames_of(node: str) -> dict[str, str]:
    """Where the names of each axis lie: those of `raw` share the observations."""
    return {OBS: OBS, VAR: VAR if node == MAIN else "raw/var"}


def join_names(inputs: Sequence[Input], options: Options, node: str) -> Joined:
    """Read and join the names of the other axis. Remembered until `forget_names`: plan and preparation need the same.

    Raises:
        LayoutError: Names repeat in one input, and the inputs' names differ: which is which cannot be told.
    """
    return _join_names(tuple(inputs), options.other_name, options.join, node)


@lru_cache(maxsize=2)
def _join_names(inputs: tuple[Input, ...], other: str, join: Join, node: str) -> Joined:
    path = frames_of(node)[other]
    found = []
    for one in inputs:
        found.append(_names_of(one, path))
    if not all(names.equals(found[0]) for names in found[1:]):
        for one, names in zip(inputs, found, strict=True):
            if names.has_duplicates:
                shown = ", ".join(map(repr, names[names.duplicated()].unique()[:3]))
                raise LayoutError(
                    f"{one.name}: names in {path} repeat ({shown}), and the inputs' names differ. Make them unique "
                    f"first ({path}_names_make_unique)."
                )
        return Joined(node, _reduced(found, join), tuple(found))
    names = found[0] if all(one.name == found[0].name for one in found) else found[0].rename(None)
    return Joined(node, names, tuple(found))


def forget_names() -> None:
    """Free the memory of the names that were read."""
    _join_names.cache_clear()


def _reduced(found: Sequence[Any], join: Join) -> Any:
    if join is Join.INNER:
        return reduce(lambda one, other: one.intersection(other), found)
    return reduce(lambda one, other: one.union(other), found)
