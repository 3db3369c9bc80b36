"""Damage to bytes and to text: each kind a function from content to content."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
from damage_plate import Files, packed, unpacked
from hypothesis import strategies as st


@dataclass(frozen=True)
class Harm:
    """One operation of damage.

    Attributes:
        kind: Which.
        target: Which file, counted around the files in the order of their names.
        at: Where, likewise; what is counted is the operation's choice.
        other: A second place, or a length.
        text: What is put there.
    """

    kind: str
    target: int
    at: int = 0
    other: int = 0
    text: str = ""


HUGE = ("9" * 140_000, "x" * 140_000, '"' + "y,\n" * 400_000 + '"', "1" * 400, "0." + "3" * 20_000)
"""Fields longer than the 131,072 characters of Python's csv module, and than a block of a reader."""

HUGE_NAMES = {f"huge {number}": text for number, text in enumerate(HUGE)}
"""Stand-ins, so that an example that fails can be read."""

STRANGE_VALUES = [
    *("nan", "NaN", "-nan", "inf", "-inf", "Infinity", "1e400", "-1e400", "1e-400", "4.9e-324", "", " ", "NA", "null"),
    *(
        "None",
        "0x10",
        "0X1p3",
        "True",
        "false",
        "TRUE",
        "1_000",
        "1,5",
        "1.5.2",
        "--1",
        "+3",
        " 7 ",
        "٣",
        "１",
        "é",
        "x",
    ),
    *("1e3", "1.", ".5", "-0", "-0.0", "007", "9007199254740993", "9223372036854775807", "9223372036854775808"),
    *(
        "1" * 30,
        "2026-01-02",
        "=1+1",
        "'; DROP TABLE x; --",
        "\0",
        "\x1b[2J",
        '"',
        "a\nb",
        "0.1000000000000000055511151231257827",
    ),
    *HUGE_NAMES,
]

STRANGE_KEYS = [
    *(
        "1.0",
        "2.0",
        "1.5",
        "x",
        "",
        "-1",
        "0",
        "-0",
        "nan",
        "inf",
        "1e0",
        "1e400",
        "9007199254740993",
        "2_0",
        "0x1",
        " 1 ",
    ),
    *("99999999999999999999", "9223372036854775807", "-9223372036854775808", "1e15", "+2", "None", "True", "01", "\0"),
]

STRANGE_NAMES = [
    *(
        "",
        " ",
        "é漢🔬",
        "a\nb",
        "tab\there",
        'quo"te',
        "'; DROP TABLE x; --",
        "1",
        "None",
        "ImageNumber",
        "ObjectNumber",
    ),
    *("Metadata_ImageNumber", "Cells_AreaShape_Area", "Metadata_TableNumber", "TableNumber", "AreaShape_Area", "rowid"),
    *(
        "\x00",
        "\x1b[31m",
        "\ufeff",
        "x" * 70_000,
        "wanted order",
        "pos",
        "ds",
        "%s",
        "{label}",
        "../../etc",
        "Parent_Cells",
    ),
]

CHUNKS = [
    b"\0",
    b'"',
    b"\n",
    b"\r",
    b"\r\n",
    b",",
    b";",
    b"\xff",
    b"\xe9",
    b"\xef\xbb\xbf",
    b"\x1a",
    b"\n\n\n",
    b"\xed\xa0\x80",
]

_DAMAGED = (EOFError, OSError, zlib.error, pa.ArrowInvalid)

Change = Callable[[bytes, Harm, str], bytes]


def truncated(data: bytes, harm: Harm, _: str) -> bytes:
    return data[: harm.at % (len(data) + 1)]


def zeroed(data: bytes, harm: Harm, _: str) -> bytes:
    start = harm.at % (len(data) + 1)
    stop = min(start + harm.other, len(data))
    return data[:start] + bytes(stop - start) + data[stop:]


def flipped(data: bytes, harm: Harm, _: str) -> bytes:
    """A byte, and a few more at equal distances."""
    changed = bytearray(data)
    for step in range(1 + harm.other % 3):
        if changed:
            changed[(harm.at * (2 * step + 1)) % len(changed)] ^= 1 + harm.other % 255
    return bytes(changed)


def put_in(data: bytes, harm: Harm, _: str) -> bytes:
    start = harm.at % (len(data) + 1)
    return data[:start] + CHUNKS[harm.other % len(CHUNKS)] + data[start:]


def _lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def line_left_out(data: bytes, harm: Harm, _: str) -> bytes:
    lines = _lines(data)
    if lines:
        del lines[harm.at % len(lines)]
    return b"".join(lines)


def line_twice(data: bytes, harm: Harm, _: str) -> bytes:
    lines = _lines(data)
    if lines:
        lines.insert(harm.other % (len(lines) + 1), lines[harm.at % len(lines)])
    return b"".join(lines)


def line_moved(data: bytes, harm: Harm, _: str) -> bytes:
    lines = _lines(data)
    if lines:
        line = lines.pop(harm.at % len(lines))
        lines.insert(harm.other % (len(lines) + 1), line)
    return b"".join(lines)


def lines_reversed(data: bytes, harm: Harm, _: str) -> bytes:
    lines = _lines(data)
    return b"".join([*lines[:1], *reversed(lines[1:])])


def header_again(data: bytes, harm: Harm, _: str) -> bytes:
    lines = _lines(data)
    if lines:
        lines.insert(1 + harm.at % len(lines), lines[0])
    return b"".join(lines)


def _fields(data: bytes, delimiter: str) -> list[list[str]]:
    text = data.decode("utf-8", "surrogateescape")
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error:  # damaged already
        return [line.split(delimiter) for line in text.splitlines()]


