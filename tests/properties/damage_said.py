"""What damaged files say, found out by readers that share nothing with the library: strict ones.

A table is what it says where it is beyond doubt: text by the grammar of RFC 4180, a database that passes SQLite's own
check. Anything else is doubtful: the library may refuse it, and where it does not, may not lose what is legible.
"""

from __future__ import annotations

import math
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from damage_plate import COMPARTMENTS, DELIMITERS, Files, unpacked
from damage_values import Raw, Row, is_missing

NAME_LIMIT = 200
"""The longest text that tells datasets apart."""

FIELD_LIMIT = 131_072
"""The longest name of a column that the library's header reader takes."""


@dataclass(frozen=True)
class Said:
    """A table as its file has it.

    Attributes:
        texts: Whether all values are texts, as in CSV.
    """

    header: tuple[str, ...]
    rows: tuple[Row, ...]
    texts: bool


@dataclass(frozen=True)
class Source:
    """A table of a dataset.

    Attributes:
        where: The file, relative to the plate.
        said: What it says; None where that is doubtful.
        legible: Rows that can be made out in it all the same.
    """

    where: str
    said: Said | None
    legible: tuple[Row, ...] = ()


World = dict[str, dict[str, Source]]
"""Tables by dataset and compartment (in lower case)."""


@lru_cache
def _grammar(delimiter: str) -> re.Pattern[str]:
    escaped = re.escape(delimiter)
    return re.compile(rf'(?:"((?:[^"]|"")*)"|([^"\r\n{escaped}]*))({escaped}|\r?\n)')


def rows_of_text(text: str, delimiter: str) -> list[list[str]] | None:
    """The fields of each line that is not blank; None where the text is no CSV, or ends within a line."""
    grammar, position = _grammar(delimiter), 0
    rows: list[list[str]] = []
    row: list[str] = []
    while position < len(text):
        match = grammar.match(text, position)
        if match is None:
            return None
        quoted, plain, end = match.groups()
        row.append(plain if quoted is None else quoted.replace('""', '"'))
        position = match.end()
        if end != delimiter:
            if row != [""] or quoted is not None:
                rows.append(row)
            row = []
    return None if row else rows


def decoded(name: str, data: bytes) -> str | None:
    """The text of a file; None where it is no UTF-8 or cannot be unpacked."""
    try:
        return unpacked(name, data).decode("utf-8-sig")
    except (UnicodeDecodeError, EOFError, OSError, zlib.error, pa.ArrowInvalid):
        return None


def csv_said(name: str, data: bytes, delimiter: str) -> Said | None:
    """A CSV file."""
    text = decoded(name, data)
    rows = rows_of_text(text, delimiter) if text and text[0] not in "\r\n" else None
    if not rows or not _is_header(rows[0], delimiter) or any(len(row) != len(rows[0]) for row in rows):
        return None
    return Said(tuple(rows[0]), tuple(map(tuple, rows[1:])), texts=True)


def _is_header(names: list[str], delimiter: str) -> bool:
    """Names that no reader can take for anything else, each once."""
    others = sum(name.count(one) for name in names for one in DELIMITERS if one != delimiter)
    strange = any(len(name) > FIELD_LIMIT or "\0" in name for name in names)
    return len(set(names)) == len(names) > 1 and others < len(names) and not strange


def combined_said(name: str, data: bytes, delimiter: str) -> dict[str, Said | None]:
    """The compartments of a file with two header rows; all of them doubtful where the file is."""
    nothing: dict[str, Said | None] = dict.fromkeys((one.lower() for one in COMPARTMENTS[1:]), None)
    text = decoded(name, data)
    rows = rows_of_text(text, delimiter) if text and text[0] not in "\r\n" else None
    if not rows or len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return nothing
    groups, names = rows[:2]
    if not _is_header([f"{group}/{one}" for group, one in zip(groups, names, strict=True)], delimiter):
        return nothing
    if any("/" in group for group in groups) or len({group.lower() for group in groups}) < len(set(groups)):
        return nothing
    found: dict[str, Said | None] = {}
    for label in dict.fromkeys(groups):
        here = [at for at, group in enumerate(groups) if group.lower() in ("image", label.lower())]
        own = tuple(names[at] for at in here)
        if label.lower() != "image" and len(set(own)) == len(own):
            body = [tuple(row[at] for at in here) for row in rows[2:]]
            number = own.index("Number_Object_Number") if "Number_Object_Number" in own else None
            body = [row for row in body if number is None or not is_missing(str(row[number]))]
            found[label.lower()] = Said(own, tuple(body), texts=True)
        elif label.lower() != "image":
            return nothing
    return found


