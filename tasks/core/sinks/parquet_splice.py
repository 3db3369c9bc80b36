"""Join Parquet files of one writer into one file by copying bytes, without decoding a page.

A Parquet file is ``PAR1``, row groups, a footer, the footer's length (4 bytes, little-endian) and ``PAR1``.
Nothing inside a row group knows where it lies; only the footer holds absolute file offsets. So the row groups
of many parts can be copied behind one another, and one new footer lists them all with shifted offsets.

The footer is a Thrift struct in the compact protocol. pyarrow can read it but not write a changed one, and a
translation into objects of our own would lose the fields we do not know. The footer is therefore cut, not
translated: `_Cutter` walks over it, leaves every byte as it is and cuts out only the numbers that change.

The optional page index needs one step more: each OffsetIndex, which lies between row groups and footer, holds
absolute page offsets too. It is cut in the same way and written anew behind the data of its part.

Sources: field numbers from ``parquet.thrift`` in github.com/apache/parquet-format; encodings and type codes
from ``doc/specs/thrift-compact-protocol.md`` in github.com/apache/thrift.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC: Final = b"PAR1"
ENCRYPTED_MAGIC: Final = b"PARE"
COPY_BLOCK: Final = 1 << 20
"""Bytes held in memory at a time when the kernel cannot copy for us."""

_TAIL: Final = 8  # footer length (4 bytes) and magic (4 bytes)
_KERNEL_BLOCK: Final = 1 << 30  # one copy_file_range call moves at most 2 GiB
_LAST_ORDINAL: Final = 32_767  # RowGroup.ordinal is an i16
_DEEPEST: Final = 32  # levels of nesting; Parquet's own footer has six

# Type codes of the compact protocol. A bool field has its value in the type code and no bytes of its own.
_TRUE, _FALSE, _I8, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = range(1, 14)
_VARINTS: Final = frozenset((_I16, _I32, _I64))
_FIXED_BYTES: Final[Mapping[int, int]] = {_I8: 1, _DOUBLE: 8, _UUID: 16}


def _flat_fields() -> re.Pattern[bytes]:
    """Return a pattern for any run of fields of numbers, bools, short strings and short lists of numbers.

    It passes in one step over the structs that fill a footer, such as Statistics.
    What it does not know it leaves to `_skip_struct`. It never goes back (``*+``).
    """

    def headers(*kinds: int) -> bytes:
        short = bytes(delta << 4 | kind for delta in range(1, 16) for kind in kinds)
        return b"[" + re.escape(short) + b"]"

    def counted(count: int, kinds: tuple[int, ...]) -> bytes:
        return b"[" + re.escape(bytes(count << 4 | kind for kind in kinds)) + b"]"

    number = rb"[\x80-\xff]*+[\x00-\x7f]"
    strings = b"|".join(re.escape(bytes((length,))) + b".{%d}" % length for length in (8, 4, 0, 1, 2, 3, 5, 6, 7))
    lists = b"|".join(counted(count, (_I16, _I32, _I64)) + number * count for count in range(4))
    fields = (
        headers(_I16, _I32, _I64) + number,
        headers(_TRUE, _FALSE),
        headers(_BINARY) + b"(?:" + strings + b")",
        headers(_LIST) + b"(?:" + lists + b")",
    )
    return re.compile(b"(?:" + b"|".join(fields) + b")*+", re.DOTALL)


_FLAT_FIELDS: Final = _flat_fields()


class DamagedPartError(ValueError):
    """A file is not a whole Parquet file: cut short, overwritten, or not Parquet at all."""


class PartMismatchError(ValueError):
    """A sound Parquet file cannot be joined to the others, for instance because its columns differ."""


class _MalformedError(Exception):
    """The bytes break the compact protocol or contradict each other; becomes a `DamagedPartError`."""


class _RefusedError(Exception):
    """The bytes are sound but cannot be moved; becomes a `PartMismatchError`."""


# What to do with a field, by ``number << 4 | type``: walk into it (a dict) or one of these. All other fields
# are passed over.
_OFFSET, _INDEX_OFFSET, _INDEX_LENGTH, _ORDINAL, _ROWS, _ENCRYPTED, _ELSEWHERE = range(7)
_Shape = Mapping[int, Any]

_COLUMN_META_DATA: Final[_Shape] = {  # data, index and dictionary pages, bloom filter
    number << 4 | _I64: _OFFSET for number in (9, 10, 11, 14)
}
_COLUMN_CHUNK: Final[_Shape] = {
    1 << 4 | _BINARY: _ELSEWHERE,  # file_path
    2 << 4 | _I64: _OFFSET,  # file_offset
    3 << 4 | _STRUCT: _COLUMN_META_DATA,
    4 << 4 | _I64: _INDEX_OFFSET,  # offset_index_offset
    5 << 4 | _I32: _INDEX_LENGTH,  # offset_index_length
    6 << 4 | _I64: _OFFSET,  # column_index_offset
    8 << 4 | _STRUCT: _ENCRYPTED,  # crypto_metadata
    9 << 4 | _BINARY: _ENCRYPTED,  # encrypted_column_metadata
}
_ROW_GROUP: Final[_Shape] = {
    1 << 4 | _LIST: _COLUMN_CHUNK,
    3 << 4 | _I64: _ROWS,  # num_rows
    5 << 4 | _I64: _OFFSET,  # file_offset
    7 << 4 | _I16: _ORDINAL,
}
_PAGE_LOCATION: Final[_Shape] = {1 << 4 | _I64: _OFFSET}
_OFFSET_INDEX: Final[_Shape] = {1 << 4 | _LIST: _PAGE_LOCATION}

_SCHEMA, _NUM_ROWS, _ROW_GROUPS, _COLUMN_ORDERS = 2, 3, 4, 7  # fields of FileMetaData
_FILE_ENCRYPTED: Final = (8, 9)


def encode_varint(number: int) -> bytes:
    """Encode a number >= 0 as an unsigned LEB128 varint.

    >>> encode_varint(50399).hex()
    'df8903'
    """
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def encode_zigzag(number: int) -> bytes:
    """Encode a signed number of at most 64 bits as Thrift does: zigzag, then varint.

    >>> [encode_zigzag(number).hex() for number in (0, -1, 1, -2)]
    ['00', '01', '02', '03']
    """
    return encode_varint(number << 1 ^ number >> 63)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Read the unsigned varint at `at`; return it and the position behind it."""
    number = bits = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << bits
        if byte < 128:
            return number, at
        bits += 7
        if bits > 63:
            raise _MalformedError(f"a number of more than 64 bits at footer byte {at}")


