"""Join Parquet files of one writer into one file by copying bytes, without decoding a page.

A Parquet file is ``PAR1``, row groups, a footer, the footer's length (4 bytes, little-endian) and ``PAR1``.
Nothing inside a row group knows where it lies; only the footer holds absolute file offsets. So the row groups
of many parts can be copied behind one another, and one new footer lists them all with shifted offsets.
`parquet_footer` takes the footers apart and `parquet_encode` puts one together; here is decided what the new file
holds (`plan_splice`), and it is written (`splice`).
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_cytotable.tasks.core.errors import ArgumentError, DamagedPartError, PartMismatchError
from prefect_cytotable.tasks.core.sinks import parquet_footer
from prefect_cytotable.tasks.core.sinks.parquet_encode import around_row_groups, closed, compose_footer, rebased
from prefect_cytotable.tasks.core.sinks.parquet_footer import MAGIC, Footer, RowGroups

ENCRYPTED_MAGIC: Final = b"PARE"
COPY_BLOCK: Final = 1 << 20
"""Bytes held in memory at a time when the kernel cannot copy for us."""

LISTED_BLOCK: Final = 1 << 18
"""Bytes of row groups in a footer that are looked at together: pyarrow takes twelve times as much to read them."""

_TAIL: Final = 8  # footer length (4 bytes) and magic (4 bytes)
_MOST_ORDINALS: Final = 1 << 15  # RowGroup.ordinal is an i16 that counts from 0


@dataclass(frozen=True, slots=True)
class Piece:
    """The row groups of the file `path`: its bytes behind the magic, up to byte `stop`."""

    path: Path
    stop: int


@dataclass(frozen=True, slots=True)
class Splice:
    """All that is to be written: the magic, the pieces, the footer, its length and the magic again.

    Attributes:
        before: What the footer has before its row groups; `after` what it has behind them.
        listed: Its row groups in blocks, each compressed: a wide table of many parts has hundreds of megabytes of them,
            which say nearly the same again and again.
        length: Of the footer, in bytes.
    """

    pieces: tuple[Piece, ...]
    before: bytes
    listed: tuple[bytes, ...]
    after: bytes
    length: int
    rows: int

    def footer(self) -> Iterator[bytes]:
        """The footer, one piece after the other."""
        yield self.before
        yield from map(zlib.decompress, self.listed)
        yield self.after


def plan_splice(parts: Sequence[Path | str], template: bytes) -> Splice:
    """Read and check the footers of all parts and decide every byte of the new file that is not a copy.

    Args:
        parts: Parquet files in the order of their rows. A part without rows adds nothing.
        template: the bytes of a Parquet file without rows. It supplies the schema, the key-value metadata,
            the version and the name of the writer.

    Returns:
        What is to be written: about a tenth of the new footer. No column data is read.

    Raises:
        DamagedPartError: a part or the template is not a whole Parquet file.
        PartMismatchError: a part differs from the template in schema or in the order of its statistics, or
            cannot be moved; or the template has rows.
        OSError: a part cannot be read.
    """
    head, _ = read_footer(io.BytesIO(template), "the template")
    if head.row_groups.rows:
        raise PartMismatchError(f"the template has {head.row_groups.rows} rows; write it from an empty table")
    leaves, schema = _described(template, "the template")
    pieces: list[Piece] = []
    listed = _Listed(head)
    shift = rows = groups = 0
    for path in map(Path, parts):
        with path.open("rb") as file:
            part, stop = read_footer(file, str(path), head)
        _check_same(part, path, head, schema, leaves)
        found = part.row_groups
        if not found.rows:
            continue
        if found.ordinals and groups + found.groups > _MOST_ORDINALS:
            raise PartMismatchError(f"{path} has row groups beyond number {_MOST_ORDINALS}; write larger row groups")
        listed.add(path, found, rebased(found, shift, groups))
        pieces.append(Piece(path, stop))
        shift += stop - len(MAGIC)
        rows += found.rows
        groups += found.groups
    listed.close()
    before, after = around_row_groups(head, rows, groups)
    length = len(before) + listed.length + len(after)
    if length >= 1 << 32:
        raise PartMismatchError(
            f"the joined footer would have {length} bytes of at most 2**32 - 1; write larger row groups"
        )
    return Splice(tuple(pieces), before, tuple(listed.blocks), after, length, rows)


def append(part: Path | str, out: BinaryIO) -> None:
    """Copy the row groups of one part to the end of `out`, ahead of `splice`, which then has less to do.

    To be called for the first parts, in order, while later ones are not there yet. A part must have rows.

    Raises:
        DamagedPartError: the part is not a whole Parquet file.
        OSError: reading or writing fails; what `out` holds is then of no use.
    """
    if not out.tell():
        _write(out, MAGIC)
    with Path(part).open("rb", buffering=0) as source:
        stop, _ = footer_bytes(source)
        _copy(source, Piece(Path(part), stop), out)


def splice(parts: Sequence[Path | str], template: bytes, out: BinaryIO, appended: int = 0) -> int:
    """Join `parts` into one Parquet file, written to `out` from its first byte on.

    The pages are not read, so damage within them is copied as it is. Nothing is written unless all parts pass
    the checks of `plan_splice`, whose arguments and errors are also those of this function. If reading or
    writing fails later, `out` holds an incomplete file; let it be a temporary one.

    Args:
        parts: as for `plan_splice`.
        template: as for `plan_splice`.
        out: where to write.
        appended: how many of the first parts `append` has copied to `out` already.

    Returns:
        Rows in the new file.

    Raises:
        ArgumentError: `out` is not where the parts that are left begin.
    """
    plan = plan_splice(parts, template)
    done = plan.pieces[:appended]
    begin = len(MAGIC) + sum(piece.stop - len(MAGIC) for piece in done) if done else 0
    if out.seekable() and out.tell() != begin:
        raise ArgumentError(f"the output is at byte {out.tell()} instead of {begin}, and Parquet offsets count from 0")
    if not done:
        _write(out, MAGIC)
    for piece in plan.pieces[appended:]:
        with piece.path.open("rb", buffering=0) as source:
            _copy(source, piece, out)
    for block in plan.footer():
        _write(out, block)
    _write(out, plan.length.to_bytes(4, "little") + MAGIC)
    return plan.rows


def read_footer(file: BinaryIO, name: str, like: Footer | None = None) -> tuple[Footer, int]:
    """Read the footer of an open Parquet file, and no other byte but the first four.

    Args:
        file: where to read.
        name: what the errors call it.
        like: a footer of the same writer, which makes it faster.

    Returns:
        The footer and its position, which is the end of the row groups.

    Raises:
        DamagedPartError: the file is not a whole Parquet file, or its footer contradicts itself.
        PartMismatchError: the file is encrypted, has a page index or keeps column data in other files.
        OSError: the file cannot be read.
    """
    try:
        start, footer = footer_bytes(file)
        return parquet_footer.parse_footer(footer, start, like), start
    except PartMismatchError as error:
        raise PartMismatchError(f"{name} {error}") from error
    except DamagedPartError as error:
        raise DamagedPartError(f"{name} is damaged: {error}. Delete this file and write it again.") from error


def footer_bytes(file: BinaryIO) -> tuple[int, bytes]:
    """Return the position of the footer and the footer; an error does not name the file."""
    first = file.read(len(MAGIC))
    size = file.seek(0, os.SEEK_END)
    if size < len(MAGIC) + _TAIL:
        raise DamagedPartError(f"it has {size} bytes, and a Parquet file has at least {len(MAGIC) + _TAIL}")
    file.seek(size - _TAIL)
    tail = file.read(_TAIL)
    if ENCRYPTED_MAGIC in (first, tail[4:]):
        raise PartMismatchError("has an encrypted footer, which cannot be moved; write it without encryption")
    if first != MAGIC or tail[4:] != MAGIC:
        raise DamagedPartError(f"it begins with {first!r} and ends with {tail[4:]!r} instead of {MAGIC!r}")
    length = int.from_bytes(tail[:4], "little")
    start = size - _TAIL - length
    if start < len(MAGIC):
        raise DamagedPartError(f"it has {size} bytes, and its footer should have {length}")
    file.seek(start)
    footer = file.read(length)
    if len(footer) != length:
        raise DamagedPartError("it became shorter while it was read")
    return start, footer


def _check_same(part: Footer, path: Path, head: Footer, schema: pa.Schema, leaves: int) -> None:
    """Refuse a part that means other than the template, which has this schema and `leaves` column chunks, says."""
    if part.raw(parquet_footer.SCHEMA) != head.raw(parquet_footer.SCHEMA):
        difference = _difference(_described(path, str(path))[1], schema)
        raise PartMismatchError(f"{path} has another schema than the other parts: {difference}")
    if not part.row_groups.columns <= {leaves}:
        (columns,) = part.row_groups.columns
        raise DamagedPartError(
            f"{path} is damaged: a row group has {columns} columns, the schema has {leaves}. "
            "Delete this file and write it again."
        )
    if part.raw(parquet_footer.COLUMN_ORDERS) != head.raw(parquet_footer.COLUMN_ORDERS):
        raise PartMismatchError(
            f"{path} orders the values of its statistics in another way (FileMetaData.column_orders); "
            "write all parts with the same version of pyarrow"
        )


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    """Say in which column two schemas differ first."""
    for field, other in zip(found, wanted, strict=False):
        if field.name != other.name:
            return f"column {field.name!r} is where {other.name!r} should be. Write the columns in the same order."
        if not field.equals(other):
            return f"column {field.name!r} has another type or nullability. Cast it to the common type ({other})."
    if len(found) != len(wanted):
        longer, word = (found, "is not in the others") if len(found) > len(wanted) else (wanted, "is missing")
        return f"column {longer.names[min(len(found), len(wanted))]!r} {word}. Write the same columns to each."
    return "it differs in a detail that Arrow does not show. Write all parts with the same version of pyarrow."


class _Listed:
    """The row groups of the new footer, one block after the other: each checked to be readable, then compressed."""

    def __init__(self, head: Footer) -> None:
        self.blocks: list[bytes] = []
        self.length = 0
        self._head = head
        self._begin()

    def _begin(self) -> None:
        self._parts: list[Path] = []
        self._waiting: list[bytes] = []
        self._bytes = self._rows = self._groups = 0

    def add(self, path: Path, found: RowGroups, raw: bytes) -> None:
        """Add those of one part: `raw` as they are in the new file."""
        self._parts.append(path)
        self._waiting.append(raw)
        self._bytes += len(raw)
        self._rows += found.rows
        self._groups += found.groups
        if self._bytes >= LISTED_BLOCK:
            self.close()

    def close(self) -> None:
        """Check and compress what waits.

        By now every list is known to fit into its footer, so that pyarrow reserves no absurd amount of memory.

        Raises:
            DamagedPartError: pyarrow cannot read it; the part that is the reason is named.
        """
        block = b"".join(self._waiting)
        try:
            _described(MAGIC + closed(compose_footer(self._head, self._rows, self._groups, block)), "the joined file")
        except DamagedPartError:
            for path in self._parts:
                _described(path, str(path))
            raise
        self.blocks.append(zlib.compress(block, 1))
        self.length += len(block)
        self._begin()


def _described(file: Path | bytes, name: str) -> tuple[int, pa.Schema]:
    """Let pyarrow read a footer; returns the number of column chunks of a row group, and the schema."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(file) if isinstance(file, bytes) else file)
        schema = metadata.schema.to_arrow_schema()
        schema.names  # noqa: B018  # decodes them; a damaged one may be no UTF-8
        return metadata.num_columns, schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedPartError(
            f"{name} is damaged: pyarrow cannot read it ({error}). Delete this file and write it again."
        ) from error


def _copy(source: io.FileIO, piece: Piece, out: BinaryIO) -> None:
    """Copy the bytes of a piece, in the kernel where it can, else in blocks of `COPY_BLOCK` bytes."""
    at = _copy_in_kernel(source, len(MAGIC), piece.stop, out)
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
    if not (hasattr(os, "copy_file_range") and isinstance(target, io.FileIO)):
        return start
    if not all(stat.S_ISREG(os.fstat(file.fileno()).st_mode) for file in (source, target)):
        return start
    out.flush()
    at, shift = start, out.tell() - start
    try:
        while at < stop:
            moved = os.copy_file_range(source.fileno(), target.fileno(), stop - at, at, at + shift)
            if not moved:
                break
            at += moved
    except OSError:
        pass  # the loop of reads and writes goes on from here, and raises if the reason was a full disk
    out.seek(at + shift)
    return at


def _write(out: BinaryIO, data: bytes) -> None:
    """Write all of `data`; an unbuffered file may take several calls."""
    view = memoryview(data)
    while view:
        taken = out.write(view)
        view = view[taken:] if taken is not None else view[:0]
