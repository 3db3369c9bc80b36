"""What the fields of a CSV file mean: numbers, texts, and what is missing."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from prefect_cytotable.tasks.core.arrays import EMPTY_TEXT, from_texts, missing, whole_numbers
from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.schema import from_arrow
from prefect_cytotable.tasks.core.sources.base import Answer, Finding, Keys

MISSING = ["", "nan", "NaN", "NAN", "-nan", "-NaN", "NA", "N/A", "#N/A", "null", "NULL", "None"]
"""What stands for a missing number; all of it becomes null."""

TRUE = ["True", "TRUE", "true", "Yes", "YES", "yes"]
FALSE = ["False", "FALSE", "false", "No", "NO", "no"]
"""Truth values as CellProfiler and IN Carta write them; CytoTable takes the same for such."""

NUMBER = r"^\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|[iI][nN][fF]([iI][nN][iI][tT][yY])?)\s*$"
"""What stands for a number, spaces around it included; hexadecimal digits do not."""

NAN = r"^[+-]?[nN][aA][nN]$"


def missing_as_null(table: pa.Table, types: dict[str, ColumnType]) -> pa.Table:
    """An empty text is a missing one, and so is `nan` in a spelling that the parser took for a number."""
    for position, name in enumerate(table.column_names):
        if types[name] is ColumnType.DOUBLE and math.isnan(pc.sum(table.column(position)).as_py() or 0):
            column = table.column(position)
            numbers = pc.if_else(pc.is_nan(column), missing(pa.float64()), column)
            table = table.set_column(position, name, numbers)
        if types[name] is ColumnType.STRING:
            column = table.column(position)
            blank = pc.equal(column, EMPTY_TEXT)
            if pc.any(blank).as_py():
                table = table.set_column(position, name, pc.if_else(blank, missing(pa.string()), column))
    return table


def converted(table: pa.Table, types: dict[str, ColumnType], keys: Keys, decimal: str = ".") -> Answer:
    """Texts made what the plan says, where some value is not of its type.

    A whole number column that holds fractions is widened. A text that is no number becomes null in a table of
    objects, where a column measures; it widens the column to text in an image table, where a column may name.
    A key is never widened: what numbers nothing becomes null.
    """
    arrays, widened, findings = [], [], []
    for name, column in zip(table.column_names, table.columns, strict=True):
        key = name in keys.names
        numeric = key or (bool(keys.object_number) and _measures(name))
        texts = column.combine_chunks()
        if types[name] is not ColumnType.STRING:
            texts = _with_point(texts, decimal)
        array, wider, lost = _as(texts, types[name], numeric, key)
        arrays.append(array)
        if wider is not types[name]:
            widened.append((name, wider))
        if lost:
            findings.append(Finding(name, "a value that is not a number became null", lost))
    return Answer(pa.table(arrays, names=table.column_names), tuple(widened), tuple(findings))


def _with_point(texts: pa.Array, decimal: str) -> pa.Array:
    return texts if decimal == "." else pc.replace_substring(texts, decimal, ".")


def _measures(name: str) -> bool:
    """Whether a column of an object table holds a measure; metadata name something, and a name may be text."""
    return "Metadata" not in name


def sampled_types(table: pa.Table, measures: bool, decimal: str = ".") -> dict[str, ColumnType | None]:
    """Types of a sample's columns. A measure is a number unless most of its values are none."""
    types = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        types[name] = from_arrow(column.type)
        if measures and _measures(name) and pa.types.is_string(column.type):
            array = _with_point(column.combine_chunks(), decimal)
            _, type_, lost = _as(array, ColumnType.INT64, numeric=True, key=False)
            present = pc.sum(pc.invert(is_missing(array))).as_py() or 0
            if 2 * lost < present:
                types[name] = type_
    return types


def is_missing(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Whether a text stands for a missing number, spaces around it aside."""
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.or_(pc.is_in(trimmed, from_texts(MISSING)), pc.match_substring_regex(trimmed, NAN))


def _as(texts: pa.Array, type_: ColumnType, numeric: bool, key: bool) -> tuple[pa.Array, ColumnType, int]:
    """(values, the type they need, how many became null)."""
    trimmed = pc.utf8_trim_whitespace(texts)
    if type_ is ColumnType.STRING:
        return pc.if_else(pc.equal(texts, EMPTY_TEXT), missing(pa.string()), texts), type_, 0
    if type_ is ColumnType.BOOL:
        lower = pc.utf8_lower(trimmed)
        known = pc.is_in(lower, from_texts([*TRUE, *FALSE, ""]))
        if pc.all(known).as_py():
            truth = pc.is_in(lower, from_texts(TRUE))
            return pc.if_else(pc.equal(lower, EMPTY_TEXT), missing(pa.bool_()), truth), type_, 0
        return texts, ColumnType.STRING, 0
    absent = is_missing(trimmed)
    number = pc.match_substring_regex(trimmed, NUMBER)
    lost = pc.sum(pc.and_(pc.invert(absent), pc.invert(number))).as_py() or 0
    if lost and not numeric:
        return texts, ColumnType.STRING, 0
    values = pc.if_else(number, trimmed, missing(pa.string()))
    if type_ is ColumnType.INT64:
        try:
            return pc.cast(values, pa.int64()), type_, lost
        except pa.ArrowInvalid:
            if key:
                whole = _whole(values)
                return whole, type_, lost + whole.null_count - values.null_count
            type_ = ColumnType.DOUBLE
    return pc.cast(values, pa.float64()), type_, lost


def _whole(numbers: pa.Array) -> pa.Array:
    """Texts of numbers as int64; digits alone exactly, anything else as the whole number that a double is."""
    for digits in (r"^-?\d+$", r"^-?\d{1,18}$"):  # the second where one is beyond int64
        plain = pc.match_substring_regex(numbers, digits)
        try:
            exact = pc.cast(pc.if_else(plain, numbers, missing(pa.string())), pa.int64())
        except pa.ArrowInvalid:
            continue
        break
    others = pc.cast(pc.if_else(plain, missing(pa.string()), numbers), pa.float64())
    return pc.coalesce(exact, whole_numbers(others))
