"""Feather, which is Arrow's file format, written in one pass with exactly the labels that are used.

Arrow's own writer wants a column's labels before the first row, but which of them are used is known after the last.
The format allows dictionaries anywhere in the file, since readers find them through the footer. So record batches are
written as they come, with codes as their columns' values; then the dictionaries; then a footer that names them. Every
message is made by Arrow; of the footer, which Arrow makes for a file of empty batches, the positions are replaced.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from prefect_cytotable.tasks.core.soma.groups import coded_schema
from prefect_cytotable.tasks.core.soma.labels import Labels

MAGIC = b"ARROW1"
COMPRESSION = "zstd"

_START = MAGIC + b"\0\0"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_BLOCK = struct.Struct("<qi4xq")
"""Where a message lies: offset in the file, bytes of its metadata with their prefix, bytes of its body."""

_DICTIONARIES, _BATCHES = 2, 3
"""The fields of the footer, by their number in the format's definition."""

Block = tuple[int, int, int]


class FeatherSink:
    """Writes groups to a Feather file.

    Args:
        path: A file that is not there yet.
        schema: Of the output, its metadata included.
        labels: Of the dictionary columns, which learn meanwhile.
    """

    def __init__(self, path: Path, schema: pa.Schema, labels: dict[str, Labels]) -> None:
        self._schema = schema
        self._labels = labels
        self._coded = coded_schema(schema)
        self._options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
        self._prefix = len(_stream(self._coded, None, self._options)) - len(_END_OF_STREAM)
        self._batches: list[Block] = []
        self._dictionaries: list[Block] = []
        self.rows = 0
        self._file: BinaryIO = path.open("xb")
        self._file.write(_START)
        self._file.write(schema.serialize())

    def write(self, group: pa.RecordBatch) -> None:
        """Write one group as a record batch."""
        start = self._file.tell()
        behind = _Behind(self._file, self._prefix)
        with pa.ipc.new_stream(pa.PythonFile(behind, "w"), self._coded, options=self._options) as writer:
            writer.write_batch(group)
        end = self._file.seek(-len(_END_OF_STREAM), os.SEEK_CUR)  # the next message takes the place of the stream's end
        self._batches.append((start, 8 + behind.metadata, end - start - 8 - behind.metadata))
        self.rows += group.num_rows

    def close(self) -> None:
        """Write the dictionaries and the footer, and wait until the disk has it all."""
        if not self._batches:
            nothing = [pa.nulls(0, field.type) for field in self._coded]
            self.write(pa.RecordBatch.from_arrays(nothing, schema=self._coded))
        empty = _empty(self._schema, self._labels)
        for message in pa.ipc.MessageReader.open_stream(_stream(self._schema, empty, self._options)):
            if message.type == "dictionary":
                self._dictionaries.append(self._append(memoryview(message.serialize())))
        self._file.write(_END_OF_STREAM)
        self._file.write(_footer(self._schema, empty, self._dictionaries, self._batches))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()

    def _append(self, message: memoryview) -> Block:
        (metadata,) = struct.unpack_from("<4xi", message)
        offset = self._file.tell()
        self._file.write(message)
        return offset, 8 + metadata, len(message) - 8 - metadata


class _Behind:
    """What Arrow writes to a file, without so many first bytes of it: the schema that begins each stream.

    Attributes:
        metadata: Bytes that describe the first message behind them.
    """

    closed = False

    def __init__(self, file: BinaryIO, left_out: int) -> None:
        self._file, self._left_out = file, left_out
        self._first = b""
        self.metadata = 0

    def write(self, data: bytes) -> int:
        """Write what is not left out."""
        left_out = min(self._left_out, len(data))
        self._left_out -= left_out
        kept = memoryview(data)[left_out:]
        if len(self._first) < 8 and kept:
            self._first += bytes(kept[: 8 - len(self._first)])
            if len(self._first) == 8:
                (self.metadata,) = struct.unpack_from("<4xi", self._first)
        self._file.write(kept)
        return len(data)

    def flush(self) -> None:
        """Nothing: the file itself is flushed at its end."""

    def close(self) -> None:
        """Nothing: the next message goes to the same file."""


def _stream(schema: pa.Schema, batch: pa.RecordBatch | None, options: pa.ipc.IpcWriteOptions) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        if batch is not None:
            writer.write_batch(batch)
    return sink.getvalue()


def _empty(schema: pa.Schema, labels: dict[str, Labels]) -> pa.RecordBatch:
    """A batch without rows that has all labels."""
    columns = []
    for field in schema:
        if field.name in labels:
            codes = pa.nulls(0, field.type.index_type)
            dictionary = labels[field.name].dictionary()
            columns.append(pa.DictionaryArray.from_arrays(codes, dictionary, ordered=field.type.ordered))
        else:
            columns.append(pa.nulls(0, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _footer(schema: pa.Schema, empty: pa.RecordBatch, dictionaries: list[Block], batches: list[Block]) -> bytes:
    """A footer with these positions, and what stands behind it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for _ in batches:
            writer.write_batch(empty)
    made = bytearray(sink.getvalue())
    tail = 4 + len(MAGIC)
    (size,) = struct.unpack_from("<i", made, len(made) - tail)
    footer = made[len(made) - tail - size :]
    for field, blocks in ((_DICTIONARIES, dictionaries), (_BATCHES, batches)):
        start, count = _vector(footer, field)
        if count != len(blocks):
            raise AssertionError(f"Arrow's footer has {count} places for {len(blocks)} messages")
        for number, block in enumerate(blocks):
            _BLOCK.pack_into(footer, start + number * _BLOCK.size, *block)
    return bytes(footer)


def _vector(table: bytearray, field: int) -> tuple[int, int]:
    """Where the elements of a vector field of a FlatBuffers table begin, and how many there are."""
    (root,) = struct.unpack_from("<I", table, 0)
    (back,) = struct.unpack_from("<i", table, root)
    fields = root - back
    (length,) = struct.unpack_from("<H", table, fields)
    entry = 4 + 2 * field
    (offset,) = struct.unpack_from("<H", table, fields + entry) if entry < length else (0,)
    if not offset:
        return 0, 0
    place = root + offset
    (jump,) = struct.unpack_from("<I", table, place)
    (count,) = struct.unpack_from("<I", table, place + jump)
    return place + jump + 4, count
