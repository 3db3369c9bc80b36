"""The chunks of a zarr array as files, read and written past zarr.

zarr's own way takes about a millisecond of its event loop for each call, which is more than a chunk of a sparse array
takes to decode. Arrays that are stored in any way but the common ones (other codecs, shards, Fortran's order) are left
to zarr: `ChunkFiles.of` then gives None.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numcodecs
import numpy as np
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat.trust import METADATA_LIMIT
from prefect_cytotable.tasks.core.errors import BadSourceError

Array = NDArray[Any]
Numbers = tuple[int, ...]

_V2 = frozenset({"blosc", "zstd", "zlib", "gzip", "lz4"})

INFLATED = ("zlib", "gzip")
"""Codecs whose library decodes all that there is, however much; a chunk is decoded no further than its length."""

ANY_HEADER = 47
"""`wbits` of zlib for either of them."""

_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
BLOSC_HEADER = 16
"""Bytes; the decoded length stands at 4, the stored one at 12."""

HEAD = 4096
"""Bytes of a chunk that are looked at first: hardly one that is not all zero begins with so many."""

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Chunked:
    """An array in chunks that are decoded one by one.

    Attributes:
        dtype: As it is stored, with its byte order.
        chunks: Shape of a chunk; those at the edges are stored as large.
    """

    shape: Numbers
    dtype: np.dtype[Any]
    chunks: Numbers

    def read(self, numbers: Numbers, out: Array) -> None:
        """Decode a chunk into an array of its shape and of this dtype.

        Raises:
            BadSourceError: It is damaged.
        """
        raise NotImplementedError

    def read_band(self, start: int, stop: int, found: Array) -> None:
        """Decode the rows from the first of a chunk to the last of one (or of the array) into `found`."""
        tall = self.chunks[0]
        for numbers in self.numbers(start, stop):
            corner = [number * size for number, size in zip(numbers, self.chunks, strict=True)]
            place = found[
                (
                    slice(corner[0] - start, corner[0] - start + tall),
                    *(slice(low, low + size) for low, size in zip(corner[1:], self.chunks[1:], strict=True)),
                )
            ]
            if place.shape == self.chunks:
                self.read(numbers, place)
            else:
                chunk = np.empty(self.chunks, self.dtype)
                self.read(numbers, chunk)
                place[...] = chunk[tuple(map(slice, place.shape))]

    def numbers(self, start: int, stop: int) -> list[Numbers]:
        """The chunks that hold some rows, in order."""
        across = [range(-(-size // chunk)) for size, chunk in zip(self.shape[1:], self.chunks[1:], strict=True)]
        rows = range(start // self.chunks[0], -(-stop // self.chunks[0]))
        return [(row, *rest) for row in rows for rest in cast("list[Numbers]", list(np.ndindex(*map(len, across))))]


@dataclass(frozen=True)
class ChunkFiles(Chunked):
    """An array whose chunks are files.

    Attributes:
        folder: Of the array.
        dtype: As it is stored, with its byte order.
        chunks: Shape of a chunk; those at the edges are stored as large.
        prefix: Of a chunk's name, before its numbers.
        separator: Between them.
        fill: What a chunk that is not there is full of.
        codec: Compresses a chunk; None where they are stored plainly.
    """

    folder: Path
    shape: Numbers
    dtype: np.dtype[Any]
    chunks: Numbers
    prefix: str
    separator: str
    fill: Any
    codec: Any

    @classmethod
    def of(cls, folder: Path) -> ChunkFiles | None:
        """The array in a folder of a zarr store; None where zarr itself has to read it."""
        for name, found in ((".zarray", _version_2), ("zarr.json", _version_3)):
            path = folder / name
            if path.is_file() and path.stat().st_size < METADATA_LIMIT:
                try:
                    return found(folder, json.loads(path.read_bytes()))
                except (KeyError, TypeError, ValueError, AttributeError, IndexError):
                    return None  # zarr tells what is wrong with it, if anything is
        return None

    @classmethod
    def described(cls, folder: Path, metadata: dict[str, Any], version: int) -> ChunkFiles | None:
        """The array with this metadata, of this version of zarr; None where zarr itself has to read it.

        Raises:
            ValueError, KeyError, TypeError: The metadata is none.
        """
        return (_version_2 if version == 2 else _version_3)(folder, metadata)

    def path(self, numbers: Numbers) -> str:
        """The file of a chunk."""
        return f"{self.folder}/{self.prefix}{self.separator.join(map(str, numbers))}"

    def stored(self, numbers: Numbers) -> bytes:
        """The bytes of a chunk; FileNotFoundError where it is not there."""
        descriptor = os.open(self.path(numbers), os.O_RDONLY)  # a file object takes three times the system's calls
        try:
            size = os.fstat(descriptor).st_size
            found = os.read(descriptor, size)
            while len(found) < size and (more := os.read(descriptor, size - len(found))):
                found += more
            return found
        finally:
            os.close(descriptor)

    def store(self, numbers: Numbers, encoded: bytes | None) -> None:
        """Write the bytes of a chunk, or see that it is not there."""
        path = self.path(numbers)
        if encoded is None:
            Path(path).unlink(missing_ok=True)
            return
        if self.separator == "/":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            done = os.write(descriptor, encoded)
            while done < len(encoded):
                done += os.write(descriptor, memoryview(encoded)[done:])
        finally:
            os.close(descriptor)

    def read(self, numbers: Numbers, out: Array) -> None:
        """Decode a chunk into an array of its shape and of this dtype.

        Raises:
            BadSourceError: It is damaged.
        """
        self.read_stored(numbers, out)

    def read_stored(self, numbers: Numbers, out: Array) -> bytes | None:
        """The same; gives the chunk's bytes as they are stored, None where it is not.

        Raises:
            BadSourceError: It is damaged.
        """
        path = self.path(numbers)
        try:
            stored = self.stored(numbers)
        except FileNotFoundError:
            out[...] = self.fill
            return None
        try:
            self._check(stored, out)
            if self.codec is None:
                out[...] = np.frombuffer(stored, self.dtype).reshape(out.shape)
            elif self.codec.codec_id in INFLATED:
                found = zlib.decompressobj(wbits=ANY_HEADER).decompress(stored, out.nbytes + 1)
                out[...] = np.frombuffer(found, self.dtype).reshape(out.shape)
            elif out.flags.c_contiguous:
                _check_length(self.codec.decode(stored, out=out), out)
            else:
                whole = np.empty(out.shape, self.dtype)
                _check_length(self.codec.decode(stored, out=whole), whole)
                out[...] = whole
        except (ValueError, RuntimeError, TypeError, OSError, EOFError, zlib.error) as error:
            raise BadSourceError(
                path, f"the chunk cannot be decoded ({error})", "Is the store whole? Copy it again."
            ) from error
        return stored

    def _check(self, stored: bytes, out: Array) -> None:
        """Refuse a chunk of Blosc whose header tells of other lengths: Blosc itself would read past its end."""
        if getattr(self.codec, "codec_id", "") != "blosc":
            return
        told = [int.from_bytes(stored[place : place + 4], "little") for place in (4, 12)]
        if len(stored) < BLOSC_HEADER or told != [out.nbytes, len(stored)]:
            raise ValueError(f"its header tells of {told} bytes instead of {[out.nbytes, len(stored)]}")

    def encoded(self, chunk: Array) -> bytes | None:
        """A chunk as it is stored; None where it is not, because it holds the fill value (zero, bit for bit) alone."""
        whole = np.ascontiguousarray(chunk)
        plain = whole.reshape(-1).view(np.uint8)
        if not plain[:HEAD].any() and not plain.any():
            return None
        return whole.tobytes() if self.codec is None else _bytes(self.codec.encode(whole))


def _bytes(encoded: Any) -> bytes:
    return encoded if isinstance(encoded, bytes) else bytes(encoded)


def _check_length(decoded: Any, out: Array) -> None:
    """Refuse a chunk that holds fewer values than its shape tells: what it left out would be anything."""
    if memoryview(decoded).nbytes != out.nbytes:
        raise ValueError(f"{memoryview(decoded).nbytes} bytes instead of {out.nbytes}")


def _version_2(folder: Path, found: dict[str, Any]) -> ChunkFiles | None:
    compressor = found["compressor"]
    if found["zarr_format"] != 2 or found["order"] != "C" or found["filters"]:
        return None
    if compressor and compressor["id"] not in _V2:
        return None
    codec = numcodecs.get_codec(compressor) if compressor else None
    separator = found.get("dimension_separator", ".")
    return _array(folder, found, np.dtype(found["dtype"]), found["chunks"], "", separator, codec)


def _version_3(folder: Path, found: dict[str, Any]) -> ChunkFiles | None:
    if found["zarr_format"] != 3 or found["node_type"] != "array" or found.get("storage_transformers"):
        return None
    grid, keys, codecs = found["chunk_grid"], found["chunk_key_encoding"], found["codecs"]
    if grid["name"] != "regular" or keys["name"] not in ("default", "v2") or not 1 <= len(codecs) <= 2:
        return None
    if codecs[0]["name"] != "bytes":
        return None
    endian = (codecs[0].get("configuration") or {}).get("endian", "little")
    dtype = np.dtype(str(found["data_type"])).newbyteorder("<" if endian == "little" else ">")
    codec = _compressor(codecs[1]) if len(codecs) == 2 else None
    if len(codecs) == 2 and codec is None:
        return None
    default = keys["name"] == "default"
    separator = (keys.get("configuration") or {}).get("separator", "/" if default else ".")
    chunks = grid["configuration"]["chunk_shape"]
    return _array(folder, found, dtype, chunks, f"c{separator}" if default else "", separator, codec)


def _compressor(codec: dict[str, Any]) -> Any:
    """A codec of zarr v3 that compresses; None for any other."""
    given = codec.get("configuration") or {}
    match codec["name"]:
        case "blosc":
            return numcodecs.Blosc(given["cname"], given["clevel"], _SHUFFLES[given["shuffle"]], given["blocksize"])
        case "zstd":
            return numcodecs.Zstd(given["level"], bool(given.get("checksum", False)))
        case "gzip":
            return numcodecs.GZip(given["level"])
    return None


def _array(
    folder: Path, found: dict[str, Any], dtype: np.dtype[Any], chunks: Any, prefix: str, separator: str, codec: Any
) -> ChunkFiles | None:
    shape, chunks = tuple(map(int, found["shape"])), tuple(map(int, chunks))
    fill = [_number(one) for one in (found["fill_value"] if dtype.kind == "c" else [found["fill_value"]])]
    if dtype.kind not in "biufc" or separator not in (".", "/"):
        return None
    if not shape or len(shape) != len(chunks) or min(chunks) < 1:
        return None
    return ChunkFiles(
        folder,
        shape,
        dtype,
        chunks,
        prefix,
        separator,
        dtype.type(complex(*fill) if dtype.kind == "c" else fill[0]),
        codec,
    )


def _number(value: Any) -> Any:
    """A fill value, or a part of a complex one.

    Raises:
        ValueError: It is none, or given in a way that is left to zarr.
    """
    if isinstance(value, bool | int | float):
        return value
    return _SPECIAL[value]
