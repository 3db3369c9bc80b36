"""AnnData in a zarr store, format 2 or 3, in a folder.

Only numcodecs, which compresses the chunks, is needed for that: a chunk is a file, and what describes it is JSON.
Chunks are as the array's description says: Blosc over the bytes of a block in C order, little-endian; texts are
preceded by their number and each by its length (vlen-utf8).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import Blosc, VLenUTF8
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.sinks.container import OBS_CHUNK, Attribute, Encoding, attributes

LZ4, ZSTD, NONE = "lz4", "zstd", "none"
COMPRESSIONS = (LZ4, ZSTD, NONE)
LEVELS = {LZ4: 5, ZSTD: 1}
FORMATS = (2, 3)

SYNCS = 16
"""Files that are brought to the disk at a time: a file system writes them in one go."""

Json = dict[str, Any]


class ZarrFolder:
    """An AnnData in the making, as a folder.

    Args:
        path: A folder that is not there yet.
        compression: One of `COMPRESSIONS`.
        zarr_format: 2 or 3.
    """

    def __init__(self, path: Path, compression: str, zarr_format: int) -> None:
        self.path = path
        self._format = zarr_format
        self._blosc = None if compression == NONE else Blosc(compression, LEVELS[compression], Blosc.SHUFFLE)
        self._described: dict[str, Json] = {}
        path.mkdir()

    def group(self, path: str, encoding: Encoding, **more: Attribute) -> None:
        """Make a group."""
        self._describe(path, None, attributes(encoding, **more))

    def growing(self, path: str, dtype: np.dtype[Any] | None, rows: int, columns: int = 0) -> _Rows:
        """Make an array with a row for each cell."""
        shape = (rows, columns) if columns else (rows,)
        chunks = (max(min(rows, OBS_CHUNK), 1), *shape[1:])
        encoding = Encoding.STRINGS if dtype is None else Encoding.ARRAY
        self._array(path, shape, chunks, dtype, encoding)
        return _Rows(self, path, dtype, chunks)

    def matrix(self, columns: int, dtype: np.dtype[Any], chunk_rows: int) -> _Matrix:
        """Make X."""
        return _Matrix(self, columns, dtype, chunk_rows)

    def scalar(self, path: str, value: str | int) -> None:
        """Write one value."""
        texts = isinstance(value, str)
        dtype = None if texts else np.dtype(np.int64)
        self._array(path, (), (), dtype, Encoding.STRING if texts else Encoding.NUMBER)
        self.put(path, (), self.encoded(np.array([value], dtype or object)))

    def finish(self, **more: Attribute) -> None:
        """Write the description of the root, with all others in it, and bring every file to the disk."""
        root = attributes(Encoding.ANNDATA, **more)
        inner = self._described
        if self._format == 2:
            (self.path / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
            (self.path / ".zattrs").write_text(json.dumps(root))
            known = {".zgroup": {"zarr_format": 2}, ".zattrs": root} | {
                f"{path}/{name}": content for path, files in sorted(inner.items()) for name, content in files.items()
            }
            consolidated = {"zarr_consolidated_format": 1, "metadata": known}
            (self.path / ".zmetadata").write_text(json.dumps(consolidated))
        else:
            known = {path: files["zarr.json"] for path, files in sorted(inner.items())}
            everything = {"kind": "inline", "must_understand": False, "metadata": known}
            content = _group3(root) | {"consolidated_metadata": everything}
            (self.path / "zarr.json").write_text(json.dumps(content))
        files = [Path(folder, name) for folder, _, names in os.walk(self.path) for name in names]
        with ThreadPoolExecutor(SYNCS) as pool:
            list(pool.map(_sync, files))

    def abandon(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def describe_array(
        self, path: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any] | None
    ) -> None:
        """Describe an array of numbers, or of texts where it has no dtype."""
        self._array(path, shape, chunks, dtype, Encoding.STRINGS if dtype is None else Encoding.ARRAY)

    def encoded(self, values: NDArray[Any]) -> bytes:
        """A chunk in the form in which it is stored; any thread may do that."""
        content = VLenUTF8().encode(values) if values.dtype == object else np.ascontiguousarray(values)
        if self._blosc is None:
            return bytes(content) if values.dtype == object else content.tobytes()
        return bytes(self._blosc.encode(content))

    def put(self, path: str, position: tuple[int, ...], chunk: bytes) -> None:
        """Store a chunk."""
        numbers = list(map(str, position))
        name = ".".join(numbers or ["0"]) if self._format == 2 else "/".join(["c", *numbers])
        file = self.path / path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(chunk)

    def _array(
        self,
        path: str,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: np.dtype[Any] | None,
        encoding: Encoding,
    ) -> None:
        make = self._array2 if self._format == 2 else self._array3
        self._describe(path, make(shape, chunks, dtype), attributes(encoding))

    def _array2(self, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any] | None) -> Json:
        return {
            "zarr_format": 2,
            "shape": shape,
            "chunks": chunks,
            "dtype": "|O" if dtype is None else dtype.str,
            "fill_value": _fill(dtype),
            "order": "C",
            "filters": [{"id": "vlen-utf8"}] if dtype is None else None,
            "compressor": self._blosc.get_config() if self._blosc else None,
            "dimension_separator": ".",
        }

    def _array3(self, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any] | None) -> Json:
        size = 1 if dtype is None else dtype.itemsize
        codecs: list[Json] = [
            {"name": "vlen-utf8", "configuration": {}}
            if dtype is None
            else {"name": "bytes"} | ({"configuration": {"endian": "little"}} if size > 1 else {})
        ]
        if self._blosc is not None:
            settings = {
                "typesize": size,
                "cname": self._blosc.cname,
                "clevel": self._blosc.clevel,
                "shuffle": "shuffle",
                "blocksize": 0,
            }
            codecs.append({"name": "blosc", "configuration": settings})
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": "string" if dtype is None else dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": _fill(dtype),
            "codecs": codecs,
            "storage_transformers": [],
        }

    def _describe(self, path: str, array: Json | None, described: dict[str, Attribute]) -> None:
        if self._format == 2:
            files: Json = {".zattrs": described}
            files |= {".zarray": array} if array is not None else {".zgroup": {"zarr_format": 2}}
        else:
            files = {"zarr.json": _group3(described) if array is None else array | {"attributes": described}}
        folder = self.path / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        self._described[path] = files


class _Rows:
    """Gathers rows until a chunk is full."""

    def __init__(self, folder: ZarrFolder, path: str, dtype: np.dtype[Any] | None, chunks: tuple[int, ...]) -> None:
        self._folder, self._path = folder, path
        self._chunk = np.zeros(chunks, dtype or object)
        self._held = self._number = 0

    def append(self, values: NDArray[Any]) -> None:
        """Write the next rows."""
        while len(values):
            taken = min(len(self._chunk) - self._held, len(values))
            self._chunk[self._held : self._held + taken] = values[:taken]
            self._held += taken
            values = values[taken:]
            if self._held == len(self._chunk):
                self._write()

    def close(self) -> None:
        """Write what is left."""
        if self._held:
            self._chunk[self._held :] = "" if self._chunk.dtype == object else 0
            self._write()

    def _write(self) -> None:
        position = (self._number, *([0] * (self._chunk.ndim - 1)))
        self._folder.put(self._path, position, self._folder.encoded(self._chunk))
        self._held, self._number = 0, self._number + 1


class _Matrix:
    def __init__(self, folder: ZarrFolder, columns: int, dtype: np.dtype[Any], chunk_rows: int) -> None:
        self._folder, self._columns, self._dtype = folder, columns, dtype
        self.chunk_rows = chunk_rows

    def encoded(self, blocks: Iterable[NDArray[Any]]) -> Iterator[bytes]:
        """Chunks as they are stored."""
        return map(self._folder.encoded, blocks)

    def put(self, number: int, chunk: bytes | NDArray[Any], rows: int) -> None:
        """Store a chunk."""
        assert isinstance(chunk, bytes)
        self._folder.put("X", (number, 0), chunk)

    def close(self, rows: int) -> None:
        """All chunks are there."""
        chunks = (self.chunk_rows, max(self._columns, 1))
        self._folder.describe_array("X", (rows, self._columns), chunks, self._dtype)


def _fill(dtype: np.dtype[Any] | None) -> object:
    if dtype is None:
        return ""
    return {"b": False, "f": 0.0}.get(dtype.kind, 0)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _group3(described: dict[str, Attribute]) -> Json:
    return {"zarr_format": 3, "node_type": "group", "attributes": described}


def root_attribute(path: Path, name: str) -> str | None:
    """A text among the attributes of a store's root; None where there is none, or the folder is no zarr store."""
    for file, inside in ((path / ".zattrs", ()), (path / "zarr.json", ("attributes",))):
        try:
            content = json.loads(file.read_bytes())
            for key in inside:
                content = content[key]
            value = content.get(name)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
        return value if isinstance(value, str) else None
    return None
