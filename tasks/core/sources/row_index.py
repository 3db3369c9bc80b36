"""Which rows of a table belong to which image, from the numbers of all its rows in their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MISSING = int(np.iinfo(np.int64).min)
"""Stands for a number that is not there."""

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Run:
    """Rows that follow each other, `last` included; object numbers as `Span` has them."""

    first: int
    last: int
    first_object: int = 0
    last_object: int = 0


def by_image(images: Integers, known: Mask) -> Iterator[tuple[int, Integers]]:
    """(image, its rows in ascending order) in ascending order of image, of the rows that are `known`."""
    order = np.flatnonzero(known)
    order = order[np.argsort(images[order], kind="stable")]
    numbers = images[order]
    borders = np.flatnonzero(np.diff(numbers)) + 1
    for places in np.split(order, borders) if len(order) else []:
        yield int(images[places[0]]), places


def runs(places: Integers, objects: Integers | None, split: int) -> Iterator[Run]:
    """The rows of an image as runs.

    Args:
        places: The rows, in ascending order.
        objects: Object number of every row of the table, or None where rows have none.
        split: An image with more rows gets a run for every so many, bounded by object number, where it lies in the
            order of these.
    """
    ordered = (
        objects is not None
        and len(places) > split
        and bool((objects[places] != MISSING).all())
        and bool((np.diff(objects[places]) >= 0).all())
    )
    for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
        for start in range(0, len(run), split) if ordered else [0]:
            piece = run[start : start + split] if ordered else run
            bounds = (int(objects[piece[0]]), int(objects[piece[-1]])) if ordered and objects is not None else (0, 0)
            yield Run(int(piece[0]), int(piece[-1]), *bounds)


def uniqueness(images: Integers, objects: Integers | None, known: Mask) -> tuple[bool | None, str]:
    """(whether no two of the `known` rows have the same image and object, what was found)."""
    if objects is None:
        return None, "one row for each image"
    known = known & (objects != MISSING)
    images, objects = images[known], objects[known]
    order = np.lexsort((objects, images))
    images, objects = images[order], objects[order]
    again = np.flatnonzero((np.diff(images) == 0) & (np.diff(objects) == 0))
    if not len(again):
        return True, "unique (counted)"
    listed = "; ".join(f"image {images[place]}, object {objects[place]}" for place in again[:3])
    return False, f"repeated: {listed}"
