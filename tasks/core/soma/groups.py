"""Rows regrouped: groups of one size, however many rows the batches have that come in.

Sinks get groups whose dictionary columns are codes; the labels lie beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from prefect_cytotable.tasks.core.arrays import empty
from prefect_cytotable.tasks.core.soma.labels import Labels


def labels_of(schema: pa.Schema) -> dict[str, Labels]:
    """Labels for every dictionary column of a schema."""
    return {field.name: Labels(field.type) for field in schema if pa.types.is_dictionary(field.type)}


def coded_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with codes in the place of dictionary columns."""
    return pa.schema(
        [field.with_type(field.type.index_type) if pa.types.is_dictionary(field.type) else field for field in schema]
    )


def groups(
    tables: Iterable[pa.Table], schema: pa.Schema, labels: dict[str, Labels], rows: int
) -> Iterator[pa.RecordBatch]:
    """Groups of `rows` rows, and a last one of fewer.

    Args:
        tables: With the columns of `schema`, in any number of pieces.
        schema: Of the output.
        labels: From `labels_of`; they learn what is met.
        rows: Of a group.
    """
    coded = coded_schema(schema)
    pending: list[pa.RecordBatch] = []
    waiting = 0
    for table in tables:
        batches = [_coded(batch, schema, coded, labels) for batch in table.to_batches()]
        del table
        pending += batches
        waiting += sum(batch.num_rows for batch in batches)
        del batches
        while waiting >= rows:
            whole = pa.Table.from_batches(pending, coded)
            yield _one_batch(whole.slice(0, rows), coded)
            pending = whole.slice(rows).to_batches()
            del whole
            waiting -= rows
    if waiting:
        yield _one_batch(pa.Table.from_batches(pending, coded), coded)


def _one_batch(table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    """The rows in fresh buffers, even where one piece holds them: what a file gets of a slice depends on its place."""
    columns = [pa.concat_arrays([*column.chunks, empty(column.type)]) for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _coded(batch: pa.RecordBatch, schema: pa.Schema, coded: pa.Schema, labels: dict[str, Labels]) -> pa.RecordBatch:
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if field.name in labels:
            columns.append(labels[field.name].encode(column))
        else:
            columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=coded)
