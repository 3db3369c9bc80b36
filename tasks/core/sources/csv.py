"""CSV: one table a file, as CellProfiler's ExportToSpreadsheet and IN Carta write it, or several side by side.

Small files are parsed whole; of large ones a chunk parses the bytes that the index gives it. Numbers become the
nearest double, bit for bit what Python's ``float(text)`` gives (Arrow's parser rounds correctly; a test holds it
to that).
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from prefect_cytotable.tasks.core.arrays import empty, number
from prefect_cytotable.tasks.core.checksums import checksum_of
from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Source, Span
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.schema import merge, to_arrow
from prefect_cytotable.tasks.core.sources import csv_index
from prefect_cytotable.tasks.core.sources.base import Answer, Cut, Finding, Index, Keys, Request, Sample, Together
from prefect_cytotable.tasks.core.sources.csv_header import FIRST_LOOK, Header, header_in, header_of
from prefect_cytotable.tasks.core.sources.csv_values import (
    FALSE,
    MISSING,
    TRUE,
    converted,
    is_missing,
    missing_as_null,
    sampled_types,
)
from prefect_cytotable.tasks.core.sources.text import Text

BLOCK_BYTES = 8 << 20
"""Text that the parser holds in its own form at a time; a longer row gets a block of its own."""

_QUOTE = re.compile(b'"')
_LETTERS = re.compile(b"x"), re.compile(b"X")
_HEXADECIMAL = re.compile(rb'0[xX](?<=[,;|\s"]..)')
"""What Arrow takes for the beginning of a whole number, and Python's ``float`` does not, behind another field."""


