"""CSV: one table a file, as CellProfiler's ExportToSpreadsheet writes it.

Small files are parsed whole; of large ones a chunk parses the bytes that the index gives it. Numbers become the
nearest double, bit for bit what Python's ``float(text)`` gives (Arrow's parser rounds correctly; a test holds it
to that).
"""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from prefect_cytotable.tasks.core.arrays import EMPTY_TEXT, empty, missing, number, whole_numbers
from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Source, Span
from prefect_cytotable.tasks.core.schema import from_arrow, merge, to_arrow
from prefect_cytotable.tasks.core.sources import csv_index
from prefect_cytotable.tasks.core.sources.base import Answer, Finding, Index, Keys, Request, Sample, Together

HEADER_LIMIT = 64 << 20
BLOCK_BYTES = 8 << 20
"""Text that the parser holds in its own form at a time; a longer row gets a block of its own."""

MISSING = ["", "nan", "NaN", "NAN", "-nan", "-NaN", "NA", "N/A", "#N/A", "null", "NULL", "None"]
"""What stands for a missing number; all of it becomes null."""

_NUMBER = r"^\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|[iI][nN][fF]([iI][nN][iI][tT][yY])?)\s*$"
_NAN = r"^[+-]?[nN][aA][nN]$"
_WRONG_DELIMITERS = (";", "\t", "|")


