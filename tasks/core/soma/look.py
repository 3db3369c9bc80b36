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
from prefect_cytotable.tasks.core.soma.model import JOINID, TISSUE, FetchOptions, Place, Sizes, Table
from prefect_cytotable.tasks.core.soma.sizes import row_bytes, widest

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
        columns = options.columns or known
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
            mark=_mark(place, schema, rows, (first, last)),
        )


def _check_tissue(frame: Any, tissue: str, known: tuple[str, ...], where: str) -> None:
    filters.check_columns("tissue", (TISSUE,), known, where)
    if pa.types.is_dictionary(frame.schema.field(TISSUE).type):
        labels = frame.get_enumeration_values([TISSUE])[TISSUE].to_pylist()
        if tissue not in labels:
            raise ArgumentError(f"tissue is {tissue!r}, which {where} does not have. {nearest(tissue, labels)}")


def _check_filter(frame: Any, value_filter: str, given: str) -> None:
    """Let SOMA read the filter, before a reader does so in the middle of a run."""
    soma = opening.library()
    try:
        frame.read(column_names=[JOINID], value_filter=value_filter)
    except (soma.SOMAError, ValueError, TypeError, KeyError) as error:
        cause = str(error).splitlines()[0].removeprefix("SOMAError: ") if str(error) else type(error).__name__
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


def _mark(place: Place, schema: pa.Schema, rows: int, joinids: tuple[int, int]) -> str:
    """What changes with the table: on this machine the names of its fragments, elsewhere its shape.

    A store that was published is not written to again; one on this machine can be.
    """
    parts: list[object] = [place.uri, str(schema), rows, joinids]
    if not place.remote:
        folder = Path(unquote(urlsplit(place.uri).path) if place.uri.startswith("file://") else place.uri)
        parts += [sorted(one.name for one in folder.glob(f"{name}/*")) for name in ("__fragments", "__commits")]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]