def legible_lines(name: str, data: bytes, delimiter: str, start: int = 1) -> tuple[Row, ...]:
    """Lines of a doubtful file, split as they lie: for those that are still what they were."""
    text = decoded(name, data)
    if text is None:
        return ()
    return tuple(tuple(one.strip('"') for one in line.split(delimiter)) for line in text.splitlines()[start:])


def csv_world(files: Files, delimiter: str, root: str) -> World:
    """Datasets of CSV files: those of one folder whose names begin alike."""

    def said(path: str, data: bytes) -> tuple[Said | None, tuple[Row, ...]]:
        found = csv_said(path, data, delimiter)
        return found, () if found else legible_lines(path, data, delimiter)

    def combined(path: str, data: bytes) -> dict[str, Said | None]:
        return combined_said(path, data, delimiter)

    endings = (".csv", ".tsv", ".csv.gz", ".csv.zst", ".tsv.gz", ".tsv.zst")
    return grouped_world(files, endings, said, root, combined)


def grouped_world(
    files: Files,
    endings: tuple[str, ...],
    said: Callable[[str, bytes], tuple[Said | None, tuple[Row, ...]]],
    root: str,
    combined: Callable[[str, bytes], dict[str, Said | None]] | None = None,
) -> World:
    """Datasets of files that hold a table each.

    Args:
        files: All files.
        endings: Of the names of those that count.
        said: What a file says, and what is legible of it.
        root: The name of the folder that all lie in.
        combined: What a file says that holds several compartments side by side.
    """
    groups: dict[tuple[str, str], dict[str, Source]] = {}
    several: set[tuple[str, str]] = set()
    for path, folder, stem in _files(files, endings):
        data = files[path]
        assert data is not None
        for before, key in _readings(stem, ("image", "nuclei", "cells", "cytoplasm")):
            groups.setdefault((folder, before), {})[key] = Source(path, *said(path, data))
        for before, _ in _readings(stem, ("object",)) if combined else ():
            several.add((folder, before))
            tables = groups.setdefault((folder, before), {})
            for key, one in combined(path, data).items() if combined else ():
                if key in ("nuclei", "cells", "cytoplasm"):
                    tables.setdefault(key, Source(path, one))
    return _named(groups, several, root)


