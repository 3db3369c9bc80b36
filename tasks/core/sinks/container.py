"""What the elements of an AnnData are written to: an HDF5 file or a zarr store, through one interface.

The encodings are those of anndata's on-disk format, in the versions that anndata 0.8 and later read. They are written
here instead of by anndata itself, because anndata takes a second and 100 MB to import, and because its elements are
written whole, where obs has to grow part by part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Attribute = str | bool | list[str]

OBS_CHUNK = 1 << 16
"""Rows of a stored chunk of anything with a row for each cell, but X."""


class Encoding(StrEnum):
    """How anndata calls what an element is."""

    ANNDATA = "anndata"
    ARRAY = "array"
    CATEGORICAL = "categorical"
    DATAFRAME = "dataframe"
    DICT = "dict"
    NULLABLE_BOOLEAN = "nullable-boolean"
    NULLABLE_INTEGER = "nullable-integer"
    NULLABLE_STRING = "nullable-string-array"
    NUMBER = "numeric-scalar"
    STRING = "string"
    STRINGS = "string-array"


VERSIONS = {
    Encoding.ANNDATA: "0.1.0",
    Encoding.DICT: "0.1.0",
    Encoding.NULLABLE_BOOLEAN: "0.1.0",
    Encoding.NULLABLE_INTEGER: "0.1.0",
    Encoding.NULLABLE_STRING: "0.1.0",
}
VERSION = "0.2.0"
"""Of every other encoding."""


def attributes(encoding: Encoding, **more: Attribute) -> dict[str, Attribute]:
    """The attributes of an element."""
    return {"encoding-type": encoding.value, "encoding-version": VERSIONS.get(encoding, VERSION), **more}


class Growing(Protocol):
    """An array with a row for each cell, written from its first row to its last."""

    def append(self, values: NDArray[Any]) -> None:
        """Write the next rows; texts come as an array of Python strings."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Matrix(Protocol):
    """X: rows in chunks of `chunk_rows`, each with all columns."""

    chunk_rows: int

    def encoded(self, blocks: Iterable[NDArray[Any]]) -> Iterator[bytes | NDArray[Any]]:
        """Whole chunks in the form in which they are stored; several threads may do so at the same time."""
        ...

    def put(self, number: int, chunk: bytes | NDArray[Any], rows: int) -> None:
        """Store a chunk, of which the first `rows` are meant; one thread at a time, and chunks in order."""
        ...

    def close(self, rows: int) -> None:
        """All chunks are there, and hold that many rows."""
        ...


class Container(Protocol):
    """An AnnData in the making. Paths are those inside of it, such as "obs/Metadata_Well/codes"."""

    path: Path

    def group(self, path: str, encoding: Encoding, **more: Attribute) -> None:
        """Make a group."""
        ...

    def growing(self, path: str, dtype: np.dtype[Any] | None, rows: int, columns: int = 0) -> Growing:
        """Make an array with a row for each cell, of two dimensions where there are columns; of texts without dtype."""
        ...

    def matrix(self, columns: int, dtype: np.dtype[Any], chunk_rows: int) -> Matrix:
        """Make X, to which rows will be added."""
        ...

    def scalar(self, path: str, value: str | int) -> None:
        """Write one value."""
        ...

    def finish(self, **more: Attribute) -> None:
        """Write the root's attributes, with `more` of them, and bring everything to the disk."""
        ...

    def abandon(self) -> None:
        """Close and remove what there is."""
        ...


def write_array(container: Container, path: str, values: NDArray[Any]) -> None:
    """Write a small array at once; texts are an array of Python strings."""
    growing = container.growing(path, None if values.dtype == object else values.dtype, len(values))
    growing.append(values)
    growing.close()


def texts(values: Sequence[str]) -> NDArray[Any]:
    """Texts as the array of Python strings that `Growing` takes."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def code_type(labels: int) -> np.dtype[Any]:
    """The narrowest signed integer that numbers so many labels, -1 being none.

    >>> code_type(127), code_type(129)
    (dtype('int8'), dtype('int16'))
    """
    return np.dtype(next(type_ for type_ in (np.int8, np.int16, np.int32) if labels <= np.iinfo(type_).max + 1))
