"""Which rows of a typed format (Parquet, DuckDB) are asked for, and where those of each image lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.arrays import from_numpy, number, to_numpy
from prefect_cytotable.tasks.core.model import Source, Span
from prefect_cytotable.tasks.core.sources.base import Answer, ImageRows, Index, Keys, Request, Together
from prefect_cytotable.tasks.core.sources.columnar import key_numbers
from prefect_cytotable.tasks.core.sources.row_index import MISSING, Integers, Mask, by_image, runs, uniqueness
from prefect_cytotable.tasks.core.sources.sqlite_index import dataset_of

SPLIT_ROWS = 512
"""An image with more rows gets a span for every so many; rows of no image come in stretches of as many."""

STRETCHES = 200_000
"""Runs of rows that are told apart; of a table with more, each image has one span that may hold rows of others."""

Arrays = Mapping[str, pa.Array]
"""Columns of a piece of a table by name, as `columnar.plain` makes them."""

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class KeyRows:
    """The numbers of all rows of a table, in their order.

    Attributes:
        images: Image number, `MISSING` where there is none; None where rows belong to no numbered image.
        objects: Object number likewise; None for an image table.
        datasets: Position of the row's dataset among `names`; None where all are of one.
        names: The datasets.
    """

    rows: int
    images: Integers | None
    objects: Integers | None
    datasets: Codes | None
    names: tuple[str | None, ...]


def numbered(values: pa.Array) -> Integers:
    """Keys that are `plain` as NumPy numbers, `MISSING` where a value numbers nothing."""
    keys, _ = key_numbers(values)
    return to_numpy(pc.fill_null(keys, number(MISSING)) if keys.null_count else keys)


def codes(values: pa.Array, code: Callable[[str | None], int]) -> Codes:
    """What `code` makes of the dataset that each row is of, as a text or nothing; called once for each dataset."""
    if pa.types.is_null(values.type):
        return np.full(len(values), code(None) if len(values) else 0, np.int32)
    found = pc.dictionary_encode(values)
    known = [code(dataset_of(value)) for value in found.dictionary.to_pylist()]
    places = found.indices
    if places.null_count:
        places = pc.fill_null(places.cast(pa.int64()), number(len(known)))
        known.append(code(None))
    every: Codes = np.array(known, np.int32).take(to_numpy(places))
    return every


def key_rows(pieces: Iterable[Arrays], keys: Keys, number_column: str) -> KeyRows:
    """The numbers of all rows, from a table's key columns piece by piece.

    Args:
        pieces: With the columns that `keys` and `number_column` name.
        keys: Of the table.
        number_column: The column that names the dataset; empty where all rows are of one.
    """
    names: dict[str | None, int] = {}
    images, objects, datasets = list[Integers](), list[Integers](), list[Codes]()
    rows = 0
    for piece in pieces:
        rows += len(next(iter(piece.values())))
        if keys.image_number:
            images.append(numbered(piece[keys.image_number]))
        if keys.object_number:
            objects.append(numbered(piece[keys.object_number]))
        if number_column:
            datasets.append(codes(piece[number_column], lambda name: names.setdefault(name, len(names))))
    nothing = np.empty(0, np.int64)
    return KeyRows(
        rows,
        np.concatenate([nothing, *images]) if keys.image_number else None,
        np.concatenate([nothing, *objects]) if keys.object_number else None,
        np.concatenate([nothing.astype(np.int32), *datasets]) if number_column else None,
        tuple(names),
    )


def ordered(names: Sequence[str | None]) -> tuple[str | None, ...]:
    """The names of datasets: nothing first, then numbers by their size, then texts."""

    def place(name: str | None) -> tuple[bool, bool, int, str]:
        number = int(name) if name is not None and re.fullmatch("[0-9]{1,18}", name) else None
        return name is not None, number is None, number or 0, name or ""

    return tuple(sorted(names, key=place))


def indexes(rows: KeyRows, sources: Sequence[Source], located: bool) -> list[Index]:
    """The index of each source, all parts of the table that `rows` tells of.

    Args:
        rows: Of the table.
        sources: What they differ in is the dataset.
        located: Whether rows are found by position; else the source finds them by number.
    """
    return [_index(rows, of_source(rows, source), located) for source in sources]


def of_source(rows: KeyRows, source: Source) -> Mask:
    """Which rows of a table are the source's."""
    if source.only is None or rows.datasets is None:
        return np.ones(rows.rows, np.bool_)
    if source.only.value not in rows.names:
        return np.zeros(rows.rows, np.bool_)
    here: Mask = rows.datasets == rows.names.index(source.only.value)
    return here