def _read_zigzag(data: bytes, at: int) -> tuple[int, int]:
    """Read the signed varint at `at`; return it and the position behind it."""
    number, at = _read_varint(data, at)
    return number >> 1 ^ -(number & 1), at


def _read_header(data: bytes, at: int, previous: int) -> tuple[int, int, int]:
    """Read the header, not the stop byte, of a field; return its number, its type and where it ends."""
    header = data[at]
    if header > 15:  # short form: the number is a difference to the field before
        return previous + (header >> 4), header & 15, at + 1
    number, at = _read_zigzag(data, at + 1)
    return number, header, at


def _write_header(number: int, kind: int, previous: int) -> bytes:
    """Encode the header of a field; the inverse of `_read_header`."""
    if 0 < number - previous < 16:
        return bytes(((number - previous) << 4 | kind,))
    return bytes((kind,)) + encode_zigzag(number)


def _read_list_header(data: bytes, at: int) -> tuple[int, int, int]:
    """Read the header of a list or set; return element count, element type and where the elements begin."""
    count, kind = data[at] >> 4, data[at] & 15
    at += 1
    if count == 15:
        count, at = _read_varint(data, at)
    if count > len(data) - at:  # an element has at least one byte
        raise _MalformedError(f"a list of {count} elements in {len(data) - at} bytes at footer byte {at}")
    return count, kind, at


def _write_list_header(count: int, kind: int) -> bytes:
    """Encode the header of a list; the inverse of `_read_list_header`."""
    return bytes((count << 4 | kind,)) if count < 15 else bytes((0xF0 | kind,)) + encode_varint(count)


def _skip_struct(data: bytes, at: int, depth: int) -> int:
    """Return the position behind the struct that begins at `at`."""
    if depth > _DEEPEST:
        raise _MalformedError(f"more than {_DEEPEST} levels of nesting at footer byte {at}")
    while True:
        at = _FLAT_FIELDS.match(data, at).end()  # type: ignore[union-attr]  # the pattern matches nothing, too
        if not data[at]:
            return at + 1
        _, kind, at = _read_header(data, at, 0)
        at = _skip_field(data, at, kind, depth)


def _skip_field(data: bytes, at: int, kind: int, depth: int) -> int:
    """Return the position behind the field of type `kind` whose header ends at `at`."""
    if kind > _FALSE:
        return _skip_value(data, at, kind, depth)
    if not kind:
        raise _MalformedError(f"a field without a type at footer byte {at}")
    return at