def _joined(rows: list[list[str]], delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue().encode("utf-8", "surrogateescape")


def columns_shuffled(data: bytes, harm: Harm, delimiter: str) -> bytes:
    rows = _fields(data, delimiter)
    if rows and rows[0]:
        turn = 1 + harm.at % len(rows[0])
        rows = [list(reversed(row[turn:] + row[:turn])) if harm.other % 2 else row[turn:] + row[:turn] for row in rows]
    return _joined(rows, delimiter)


def column_dropped(data: bytes, harm: Harm, delimiter: str) -> bytes:
    rows = _fields(data, delimiter)
    if rows and rows[0]:
        gone = harm.at % len(rows[0])
        rows = [row[:gone] + row[gone + 1 :] for row in rows]
    return _joined(rows, delimiter)


def column_renamed(data: bytes, harm: Harm, delimiter: str) -> bytes:
    rows = _fields(data, delimiter)
    if rows and rows[0]:
        rows[0][harm.at % len(rows[0])] = harm.text
    return _joined(rows, delimiter)


def cell_set(data: bytes, harm: Harm, delimiter: str) -> bytes:
    """A value; of a key column where `kind` says so."""
    rows = _fields(data, delimiter)
    if len(rows) > 1:
        row = rows[1 + harm.at % (len(rows) - 1)]
        if row:
            keys = min(4, len(row)) if harm.kind == "key" else len(row)
            row[harm.other % keys] = HUGE_NAMES.get(harm.text, harm.text)
    return _joined(rows, delimiter)


def column_set(data: bytes, harm: Harm, delimiter: str) -> bytes:
    """All values of a column."""
    rows = _fields(data, delimiter)
    if rows and rows[0]:
        for row in rows[1:]:
            if harm.other % len(rows[0]) < len(row):
                row[harm.other % len(rows[0])] = harm.text
    return _joined(rows, delimiter)


ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-8-sig", "utf-7", "cp037")


def other_encoding(data: bytes, harm: Harm, _: str) -> bytes:
    text = data.decode("utf-8", "replace") + ("é" if harm.other % 2 else "")
    return text.encode(ENCODINGS[harm.at % len(ENCODINGS)], "replace")


TEXT: dict[str, Change] = {
    "truncate": truncated,
    "zero": zeroed,
    "flip": flipped,
    "put in": put_in,
    "delete a line": line_left_out,
    "line twice": line_twice,
    "move a line": line_moved,
    "reverse": lines_reversed,
    "header again": header_again,
    "shuffle columns": columns_shuffled,
    "drop a column": column_dropped,
    "rename a column": column_renamed,
    "value": cell_set,
    "key": cell_set,
    "whole column": column_set,
    "encoding": other_encoding,
}
"""Kinds of damage to a text; a compressed one is unpacked for it and packed again."""

STORED: dict[str, Change] = {"stored truncate": truncated, "stored zero": zeroed, "stored flip": flipped}
"""Kinds of damage to a file as it is stored."""

_PLACES = st.integers(0, 5000)
_TEXTS = {
    "value": st.sampled_from(STRANGE_VALUES),
    "whole column": st.sampled_from(STRANGE_VALUES[:-5]),
    "key": st.sampled_from(STRANGE_KEYS),
    "rename a column": st.sampled_from(STRANGE_NAMES),
}
FILE_KINDS = ("empty", "gone", "folder", "swap", "other format")


@st.composite
def harms(draw: st.DrawFn, kinds: tuple[str, ...]) -> Harm:
    """One operation of one of the kinds."""
    kind = draw(st.sampled_from(kinds))
    text = draw(_TEXTS[kind]) if kind in _TEXTS else ""
    return Harm(kind, draw(st.integers(0, 7)), draw(_PLACES), draw(_PLACES), text)


STRANGERS = {
    "sqlite": b"SQLite format 3\0" + bytes(200),
    "npz": b"PK\x03\x04" + bytes(60),
    "parquet": b"PAR1" + bytes(40) + b"PAR1",
    "gzip": packed("x.gz", b"a,b\n1,2\n"),
    "zstd": packed("x.zst", b"a,b\n1,2\n"),
    "page": b"<!DOCTYPE html>\n<html><body>404, not found</body></html>\n",
    "json": b'{"ImageNumber": 1, "ObjectNumber": [1, 2]}\n',
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12345\n",
}
"""Beginnings of files of other kinds."""


def harmed(files: Files, harm: Harm, delimiter: str = ",") -> Files:
    """The files after one operation; one that cannot be done changes nothing."""
    names = sorted(files)
    if not names:
        return files
    name = names[harm.target % len(names)]
    data = files[name]
    files = dict(files)
    if harm.kind in FILE_KINDS:
        _harm_file(files, name, names, harm)
    elif data is not None and harm.kind in STORED:
        files[name] = STORED[harm.kind](data, harm, delimiter)
    elif data is not None:
        try:
            files[name] = packed(name, TEXT[harm.kind](unpacked(name, data), harm, delimiter))
        except _DAMAGED:
            return files
    return files


def _harm_file(files: Files, name: str, names: list[str], harm: Harm) -> None:
    if harm.kind == "empty":
        files[name] = b""
    elif harm.kind == "gone":
        del files[name]
    elif harm.kind == "folder":
        files[name] = None
    elif harm.kind == "swap":
        other = names[harm.at % len(names)]
        files[name], files[other] = files[other], files[name]
    else:
        files[name] = list(STRANGERS.values())[harm.at % len(STRANGERS)]
