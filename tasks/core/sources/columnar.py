"""Columns of formats that have types (Parquet, DuckDB), as the types of the plan.

What a value becomes is the same as in every other format: numbers stay what they are, a number that is missing is null
(NaN among them, which is how pandas writes one), a wider type widens the plan's column, and what numbers nothing in a
key, or is a text among measures, becomes null and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from prefect_cytotable.tasks.core.arrays import missing, one_piece, whole_numbers
from prefect_cytotable.tasks.core.errors import BadSourceError, nearest
from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.schema import from_arrow, to_arrow, widest
from prefect_cytotable.tasks.core.sources.base import Answer, Finding, Keys
from prefect_cytotable.tasks.core.sources.csv_values import converted

Kinds = dict[str, ColumnType | None]
"""What each column of a table holds by its declaration, None where it can hold nothing but nulls."""

Columns = Sequence[tuple[str, ColumnType]]

LEAVE_OUT = "Leave it out when you write the file, or write one column for each of its values."
_LARGEST = 2**63 - 1
_NO_NUMBER = "a value that is not a number became null"


def kind_of(type_: pa.DataType) -> ColumnType | None:
    """What a column of an Arrow type holds.

    Raises:
        TypeError: It holds several values in one, or spans of time.
    """
    if isinstance(type_, pa.BaseExtensionType):
        return kind_of(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if pa.types.is_decimal(type_):
        return ColumnType.DOUBLE
    if _is_text(type_) or _is_binary(type_) or _is_moment(type_):
        return ColumnType.STRING
    if pa.types.is_null(type_) or pa.types.is_boolean(type_) or pa.types.is_integer(type_) or _is_float(type_):
        return from_arrow(type_)
    raise TypeError(str(type_))


def kinds_of(schema: pa.Schema, where: str) -> Kinds:
    """What each column holds.

    Raises:
        BadSourceError: Two columns have the same name, or one holds lists, structs or maps.
    """
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    if twice:
        raise BadSourceError(where, f"it has two columns called {twice[0]!r}", "Rename one when you write the file.")
    kinds: Kinds = {}
    for field in schema:
        try:
            kinds[field.name] = kind_of(field.type)
        except TypeError as error:
            raise unreadable(where, field.name, str(error)) from error
    return kinds


def unreadable(where: str, column: str, type_: str) -> BadSourceError:
    """What is wrong with a table that has a column of such a type."""
    return BadSourceError(where, f"its column {column!r} is of type {type_[:80]}, which is no single value", LEAVE_OUT)


def plain(column: pa.Array, name: str, where: str) -> pa.Array:
    """A column's values as null, bool, int64, float32, float64 or string, without NaN; its length stays.

    A column of whole numbers that has one beyond int64 becomes float64; a moment becomes its text after ISO 8601.

    Raises:
        BadSourceError: Bytes in it are no UTF-8.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    type_ = column.type
    if _is_float(type_):
        return _without_nan(column if type_.bit_width > 16 else column.cast(pa.float32()))
    if pa.types.is_integer(type_):
        return _whole(column)
    if pa.types.is_decimal(type_):
        return number_texts(column.cast(pa.string()), ColumnType.DOUBLE)
    if _is_moment(type_):
        return _moments(column)
    return _texts(column, name, where) if _is_text(type_) or _is_binary(type_) else column


def number_texts(texts: pa.Array, kind: ColumnType | None) -> pa.Array:
    """Numbers that a source gives as texts, because no Arrow type holds them or a cast would round them wrongly.

    The nearest doubles, or int64 where `kind` says so and all fit.
    """
    if kind is ColumnType.INT64:
        try:
            return texts.cast(pa.int64())
        except pa.ArrowInvalid:  # one is beyond 64 bits
            pass
    return _without_nan(texts.cast(pa.float64()))


def joined(pieces: Sequence[pa.Array]) -> pa.Array:
    """What `plain` made of a column's pieces, as one array; of whole numbers and doubles, doubles."""
    if not pieces:
        return pa.nulls(0)
    if len({piece.type for piece in pieces}) > 1:
        pieces = [piece.cast(pa.float64(), safe=False) for piece in pieces]
    return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)


def side_by_side(answers: Sequence[Answer]) -> Answer:
    """Answers for some columns each, of the same rows, as one for all of them."""
    widened = tuple(one for answer in answers for one in answer.widened)
    if widened:
        return Answer(pa.table({}), widened)
    findings = tuple(one for answer in answers for one in answer.findings)
    arrays = {name: answer.table.column(name) for answer in answers for name in answer.table.column_names}
    return Answer(pa.table(list(arrays.values()), names=list(arrays)), findings=findings)


def check_present(names: Sequence[str], columns: Collection[str], where: str) -> None:
    """Raise BadSourceError where a table lacks a column."""
    for name in names:
        if name not in columns:
            raise BadSourceError(where, f"it has no column {name!r}", nearest(name, columns))


