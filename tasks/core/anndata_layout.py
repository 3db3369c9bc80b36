"""Where the columns of a table go in an AnnData: to X, to obs, into the names of cells, to their places."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prefect_cytotable.tasks.core.feature_names import FeatureName, parse_deep_names, parse_names
from prefect_cytotable.tasks.core.layout import DATASET
from prefect_cytotable.tasks.core.model import JOINED, Format, OutputColumn, OutputTable, Plan, Schema
from prefect_cytotable.tasks.core.naming import TABLE_NUMBER
from prefect_cytotable.tasks.core.schema import arrow_type

INDEX = "_index"
"""What anndata calls the names of rows; no column can have that name."""

_KEY = re.compile(r"(.*_)?(Parent_\w+|(Object|Image|Table)_?Number)", re.DOTALL)
_PLACES = (
    ("Metadata_Plate", "Plate", "Plate ID"),
    ("Metadata_Well", "Well", "WELL LABEL"),
    ("Metadata_Site", "Site", "FOV"),
)
_OBJECTS = ("Metadata_ObjectNumber", "OBJECT ID")
_CENTRES = ("Location_Center", "AreaShape_Center")
_GRAVITY = re.compile(r"(.* )?cg X( .*)?", re.DOTALL)
"""IN Carta's name of a centre: that of gravity, of a target and a wavelength."""


@dataclass(frozen=True)
class AnnDataLayout:
    """Which column goes where.

    Attributes:
        features: Columns of X, in the order of the table.
        dtype: "float64" or "float32".
        obs: (column, its name in obs) pairs; all columns that are not in X.
        identity: Columns that name a cell, most general first: plate, well, site, TableNumber, image, object.
        spatial: The columns X and Y of the base object's centre; empty where there are none.
        names: The parts of each feature's name.
    """

    features: tuple[str, ...]
    dtype: str
    obs: tuple[tuple[str, str], ...]
    identity: tuple[str, ...]
    spatial: tuple[str, ...]
    names: tuple[FeatureName, ...]


def anndata_layout(plan: Plan, table: OutputTable) -> AnnDataLayout:
    """The layout of one of the plan's tables."""
    features = tuple(column.name for column in table.columns if _is_feature(plan, column))
    types = {column.name: arrow_type(column.type) for column in table.columns}
    inner = set(features)
    return AnnDataLayout(
        features=features,
        dtype=_dtype([types[name] for name in features]),
        obs=_safe_names([column.name for column in table.columns if column.name not in inner]),
        identity=_identity(plan, table),
        spatial=_spatial(plan, table, {name for name, type_ in types.items() if _is_number(type_)}),
        names=tuple(_parsed(plan, features)),
    )


def numpy_type(layout: AnnDataLayout) -> np.dtype[np.float32] | np.dtype[np.float64]:
    """The type of X."""
    return np.dtype(np.float32) if layout.dtype == "float32" else np.dtype(np.float64)


def _is_feature(plan: Plan, column: OutputColumn) -> bool:
    """Whether a column is a measurement: a number that tells neither which cell it is nor of which image."""
    if not _is_number(arrow_type(column.type)) or column.compartment in (DATASET, *plan.options.preset.metadata):
        return False
    name = column.name.lower()
    if "metadata" in name or name.startswith("image_") or _KEY.fullmatch(column.name):
        return False
    if plan.options.preset.format is Format.NPZ and not _is_deep(column):
        return False
    # A preset that keeps names has no compartment before them: a place without one was given, not measured.
    if column.name.startswith("Location_"):
        return False
    return not _identifies(plan, column)


def _is_deep(column: OutputColumn) -> bool:
    """Whether a column of a DeepProfiler archive is one of its features: a float with a number at the end."""
    return bool(pa.types.is_floating(arrow_type(column.type)) and parse_deep_names([column.name])[0].feature_group)


def _identifies(plan: Plan, column: OutputColumn) -> bool:
    if column.column in plan.options.preset.identifying or column.name in plan.options.preset.identifying:
        return True
    schema = plan.inspected.schema(column.compartment)
    keys = (schema.image_number, schema.object_number) if schema else ()
    parents = [one.column for one in plan.inspected.relations if one.child == column.compartment]
    return column.column in (*keys, *parents)


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


def _dtype(types: list[pa.DataType]) -> str:
    """float32 where no measurement has more; whole numbers do not count, they are checked when they are written."""
    widths = {type_.bit_width for type_ in types if pa.types.is_floating(type_)}
    return "float32" if widths and max(widths) <= 32 else "float64"


def _safe_names(columns: list[str]) -> tuple[tuple[str, str], ...]:
    """Names that HDF5, a folder and anndata can all have: without slashes, each once."""
    taken: set[str] = {INDEX}
    pairs = []
    for column in columns:
        name = column.replace("/", "_").replace("\0", "_")
        if not name or name.startswith(".") or name in (INDEX, "zarr.json"):
            name = f"_{name}"
        while name in taken:
            name += "_"
        taken.add(name)
        pairs.append((column, name))
    return tuple(pairs)


def _base(plan: Plan, table: OutputTable) -> Schema | None:
    """The compartment that gives a table its rows."""
    return plan.inspected.schema(plan.inspected.base if table.name == JOINED else table.name)


def _identity(plan: Plan, table: OutputTable) -> tuple[str, ...]:
    names = [column.name for column in table.columns]
    found = [_place(names, endings) for endings in _PLACES]
    found.append(TABLE_NUMBER if plan.with_table_number and TABLE_NUMBER in names else None)
    base = _base(plan, table)
    keys = (base.image_number, base.object_number) if base else ("", "")
    output = {column.column: column.name for column in table.columns if base and column.compartment == base.compartment}
    for key, plain in zip(keys, (("Metadata_ImageNumber",), _OBJECTS), strict=True):
        found.append(output.get(key) or next((name for name in plain if name in names), None))
    return tuple(dict.fromkeys(name for name in found if name is not None))


def _place(names: list[str], endings: tuple[str, ...]) -> str | None:
    """The column of a plate, well or site: the first that has just one of these names, or ends with the first."""
    exact = [name for ending in endings for name in names if name == ending]
    return next(iter([*exact, *(name for name in names if name.endswith(f"_{endings[0]}"))]), None)


def _spatial(plan: Plan, table: OutputTable, numbers: set[str]) -> tuple[str, ...]:
    """The centre of the base object, else of the cell, else of the nucleus; or IN Carta's first one."""
    base = _base(plan, table)
    labels = [f"{base.label}_"] if base else []
    wanted = {name: f"{label}_" for name, label in plan.inspected.gathered.labels}
    labels += [wanted[name] for name in ("cells", "nuclei") if name in wanted and table.name == JOINED]
    for label in [*labels, ""]:
        for centre in _CENTRES:
            pair = (f"{label}{centre}_X", f"{label}{centre}_Y")
            if numbers.issuperset(pair):
                return pair
    gravity = (column.name for column in table.columns if _GRAVITY.fullmatch(column.name))
    pairs = ((name, name.replace("cg X", "cg Y")) for name in gravity)
    return next((pair for pair in pairs if numbers.issuperset(pair)), ())


def _parsed(plan: Plan, features: tuple[str, ...]) -> list[FeatureName]:
    if plan.options.preset.format is Format.NPZ:
        return parse_deep_names(features)
    return parse_names(features, [label for _, label in plan.inspected.gathered.labels])