def _skip_value(data: bytes, at: int, kind: int, depth: int) -> int:
    """Return the position behind the value of type `kind` that begins at `at`; a bool here has one byte."""
    if kind in _VARINTS:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == _BINARY:
        length, at = _read_varint(data, at)
        if length > len(data) - at:
            raise _MalformedError(f"a string of {length} bytes in {len(data) - at} bytes at footer byte {at}")
        return at + length
    if kind == _STRUCT:
        return _skip_struct(data, at, depth + 1)
    if kind in (_LIST, _SET):
        return _skip_list(data, at, depth)
    if kind == _MAP:
        return _skip_map(data, at, depth)
    if kind in (_TRUE, _FALSE):
        return at + 1
    if kind in _FIXED_BYTES:
        return at + _FIXED_BYTES[kind]
    raise _MalformedError(f"a value of unknown type {kind} at footer byte {at}")


def _skip_list(data: bytes, at: int, depth: int) -> int:
    """Return the position behind the list or set that begins at `at`."""
    if depth > _DEEPEST:
        raise _MalformedError(f"more than {_DEEPEST} levels of nesting at footer byte {at}")
    count, kind, at = _read_list_header(data, at)
    if kind in _VARINTS and data[at : at + count].isascii():
        return at + count  # all of them one byte long
    if kind == _STRUCT:
        for _ in range(count):
            at = _skip_struct(data, at, depth + 1)
        return at
    for _ in range(count):
        at = _skip_value(data, at, kind, depth + 1)
    return at


def _skip_map(data: bytes, at: int, depth: int) -> int:
    """Return the position behind the map that begins at `at`; an empty one has no byte for the types."""
    if depth > _DEEPEST:
        raise _MalformedError(f"more than {_DEEPEST} levels of nesting at footer byte {at}")
    count, at = _read_varint(data, at)
    if 2 * count > len(data) - at:
        raise _MalformedError(f"a map of {count} entries in {len(data) - at} bytes at footer byte {at}")
    if not count:
        return at
    kinds, at = data[at], at + 1
    for _ in range(count):
        at = _skip_value(data, at, kinds >> 4, depth + 1)
        at = _skip_value(data, at, kinds & 15, depth + 1)
    return at


@dataclass(frozen=True, slots=True)
class Ordinal:
    """Where a row group states its own number, and the bytes around it.

    Attributes:
        group: the row group, counted from 0 within its part.
        number: the index of the cut number that this is.
        header: the field header before the number.
        following: the header of the field behind the ordinal; empty if there is none.
        absolute: the same header for the case that the ordinal is left out.
    """

    group: int
    number: int
    header: bytes
    following: bytes
    absolute: bytes

    def encoded(self, group: int) -> bytes:
        """Return the field for row group `group` of the new file, left out if an i16 cannot hold it."""
        if group > _LAST_ORDINAL:
            return self.absolute
        return self.header + encode_zigzag(group) + self.following


