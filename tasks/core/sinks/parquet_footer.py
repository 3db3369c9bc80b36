"""The footer of a Parquet file as bytes: cut open at the numbers that change when its row groups move.

The footer is a Thrift struct in the compact protocol. pyarrow can read it but not write a changed one, and a
translation into objects of our own would lose the fields we do not know. The footer is therefore cut, not
translated: every byte stays as it is, but for the absolute file offsets and the row groups' own numbers.

Sources: field numbers from ``parquet.thrift`` in github.com/apache/parquet-format; encodings and type codes
from ``doc/specs/thrift-compact-protocol.md`` in github.com/apache/thrift.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from prefect_cytotable.tasks.core.errors import DamagedPartError, PartMismatchError

MAGIC: Final = b"PAR1"
SCHEMA, NUM_ROWS, ROW_GROUPS, COLUMN_ORDERS = 2, 3, 4, 7  # fields of FileMetaData
_ENCRYPTED: Final = (8, 9)  # the same, of an encrypted or signed file
_DEEPEST: Final = 32  # levels of nesting; Parquet's own footer has six

# Type codes of the compact protocol. A bool field has its value in the type code and no bytes of its own.
_TRUE, _FALSE, _I8, _I16, _I32, I64, _DOUBLE, _BINARY, LIST, _SET, _MAP, STRUCT, _UUID = range(1, 14)
_VARINTS: Final = frozenset((_I16, _I32, I64))
_FIXED_BYTES: Final[Mapping[int, int]] = {_TRUE: 1, _FALSE: 1, _I8: 1, _DOUBLE: 8, _UUID: 16}


@dataclass(frozen=True, slots=True)
class RowGroups:
    """The row groups of one part, ready to be listed in the footer of another file.

    Attributes:
        rows: rows in all row groups.
        groups: number of row groups.
        columns: numbers of column chunks that a row group has; one number, or none without row groups.
        segments: raw Thrift bytes of all RowGroup structs between `numbers`, one more than these; none without a list.
        numbers: absolute byte offsets in the part and, where `ordinals` says so, ordinals.
        ordinals: which of `numbers` are the row groups' own numbers; one for each row group, or none.
    """

    rows: int
    groups: int
    columns: frozenset[int]
    segments: tuple[bytes, ...]
    numbers: tuple[int, ...]
    ordinals: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Footer:
    """A footer in parts: the fields of FileMetaData as ``{number: (type, raw value)}``, and its row groups."""

    fields: Mapping[int, tuple[int, bytes]]
    row_groups: RowGroups

    def raw(self, number: int) -> bytes:
        """Return the raw bytes of a field; empty if it is absent."""
        return self.fields.get(number, (0, b""))[1]


def parse_footer(footer: bytes, data_end: int, like: Footer | None = None) -> Footer:
    """Take a footer apart: cut the row groups, keep the other fields as they are.

    Args:
        footer: the bytes between the data and the footer's length.
        data_end: where the data end in the file and the footer begins.
        like: a footer of the same writer. Fields with the same bytes are taken over without a look inside.

    Raises:
        DamagedPartError: the footer breaks the protocol or contradicts itself. The message names no file.
        PartMismatchError: the footer is sound, but the data it describes cannot be moved. Likewise.
    """
    try:
        fields, row_groups = _fields(footer, like.fields if like else {})
    except (IndexError, OverflowError) as error:
        raise DamagedPartError("its footer ends in the middle of a value") from error
    parsed = Footer(fields, row_groups)
    _check(parsed, data_end)
    return parsed


def _fields(footer: bytes, known: Mapping[int, tuple[int, bytes]]) -> tuple[dict[int, tuple[int, bytes]], RowGroups]:
    """Split FileMetaData into its fields; a field with the bytes that are `known` is passed over in one step."""
    fields: dict[int, tuple[int, bytes]] = {}
    cutter = _Cutter(footer)
    at = number = 0
    while footer[at]:
        number, kind, at = read_header(footer, at, number)
        if number in fields:
            raise DamagedPartError("its footer has a field twice")
        begin = at
        known_kind, value = known.get(number, (None, b""))
        if number == ROW_GROUPS and kind == LIST:
            at = cutter.row_groups(at)
        elif kind == known_kind and footer.startswith(value, at):  # no value is the beginning of another one
            at += len(value)
        else:
            at = _skip_field(footer, at, kind, 0)
        fields[number] = kind, footer[begin:at]
    if at + 1 != len(footer):
        raise DamagedPartError(f"its footer has {len(footer)} bytes and ends after {at + 1}")
    segments, numbers, ordinals = tuple(cutter.segments), tuple(cutter.numbers), tuple(cutter.ordinals)
    return fields, RowGroups(cutter.rows, cutter.groups, frozenset(cutter.columns), segments, numbers, ordinals)


def _check(footer: Footer, data_end: int) -> None:
    """Check that the footer agrees with itself and with the size of the file."""
    if any(footer.raw(number) for number in _ENCRYPTED):
        raise PartMismatchError("is encrypted or signed, and cannot be moved; write it without encryption")
    cut = footer.row_groups
    ordinals = set(cut.ordinals)
    offsets = [number for at, number in enumerate(cut.numbers) if at not in ordinals]
    if offsets and not len(MAGIC) <= min(offsets) <= max(offsets) <= data_end:
        raise DamagedPartError(
            f"its footer points to bytes {min(offsets)} to {max(offsets)}, but its data end at {data_end}"
        )
    rows = footer.raw(NUM_ROWS)
    if not rows or read_zigzag(rows, 0)[0] != cut.rows or cut.rows < 0:
        raise DamagedPartError(f"its row groups have {cut.rows} rows, which is not the number its footer says")
    if len(cut.columns) > 1:
        raise DamagedPartError(f"its row groups have {sorted(cut.columns)} columns, which should be the same")


@cache
def _plain_chunk() -> re.Pattern[bytes]:
    """Return a pattern for a ColumnChunk of one unnested column as pyarrow writes it; its groups are the offsets.

    It spares a step of Python for each of some thirty fields. It knows no field that is refused and, behind the
    offsets of the pages, only structs (such as Statistics) and lists of structs, where no offset can be. What
    does not fit takes the way of `_Cutter.struct`. There is one way at most to match, so it takes linear time.
    """

    def header(*kinds: int) -> bytes:
        return b"[" + re.escape(bytes(step << 4 | kind for step in range(1, 16) for kind in kinds)) + b"]"

    def elements(value: bytes, *kinds: int) -> bytes:
        heads = (re.escape(bytes(count << 4 | kind for kind in kinds)) for count in range(4))
        return b"(?:" + b"|".join(b"[%b](?:%b){%d}" % (head, value, count) for count, head in enumerate(heads)) + b")"

    number = rb"[\x80-\xff]*[\x00-\x7f]"
    numbers = elements(number, *_VARINTS)
    text = b"(?:" + b"|".join(re.escape(bytes((length,))) + b".{%d}" % length for length in range(128)) + b")"
    of_numbers = header(*_VARINTS) + number
    fields = (of_numbers, header(_TRUE, _FALSE), header(_BINARY) + text, header(LIST) + numbers)
    struct = header(STRUCT) + b"(?:" + b"|".join(fields) + rb")*\x00"
    structs = header(LIST) + elements(b"(?:" + of_numbers + rb")*\x00", STRUCT)
    pattern = (
        rb"\x26\x00\x1c"  # file_offset (2) = 0, meta_data (3)
        rb"\x15%(number)b\x19%(numbers)b\x19\x18%(text)b\x15%(number)b"  # type, encodings, path_in_schema, codec
        rb"\x16%(number)b\x16%(number)b\x16%(number)b"  # num_values (5) and the sizes
        rb"\x26(%(number)b)(?:\x26(%(number)b))?"  # data_page_offset (9), dictionary_page_offset (11)
        rb"(?:%(struct)b|%(structs)b)*\x00\x00"
    )
    values = {b"number": number, b"numbers": numbers, b"text": text, b"struct": struct, b"structs": structs}
    return re.compile(pattern % values, re.DOTALL)


class _Cutter:
    """Walks over row groups and cuts their bytes at the numbers that have to change.

    A zero offset means "nothing there" (``parquet.thrift`` for ColumnChunk.file_offset; byte 0 of a file is
    the magic) and is not cut. Each method takes the position of a value and returns the one behind it.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.segments: list[bytes] = []
        self.numbers: list[int] = []
        self.ordinals: list[int] = []
        self.columns: set[int] = set()
        self.rows = self.groups = 0
        self._from = 0

    def row_groups(self, at: int) -> int:
        """Walk over FileMetaData.row_groups."""
        self.groups, at = self._open_list(at)
        self._from = at
        for _ in range(self.groups):
            at = self.struct(at, _ROW_GROUP)
        self.segments.append(self.data[self._from : at])
        return at

    def struct(self, at: int, shape: _Shape) -> int:
        """Walk over a struct whose interesting fields are in `shape`."""
        number = 0
        while self.data[at]:
            number, kind, at = read_header(self.data, at, number)
            action = shape.get((number, kind))
            if isinstance(action, str):
                raise PartMismatchError(action)
            at = action(self, at) if action else _skip_field(self.data, at, kind, 0)
        return at + 1

    def column_chunks(self, at: int) -> int:
        """Walk over RowGroup.columns."""
        count, at = self._open_list(at)
        self.columns.add(count)
        match = _plain_chunk().match
        for _ in range(count):
            if plain := match(self.data, at):
                self.offset(plain.start(1))
                if plain.lastindex == 2:
                    self.offset(plain.start(2))
                at = plain.end()
            else:
                at = self.struct(at, _COLUMN_CHUNK)
        return at

    def meta_data(self, at: int) -> int:
        """Walk over ColumnChunk.meta_data."""
        return self.struct(at, _COLUMN_META_DATA)

    def offset(self, at: int) -> int:
        """Cut out an offset."""
        value, end = read_zigzag(self.data, at)
        return self._cut(at, end, value) if value else end

    def ordinal(self, at: int) -> int:
        """Cut out the own number of a row group."""
        value, end = read_zigzag(self.data, at)
        self.ordinals.append(len(self.numbers))
        return self._cut(at, end, value)

    def num_rows(self, at: int) -> int:
        """Add up the rows."""
        rows, at = read_zigzag(self.data, at)
        self.rows += rows
        return at

    def _cut(self, at: int, end: int, value: int) -> int:
        self.segments.append(self.data[self._from : at])
        self.numbers.append(value)
        self._from = end
        return end

    def _open_list(self, at: int) -> tuple[int, int]:
        """Read the header of a list of structs; return their count and where they begin."""
        count, kind, at = read_list_header(self.data, at)
        if count and kind != STRUCT:
            raise DamagedPartError(f"a list of type {kind} instead of structs at footer byte {at}")
        return count, at


