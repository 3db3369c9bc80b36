"""What a look at a table of a typed format tells: types by declaration, widths by a few of its texts."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.sources.base import Sample
from prefect_cytotable.tasks.core.sources.columnar import Kinds
from prefect_cytotable.tasks.core.sources.csv_values import sampled_types

SAMPLE_ROWS = 200
"""Rows whose texts are looked at."""

_BYTES = {ColumnType.BOOL: 1, ColumnType.INT64: 8, ColumnType.FLOAT: 4, ColumnType.DOUBLE: 8}


def sample_of(kinds: Kinds, seen: Mapping[str, pa.Array], stored: int, measures: bool) -> Sample:
    """The sample of one table.

    Args:
        kinds: What its columns hold.
        seen: The columns of texts in some rows, as `columnar.plain` makes them.
        stored: Bytes of a row in the source.
        measures: Whether a few texts among numbers make no column of texts.
    """
    texts = [name for name, kind in kinds.items() if kind is ColumnType.STRING]
    types = dict(kinds)
    if measures and texts:
        found = sampled_types(pa.table([seen[name] for name in texts], names=texts), measures)
        types |= {name: type_ for name, type_ in found.items() if type_ is not None}
    row = 0
    for name, kind in kinds.items():
        if kind is ColumnType.STRING:
            row += seen[name].nbytes // max(len(seen[name]), 1) + 1
        else:
            row += _BYTES[kind] if kind else 8
    return Sample(types, row, stored)