def _index(rows: KeyRows, here: Mask, located: bool) -> Index:
    if rows.images is None:
        return unkeyed(np.flatnonzero(here), located)
    known = here & (rows.images != MISSING)
    keyless = np.flatnonzero(here & ~known)
    unique, finding = uniqueness(rows.images, rows.objects, known)
    coarse = located and _runs_of(rows.images, here) > STRETCHES
    images = tuple(
        ImageRows(image, len(places), tuple(_spans(places, rows.objects, coarse)) if located else ())
        for image, places in by_image(rows.images, known)
    )
    spans = tuple(_spans(keyless, None, coarse)) if located and len(keyless) else ()
    return Index(images, len(keyless), unique, finding, spans)


def unkeyed(places: Integers, located: bool) -> Index:
    """The index of rows without keys, from their positions.

    Args:
        places: In ascending order.
        located: Whether rows are found by position, in stretches; else they are all in one.
    """
    step = SPLIT_ROWS if located else max(len(places), 1)
    pieces = [places[start : start + step] for start in range(0, len(places), step)]
    images = tuple(
        ImageRows(image, len(piece), (Span(int(piece[0]), int(piece[-1]) + 1),) if located else ())
        for image, piece in enumerate(pieces, start=1)
    )
    return Index(images, 0, None, "rows have no keys")


def _runs_of(images: Integers, here: Mask) -> int:
    """How many runs of rows of one image there are."""
    return int(np.count_nonzero((np.diff(images) != 0) | (np.diff(here) != 0))) + 1 if len(images) else 0


def _spans(places: Integers, objects: Integers | None, coarse: bool) -> Iterator[Span]:
    if coarse:
        yield Span(int(places[0]), int(places[-1]) + 1)
        return
    for run in runs(places, objects, SPLIT_ROWS):
        yield Span(run.first, run.last + 1, run.first_object, run.last_object)


def deciding(request: Request) -> list[str]:
    """The columns whose values tell whether a row is asked for; where the rows lie tells no more than where to look."""
    keys = request.keys
    found = [
        keys.image_number if request.images is not None else "",
        keys.object_number if request.objects is not None else "",
        request.source.only.column if request.source.only is not None else "",
    ]
    return list(dict.fromkeys(name for name in found if name))


def wanted(piece: Arrays, request: Request) -> Mask | None:
    """Which rows of a piece are asked for, None for all; the piece has the `deciding` columns."""
    masks: list[Mask] = []
    for name, bounds in ((request.keys.image_number, request.images), (request.keys.object_number, request.objects)):
        if name and bounds is not None:
            values = numbered(piece[name])
            masks.append((values >= bounds[0]) & (values <= bounds[1]) & (values != MISSING))
    only = request.source.only
    if only is not None:
        masks.append(codes(piece[only.column], lambda name: int(name == only.value)) == 1)
    return np.logical_and.reduce(masks) if masks else None


def objects(pieces: Iterable[Arrays], request: Request) -> list[int]:
    """The object numbers of the rows that are asked for, in ascending order."""
    found: list[int] = []
    for piece in pieces:
        numbers = numbered(piece[request.keys.object_number])
        mask = wanted(piece, request)
        found += [int(one) for one in numbers[(numbers != MISSING) & (True if mask is None else mask)]]
    return sorted(found)


def order_of(piece: Arrays, requests: Sequence[Request]) -> Codes:
    """The position of the request that each row is for, -1 for none; requests that differ in their dataset alone."""
    only = requests[0].source.only
    assert only is not None
    places = {one.source.only.value: place for place, one in enumerate(requests) if one.source.only is not None}
    return codes(piece[only.column], lambda name: places.get(name, -1))


def are_datasets_of_one_table(requests: Sequence[Request]) -> bool:
    """Whether requests ask for all rows of several datasets of one table, and differ in the dataset alone."""
    first = requests[0]
    if any(
        one.source.where != first.source.where
        or one.columns != first.columns
        or one.keys != first.keys
        or one.images is not None
        or one.objects is not None
        or one.source.only is None
        or first.source.only is None
        or one.source.only.column != first.source.only.column
        for one in requests
    ):
        return False
    return len({one.source.only for one in requests}) == len(requests)


def as_together(answer: Answer, order: Codes, requests: int) -> Together:
    """The answer to so many requests, whose rows are for the requests that `order` names."""
    if answer.widened:
        return Together(answer.table, np.empty(0, np.int32), (), answer.widened)
    counts = np.bincount(order, minlength=requests)
    return Together(answer.table, order, tuple(int(count) for count in counts), findings=answer.findings)


def taken(array: pa.Array, rows: Mask) -> pa.Array:
    """The rows of an array that are marked; a copy, unless it is all of them."""
    return array if rows.all() else array.take(from_numpy(np.flatnonzero(rows)))
