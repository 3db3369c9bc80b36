"""Elements that anndata itself puts together in memory: the other axis' annotations, `uns`, awkward arrays."""

from __future__ import annotations

from typing import Any

import anndata
import pandas as pd
import zarr
from anndata.io import read_elem, write_elem

from prefect_cytotable.tasks.core.concat import zarr_making
from prefect_cytotable.tasks.core.concat.frames import Inputs, writable_frame, write_values
from prefect_cytotable.tasks.core.concat.model import CALLABLE, Plan
from prefect_cytotable.tasks.core.concat.names import MAIN, RAW, Joined
from prefect_cytotable.tasks.core.concat.probe import concatenated, refusals
from prefect_cytotable.tasks.core.concat.request import Merges
from prefect_cytotable.tasks.core.concat.stores import Group, create_group
from prefect_cytotable.tasks.core.concat.zarr_store import folder_of, zarr_format_of

DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}
"""Attributes of a mapping."""


def write_other_axis(root: Group, plan: Plan, merges: Merges, joined: Joined, inputs: Inputs) -> None:
    """Write the annotations of the axis that is joined: its names, and what the merge strategy keeps."""
    options = plan.options
    other = options.other_name
    if not options.merge:
        write_names(root, other, joined.names)
        return
    objects = []
    for number in range(len(plan.inputs)):
        group = inputs.root(number)
        elements = {other: _frame(group[other])}
        for suffix in "mp":
            elements[f"{other}{suffix}"] = read_elem(group[f"{other}{suffix}"]) if f"{other}{suffix}" in group else {}
        with refusals(f"{plan.inputs[number].name}: the annotations of {other} are none"):
            objects.append(anndata.AnnData(**{options.axis_name: pd.DataFrame(index=[])}, **elements))
    result = concatenated(
        objects,
        f"the annotations of {other}",
        axis=options.axis,
        join=options.join.value,
        merge=merges.merge if options.merge == CALLABLE else options.merge,
        fill_value=options.fill_value,
    )
    write_values(root, other, writable_frame(getattr(result, other), other), other)
    for suffix in "mp":
        _replace(root, f"{other}{suffix}", dict(getattr(result, f"{other}{suffix}")))


def write_names(root: Group, path: str, names: Any) -> None:
    """Write a data frame without columns."""
    if isinstance(root, zarr.Group) and zarr_making.write_names(folder_of(root) / path, zarr_format_of(root), names):
        return
    write_elem(root, path, pd.DataFrame(index=names))


def _frame(node: Group) -> Any:
    frame = read_elem(node)
    return frame


def _replace(root: Group, name: str, values: dict[str, Any]) -> None:
    """A mapping of elements; data frames among them become what anndata can write."""
    ready = {
        key: writable_frame(value, f"{name}/{key}") if isinstance(value, pd.DataFrame) else value
        for key, value in values.items()
    }
    write_values(root, name, ready, name)


def write_uns(root: Group, plan: Plan, merges: Merges, inputs: Inputs) -> None:
    """Write what the strategy keeps of `uns`."""
    options = plan.options
    if not options.uns_merge:
        create_group(root, "uns", DICT)
        return
    objects = []
    for number in range(len(plan.inputs)):
        group = inputs.root(number)
        objects.append(anndata.AnnData(uns=read_elem(group["uns"]) if "uns" in group else {}))
    strategy = merges.uns_merge if options.uns_merge == CALLABLE else options.uns_merge
    result = concatenated(objects, "uns", uns_merge=strategy)
    write_values(root, "uns", dict(result.uns), "uns")


def write_other(root: Group, path: str, plan: Plan, joined: dict[str, Joined], inputs: Inputs) -> None:
    """Write an element that is no array of numbers, such as an awkward array."""
    options = plan.options
    mapping = "layers" if path in ("X", "raw/X") else path.rpartition("/")[0].removeprefix("raw/")
    above, _, name = path.rpartition("/")
    names = joined[RAW if path == "raw/X" and RAW in joined else MAIN].of_inputs
    objects = []
    for number, one in enumerate(plan.inputs):
        group = inputs.root(number)
        raw = one.element("raw/var") if path.startswith("raw/") and options.axis == 1 else None
        extent = raw.shape[0] if raw else one.shape[options.axis]
        frames = {options.axis_name: pd.DataFrame(index=pd.RangeIndex(extent).astype(str))}
        frames[options.other_name] = pd.DataFrame(index=names[number])
        elements = {mapping: {name: read_elem(group[path])} if one.element(path) else {}}
        with refusals(f"{one.name}: {path} is no element of an AnnData"):
            objects.append(anndata.AnnData(**frames, **elements))
    result = concatenated(
        objects,
        path,
        axis=options.axis,
        join=options.join.value,
        fill_value=options.fill_value,
        pairwise=options.pairwise,
    )
    # anndata 0.13 takes no path, only a name
    write_values(root[above] if above else root, name, getattr(result, mapping)[name], path)