# What to do with a field, by number and type; a text says why it is refused. All other fields are passed over.
_Shape = Mapping[tuple[int, int], Callable[[_Cutter, int], int] | str]
_NO_ENCRYPTION: Final = "has encrypted columns, which cannot be moved; write it without encryption"
_NO_PAGE_INDEX: Final = "has a page index, which cannot be moved; write it without (write_page_index=False)"
# Data, index and dictionary pages, Bloom filter:
_COLUMN_META_DATA: Final[_Shape] = {(number, I64): _Cutter.offset for number in (9, 10, 11, 14)}
_COLUMN_CHUNK: Final[_Shape] = {
    (1, _BINARY): "keeps data in another file (ColumnChunk.file_path); write it as one file",
    (2, I64): _Cutter.offset,  # file_offset
    (3, STRUCT): _Cutter.meta_data,
    (4, I64): _NO_PAGE_INDEX,  # offset_index_offset
    (6, I64): _NO_PAGE_INDEX,  # column_index_offset
    (8, STRUCT): _NO_ENCRYPTION,  # crypto_metadata
    (9, _BINARY): _NO_ENCRYPTION,  # encrypted_column_metadata
}
_ROW_GROUP: Final[_Shape] = {
    (1, LIST): _Cutter.column_chunks,
    (3, I64): _Cutter.num_rows,
    (5, I64): _Cutter.offset,  # file_offset
    (7, _I16): _Cutter.ordinal,
}