class _Cutter:
    """Walks over structs of known shape and cuts their bytes at the numbers that have to change.

    ``segments`` are the bytes between the numbers; ``b"".join`` of them with `encode_zigzag` of each of
    ``numbers`` in between gives the input again. A zero offset means "nothing there" (``parquet.thrift`` for
    ColumnChunk.file_offset; byte 0 of a file is the magic) and is not cut.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.segments: list[bytes] = []
        self.numbers: list[int] = []
        self.indexes: list[tuple[int, int]] = []
        self.ordinals: list[Ordinal] = []
        self.list_lengths: set[int] = set()
        self.rows = 0
        self.group = 0
        self._cut = 0
        self._index_at = -1

    def walk(self, at: int, shape: _Shape) -> int:
        """Walk over the struct that begins at `at`; return the position behind it."""
        data = self.data
        number = 0
        while header := data[at]:
            start = at
            if header > 15:
                number += header >> 4
                at += 1
                key = number << 4 | header & 15
            else:
                number, kind, at = _read_header(data, at, number)
                key = number << 4 | kind
            action = shape.get(key)
            if action is None:
                kind = key & 15
                if kind in _VARINTS:
                    while data[at] > 127:
                        at += 1
                    at += 1
                else:
                    at = _skip_field(data, at, kind, 0)
            elif action == _OFFSET:
                at = self._cut_offset(at) if data[at] else at + 1
            elif key & 15 == _STRUCT and action != _ENCRYPTED:
                at = self.walk(at, action)
            elif key & 15 == _LIST:
                at = self.walk_list(at, action)
            else:
                at = self._seldom(action, start, at, number)
        return at + 1

    def walk_list(self, at: int, shape: _Shape) -> int:
        """Walk over the list of structs that begins at `at`; return the position behind it."""
        count, at = self.open_list(at)
        self.list_lengths.add(count)
        for _ in range(count):
            at = self.walk(at, shape)
        return at

    def open_list(self, at: int) -> tuple[int, int]:
        """Read the header of a list of structs; return their count and where they begin."""
        count, kind, at = _read_list_header(self.data, at)
        if count and kind != _STRUCT:
            raise _MalformedError(f"a list of type {kind} instead of structs at footer byte {at}")
        return count, at

    def start(self, at: int) -> None:
        """Let the first segment begin at `at`."""
        self._cut = at

    def finish(self, at: int) -> None:
        """Close the last segment at `at`."""
        if self._index_at >= 0:
            raise _MalformedError("an OffsetIndex without a length")
        self.segments.append(self.data[self._cut : at])

    def _cut_offset(self, at: int) -> int:
        """Cut out the offset at `at`; return the position behind it."""
        value, end = _read_zigzag(self.data, at)
        self.segments.append(self.data[self._cut : at])
        self.numbers.append(value)
        self._cut = end
        return end

    def _cut_number(self, at: int, end: int, value: int) -> None:
        """Cut out the bytes ``[at, end)``, which hold the number `value`."""
        self.segments.append(self.data[self._cut : at])
        self.numbers.append(value)
        self._cut = end

    def _seldom(self, action: int, start: int, at: int, number: int) -> int:
        """Act on a field that a column chunk without a page index does not have."""
        if action == _ENCRYPTED:
            raise _RefusedError("has encrypted columns, which cannot be moved; write it without encryption")
        if action == _ELSEWHERE:
            raise _RefusedError("keeps data in another file (ColumnChunk.file_path); write it as one file")
        value, end = _read_zigzag(self.data, at)
        if action == _ROWS:
            self.rows += value
        elif action == _ORDINAL:
            self._cut_ordinal(start, at, end, value, number)
        elif value:
            self._cut_index(action, at, end, value)
        return end

    def _cut_index(self, action: int, at: int, end: int, value: int) -> None:
        """Cut out the place of an OffsetIndex or, next, its length."""
        if (action == _INDEX_OFFSET) == (self._index_at >= 0):
            raise _MalformedError(f"an OffsetIndex without length or place at footer byte {at}")
        if action == _INDEX_OFFSET:
            self._index_at = len(self.numbers)
        else:
            self.indexes.append((self._index_at, len(self.numbers)))
            self._index_at = -1
        self._cut_number(at, end, value)

    def _cut_ordinal(self, start: int, at: int, end: int, value: int, number: int) -> None:
        """Cut out a row group's ordinal with its header and, if any, the header after it."""
        header, following, absolute = self.data[start:at], b"", b""
        behind = end
        if self.data[end]:
            after, kind, behind = _read_header(self.data, end, number)
            following, absolute = self.data[end:behind], bytes((kind,)) + encode_zigzag(after)
        self.ordinals.append(Ordinal(self.group, len(self.numbers), header, following, absolute))
        self._cut_number(start, behind, value)


