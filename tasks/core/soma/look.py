"""What is known of a table before its rows are read: columns, labels, range of joinids, and what marks its state."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np
import pyarrow as pa

from prefect_cytotable.tasks.core.errors import ArgumentError, nearest
from prefect_cytotable.tasks.core.soma import filters, opening
from prefect_cytotable.tasks.core.soma.model import JOINID, TISSUE, FetchOptions, Place, Sizes, Table, TableFormat
from prefect_cytotable.tasks.core.soma.sizes import row_bytes, widest

NAMED = 30
"""Labels that are listed where none is like a word; others have 20,000 of them."""

_SMALL = Sizes(rows=1, buffer_bytes=1 << 20, readers=1, tile_bytes=1 << 26)


def look(place: Place, options: FetchOptions) -> Table:
    """The table, its filter and its columns checked.

    Raises:
        ArgumentError: A column, a tissue or a filter that the table does not know.
    """
    with opening.frame(place, _SMALL) as frame:
        schema: pa.Schema = frame.schema
        known = tuple(schema.names)
        where = f"{options.axis.value} of {options.source}"
        filters.check_columns("columns", options.columns, known, where)
        value_filter = filters.combined(options.value_filter, options.tissue)
        if options.tissue:
            _check_tissue(frame, options.tissue, known, where)
        if value_filter:
            filters.check_columns("value_filter", filters.columns_of(value_filter), known, where)
            _check_filter(frame, value_filter, options.value_filter)
        notes = _unknown_labels(frame, options.value_filter)
        columns = options.columns or known
        _check_format(schema, columns, options.format)
        rows = int(frame.count)
        first, last = _joinids(frame, rows)
        output = pa.schema([schema.field(name) for name in columns])
        index = tuple(frame.index_column_names)
        return Table(
            place=place,
            columns=columns,
            value_filter=value_filter,
            index=index.index(JOINID) if JOINID in index else -1,
            first=first,
            last=last,
            rows=rows,
            row_bytes=row_bytes(output),
            widest=widest(output),
            mark=_mark(place, schema, rows, _written(frame), (first, last)),
            notes=notes,
        )


def _check_tissue(frame: Any, tissue: str, known: tuple[str, ...], where: str) -> None:
    filters.check_columns("tissue", (TISSUE,), known, where)
    if pa.types.is_dictionary(frame.schema.field(TISSUE).type):
        labels = frame.get_enumeration_values([TISSUE])[TISSUE].to_pylist()
        if tissue not in labels:
            raise ArgumentError(f"tissue is {tissue!r}, which {where} does not have. {nearest(tissue, labels)}")


def _check_format(schema: pa.Schema, columns: tuple[str, ...], format_: TableFormat) -> None:
    for name in columns if format_ is TableFormat.CSV else ():
        type_ = schema.field(name).type
        type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
        if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
            raise ArgumentError(
                f"Column {name!r} holds bytes, for which CSV has no text. Write Feather or Parquet, or choose columns "
                f"without it."
            )


def _unknown_labels(frame: Any, value_filter: str) -> tuple[str, ...]:
    """Notes on texts of a filter that are no labels of their column: no row has them, which may be a misspelling."""
    schema: pa.Schema = frame.schema
    notes = []
    for name, text in filters.texts_of(value_filter) if value_filter else ():
        if pa.types.is_dictionary(schema.field(name).type):
            labels = frame.get_enumeration_values([name])[name].to_pylist()
            if text not in labels:
                hint = nearest(text, labels)
                hint = hint if hint.startswith("Did you") or len(labels) <= NAMED else ""
                notes.append(f"value_filter names {text!r}, which no row of {name} has. {hint}".strip())
    return tuple(notes)


def _written(frame: Any) -> int:
    """Cells in all fragments, those that later ones replace among them; TileDB-SOMA reads it from their footers."""
    return int(frame._handle.fragment_cell_count())


def _check_filter(frame: Any, value_filter: str, given: str) -> None:
    """Let SOMA read the filter, before a reader does so in the middle of a run."""
    soma = opening.library()
    try:
        frame.read(column_names=[JOINID], value_filter=value_filter)
    except (soma.SOMAError, ValueError, TypeError, KeyError) as error:
        cause = str(error).splitlines()[0].removeprefix("SOMAError: ") if str(error) else type(error).__name__
        if "incompatible function arguments" in cause:
            cause = "a constant is of another type than the column that it is compared with"
        raise ArgumentError(f"value_filter is {given!r}, which SOMA refuses: {cause}") from error


def _joinids(frame: Any, rows: int) -> tuple[int, int]:
    """The smallest and the largest joinid that a row can have; (0, -1) where there is no row."""
    if rows == 0:
        return 0, -1
    index = tuple(frame.index_column_names)
    if JOINID in index:
        low, high = frame.non_empty_domain()[index.index(JOINID)]
        return int(low), int(high)
    ends: list[int] = []
    with opening.reading(frame.uri, _SMALL):
        for batch in frame.read(column_names=[JOINID]):
            values = batch.column(JOINID).to_numpy()
            if len(values):
                ends = [int(np.min([*ends, values.min()])), int(np.max([*ends, values.max()]))]
    return (ends[0], ends[1]) if ends else (0, -1)


def _mark(place: Place, schema: pa.Schema, rows: int, written: int, joinids: tuple[int, int]) -> str:
    """What changes with the table: on this machine its fragments' names, elsewhere its shape and what was written.

    A row that is written again counts twice among what was written, until its fragments are consolidated.
    """
    parts: list[object] = [place.uri, str(schema), rows, written, joinids]
    if not place.remote:
        folder = Path(unquote(urlsplit(place.uri).path) if place.uri.startswith("file://") else place.uri)
        parts += [sorted(one.name for one in folder.glob(f"{name}/*")) for name in ("__fragments", "__commits")]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]
