"""The bytes of a new Parquet footer, in Thrift's compact protocol; `parquet_footer` reads them."""

from __future__ import annotations

from itertools import chain

from prefect_cytotable.tasks.core.sinks import parquet_footer
from prefect_cytotable.tasks.core.sinks.parquet_footer import MAGIC, Footer, RowGroups


def rebased(part: RowGroups, shift: int, first_group: int) -> bytes:
    """Return the RowGroup structs of a part, one behind the other, as they are in the new file.

    Args:
        part: the row groups as they are in the part.
        shift: bytes to add to each offset.
        first_group: row groups that lie before these ones in the new file.
    """
    pieces = [encode_zigzag(number + shift) for number in part.numbers]
    for at in part.ordinals:
        pieces[at] = encode_zigzag(part.numbers[at] + first_group)
    *before, last = part.segments
    return b"".join((*chain.from_iterable(zip(before, pieces, strict=True)), last))


def compose_footer(head: Footer, rows: int, groups: int, row_groups: bytes) -> bytes:
    """Return the template's footer with other rows and row groups (raw, one behind the other)."""
    before, after = around_row_groups(head, rows, groups)
    return before + row_groups + after


def around_row_groups(head: Footer, rows: int, groups: int) -> tuple[bytes, bytes]:
    """Return what such a footer has before its row groups, and what it has behind them."""
    fields = dict(head.fields)
    fields[parquet_footer.NUM_ROWS] = (parquet_footer.I64, encode_zigzag(rows))
    fields[parquet_footer.ROW_GROUPS] = (parquet_footer.LIST, encode_list_header(groups, parquet_footer.STRUCT))
    pieces, previous = [], 0
    for number, (kind, value) in sorted(fields.items()):
        pieces.append(encode_header(number, kind, previous) + value)
        previous = number
    behind = 1 + sorted(fields).index(parquet_footer.ROW_GROUPS)
    return b"".join(pieces[:behind]), b"".join((*pieces[behind:], b"\x00"))


def closed(footer: bytes) -> bytes:
    """Return the footer with what follows it to the end of the file."""
    return footer + len(footer).to_bytes(4, "little") + MAGIC


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


def encode_header(number: int, kind: int, previous: int) -> bytes:
    """Encode the header of a field; the inverse of `parquet_footer.read_header`."""
    if 0 < number - previous < 16:
        return bytes(((number - previous) << 4 | kind,))
    return bytes((kind,)) + encode_zigzag(number)


def encode_list_header(count: int, kind: int) -> bytes:
    """Encode the header of a list; the inverse of `parquet_footer.read_list_header`."""
    return bytes((count << 4 | kind,)) if count < 15 else bytes((0xF0 | kind,)) + encode_varint(count)