@dataclass(frozen=True, slots=True)
class RowGroups:
    """The row groups of one part, ready to be listed in the footer of another file.

    Attributes:
        path: the part.
        rows: rows in all row groups.
        groups: number of row groups.
        start: first byte of the part to copy (behind the magic).
        stop: end of the bytes to copy (the beginning of the footer).
        schema: raw Thrift bytes of FileMetaData.schema.
        column_orders: raw Thrift bytes of FileMetaData.column_orders; empty if absent.
        columns: numbers of column chunks that a row group has; one number, or none without row groups.
        segments: raw Thrift bytes of all RowGroup structs between `numbers`, one more than these.
        numbers: absolute byte offsets in the part; where `indexes` and `ordinals` say so, lengths in bytes of
            OffsetIndexes and ordinals.
        indexes: for each OffsetIndex, which of `numbers` are its offset and its length.
        ordinals: the row groups' own numbers.
    """

    path: Path
    rows: int
    groups: int
    start: int
    stop: int
    schema: bytes
    column_orders: bytes
    columns: tuple[int, ...]
    segments: tuple[bytes, ...]
    numbers: tuple[int, ...]
    indexes: tuple[tuple[int, int], ...] = ()
    ordinals: tuple[Ordinal, ...] = ()

    def rebased(self, shift: int, first_group: int, indexes: Sequence[tuple[int, int]] = ()) -> bytes:
        """Return the RowGroup structs, one behind the other, as they are in the new file.

        Args:
            shift: bytes to add to each offset.
            first_group: row groups that lie before these ones in the new file.
            indexes: offset and length of each OffsetIndex in the new file.
        """
        pieces = [encode_zigzag(number + shift) for number in self.numbers]
        for (offset_at, length_at), (offset, length) in zip(self.indexes, indexes, strict=True):
            pieces[offset_at], pieces[length_at] = encode_zigzag(offset), encode_zigzag(length)
        for ordinal in self.ordinals:
            pieces[ordinal.number] = ordinal.encoded(first_group + ordinal.group)
        return _interleave(self.segments, pieces)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes ``[start, stop)`` of the file `path`, followed by the new bytes `indexes` (often none)."""

    path: Path
    start: int
    stop: int
    indexes: bytes


@dataclass(frozen=True, slots=True)
class Splice:
    """All that is to be written: the magic, the pieces, the footer, its length and the magic again."""

    pieces: tuple[Piece, ...]
    footer: bytes
    rows: int


@dataclass(frozen=True, slots=True)
class _Footer:
    """A footer in parts: the fields of FileMetaData as (number, type, raw value), and its row groups."""

    fields: tuple[tuple[int, int, bytes], ...]
    row_groups: _Cutter
    groups: int
    start: int

    def raw(self, number: int) -> bytes:
        """Return the raw bytes of a field; empty if it is absent."""
        return b"".join(value for field, _, value in self.fields if field == number)


def read_row_groups(path: Path | str) -> RowGroups:
    """Read the footer of a part, and no other byte but the first four.

    Raises:
        DamagedPartError: the file is not a whole Parquet file, or its footer contradicts itself.
        PartMismatchError: the file is encrypted or keeps column data in other files.
        OSError: the file cannot be opened or read.
    """
    path = Path(path)
    with path.open("rb") as file:
        footer = _read_footer(file, str(path))
    cut = footer.row_groups
    return RowGroups(
        path=path,
        rows=cut.rows,
        groups=footer.groups,
        start=len(MAGIC),
        stop=footer.start,
        schema=footer.raw(_SCHEMA),
        column_orders=footer.raw(_COLUMN_ORDERS),
        columns=tuple(cut.list_lengths),
        segments=tuple(cut.segments),
        numbers=tuple(cut.numbers),
        indexes=tuple(cut.indexes),
        ordinals=tuple(cut.ordinals),
    )


def plan_splice(parts: Sequence[Path | str], template: bytes) -> Splice:
    """Read and check the footers of all parts and decide every byte of the new file that is not a copy.

    Args:
        parts: Parquet files in the order of their rows. A part without rows adds nothing.
        template: the bytes of a Parquet file without rows. It supplies the schema, the key-value metadata,
            the version and the name of the writer.

    Returns:
        What is to be written. Its size is that of the new footer; no column data is read.

    Raises:
        DamagedPartError: a part or the template is not a whole Parquet file.
        PartMismatchError: a part differs from the template in schema or in the order of its statistics, or
            cannot be moved; or the template has rows.
        OSError: a part cannot be read.
    """
    head = _read_footer(io.BytesIO(template), "the template")
    if head.row_groups.rows:
        raise PartMismatchError(f"the template has {head.row_groups.rows} rows; write it from an empty table")
    leaves = sum(not element.is_group for element in _schema_elements(head.raw(_SCHEMA)))
    pieces: list[Piece] = []
    row_groups: list[bytes] = []
    position, rows, groups = len(MAGIC), 0, 0
    for path in parts:
        part = read_row_groups(path)
        _check_same(part, head, leaves)
        if not part.rows:
            continue
        stop, places, indexes = _move_indexes(part, position)
        row_groups.append(part.rebased(position - part.start, groups, places))
        pieces.append(Piece(part.path, part.start, stop, indexes))
        position += stop - part.start + len(indexes)
        rows += part.rows
        groups += part.groups
    plan = Splice(tuple(pieces), _compose_footer(head, rows, groups, b"".join(row_groups)), rows)
    _check_readable(plan, template, parts)
    return plan


def splice(parts: Sequence[Path | str], template: bytes, out: BinaryIO) -> int:
    """Join `parts` into one Parquet file, written to `out` from its first byte on.

    The pages are not read, so damage within them is copied as it is. Nothing is written unless all parts pass
    the checks of `plan_splice`, whose arguments and errors are also those of this function. If reading or
    writing fails later, `out` holds an incomplete file; let it be a temporary one.

    Returns:
        Rows in the new file.

    Raises:
        ValueError: `out` is not at its beginning, where the offsets count from.
    """
    if out.seekable() and out.tell():
        raise ValueError(f"the output is at byte {out.tell()}, and Parquet offsets count from byte 0; seek there")
    plan = plan_splice(parts, template)
    _write(out, MAGIC)
    for piece in plan.pieces:
        with piece.path.open("rb", buffering=0) as source:
            _copy_range(source, piece, out)
        _write(out, piece.indexes)
    _write(out, _closed(plan.footer))
    return plan.rows


def _read_footer(file: BinaryIO, name: str) -> _Footer:
    """Read and check the footer of an open Parquet file; `name` is for the errors."""
    try:
        start, footer = _footer_bytes(file)
        parsed = _parse_footer(footer, start)
        _check_footer(parsed)
    except _RefusedError as error:
        raise PartMismatchError(f"{name} {error}") from error
    except (_MalformedError, IndexError, OverflowError) as error:
        found = error if isinstance(error, _MalformedError) else "its footer ends in the middle of a value"
        raise DamagedPartError(f"{name} is damaged: {found}. Delete this file and write it again.") from error
    return parsed


def _footer_bytes(file: BinaryIO) -> tuple[int, bytes]:
    """Return the position of the footer and the footer."""
    first = file.read(len(MAGIC))
    size = file.seek(0, os.SEEK_END)
    if size < len(MAGIC) + _TAIL:
        raise _MalformedError(f"it has {size} bytes, and a Parquet file has at least {len(MAGIC) + _TAIL}")
    file.seek(size - _TAIL)
    tail = file.read(_TAIL)
    if ENCRYPTED_MAGIC in (first, tail[4:]):
        raise _RefusedError("has an encrypted footer, which cannot be moved; write it without encryption")
    if first != MAGIC or tail[4:] != MAGIC:
        raise _MalformedError(f"it begins with {first!r} and ends with {tail[4:]!r} instead of {MAGIC!r}")
    start = size - _TAIL - int.from_bytes(tail[:4], "little")
    if start < len(MAGIC):
        raise _MalformedError(f"it has {size} bytes, and its footer should have {size - _TAIL - start}")
    file.seek(start)
    footer = file.read(size - _TAIL - start)
    if len(footer) != size - _TAIL - start:
        raise _MalformedError("it became shorter while it was read")
    return start, footer


def _parse_footer(footer: bytes, start: int) -> _Footer:
    """Take the fields of FileMetaData apart; cut the row groups, keep the other fields as they are."""
    fields: list[tuple[int, int, bytes]] = []
    cutter = _Cutter(footer)
    at = number = groups = 0
    while footer[at]:
        number, kind, at = _read_header(footer, at, number)
        begin = at
        if number == _ROW_GROUPS and kind == _LIST and not cutter.segments:
            groups, at = _cut_row_groups(cutter, at)
        else:
            at = _skip_field(footer, at, kind, 0)
        fields.append((number, kind, footer[begin:at]))
    if at + 1 != len(footer):
        raise _MalformedError(f"its footer has {len(footer)} bytes and ends after {at + 1}")
    return _Footer(tuple(fields), cutter, groups, start)


def _cut_row_groups(cutter: _Cutter, at: int) -> tuple[int, int]:
    """Cut the list of row groups that begins at `at`; return their number and the position behind them."""
    groups, at = cutter.open_list(at)
    cutter.start(at)
    for cutter.group in range(groups):
        at = cutter.walk(at, _ROW_GROUP)
    cutter.finish(at)
    return groups, at


def _check_footer(parsed: _Footer) -> None:
    """Check that the footer agrees with itself and with the size of the file."""
    if any(number in _FILE_ENCRYPTED for number, _, _ in parsed.fields):
        raise _RefusedError("is encrypted or signed, and cannot be moved; write it without encryption")
    if len({number for number, _, _ in parsed.fields}) != len(parsed.fields):
        raise _MalformedError("its footer has a field twice")
    cut = parsed.row_groups
    others = {length_at for _, length_at in cut.indexes} | {ordinal.number for ordinal in cut.ordinals}
    offsets = [number for at, number in enumerate(cut.numbers) if at not in others]
    if offsets and not len(MAGIC) <= min(offsets) <= max(offsets) <= parsed.start:
        raise _MalformedError(
            f"its footer points to bytes {min(offsets)} to {max(offsets)}, but its data end at {parsed.start}"
        )
    rows = parsed.raw(_NUM_ROWS)
    if not rows or _read_zigzag(rows, 0)[0] != cut.rows or cut.rows < 0:
        raise _MalformedError(f"its row groups have {cut.rows} rows, which is not the number its footer says")
    if len(cut.list_lengths) > 1:
        raise _MalformedError(f"its row groups have {sorted(cut.list_lengths)} columns, which should be the same")


def _check_readable(plan: Splice, template: bytes, parts: Sequence[Path | str]) -> None:
    """Check that pyarrow can read the new footer; if not, name the part that is the reason.

    By now every list is known to fit into its footer, so that pyarrow reserves no absurd amount of memory.
    """
    if not _trouble(io.BytesIO(MAGIC + _closed(plan.footer))):
        return
    for name, source in (("the template", io.BytesIO(template)), *((path, path) for path in parts)):
        if trouble := _trouble(source):
            raise DamagedPartError(
                f"{name} is damaged: pyarrow cannot read it ({trouble}). Delete this file and write it again."
            )
    raise DamagedPartError("the footers of the parts are damaged. Delete the parts and write them again.")


def _trouble(source: Any) -> str:
    """Return what pyarrow says against the footer of a path or an open file, or an empty string."""
    try:
        pq.read_metadata(source)  # type: ignore[no-untyped-call]
    except (pa.lib.ArrowException, OSError) as error:
        return str(error)
    return ""


def _check_same(part: RowGroups, head: _Footer, leaves: int) -> None:
    """Refuse a part that means other than the template, which has `leaves` columns, says."""
    if part.schema != head.raw(_SCHEMA):
        difference = _schema_difference(part.schema, head.raw(_SCHEMA))
        raise PartMismatchError(f"{part.path} has another schema than the other parts: {difference}")
    if part.columns and part.columns != (leaves,):
        raise DamagedPartError(
            f"{part.path} is damaged: a row group has {part.columns[0]} columns, the schema has {leaves}. "
            "Delete this file and write it again."
        )
    if part.column_orders != head.raw(_COLUMN_ORDERS):
        raise PartMismatchError(
            f"{part.path} orders the values of its statistics in another way (FileMetaData.column_orders); "
            "write all parts with the same version of pyarrow"
        )


def _schema_difference(found: bytes, wanted: bytes) -> str:
    """Say in which column two different schemas differ first."""
    here, there = _schema_elements(found), _schema_elements(wanted)
    for element, wanted_element in zip(here[1:], there[1:], strict=False):
        name, wanted_name = element.name, wanted_element.name
        if name != wanted_name:
            return f"column {name!r} is where {wanted_name!r} should be. Write the columns in the same order."
        if element.raw != wanted_element.raw:
            return f"column {name!r} has another type or nullability. Cast it to the common type."
    if len(here) != len(there):
        longer, word = (here, "is not in the others") if len(here) > len(there) else (there, "is missing")
        return f"column {longer[min(len(here), len(there))].name!r} {word}. Write the same columns to each."
    return "the root elements differ. Write all parts with the same version of pyarrow."


class _Element(NamedTuple):
    """A SchemaElement: its name (field 4), whether it has children (field 5), and its raw bytes."""

    name: str
    is_group: bool
    raw: bytes


def _schema_elements(schema: bytes) -> list[_Element]:
    """Take FileMetaData.schema apart; the root comes first."""
    count, kind, at = _read_list_header(schema, 0)
    if count and kind != _STRUCT:
        raise _MalformedError("its schema is not a list of structs")
    elements = []
    for _ in range(count):
        begin, at = at, _skip_struct(schema, at, 0)
        elements.append(_read_element(schema[begin:at]))
    return elements


def _read_element(raw: bytes) -> _Element:
    """Read what we need of a SchemaElement."""
    at = number = children = 0
    name = b""
    while raw[at]:
        number, kind, at = _read_header(raw, at, number)
        if number == 4 and kind == _BINARY:
            length, begin = _read_varint(raw, at)
            name = raw[begin : begin + length]
        elif number == 5 and kind == _I32:
            children, _ = _read_zigzag(raw, at)
        at = _skip_field(raw, at, kind, 0)
    return _Element(name.decode("utf-8", "backslashreplace"), children > 0, raw)


def _move_indexes(part: RowGroups, position: int) -> tuple[int, list[tuple[int, int]], bytes]:
    """Rebase the OffsetIndexes of a part that is going to begin at byte `position` of the new file.

    Returns:
        Where the bytes to copy end (before the old OffsetIndexes if nothing lies behind them, as in pyarrow's
        files), the new offset and length of each OffsetIndex, and the new OffsetIndexes, which belong
        directly behind the copied bytes.
    """
    if not part.indexes:
        return part.stop, [], b""
    ranges = [(part.numbers[offset_at], part.numbers[length_at]) for offset_at, length_at in part.indexes]
    stop = part.stop
    for offset, length in sorted(ranges, reverse=True):
        stop = offset if offset + length == stop else stop
    shift = position - part.start
    with part.path.open("rb") as file:
        moved = [_move_index(file, part, offset, length, shift) for offset, length in ranges]
    places, place = [], stop + shift
    for index in moved:
        places.append((place, len(index)))
        place += len(index)
    return stop, places, b"".join(moved)


def _move_index(file: BinaryIO, part: RowGroups, offset: int, length: int, shift: int) -> bytes:
    """Read one OffsetIndex and add `shift` bytes to the offsets of its pages."""
    try:
        if not 0 < length <= part.stop - offset:
            raise _MalformedError(f"an OffsetIndex of {length} bytes at byte {offset}")
        file.seek(offset)
        cutter = _Cutter(file.read(length))
        end = cutter.walk(0, _OFFSET_INDEX)
        if end != length or not all(len(MAGIC) <= number <= part.stop for number in cutter.numbers):
            raise _MalformedError(f"no OffsetIndex of {length} bytes at byte {offset}")
        cutter.finish(end)
    except (_MalformedError, _RefusedError, IndexError) as error:
        found = f"its page index is not what its footer says ({error})"
        raise DamagedPartError(f"{part.path} is damaged: {found}. Delete it and write it again.") from error
    return _interleave(cutter.segments, [encode_zigzag(number + shift) for number in cutter.numbers])


def _interleave(segments: Sequence[bytes], pieces: Sequence[bytes]) -> bytes:
    """Join segments with one piece between each two of them."""
    *before, last = segments
    return b"".join((*chain.from_iterable(zip(before, pieces, strict=True)), last))


def _compose_footer(head: _Footer, rows: int, groups: int, row_groups: bytes) -> bytes:
    """Return the template's footer with other rows and row groups (raw, one behind the other)."""
    fields = {number: (kind, value) for number, kind, value in head.fields}
    fields[_NUM_ROWS] = (_I64, encode_zigzag(rows))
    fields[_ROW_GROUPS] = (_LIST, _write_list_header(groups, _STRUCT) + row_groups)
    pieces, previous = [], 0
    for number, (kind, value) in sorted(fields.items()):
        pieces += [_write_header(number, kind, previous), value]
        previous = number
    footer = b"".join([*pieces, b"\x00"])
    if len(footer) >= 1 << 32:
        raise PartMismatchError(
            f"the joined footer would have {len(footer)} bytes of at most 2**32 - 1; write larger row groups"
        )
    return footer


