"""Column types: which holds both of two, what Arrow calls them, and what a cast map makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import pyarrow as pa

from prefect_cytotable.tasks.core.errors import ArgumentError, nearest
from prefect_cytotable.tasks.core.model import ColumnType

CAST_GROUPS = ("float", "integer", "string")
"""The type groups that ``data_type_cast_map`` may name."""

_ARROW = {
    ColumnType.BOOL: pa.bool_(),
    ColumnType.INT64: pa.int64(),
    ColumnType.FLOAT: pa.float32(),
    ColumnType.DOUBLE: pa.float64(),
    ColumnType.STRING: pa.string(),
}
_CAST_GROUP = {
    ColumnType.FLOAT: "float",
    ColumnType.DOUBLE: "float",
    ColumnType.INT64: "integer",
    ColumnType.STRING: "string",
}
_NUMBERS = {ColumnType.INT64, ColumnType.FLOAT, ColumnType.DOUBLE}
_ALLOWED_CASTS = {
    "float": ("float32", "float64", "float", "double", "halffloat", "float16"),
    "integer": (
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float32",
        "float64",
        "float",
        "double",
    ),
    "string": ("string", "large_string", "utf8", "large_utf8"),
}


def widest(one: ColumnType | None, other: ColumnType | None) -> ColumnType | None:
    """The narrowest type that holds the values of both; None stands for "no value seen".

    >>> widest(ColumnType.INT64, ColumnType.DOUBLE), widest(ColumnType.BOOL, ColumnType.INT64)
    (<ColumnType.DOUBLE: 'double'>, <ColumnType.STRING: 'string'>)
    """
    if one is None or other is None or one == other:
        return one or other
    if {one, other} <= _NUMBERS:
        return ColumnType.DOUBLE
    return ColumnType.STRING


def widest_of(types: Iterable[ColumnType | None]) -> ColumnType | None:
    """The narrowest type that holds the values of all; None where there is no value."""
    return reduce(widest, types, None)


def merge(one: dict[str, ColumnType | None], other: dict[str, ColumnType | None]) -> dict[str, ColumnType | None]:
    """The union of the columns of two tables, each with the type that holds the values of both."""
    return {name: widest(one.get(name), other.get(name)) for name in one | other}


def from_arrow(type_: pa.DataType) -> ColumnType | None:
    """The column type for what Arrow inferred; None for a column without any value."""
    if pa.types.is_null(type_):
        return None
    if pa.types.is_boolean(type_):
        return ColumnType.BOOL
    if pa.types.is_integer(type_):
        return ColumnType.INT64
    if pa.types.is_floating(type_):
        return ColumnType.FLOAT if type_.bit_width <= 32 else ColumnType.DOUBLE
    return ColumnType.STRING


def to_arrow(type_: ColumnType) -> pa.DataType:
    """Arrow's name for a column type."""
    return _ARROW[type_]


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of an output column, from the name that the plan stores."""
    return pa.type_for_alias(name)


def cast_type(type_: ColumnType, casts: tuple[tuple[str, str], ...]) -> str:
    """The name of the Arrow type that a column of `type_` gets in the output.

    >>> cast_type(ColumnType.DOUBLE, (("float", "float32"),)), cast_type(ColumnType.INT64, ())
    ('float', 'int64')
    """
    chosen = dict(casts).get(_CAST_GROUP.get(type_, ""))
    return str(pa.type_for_alias(chosen)) if chosen else str(to_arrow(type_))


def check_casts(casts: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """``data_type_cast_map`` as pairs.

    Raises:
        ArgumentError: A group or a type in it does not exist or does not fit the group.
    """
    for group, type_ in casts.items():
        if group not in CAST_GROUPS:
            raise ArgumentError(f"data_type_cast_map has the type group {group!r}. {nearest(group, CAST_GROUPS)}")
        if type_ not in _ALLOWED_CASTS[group]:
            raise ArgumentError(
                f"data_type_cast_map casts {group!r} to {type_!r}. {nearest(str(type_), _ALLOWED_CASTS[group])}"
            )
    return tuple(sorted(casts.items()))