def read_varint(data: bytes, at: int) -> tuple[int, int]:
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
            raise DamagedPartError(f"a number of more than 64 bits at footer byte {at}")


def read_zigzag(data: bytes, at: int) -> tuple[int, int]:
    """Read the signed varint at `at`; return it and the position behind it."""
    number, at = read_varint(data, at)
    return number >> 1 ^ -(number & 1), at


def read_header(data: bytes, at: int, previous: int) -> tuple[int, int, int]:
    """Read the header, not the stop byte, of a field; return its number, its type and where it ends."""
    header = data[at]
    if header > 15:  # short form: the number is a difference to the field before
        return previous + (header >> 4), header & 15, at + 1
    number, at = read_zigzag(data, at + 1)
    return number, header, at


def read_list_header(data: bytes, at: int) -> tuple[int, int, int]:
    """Read the header of a list or set; return element count, element type and where the elements begin."""
    count, kind = data[at] >> 4, data[at] & 15
    at += 1
    if count == 15:
        count, at = read_varint(data, at)
    if count > len(data) - at:  # an element has at least one byte
        raise DamagedPartError(f"a list of {count} elements in {len(data) - at} bytes at footer byte {at}")
    return count, kind, at


def _skip_field(data: bytes, at: int, kind: int, depth: int) -> int:
    """Return the position behind the field of type `kind` whose header ends at `at`."""
    return at if kind in (_TRUE, _FALSE) else _skip(data, at, kind, depth)


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    """Return the position behind the value of type `kind` that begins at `at`; a bool here has one byte."""
    if depth > _DEEPEST:
        raise DamagedPartError(f"more than {_DEEPEST} levels of nesting at footer byte {at}")
    if kind in _VARINTS:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == STRUCT:
        while data[at]:
            _, kind, at = read_header(data, at, 0)
            at = _skip_field(data, at, kind, depth + 1)
        return at + 1
    if kind == _BINARY:
        length, at = read_varint(data, at)
        if length > len(data) - at:
            raise DamagedPartError(f"a string of {length} bytes in {len(data) - at} bytes at footer byte {at}")
        return at + length
    if kind in (LIST, _SET):
        count, kind, at = read_list_header(data, at)
        for _ in range(count):
            at = _skip(data, at, kind, depth + 1)
        return at
    if kind == _MAP:
        return _skip_map(data, at, depth)
    if kind in _FIXED_BYTES:
        return at + _FIXED_BYTES[kind]
    raise DamagedPartError(f"a value of unknown type {kind} at footer byte {at}")


def _skip_map(data: bytes, at: int, depth: int) -> int:
    """Return the position behind the map that begins at `at`; an empty one has no byte for the types."""
    count, at = read_varint(data, at)
    if 2 * count > len(data) - at:
        raise DamagedPartError(f"a map of {count} entries in {len(data) - at} bytes at footer byte {at}")
    if not count:
        return at
    kinds, at = data[at], at + 1
    for _ in range(count):
        at = _skip(data, at, kinds >> 4, depth + 1)
        at = _skip(data, at, kinds & 15, depth + 1)
    return at
