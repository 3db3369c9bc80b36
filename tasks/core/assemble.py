"""Putting a chunk's output together from the columns that were read and the positions that the join found."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_cytotable.tasks.core import query as queries
from prefect_cytotable.tasks.core.arrays import from_numpy, from_texts, one_piece, to_numpy
from prefect_cytotable.tasks.core.errors import CastError
from prefect_cytotable.tasks.core.layout import DATASET
from prefect_cytotable.tasks.core.load import Findings, Loaded
from prefect_cytotable.tasks.core.model import Chunk, OutputColumn, Plan
from prefect_cytotable.tasks.core.naming import TABLE_NUMBER
from prefect_cytotable.tasks.core.schema import arrow_type, cast_type

_SUM = pc.get_function("sum")
"""Called once for each column of each chunk, without the wrapper that costs more than a chunk's sum."""


def take(
    plan: Plan,
    chunk: Chunk,
    columns: tuple[OutputColumn, ...],
    loaded: dict[str, Loaded],
    positions: dict[str, pa.Array | None],
    dataset: pa.Array,
) -> pa.Table:
    """The output's columns, each taken from its compartment at `positions` and cast.

    Columns of a compartment whose rows already lie as the output's are passed on as they are. Source columns are
    given up as soon as they are used, so that memory holds little more than one copy.
    """
    straight = {name: _is_straight(order, loaded[name].rows) for name, order in positions.items()}
    arrays = []
    for column in columns:
        if column.compartment == DATASET:
            arrays.append(table_numbers(plan, chunk, dataset))
            continue
        array = loaded[column.compartment].columns.pop(column.column)
        if not straight[column.compartment]:
            array = one_piece(array).take(positions[column.compartment])
        arrays.append(cast(array, column))
    return pa.table(arrays, names=[column.name for column in columns])


def table_numbers(plan: Plan, chunk: Chunk, dataset: pa.Array) -> pa.Array:
    """The TableNumber of each row, from its dataset's position in the chunk."""
    numbers = [plan.datasets[slice_.dataset].table_number for slice_ in chunk.slices]
    if any(isinstance(number, str) for number in numbers):
        return from_texts([str(number) for number in numbers]).take(dataset)
    return from_numpy(np.array(numbers, np.int64)).take(dataset)


def cast(array: pa.Array, column: OutputColumn) -> pa.Array:
    """The array in the type that the output wants.

    Raises:
        CastError: A value does not fit.
    """
    type_ = arrow_type(column.type)
    if array.type == type_:
        return array
    try:
        narrowed = array.cast(type_)
    except pa.ArrowInvalid as error:
        raise _cast_error(column, str(error)) from error
    if pa.types.is_floating(type_) and _infinite(narrowed) != _infinite(array):
        raise _cast_error(column, "a value is too large and would become infinite")
    return narrowed


def _infinite(array: pa.Array) -> int:
    return pc.sum(pc.is_inf(array)).as_py() or 0 if pa.types.is_floating(array.type) else 0


def _cast_error(column: OutputColumn, cause: str) -> CastError:
    return CastError(
        f"{column.name}: {cause} (data_type_cast_map asks for {column.type}). Choose a wider type, or leave it out."
    )


def count_values(table: pa.Table, findings: Findings) -> None:
    """Note how many values of the output are missing or infinite."""
    missing = sum(column.null_count for column in table.columns)
    if missing:
        findings.notes["output", "missing values (null)"] += missing
    for column in table.columns:
        if pa.types.is_floating(column.type) and not math.isfinite(_SUM.call([column]).as_py() or 0):
            infinite = pc.sum(pc.is_inf(column)).as_py() or 0
            nans = pc.sum(pc.is_nan(column)).as_py() or 0
            findings.notes["output", "infinite values (kept)"] += infinite
            findings.notes["output", "values that are not a number (NaN, kept)"] += nans


def without_nulls(plan: Plan, table: pa.Table, dataset: pa.Array) -> tuple[pa.Table, pa.Array, Counter[int]]:
    """The rows in which every value is there, the dataset of each, and by dataset how many were dropped.

    All rows, unless `drop_null`.
    """
    if not plan.options.drop_null or not table.num_rows:
        return table, dataset, Counter()
    keep = None
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name == TABLE_NUMBER:  # null where there is one archive, which needs no number
            continue
        present = pc.invert(column.is_null(nan_is_null=True))
        keep = present if keep is None else pc.and_(keep, present)
    kept = one_piece(keep)
    dropped = Counter(to_numpy(dataset.filter(pc.invert(kept))).tolist())
    return table.filter(keep), dataset.filter(kept), dropped


def query(plan: Plan, chunk: Chunk, loaded: dict[str, Loaded]) -> tuple[pa.Table, pa.Array]:
    """The result of ``joins=`` over each dataset of the chunk in turn, and the dataset of each row."""
    output = plan.tables[0].columns
    results, rows = [], []
    for position in range(len(chunk.slices)):
        tables = {name: _queried_table(plan, chunk, table, position) for name, table in loaded.items()}
        result = queries.run(plan.options.query, tables)
        results.append(_as_planned(plan, chunk, result, output, position))
        rows.append(result.num_rows)
    table = pa.concat_tables(results)
    return table.combine_chunks(), from_numpy(np.repeat(np.arange(len(rows), dtype=np.int32), rows))


def _is_straight(order: pa.Array | None, rows: int) -> bool:
    """Whether taking at `order` would change nothing."""
    if order is None:
        return True
    if len(order) != rows or order.null_count:
        return False
    return bool(np.array_equal(to_numpy(order), np.arange(rows)))


def _queried_table(plan: Plan, chunk: Chunk, table: Loaded, position: int) -> pa.Table:
    """One dataset's rows of a compartment, under their output names and types."""
    here = pc.equal(table.keys.dataset, position)
    casts = plan.options.casts
    arrays, names = [], []
    for column in table.schema.columns:
        output = OutputColumn(column.output, cast_type(column.type, casts), table.schema.compartment, column.name)
        arrays.append(cast(table.columns[column.name], output))
        names.append(column.output)
    if plan.with_table_number and TABLE_NUMBER not in names:
        arrays.insert(0, table_numbers(plan, chunk, table.keys.dataset))
        names.insert(0, TABLE_NUMBER)
    return pa.table(arrays, names=names).filter(here)


def _as_planned(
    plan: Plan, chunk: Chunk, result: pa.Table, output: tuple[OutputColumn, ...], position: int
) -> pa.Table:
    """A query's result with the plan's columns; a name that occurs twice counts once."""
    arrays = []
    for column in output:
        if column.compartment == DATASET and column.name not in result.column_names:
            dataset = from_numpy(np.full(result.num_rows, position, np.int32))
            arrays.append(table_numbers(plan, chunk, dataset))
            continue
        found = result.column(result.column_names.index(column.name)).combine_chunks()
        arrays.append(cast(found, column))
    table = pa.table(arrays, names=[column.name for column in output])
    return _sorted(plan, table) if plan.options.sort_output else table


def _sorted(plan: Plan, table: pa.Table) -> pa.Table:
    """Rows in the order of image and object number, where the query's result has them."""
    base = plan.inspected.schema(plan.inspected.base)
    assert base is not None
    names = [base.column(one) for one in (base.image_number, base.object_number)]
    keys = [(column.output, "ascending") for column in names if column and column.output in table.column_names]
    return table.sort_by(keys).combine_chunks() if keys else table