@dataclass(frozen=True)
class CsvReader:
    """Reads CSV files."""

    places: Places
    cut = Cut.IF_LARGE

    def columns(self, source: Source) -> tuple[str, ...]:
        """The names in the header."""
        return tuple(self._header(source).columns(source.table))

    def sample(self, sources: Sequence[Source], limit: int, measures: bool) -> Sample:
        """Types from the first rows, and of files larger than their share of `limit` from their middles and ends.

        Parsed in one go: Arrow's inference costs the same for one row as for hundreds.
        """
        pieces: list[tuple[Header, bytes]] = []
        stored = held = 0
        for source in sources:
            text, share = Text(self.places, source), limit // len(sources)
            head = text.head(max(share, FIRST_LOOK))
            header = header_of(text, combined=bool(source.table), head=head)
            found = [piece for piece in _sample_pieces(text, head, header.start, share) if piece]
            pieces += [(header, piece) for piece in found]
            size = sum(map(len, found))
            held += size
            stored += len(zlib.compress(b"".join(found), 1)) if text.packed else size
        columns = header.columns(source.table)
        if not pieces:
            return Sample(dict.fromkeys(columns), 8 * len(columns), 8 * len(columns), 8 * len(columns))
        sampled = self._sampled(pieces, sources)
        tables = [table for _, table in sampled]
        none: dict[str, ColumnType | None] = dict.fromkeys(columns)
        found_types = (sampled_types(table, measures, one.decimal) for one, table in sampled)
        typed = reduce(merge, found_types, dict.fromkeys(header.fields))
        types = none | {name: typed[field] for name, field in columns.items()}
        rows = max(sum(table.num_rows for table in tables), 1)
        width = sum(table.nbytes for table in tables) // rows + 1
        return Sample(types, width, stored // rows + 1, held // rows + 1)

    def _sampled(self, pieces: list[tuple[Header, bytes]], sources: Sequence[Source]) -> list[tuple[Header, pa.Table]]:
        where = sources[0].path
        written = {(header.delimiter, header.decimal) for header, _ in pieces}
        header = pieces[0][0]
        try:
            if len(written) == 1:
                return [(header, _parse(b"".join(piece for _, piece in pieces), header, where, None))]
            return [(one, _parse(piece, one, where, None)) for one, piece in pieces]
        except BadSourceError:
            if len(sources) > 1:
                raise
        tables = [(header, _parse(pieces[0][1], header, where, None))]
        for _, piece in pieces[1:]:
            with contextlib.suppress(BadSourceError):  # it may begin inside a long text; reading will tell
                tables.append((header, _parse(piece, header, where, None)))
        return tables

    def index(self, sources: Sequence[Source], keys: Keys, objects: bool) -> list[Index]:
        """Rows by image, with the bytes where they lie."""
        return [csv_index.index_of(*self._places_of_keys(source, keys)) for source in sources]

    def objects(self, source: Source, keys: Keys, image: int) -> list[int]:
        """The object numbers of one image in ascending order."""
        rows = csv_index.scan(*self._places_of_keys(source, keys))
        numbers = rows.objects
        assert numbers is not None
        here = numbers[(rows.images == image) & (numbers > 0)]
        here.sort()
        return [int(number) for number in here]

    def _places_of_keys(self, source: Source, keys: Keys) -> tuple[Text, Header, int | None, int | None]:
        header = self._header(source)
        columns = header.columns(source.table)
        positions = [
            header.fields.index(columns[name]) if name else None for name in (keys.image_number, keys.object_number)
        ]
        return Text(self.places, source), header, positions[0], positions[1]

    def count(self, source: Source) -> int | None:
        """Lines after the header."""
        lines = 0
        try:
            with Text(self.places, source).stream() as file:
                last = b"\n"
                while block := file.read(1 << 20):
                    lines += block.count(b"\n")
                    last = block[-1:]
        except BadSourceError:  # what is packed cannot be unpacked
            return None
        return max(lines + (last != b"\n") - 1, 0)

    def checksum(self, source: Source) -> int:
        """CRC-32 of the file's bytes, as cytominer-database numbers its tables."""
        with self.places.open(source.path, source.fingerprint.mark) as file:
            return checksum_of(file)

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """Many small files with the same header, parsed as one: a file of its own costs more than its few rows.

        None where anything at all is unusual about a file; read one by one, each gets an answer or an error.
        """
        columns = requests[0].columns
        if any(one.spans or one.images or one.objects or one.columns != columns for one in requests):
            return None
        if any(one.source.table for one in requests):
            return None
        stored = self.places.read_many([(one.source.path, one.source.fingerprint.mark) for one in requests])
        try:
            texts = [
                Text(self.places, request.source).unpacked(data) for request, data in zip(requests, stored, strict=True)
            ]
            first = header_in(requests[0].source.path, texts[0])
        except BadSourceError:
            return None
        start, header = first.start, texts[0][: first.start]
        if not first.usual or any(not data.endswith(b"\n") or data[:start] != header for data in texts):
            return None
        bodies = [memoryview(data)[start:] for data in texts]
        rows = [data.count(b"\n", start) for data in texts]
        present = {name: type_ for name, type_ in columns if name in set(first.fields)}
        if not present or not sum(rows):
            return None
        whole = b"".join(bodies)
        if b'"' in whole and any(bytes(body).count(b'"') % 2 for body in bodies):
            return None
        try:
            table = _parse(whole, first, requests[0].source.path, present)
        except (_ConversionError, BadSourceError):
            return None
        if table.num_rows != sum(rows):
            return None
        order = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
        return Together(missing_as_null(table, present), order, tuple(rows))

    def read(self, request: Request) -> Answer:
        """The rows of the whole file, or of the request's spans."""
        text = Text(self.places, request.source)
        if request.spans:
            header = self._header(request.source)
            data, start = b"".join(text.stretches(_joined(request.spans))), 0
        else:
            data = text.whole()
            header = header_in(text.where, data, combined=bool(request.source.table))
            start = header.start
        fields = header.columns(request.source.table)
        rows = memoryview(data)[start:]
        if rows and (not data.endswith(b"\n") or data.count(b'"', start) % 2):
            raise csv_index.cut_off(text.where)
        columns = [(name, type_) for name, type_ in request.columns if name in fields]
        if not columns:
            return Answer(pa.table({}))
        if not rows:
            return Answer(pa.table({name: empty(to_arrow(type_)) for name, type_ in columns}))
        types = {fields[name]: type_ for name, type_ in columns}
        named = (request.keys.image_number, request.keys.object_number)
        keys = Keys(*(fields.get(name, name) if name else "" for name in named))
        try:
            table = _parse(rows, header, text.where, types)
        except _ConversionError:
            texts = dict.fromkeys(types, ColumnType.STRING)
            parsed = _parse(rows, header, text.where, texts)
            if header.groups and keys.object_number in types:
                parsed = parsed.filter(pc.invert(is_missing(parsed.column(keys.object_number))))
            answer = converted(parsed, types, keys, header.decimal)
        else:
            if header.groups and keys.object_number in types:  # rows that another compartment is longer by
                table = table.filter(pc.is_valid(table.column(keys.object_number)))
            answer = Answer(missing_as_null(table, types))
        names = {field: name for name, field in fields.items()}
        widened = tuple((names[field], type_) for field, type_ in answer.widened)
        if widened:
            return Answer(pa.table({}), widened)
        table = _within(answer.table.rename_columns([name for name, _ in columns]), request)
        findings = [Finding(names[one.column], one.finding, one.count) for one in answer.findings]
        if header.delimiter != ",":
            findings.append(Finding("", f"row(s) whose fields are separated by {header.delimiter!r}", table.num_rows))
        if header.decimal != ".":
            findings.append(Finding("", "row(s) whose numbers have a comma before the decimals", table.num_rows))
        return Answer(table, findings=tuple(findings))

    def _header(self, source: Source) -> Header:
        return header_of(Text(self.places, source), combined=bool(source.table))


class _ConversionError(ValueError):
    """Some value is not of the type that was planned."""


def _sample_pieces(text: Text, head: bytes, start: int, limit: int) -> list[bytes]:
    """Whole rows from the beginning, the middle and the end of a file; all of a small one.

    Args:
        text: The file.
        head: What it begins with.
        start: Where its first row begins.
        limit: About how many bytes are wanted.
    """
    size = text.stored
    in_parts = not text.packed and size - start > limit
    first = head[start : start + limit // 3] if in_parts else head[start:]
    wanted = len(head)
    while not csv_index.last_row_end(first) and len(head) >= wanted:
        wanted *= 4
        head = text.head(wanted)
        first = head[start:]
    pieces = [_whole_rows(first)]
    for offset in (size // 2, size - limit // 3) if in_parts else ():
        (piece,) = text.stretches([(offset, min(offset + limit // 3, size))])
        if b'"' not in piece:
            pieces.append(_whole_rows(piece[piece.find(b"\n") + 1 :]))
    return pieces


def _whole_rows(data: bytes) -> bytes:
    return data[: csv_index.last_row_end(data)]


def _joined(spans: tuple[Span, ...]) -> list[tuple[int, int]]:
    """Stretches of bytes, in file order, with neighbours made one."""
    stretches: list[tuple[int, int]] = []
    for span in sorted(spans, key=lambda one: one.start):
        if stretches and stretches[-1][1] >= span.start:
            stretches[-1] = (stretches[-1][0], max(stretches[-1][1], span.stop))
        else:
            stretches.append((span.start, span.stop))
    return stretches


def _parse(data: bytes | memoryview, header: Header, where: str, types: dict[str, ColumnType] | None) -> pa.Table:
    """Rows as an Arrow table: of the fields in `types`, or of all with inferred types where that is None."""
    table = _arrow_table(data, header, where, types)
    whole = [name for name, type_ in zip(table.column_names, table.schema.types, strict=True) if type_ == pa.int64()]
    if whole and _has_hexadecimal(data):
        if types is not None:
            raise _ConversionError("a number in hexadecimal digits")
        texts = _arrow_table(data, header, where, dict.fromkeys(whole, ColumnType.STRING))
        for name in whole:
            if pc.any(pc.match_substring_regex(texts.column(name), r"^\s*0[xX]")).as_py():
                table = table.set_column(table.column_names.index(name), name, texts.column(name))
    return table


def _has_hexadecimal(data: bytes | memoryview) -> bool:
    """Whether a field may begin as a number in hexadecimal digits does; quick where no text has an x."""
    if not any(letter.search(data) for letter in _LETTERS):
        return False
    return bytes(data[:2]).lower() == b"0x" or _HEXADECIMAL.search(data) is not None


def _arrow_table(data: bytes | memoryview, header: Header, where: str, types: dict[str, ColumnType] | None) -> pa.Table:
    """What Arrow's parser makes of the rows; see `_parse`."""
    convert = arrow_csv.ConvertOptions(
        column_types={name: to_arrow(type_) for name, type_ in (types or {}).items()},
        include_columns=list(types) if types else None,
        null_values=MISSING,
        strings_can_be_null=False,
        true_values=TRUE,
        false_values=FALSE,
        decimal_point=header.decimal,
    )
    read = arrow_csv.ReadOptions(use_threads=False, column_names=list(header.fields), block_size=BLOCK_BYTES)
    if types is None or len(data) < BLOCK_BYTES:
        read.block_size = len(data) + 1
    parse = arrow_csv.ParseOptions(newlines_in_values=bool(_QUOTE.search(data)), delimiter=header.delimiter)
    try:
        try:
            return arrow_csv.read_csv(pa.BufferReader(data), read, parse, convert)
        except pa.ArrowInvalid as error:
            if "straddl" not in str(error) or read.block_size > len(data):
                raise
            read.block_size = len(data) + 1
            return arrow_csv.read_csv(pa.BufferReader(data), read, parse, convert)
    except pa.ArrowInvalid as error:
        text = str(error)
        if "conversion error" in text and "invalid UTF8" not in text and types is not None:
            raise _ConversionError(text) from error
        raise BadSourceError(where, _explained(text), "Export the file again, or repair it.") from error


def _explained(text: str) -> str:
    if "invalid UTF8" in text:
        return f"a text in it is not UTF-8 ({text})"
    if "Expected" in text and "columns, got" in text:
        return f"a row has another number of fields than the header ({text[text.index('Expected') :][:120]})"
    return f"it cannot be parsed ({text[:200]})"


def _within(table: pa.Table, request: Request) -> pa.Table:
    """The rows inside the request's bounds; rows outside them belong to another chunk."""
    for name, bounds in (
        (request.keys.image_number, request.images),
        (request.keys.object_number, request.objects),
    ):
        if bounds is None or name not in table.column_names or not table.num_rows:
            continue
        column = table.column(name)
        inside = pc.and_(pc.greater_equal(column, number(bounds[0])), pc.less_equal(column, number(bounds[1])))
        if not pc.all(inside, skip_nulls=False).as_py():
            table = table.filter(inside)
    return table
