"""Asks anndata itself what becomes of an array: the same question for objects of one row and a few names.

`anndata.concat` decides types, fills and refusals by what elements are and by which names are missing, never by
their values. So a concatenation of tiny objects of the same kinds tells what that of the large ones must give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from prefect_cytotable.tasks.core.concat.model import Element, Kind, Options
from prefect_cytotable.tasks.core.concat.stores import quiet
from prefect_cytotable.tasks.core.errors import CytotableError, LayoutError

PROBED = "element"


@dataclass(frozen=True)
class Probed:
    """What anndata makes of elements that belong together.

    Attributes:
        sparse: Whether the result is.
        width: Columns of the result; only an array of `obsm` or `varm` has as many as that.
    """

    dtype: np.dtype[Any]
    sparse: bool
    width: int


def probe_aligned(elements: Sequence[Element | None], missing: Sequence[int], options: Options) -> Probed:
    """X or a layer, aligned to both axes.

    Args:
        elements: Of each input; None where it has none.
        missing: Of each input, how many names of the output it lacks; -1 where it has no names at all.
        options: The join, the axis, the value to fill with.

    Raises:
        LayoutError: anndata cannot put them together.
    """
    few = _few([(element and (element.kind, element.dtype), min(max(count, -1), 1))
                for element, count in zip(elements, missing, strict=True)])  # fmt: skip
    names = _few_names([missing[number] for number in few])
    objects = []
    for element, own in zip([elements[number] for number in few], names, strict=True):
        axes = (["one"], own) if options.axis == 0 else (own, ["one"])
        arrays = {PROBED: _tiny(element, (len(axes[0]), len(axes[1])))} if element else {}
        frames = [pd.DataFrame(index=pd.Index(axis, dtype=object)) for axis in axes]
        objects.append(anndata.AnnData(obs=frames[0], var=frames[1], layers=arrays))
    return _probed(objects, options, elements, lambda result: result.layers[PROBED])


def probe_mapping(elements: Sequence[Element | None], options: Options) -> Probed:
    """An array of `obsm` or `varm`, aligned to the axis of concatenation.

    Raises:
        LayoutError: anndata cannot put them together.
    """
    objects = []
    for element in elements:
        arrays = {PROBED: _tiny(element, (1, *element.shape[1:]))} if element else {}
        frame = pd.DataFrame(index=["one"])
        objects.append(anndata.AnnData(obs=frame, obsm=arrays))
    return _probed(objects, options, elements, lambda result: result.obsm[PROBED], axis=0)


def probe_pairwise(elements: Sequence[Element | None], options: Options) -> Probed:
    """An array of `obsp` or `varp`, which becomes blocks on the diagonal.

    Raises:
        LayoutError: anndata cannot put them together.
    """
    objects = []
    for element in elements:
        arrays = {PROBED: _tiny(element, (1, 1))} if element else {}
        objects.append(anndata.AnnData(obs=pd.DataFrame(index=["one"]), obsp=arrays))
    return _probed(objects, options, elements, lambda result: result.obsp[PROBED], axis=0)


def _few(kinds: Sequence[Any]) -> list[int]:
    """The first two of each kind: more of them would not change what anndata makes of all.

    >>> _few(["a", "b", "a", "a", "b", "b"])
    [0, 1, 2, 4]
    """
    return [number for number, kind in enumerate(kinds) if kinds[:number].count(kind) < 2]


def _few_names(missing: Sequence[int]) -> list[list[str]]:
    """A few names for each input, such that it lacks some of the union just where it does so in truth.

    >>> _few_names([0, 0])
    [['all'], ['all']]
    >>> _few_names([0, 3])
    [['all', 'own 1', 'more'], ['all', 'own 1']]
    >>> _few_names([2, 3, -1])
    [['all', 'own 0'], ['all', 'own 1'], []]
    """
    own = {number: f"own {number}" for number, count in enumerate(missing) if count > 0}
    everything = ["all", *own.values(), *(["more"] if own and 0 in missing else [])]
    lacking = {number: ["all", name] for number, name in own.items()}
    return [[] if count < 0 else lacking.get(number, everything) for number, count in enumerate(missing)]


def _tiny(element: Element, shape: tuple[int, ...]) -> Any:
    dtype = np.dtype(element.dtype)
    if element.kind is Kind.CSR:
        return sparse.csr_matrix(shape, dtype=dtype)
    if element.kind is Kind.CSC:
        return sparse.csc_matrix(shape, dtype=dtype)
    return np.zeros(shape, dtype=dtype)


def _probed(
    objects: list[Any],
    options: Options,
    elements: Sequence[Element | None],
    pick: Callable[[Any], Any],
    axis: int | None = None,
) -> Probed:
    (path,) = {one.path for one in elements if one}
    result = pick(
        concatenated(
            objects,
            f"{path} of the inputs",
            axis=options.axis if axis is None else axis,
            join=options.join.value,
            fill_value=options.fill_value,
            pairwise=True,
        )
    )
    if result.dtype.kind not in "biufc":
        raise LayoutError(
            f"{path}: the inputs' types ({', '.join(sorted({one.dtype for one in elements if one}))}) with missing "
            f"values have no common type that can be written. Give a fill_value, or use join='inner'."
        )
    return Probed(np.dtype(result.dtype), bool(sparse.issparse(result)), int(result.shape[1]))


def concatenated(objects: list[Any], what: str, **arguments: Any) -> Any:
    """`anndata.concat`, its refusals told as ours.

    Raises:
        LayoutError: anndata cannot put them together.
    """
    with refusals(f"{what} cannot be put together"):
        return anndata.concat(objects, **arguments)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Whatever anndata, pandas, SciPy or awkward raise about the values they are given, told as a refusal of ours.

    Args:
        what: What could not be done then; it begins the message.

    Raises:
        LayoutError: Something was refused.
    """
    try:
        with quiet():
            yield
    except (CytotableError, MemoryError, OSError):
        raise
    except Exception as error:  # each of those libraries has classes of its own
        raise LayoutError(f"{what}: {error}") from error