def _readings(stem: str, labels: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(beginning, label) where a name ends with a label."""
    for label in labels:
        before = stem[: len(stem) - len(label)]
        if stem.lower().endswith(label) and (not before or before.endswith("_")):
            yield before, label


def _files(files: Files, endings: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """(path, folder, name without its ending) of the files of a format."""
    for path, data in sorted(files.items()):
        folder, _, name = path.rpartition("/")
        ending = max((one for one in endings if name.lower().endswith(one)), key=len, default="")
        if ending and data is not None:
            yield path, folder, name[: -len(ending)]


def _named(groups: dict[tuple[str, str], dict[str, Source]], combined: set[tuple[str, str]], root: str) -> World:
    """The groups that are datasets, by the names that datasets have."""
    folders = {folder for folder, _ in groups}
    world: World = {}
    for folder in sorted(folders):
        inside = {before: tables for (one, before), tables in groups.items() if one == folder}
        whole = {
            before: tables
            for before, tables in inside.items()
            if not before or (folder, before) in combined or len(tables) > 1 or "image" in tables
        }
        for before, tables in whole.items():
            parts = (folder, before.rstrip("_") if len(whole) > 1 else "")
            name = "/".join(part for part in parts if part) or (root if root not in folders else ".")
            if tables:
                world[name] = tables
    return world


def in_carta_world(files: Files, delimiter: str) -> World:
    """Each CSV file is a dataset."""
    world: World = {}
    for path, _, _ in _files(files, (".csv", ".tsv", ".csv.gz", ".csv.zst")):
        data = files[path]
        assert data is not None
        said = csv_said(path, data, delimiter)
        legible = () if said else legible_lines(path, data, delimiter)
        world[path] = {"objects": Source(path, said, legible)}
    return world


Tables = dict[str, tuple[Said | None, tuple[Row, ...]]]


def sqlite_said(path: Path) -> Tables | None:
    """The tables and views of a database with what they say and what is legible; None where it cannot be opened."""
    found: Tables = {}
    try:
        with closing(sqlite3.connect(f"file:{_escaped(path)}?mode=ro&immutable=1", uri=True)) as connection:
            connection.text_factory = bytes
            names = [
                one.decode("utf-8", "surrogateescape")
                for (one,) in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
                if isinstance(one, bytes)
            ]
            sound = _is_sound(connection)
            for name in names:
                said, legible = _table_said(connection, name)
                found[name] = (said if sound else None), legible
    except (sqlite3.Error, UnicodeDecodeError, MemoryError):  # an error's own text may be no UTF-8
        return None
    return found


def _is_sound(connection: sqlite3.Connection) -> bool:
    try:
        return connection.execute("PRAGMA integrity_check").fetchall() == [(b"ok",)]
    except (sqlite3.Error, UnicodeDecodeError):
        return False


def _escaped(path: Path) -> str:
    return "".join(one if (one.isalnum() and one.isascii()) or one in "/._-" else _percent(one) for one in str(path))


def _percent(one: str) -> str:
    return "".join(f"%{byte:02x}" for byte in one.encode())


def _table_said(connection: sqlite3.Connection, name: str) -> tuple[Said | None, tuple[Row, ...]]:
    rows: list[Row] = []
    try:
        header = tuple(row[1].decode() for row in connection.execute(f"PRAGMA table_info({_quoted(name)})"))
        columns = ", ".join(f"{_quoted(one)}, typeof({_quoted(one)})" for one in header)
        for row in connection.execute(f"SELECT {columns} FROM {_quoted(name)}"):
            pairs = zip(row[::2], row[1::2], strict=True)
            rows.append(tuple(value.decode() if kind == b"text" else value for value, kind in pairs))
    except (sqlite3.Error, UnicodeDecodeError, ValueError, MemoryError):
        return None, tuple(rows)
    return (None if len(set(header)) < len(header) else Said(header, tuple(rows), texts=False)), tuple(rows)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def database_world(
    files: Files, endings: tuple[str, ...], prefixes: tuple[str, ...], tables_of: Callable[[str], Tables | None]
) -> World:
    """Datasets of databases: one each, or one for each TableNumber in it.

    Args:
        files: All files.
        endings: Of the databases' names.
        prefixes: What stands before a compartment in a table's name, the likelier first.
        tables_of: The tables of the database at a path.
    """
    world: World = {}
    for path, _, _ in _files(files, endings):
        tables = tables_of(path) or {}
        found: dict[str, Source] = {}
        for key in ("image", "nuclei", "cells", "cytoplasm"):
            wanted = [prefix + key for prefix in prefixes]
            names = [name for name in tables if name.lower() in wanted]
            if names:
                said, legible = tables[min(names, key=lambda one: wanted.index(one.lower()))]
                found[key] = Source(path, said, legible)
        world |= split_by_number(path, found) if found else {path: {}}
    return world


def split_by_number(name: str, tables: dict[str, Source]) -> World:
    """The rows of a dataset for each TableNumber, where its tables tell one, and all of them beyond doubt."""
    tables = {key: _doubted(source) for key, source in tables.items()}
    numbers: dict[str | None, None] = {}
    for source in tables.values():
        said = source.said
        if said and "TableNumber" in said.header and "ImageNumber" in said.header:
            numbers |= dict.fromkeys(dataset_of(row[said.header.index("TableNumber")]) for row in said.rows)
    if len(numbers) < 2 or any(source.said is None for source in tables.values()):
        return {name: tables} if tables else {}
    world: World = {}
    for number in numbers:
        which = "without TableNumber" if number is None else f"TableNumber {number}"
        world[f"{name}, {which}"] = {
            key: Source(source.where, _only(source.said, number)) for key, source in tables.items()
        }
    return world


def _doubted(source: Source) -> Source:
    """The table, doubtful where a TableNumber in it is none."""
    said = source.said
    if said is None or "TableNumber" not in said.header or "ImageNumber" not in said.header:
        return source
    numbers = [row[said.header.index("TableNumber")] for row in said.rows]
    return source if all(map(_tells_datasets_apart, numbers)) else Source(source.where, None, said.rows)


def _tells_datasets_apart(value: Raw) -> bool:
    if isinstance(value, float):
        return math.isfinite(value) and value.is_integer() and abs(value) < 2**63
    return not isinstance(value, bytes) and not (isinstance(value, str) and len(value) > NAME_LIMIT)


def _only(said: Said | None, number: str | None) -> Said | None:
    if said is None or "TableNumber" not in said.header:
        return None
    at = said.header.index("TableNumber")
    return Said(said.header, tuple(row for row in said.rows if dataset_of(row[at]) == number), said.texts)


def dataset_of(value: Raw) -> str | None:
    """A TableNumber as text; 3.0 is 3."""
    if value is None or (isinstance(value, float) and not value.is_integer()):
        return None if value is None else str(value)
    return str(int(value)) if isinstance(value, float) else str(value)