def too_narrow(
    columns: Columns, kinds: Mapping[str, ColumnType | None], keys: Keys
) -> tuple[tuple[str, ColumnType], ...]:
    """(column, the type it needs) where the plan's type cannot hold what the source declares.

    Decided from the declaration and not from the values, so that every chunk comes to the same types. Texts are looked
    at one by one.
    """
    found = []
    for name, type_ in columns:
        kind = kinds[name]
        if name in keys.names or kind is ColumnType.STRING:
            continue
        wider = widest(kind, type_)
        if wider is not None and wider is not type_:
            found.append((name, wider))
    return tuple(found)


def as_planned(arrays: Mapping[str, pa.Array], columns: Columns, keys: Keys) -> Answer:
    """Columns that are `plain`, as the plan wants them.

    Args:
        arrays: By name, all of the same length.
        columns: (name, type) of those that are wanted.
        keys: Of the table.
    """
    ready: dict[str, pa.Array] = {}
    widened: list[tuple[str, ColumnType]] = []
    findings: list[Finding] = []
    for name, type_ in columns:
        if name in keys.names:
            ready[name], lost = key_numbers(arrays[name])
            findings += [Finding(name, _NO_NUMBER, lost)] if lost else []
            continue
        answer = _as(name, arrays[name], type_, keys)
        widened += answer.widened
        findings += answer.findings
        if not answer.widened:
            ready[name] = one_piece(answer.table.column(0))
    if widened:
        return Answer(pa.table({}), tuple(widened))
    return Answer(pa.table(list(ready.values()), names=list(ready)), findings=tuple(findings))


def _as(name: str, array: pa.Array, type_: ColumnType, keys: Keys) -> Answer:
    kind = from_arrow(array.type)
    if kind is ColumnType.STRING and type_ is not ColumnType.STRING:
        single = type_ is ColumnType.FLOAT
        answer = converted(_table(name, array), {name: ColumnType.DOUBLE if single else type_}, keys)
        return Answer(answer.table, ((name, ColumnType.DOUBLE),)) if single and not answer.widened else answer
    wider = widest(kind, type_)
    if wider is not None and wider is not type_:
        return Answer(pa.table({}), ((name, wider),))
    target = to_arrow(type_)
    # A whole number beyond 2**53 becomes the nearest double, as it does in a text.
    return Answer(_table(name, array if array.type == target else array.cast(target, safe=False)))


def key_numbers(array: pa.Array) -> tuple[pa.Array, int]:
    """(values that are `plain` as int64, how many numbered nothing and became null)."""
    if array.type == pa.int64():
        return array, 0
    if _is_float(array.type):
        numbers = whole_numbers(array.cast(pa.float64()))
    elif pa.types.is_string(array.type):
        answer = converted(_table("key", array), {"key": ColumnType.INT64}, Keys("key", ""))
        return one_piece(answer.table.column(0)), sum(one.count for one in answer.findings)
    else:
        numbers = pa.nulls(len(array), pa.int64())
    return numbers, numbers.null_count - array.null_count


def _table(name: str, array: pa.Array) -> pa.Table:
    return pa.table([array], names=[name])


def _is_float(type_: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_binary(type_: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(type_) for test in tests)


def _is_moment(type_: pa.DataType) -> bool:
    return bool(pa.types.is_date(type_) or pa.types.is_time(type_) or pa.types.is_timestamp(type_))


def _without_nan(column: pa.Array) -> pa.Array:
    absent = pc.is_nan(column)
    return pc.if_else(absent, missing(column.type), column) if pc.any(absent).as_py() else column


def _whole(column: pa.Array) -> pa.Array:
    if column.type == pa.uint64() and (pc.max(column).as_py() or 0) > _LARGEST:
        return column.cast(pa.float64(), safe=False)
    return column.cast(pa.int64())


def _moments(column: pa.Array) -> pa.Array:
    """Dates and times as texts that `datetime.fromisoformat` reads; of an instant, in UTC."""
    type_ = column.type
    if pa.types.is_date(type_):
        return column.cast(pa.date32(), safe=False).cast(pa.string())
    if pa.types.is_timestamp(type_) and type_.tz:  # through numbers: that needs no database of time zones
        column = column.cast(pa.int64()).cast(pa.timestamp(type_.unit))
    texts = pc.replace_substring_regex(column.cast(pa.string()), r"\.0+$", "")
    if pa.types.is_timestamp(type_):
        texts = pc.replace_substring(texts, " ", "T")
        if type_.tz:
            texts = pc.replace_substring_regex(texts, r"^(.*)$", r"\1Z", max_replacements=1)
    return texts


def _texts(column: pa.Array, name: str, where: str) -> pa.Array:
    try:
        texts = column if column.type == pa.string() else column.cast(pa.string())
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise BadSourceError(
            where, f"its column {name!r} holds bytes that are no UTF-8 text ({error})", LEAVE_OUT
        ) from error
    return texts