class CsvReader:
    """Reads CSV files."""

    def columns(self, source: Source) -> tuple[str, ...]:
        """The names in the header."""
        return _header(Path(source.path))[0]

    def sample(self, sources: Sequence[Source], limit: int, measures: bool) -> Sample:
        """Types from the first rows, and of files larger than their share of `limit` from their middles and ends.

        Parsed in one go: Arrow's inference costs the same for one row as for hundreds.
        """
        pieces: list[bytes] = []
        for source in sources:
            path = Path(source.path)
            names, start = _header(path)
            pieces += [piece for piece in _sample_pieces(path, start, limit // len(sources)) if piece]
        if not pieces:
            return Sample(dict.fromkeys(names), 8 * len(names), 8 * len(names))
        whole = b"".join(pieces)
        try:
            parsed = [(len(whole), _parse(whole, names, path, None))]
        except BadSourceError:
            if len(sources) > 1:
                raise
            parsed = [(len(pieces[0]), _parse(pieces[0], names, path, None))]
            for piece in pieces[1:]:
                with contextlib.suppress(BadSourceError):  # it may begin inside a long text; reading will tell
                    parsed.append((len(piece), _parse(piece, names, path, None)))
        none: dict[str, ColumnType | None] = dict.fromkeys(names)
        types = reduce(merge, (_sampled_types(table, measures) for _, table in parsed), none)
        rows = max(sum(table.num_rows for _, table in parsed), 1)
        width = sum(table.nbytes for _, table in parsed) // rows + 1
        return Sample(types, width, sum(size for size, _ in parsed) // rows + 1)

    def index(self, source: Source, keys: Keys, objects: bool) -> Index:
        """Rows by image, with the bytes where they lie."""
        path = Path(source.path)
        names, start = _header(path)
        number = names.index(keys.object_number) if keys.object_number else None
        return csv_index.index_of(path, start, names.index(keys.image_number), number)

    def objects(self, source: Source, keys: Keys, image: int) -> list[int]:
        """The object numbers of one image in ascending order."""
        path = Path(source.path)
        names, start = _header(path)
        rows = csv_index.scan(path, start, names.index(keys.image_number), names.index(keys.object_number))
        numbers = rows.objects
        assert numbers is not None
        here = numbers[(rows.images == image) & (numbers > 0)]
        here.sort()
        return [int(number) for number in here]

    def count(self, source: Source) -> int | None:
        """Lines after the header."""
        lines = 0
        with Path(source.path).open("rb") as file:
            last = b"\n"
            while block := file.read(1 << 20):
                lines += block.count(b"\n")
                last = block[-1:]
        return max(lines + (last != b"\n") - 1, 0)

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """Many small files with the same header, parsed as one: a file of its own costs more than its few rows.

        None where anything at all is unusual about a file; read one by one, each gets an answer or an error.
        """
        columns = requests[0].columns
        if any(one.spans or one.images or one.objects or one.columns != columns for one in requests):
            return None
        header, bodies, rows = b"", [], []
        for request in requests:
            data = Path(request.source.path).read_bytes()
            start = data.find(b"\n") + 1
            header = header or data[:start]
            if not data.endswith(b"\n") or data[:start] != header:
                return None
            bodies.append(memoryview(data)[start:])
            rows.append(data.count(b"\n") - 1)
        names, start = _header(Path(requests[0].source.path))
        present = {name: type_ for name, type_ in columns if name in names}
        if start != len(header) or not present or not sum(rows):
            return None
        whole = b"".join(bodies)
        if b'"' in whole and any(bytes(body).count(b'"') % 2 for body in bodies):
            return None
        try:
            table = _parse(whole, names, Path(requests[0].source.path), present)
        except (_ConversionError, BadSourceError):
            return None
        if table.num_rows != sum(rows):
            return None
        return Together(_missing_as_null(table, present), tuple(rows))

    def read(self, request: Request) -> Answer:
        """The rows of the whole file, or of the request's spans."""
        path = Path(request.source.path)
        names, start = _header(path)
        data = _bytes_of(path, start, request.spans)
        if data and (not data.endswith(b"\n") or data.count(b'"') % 2):
            raise csv_index.cut_off(path)
        present = set(names)
        columns = [(name, type_) for name, type_ in request.columns if name in present]
        if not columns:
            return Answer(pa.table({}))
        if not data:
            return Answer(pa.table({name: empty(to_arrow(type_)) for name, type_ in columns}))
        try:
            table = _parse(data, names, path, dict(columns))
        except _ConversionError:
            texts = dict.fromkeys((name for name, _ in columns), ColumnType.STRING)
            answer = _converted(_parse(data, names, path, texts), dict(columns), request.keys)
        else:
            answer = Answer(_missing_as_null(table, dict(columns)))
        if answer.widened:
            return answer
        return Answer(_within(answer.table, request), findings=answer.findings)


class _ConversionError(ValueError):
    """Some value is not of the type that was planned."""


def _header(path: Path) -> tuple[tuple[str, ...], int]:
    """The names of the columns, and the offset of the first row."""
    line = _first_row(path)
    if not line.strip():
        raise BadSourceError(str(path), "the file is empty", "Export it again, or take it away.")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSourceError(
            str(path),
            f"its header is not UTF-8 text ({error.reason} at byte {error.start})",
            "Save it as UTF-8.",
        ) from error
    if "\0" in text:
        raise BadSourceError(str(path), "its header holds zero bytes, so it is no UTF-8 text", "Save it as UTF-8.")
    if not text.endswith("\n") or text.count('"') % 2:
        cause = "its header is cut off: it has no line break, or a quote in it is not closed"
        raise BadSourceError(str(path), cause, "Export the file again.")
    try:
        names = tuple(next(csv.reader([text.rstrip("\r\n")]), []))
    except csv.Error as error:
        raise BadSourceError(str(path), f"its header cannot be parsed ({error})", "Export the file again.") from error
    if len(names) == 1:
        other = max(_WRONG_DELIMITERS, key=text.count)
        if other in text:
            raise BadSourceError(
                str(path),
                f"its fields are separated by {other!r} instead of commas",
                "Export it with commas.",
            )
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise BadSourceError(
            str(path),
            f"its header names {repeated[0]!r} more than once",
            "Give each column a name of its own.",
        )
    return names, len(line)


def _first_row(path: Path) -> bytes:
    """The bytes of the header, line breaks inside quoted names included."""
    lines: list[bytes] = []
    size = quotes = 0
    with path.open("rb") as file:
        while (not lines or quotes % 2) and size < HEADER_LIMIT and (line := file.readline(HEADER_LIMIT - size)):
            lines.append(line)
            size, quotes = size + len(line), quotes + line.count(b'"')
    return b"".join(lines)


def _sample_pieces(path: Path, start: int, limit: int) -> list[bytes]:
    """Whole rows from the beginning, the middle and the end of a file; all of a small one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        if size - start <= limit:
            return [_whole_rows(file.read())]
        first = file.read(limit // 3)
        while not csv_index._last_row_end(first) and (more := file.read(limit)):
            first += more
        pieces = [_whole_rows(first)]
        for offset in (size // 2, size - limit // 3):
            file.seek(offset)
            piece = file.read(limit // 3)
            if b'"' not in piece:
                pieces.append(_whole_rows(piece[piece.find(b"\n") + 1 :]))
    return pieces


def _whole_rows(data: bytes) -> bytes:
    return data[: csv_index._last_row_end(data)]


def _bytes_of(path: Path, start: int, spans: tuple[Span, ...]) -> bytes:
    with path.open("rb") as file:
        if not spans:
            file.seek(start)
            return file.read()
        pieces = []
        for first, stop in _joined(spans):
            file.seek(first)
            pieces.append(file.read(stop - first))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _joined(spans: tuple[Span, ...]) -> list[tuple[int, int]]:
    """Stretches of bytes, in file order, with neighbours made one."""
    stretches: list[tuple[int, int]] = []
    for span in sorted(spans, key=lambda one: one.start):
        if stretches and stretches[-1][1] >= span.start:
            stretches[-1] = (stretches[-1][0], max(stretches[-1][1], span.stop))
        else:
            stretches.append((span.start, span.stop))
    return stretches


def _parse(data: bytes, names: tuple[str, ...], path: Path, types: dict[str, ColumnType] | None) -> pa.Table:
    """Rows as an Arrow table: of the columns in `types`, or of all with inferred types where that is None."""
    convert = arrow_csv.ConvertOptions(
        column_types={name: to_arrow(type_) for name, type_ in (types or {}).items()},
        include_columns=list(types) if types else None,
        null_values=MISSING,
        strings_can_be_null=False,
        true_values=["True", "TRUE", "true"],
        false_values=["False", "FALSE", "false"],
    )
    read = arrow_csv.ReadOptions(use_threads=False, column_names=list(names), block_size=BLOCK_BYTES)
    if types is None or len(data) < BLOCK_BYTES:
        read.block_size = len(data) + 1
    parse = arrow_csv.ParseOptions(newlines_in_values=b'"' in data)
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
        raise BadSourceError(str(path), _explained(text), "Export the file again, or repair it.") from error


def _explained(text: str) -> str:
    if "invalid UTF8" in text:
        return f"a text in it is not UTF-8 ({text})"
    if "Expected" in text and "columns, got" in text:
        return f"a row has another number of fields than the header ({text[text.index('Expected') :][:120]})"
    return f"it cannot be parsed ({text[:200]})"


def _missing_as_null(table: pa.Table, types: dict[str, ColumnType]) -> pa.Table:
    """An empty text is a missing one, and so is `nan` in a spelling that the parser took for a number."""
    for position, name in enumerate(table.column_names):
        if types[name] is ColumnType.DOUBLE and math.isnan(pc.sum(table.column(position)).as_py() or 0):
            column = table.column(position)
            numbers = pc.if_else(pc.is_nan(column), missing(pa.float64()), column)
            table = table.set_column(position, name, numbers)
        if types[name] is ColumnType.STRING:
            column = table.column(position)
            blank = pc.equal(column, EMPTY_TEXT)
            if pc.any(blank).as_py():
                table = table.set_column(position, name, pc.if_else(blank, missing(pa.string()), column))
    return table


def _converted(table: pa.Table, types: dict[str, ColumnType], keys: Keys) -> Answer:
    """Texts made what the plan says, where some value is not of its type.

    A whole number column that holds fractions is widened. A text that is no number becomes null in a table of
    objects, where a column measures; it widens the column to text in an image table, where a column may name.
    A key is never widened: what numbers nothing becomes null.
    """
    arrays, widened, findings = [], [], []
    for name, column in zip(table.column_names, table.columns, strict=True):
        key = name in (keys.image_number, keys.object_number)
        numeric = key or (bool(keys.object_number) and _measures(name))
        array, wider, lost = _as(column.combine_chunks(), types[name], numeric, key)
        arrays.append(array)
        if wider is not types[name]:
            widened.append((name, wider))
        if lost:
            findings.append(Finding(name, "a value that is not a number became null", lost))
    return Answer(pa.table(arrays, names=table.column_names), tuple(widened), tuple(findings))


def _measures(name: str) -> bool:
    """Whether a column of an object table holds a measure; metadata name something, and a name may be text."""
    return "Metadata" not in name


def _sampled_types(table: pa.Table, measures: bool) -> dict[str, ColumnType | None]:
    """Types of a sample's columns. A measure is a number unless most of its values are none."""
    types = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        types[name] = from_arrow(column.type)
        if measures and _measures(name) and pa.types.is_string(column.type):
            array = column.combine_chunks()
            _, type_, lost = _as(array, ColumnType.INT64, numeric=True, key=False)
            present = pc.sum(pc.invert(_is_missing(pc.utf8_trim_whitespace(array)))).as_py() or 0
            if 2 * lost < present:
                types[name] = type_
    return types


def _is_missing(trimmed: pa.Array) -> pa.Array:
    return pc.or_(pc.is_in(trimmed, pa.array(MISSING)), pc.match_substring_regex(trimmed, _NAN))


def _as(texts: pa.Array, type_: ColumnType, numeric: bool, key: bool) -> tuple[pa.Array, ColumnType, int]:
    """(values, the type they need, how many became null)."""
    trimmed = pc.utf8_trim_whitespace(texts)
    if type_ is ColumnType.STRING:
        return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts), type_, 0
    if type_ is ColumnType.BOOL:
        lower = pc.utf8_lower(trimmed)
        known = pc.is_in(lower, pa.array(["true", "false", ""]))
        if pc.all(known).as_py():
            return pc.if_else(pc.equal(lower, ""), None, pc.equal(lower, "true")), type_, 0
        return texts, ColumnType.STRING, 0
    absent = _is_missing(trimmed)
    number = pc.match_substring_regex(trimmed, _NUMBER)
    lost = pc.sum(pc.and_(pc.invert(absent), pc.invert(number))).as_py() or 0
    if lost and not numeric:
        return texts, ColumnType.STRING, 0
    values = pc.if_else(number, trimmed, pa.scalar(None, pa.string()))
    if type_ is ColumnType.INT64:
        try:
            return pc.cast(values, pa.int64()), type_, lost
        except pa.ArrowInvalid:
            if key:
                whole = whole_numbers(pc.cast(values, pa.float64()))
                return whole, type_, lost + whole.null_count - values.null_count
            type_ = ColumnType.DOUBLE
    return pc.cast(values, pa.float64()), type_, lost


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