def _closed(footer: bytes) -> bytes:
    """Return the footer with what follows it to the end of the file."""
    return footer + len(footer).to_bytes(4, "little") + MAGIC


def _copy_range(source: io.FileIO, piece: Piece, out: BinaryIO) -> None:
    """Copy the bytes of a piece, in the kernel where it can, else in blocks of `COPY_BLOCK` bytes."""
    at = _copy_in_kernel(source, piece.start, piece.stop, out)
    source.seek(at)
    while at < piece.stop:
        block = source.read(min(COPY_BLOCK, piece.stop - at))
        if not block:
            raise DamagedPartError(f"{piece.path} became shorter while it was copied: it ends at byte {at}")
        _write(out, block)
        at += len(block)


def _copy_in_kernel(source: io.FileIO, start: int, stop: int, out: BinaryIO) -> int:
    """Let Linux copy from file to file; return how far it came, which may be `start`.

    It does not work on other platforms, between some file systems, nor to what is not a plain file. A wrapper
    that changes the bytes, such as gzip, has a file descriptor too, hence the look at the type.
    """
    target = getattr(out, "raw", out)
    if not (isinstance(target, io.FileIO) and _is_plain(source) and _is_plain(target)):
        return start
    if not hasattr(os, "copy_file_range"):
        return start
    out.flush()
    at, shift = start, out.tell() - start
    try:
        while at < stop:
            length = min(stop - at, _KERNEL_BLOCK)
            moved = os.copy_file_range(source.fileno(), target.fileno(), length, at, at + shift)
            if not moved:
                break
            at += moved
    except OSError:
        pass  # the loop of reads and writes goes on from here, and raises if the reason was a full disk
    out.seek(at + shift)
    return at


def _is_plain(file: io.FileIO) -> bool:
    """Tell whether the file is one on a disk, not a pipe or a device."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _write(out: BinaryIO, data: bytes) -> None:
    """Write all of `data`; an unbuffered file may take several calls."""
    view = memoryview(data)
    while view:
        taken = out.write(view)
        view = view[taken:] if taken is not None else view[:0]
