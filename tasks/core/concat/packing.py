"""Compressed arrays in h5ad: blocks leave their chunks as files, which go into the HDF5 file as they are.

Where a compressed chunk will lie is not known before all others are, and HDF5 lets one process write. So chunks are
compressed by whoever makes them, and the last stage only copies bytes.
"""

from __future__ import annotations

import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.chunks import ChunkFiles
from prefect_cytotable.tasks.core.concat.model import ArrayLayout, Compression, Layout

Array = NDArray[Any]

BEGUN, DONE = "packing", "packed"
"""Files that tell that the output is being packed, and that it is."""

GZIP_LEVEL = 4
"""That of h5py."""


@dataclass(frozen=True)
class H5Codec:
    """Compresses chunks as HDF5 does. The first byte tells which filters were left out, as HDF5 itself does it."""

    compression: str

    def encode(self, chunk: Array) -> bytes:
        """The bytes of a chunk."""
        if self.compression == Compression.GZIP:
            return b"\0" + zlib.compress(cast(bytes, chunk.reshape(-1).view(np.uint8)), GZIP_LEVEL)
        # HDF5 alone has lzf: a file in memory compresses, and its chunk is taken out
        with h5py.File(secrets.token_hex(8), "w", driver="core", backing_store=False) as file:
            made = file.create_dataset("chunk", data=chunk, chunks=chunk.shape, compression=self.compression)
            mask, stored = made.id.read_direct_chunk((0,) * chunk.ndim)
        return bytes([mask]) + bytes(stored)


def packed(layout: Layout, array: ArrayLayout, name: str) -> ChunkFiles:
    """The chunks of a dataset of a compressed array, as files of the run."""
    number = layout.arrays.index(array)
    shape = array.shape if not name else (array.nnz,)
    dtype = np.dtype(array.index_dtype if name == "indices" else array.dtype)
    folder = Path(layout.folder) / "chunks" / f"{number}-{name or 'values'}"
    folder.mkdir(parents=True, exist_ok=True)
    return ChunkFiles(folder, shape, dtype, array.chunks, "", ".", dtype.type(0), H5Codec(array.compression))


def pack(layout: Layout) -> None:
    """Put the chunks of compressed arrays into the output, in order."""
    arrays = [array for array in layout.arrays if array.compression]
    done = Path(layout.folder) / DONE
    if not arrays or done.exists():
        return
    begun = Path(layout.folder) / BEGUN
    begun.touch()
    with h5py.File(layout.output, "r+") as root:
        for array in arrays:
            for name in ("data", "indices") if array.kind.sparse else ("",):
                _pack(root[f"{array.path}/{name}".rstrip("/")], packed(layout, array, name))
    done.touch()
    begun.unlink()


def _pack(dataset: Any, files: ChunkFiles) -> None:
    for numbers in files.numbers(0, files.shape[0]):
        try:
            stored = files.stored(numbers)
        except FileNotFoundError:
            continue  # all of it is zero
        corner = tuple(number * size for number, size in zip(numbers, files.chunks, strict=True))
        dataset.id.write_direct_chunk(corner, stored[1:], filter_mask=stored[0])


def was_broken_off(layout: Layout) -> bool:
    """Whether a run was killed while it packed: the output may be damaged."""
    return (Path(layout.folder) / BEGUN).exists()
