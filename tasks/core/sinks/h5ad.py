"""AnnData in an HDF5 file (.h5ad)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.errors import CastError
from prefect_cytotable.tasks.core.sinks import planes
from prefect_cytotable.tasks.core.sinks.container import OBS_CHUNK, Attribute, Encoding, attributes

GZIP, LZF, NONE = "gzip", "lzf", "none"
COMPRESSIONS = (GZIP, LZF, NONE)


class H5adFile:
    """An AnnData in the making, as one HDF5 file.

    Args:
        path: A file that is not there yet.
        compression: One of `COMPRESSIONS`.
        wide: Whether a data frame has so many columns that their names need the newer format of attributes.
    """

    def __init__(self, path: Path, compression: str, wide: bool = False) -> None:
        self.path = path
        self._filters = _filters(compression)
        self._compression = compression
        self._file = h5py.File(path, "x", libver=("v108", "v108") if wide else None)

    def group(self, path: str, encoding: Encoding, **more: Attribute) -> None:
        """Make a group."""
        _describe(self._file.create_group(path), encoding, **more)

    def growing(self, path: str, dtype: np.dtype[Any] | None, rows: int, columns: int = 0) -> _Rows:
        """Make an array with a row for each cell."""
        shape = (rows, columns) if columns else (rows,)
        chunks = (min(rows, OBS_CHUNK), *shape[1:]) if rows > OBS_CHUNK and dtype is not None else None
        filters = self._filters if chunks else {}
        dataset = self._file.create_dataset(path, shape, dtype or h5py.string_dtype(), chunks=chunks, **filters)
        _describe(dataset, Encoding.STRINGS if dtype is None else Encoding.ARRAY)
        return _Rows(dataset)

    def matrix(self, columns: int, dtype: np.dtype[Any], chunk_rows: int) -> _Matrix:
        """Make X."""
        if not columns:
            return _Matrix(self._file, None, NONE, chunk_rows, dtype)
        dataset = self._file.create_dataset(
            "X", (0, columns), dtype, maxshape=(None, columns), chunks=(chunk_rows, columns), **self._filters
        )
        return _Matrix(self._file, dataset, self._compression, chunk_rows, dtype)

    def scalar(self, path: str, value: str | int) -> None:
        """Write one value."""
        kind = (Encoding.STRING, h5py.string_dtype()) if isinstance(value, str) else (Encoding.NUMBER, np.int64)
        _describe(self._file.create_dataset(path, (), kind[1], data=value), kind[0])

    def finish(self, **more: Attribute) -> None:
        """Write the root's attributes and bring the file to the disk."""
        _describe(self._file, Encoding.ANNDATA, **more)
        self._file.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class _Rows:
    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset, self._done = dataset, 0

    def append(self, values: NDArray[Any]) -> None:
        """Write the next rows.

        Raises:
            CastError: A text cannot be held.
        """
        if len(values):
            if values.dtype == object:
                self._check(values)
            self._dataset[self._done : self._done + len(values)] = values
            self._done += len(values)

    def _check(self, values: NDArray[Any]) -> None:
        found = next((value for value in values if "\0" in value), None)
        if found is not None:
            raise CastError(
                f"{self._dataset.name.removeprefix('/')} holds {found[:99]!r}: a text with a null character, which "
                f"HDF5 cannot hold. Write zarr or Parquet, or remove it from the source."
            )

    def close(self) -> None:
        """Nothing is left."""


class _Matrix:
    """X; without a dataset, of no columns, which HDF5 cannot cut into chunks."""

    def __init__(
        self, file: h5py.File, dataset: h5py.Dataset | None, compression: str, chunk_rows: int, dtype: np.dtype[Any]
    ) -> None:
        self._file, self._dataset, self._compression, self._dtype = file, dataset, compression, dtype
        self.chunk_rows = chunk_rows

    def encoded(self, blocks: Iterable[NDArray[Any]]) -> Iterator[bytes | NDArray[Any]]:
        """Chunks as HDF5 stores them; those that its own filter has to compress as they are."""
        if self._compression == GZIP:
            yield from planes.streams(blocks)
        elif self._compression == LZF:
            yield from blocks
        else:
            yield from map(np.ndarray.tobytes, blocks)

    def put(self, number: int, chunk: bytes | NDArray[Any], rows: int) -> None:
        """Store a chunk."""
        assert self._dataset is not None
        start = number * self.chunk_rows
        self._dataset.resize(start + rows, axis=0)
        if isinstance(chunk, bytes):
            self._dataset.id.write_direct_chunk((start, 0), chunk)
        else:
            self._dataset[start:] = chunk[:rows]

    def close(self, rows: int) -> None:
        """All chunks are there."""
        if self._dataset is None:
            self._dataset = self._file.create_dataset("X", (rows, 0), self._dtype)
        _describe(self._dataset, Encoding.ARRAY)


def _filters(compression: str) -> dict[str, Any]:
    if compression == NONE:
        return {}
    level = {"compression_opts": planes.LEVEL} if compression == GZIP else {}
    return {"compression": compression, "shuffle": True, **level}


def _describe(element: h5py.HLObject, encoding: Encoding, **more: Attribute) -> None:
    for name, value in attributes(encoding, **more).items():
        if isinstance(value, list):
            element.attrs.create(name, np.array(value, object), (len(value),), h5py.string_dtype())
        else:
            element.attrs[name] = value


def root_attribute(path: Path, name: str) -> str | None:
    """A text among the attributes of a file's root; None where there is none, or the file is no HDF5 file."""
    try:
        with h5py.File(path, "r") as file:
            value = file.attrs.get(name)
    except OSError:
        return None
    return value if isinstance(value, str) else None
