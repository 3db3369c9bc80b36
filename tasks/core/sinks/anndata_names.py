"""Names of cells: of what identifies them, and proven to be unique.

No hash of two names need differ, but where all hashes differ so do the names. Of many rows the hashes are looked at in
several passes, a share of them each, so that what is in memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_cytotable.tasks.core.arrays import from_texts, whole_numbers
from prefect_cytotable.tasks.core.sinks.anndata_obs import tables

HASHES_AT_A_TIME = 1 << 22
"""8 bytes each, and as much to sort them."""

NOT_THERE = "NA"
SEPARATOR = "_"


def names(paths: Sequence[Path], identity: Sequence[str], rows: int) -> Iterator[list[str]]:
    """The names of the cells of each part, in order.

    Args:
        paths: Parts, in order.
        identity: Columns whose values, joined, name a cell.
        rows: How many the parts hold.
    """
    if identity and are_unique(paths, identity, rows):
        yield from identities(paths, identity)
        return
    numbers = count()
    if not identity:
        for path in paths:
            yield [str(next(numbers)) for _ in range(pq.read_metadata(path).num_rows)]
        return
    for part in identities(paths, identity):
        yield [f"{name}{SEPARATOR}{next(numbers)}" for name in part]


def identities(paths: Sequence[Path], identity: Sequence[str]) -> Iterator[list[str]]:
    """What identifies the cells of each part, as texts; not necessarily unique."""
    separator, instead = from_texts([SEPARATOR])[0], from_texts([NOT_THERE])[0]
    for table in tables(paths, identity):
        columns = [pc.fill_null(_texts(table[name]), instead) for name in identity]
        yield pc.binary_join_element_wise(*columns, separator).to_pylist()


def are_unique(paths: Sequence[Path], identity: Sequence[str], rows: int) -> bool:
    """Whether no two cells have the same name; in the rarest of cases it says no although they differ."""
    passes = -(-rows // HASHES_AT_A_TIME)
    for share in range(passes):
        pieces = []
        for part in identities(paths, identity):
            hashes = np.fromiter(map(hash, part), np.int64, len(part))
            pieces.append(hashes[hashes % passes == share])
        found = np.sort(np.concatenate(pieces))
        if (found[1:] == found[:-1]).any():
            return False
    return True


def _texts(values: pa.Array) -> pa.Array:
    """Values as texts; a float without a fraction is written as the whole number that it is."""
    if pa.types.is_floating(values.type):
        whole = whole_numbers(values.cast(pa.float64()))
        if whole.null_count == values.null_count:
            values = whole
    if pa.types.is_dictionary(values.type):
        values = values.dictionary.take(values.indices)
    return values.cast(pa.string())
