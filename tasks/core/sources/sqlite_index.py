"""Where the rows of each image and of each dataset lie in a SQLite table, and whether their keys are unique.

From the table's own index, where it has one that begins with the right column; else from one pass over the keys,
which gives the ranges of rowids, since exporters write image after image. A table whose rows do not lie so is gone
through once more for the exact stretches.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prefect_cytotable.tasks.core.model import Fingerprint, Source, Span
from prefect_cytotable.tasks.core.sources.base import ImageRows, Index, Keys
from prefect_cytotable.tasks.core.sources.sqlite_file import quoted, reading

NAME_LIMIT = 200
"""Characters of a text that tells datasets apart."""

STRETCHES = 200_000
"""Stretches of rowids that are told apart; of a table with more, each image has one that may hold rows of others."""


class NumberError(ValueError):
    """A value cannot tell datasets apart."""


_LARGEST = 2.0**63


@dataclass(frozen=True)
class Group:
    """The rows of one image in one dataset."""

    dataset: str | None
    image: int | None
    rows: int
    spans: tuple[Span, ...]


def index(path: Path, sources: Sequence[Source], keys: Keys) -> list[Index]:
    """The index of each source, all parts of one table.

    Args:
        path: The database's file.
        sources: Of one table; what they differ in is the dataset.
        keys: Of the table.
    """
    first = sources[0]
    column = first.only.column if first.only else ""
    found: dict[str | None, list[Group]] = {}
    for group in groups(path, first.fingerprint, first.table, column, keys.image_number):
        found.setdefault(group.dataset, []).append(group)
    with reading(path) as connection:
        unique, finding = (None, "one row for each image")
        if keys.object_number:
            unique, finding = _uniqueness(connection, first.table, column, keys)
    return [_index(found.get(one.only.value if one.only else None, []), unique, finding) for one in sources]


def _index(groups: list[Group], unique: bool | None, finding: str) -> Index:
    images: dict[int, ImageRows] = {}
    keyless, keyless_spans = 0, list[Span]()
    for one in groups:
        if one.image is None:
            keyless += one.rows
            keyless_spans += one.spans
            continue
        before = images.get(one.image, ImageRows(one.image, 0))  # 3 and 3.0 group apart in an undeclared column
        images[one.image] = ImageRows(one.image, before.rows + one.rows, before.spans + one.spans)
    rows = tuple(images[image] for image in sorted(images))
    return Index(rows, keyless, unique, finding, tuple(keyless_spans))


@lru_cache(maxsize=16)
def groups(path: Path, _: Fingerprint, table: str, number: str, image: str) -> tuple[Group, ...]:
    """The rows of a table by dataset and image; kept for a file that does not change.

    Args:
        path: The database's file.
        table: The table's name.
        number: The column that names the dataset; empty where all rows are of one.
        image: The column that numbers images.

    Raises:
        NumberError: A value in `number` is neither a whole number nor a short text.
    """
    keys = [quoted(name) for name in (number, image) if name]
    listed = ", ".join(keys)
    with reading(path) as connection:
        indexed = _has_index(connection, table, number or image) or not _has_rowid(connection, quoted(table))
        where = "0, 0" if indexed else "min(rowid), max(rowid)"
        query = f"SELECT {listed}, count(*), {where} FROM {quoted(table)} GROUP BY {listed} ORDER BY {listed}"
        rows = connection.execute(query).fetchall()
        if not indexed and _scattered(rows):
            return tuple(_stretches(connection, table, listed, bool(number)) or _groups(rows, bool(number), True))
    return tuple(_groups(rows, bool(number), not indexed))


def _dataset(value: object) -> str | None:
    """A dataset's name, where the value is one that SQL finds again by its text."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST
    if value is None or whole or isinstance(value, int) or (isinstance(value, str) and len(value) <= NAME_LIMIT):
        return dataset_of(value)
    kind = {float: "a number with a fraction, or a very large one", str: "a very long text"}.get(type(value), "bytes")
    raise NumberError(f"its TableNumber is in some row {kind}, which cannot tell datasets apart")


def dataset_of(value: object) -> str | None:
    """A dataset's name as text; 3.0 is 3."""
    if value is None:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _groups(rows: list[tuple[object, ...]], numbered: bool, located: bool) -> Iterator[Group]:
    for row in rows:
        dataset = _dataset(row[0]) if numbered else None
        image, count, first, last = row[-4:]
        assert isinstance(count, int)
        assert isinstance(first, int)
        assert isinstance(last, int)
        yield Group(dataset, image_of(image), count, (Span(first, last),) if located else ())


def image_of(value: object) -> int | None:
    """An image's number, None where the value is none."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST):
        return int(value)
    return None


def is_key(column: str) -> str:
    """SQL for whether a value numbers an image or an object; the same as `image_of`."""
    return f"typeof({column}) IN ('integer', 'real') AND {column} = CAST({column} AS INTEGER)"


def _scattered(rows: list[tuple[object, ...]]) -> bool:
    """Whether the ranges hold many rows of others, so that reading by them would read rows again and again."""
    held = sum(int(last) - int(first) + 1 for *_, first, last in rows)  # type: ignore[call-overload]
    return bool(held > 2 * sum(int(row[-3]) for row in rows))  # type: ignore[call-overload]


def _stretches(connection: sqlite3.Connection, table: str, listed: str, numbered: bool) -> list[Group]:
    """Groups with their exact stretches, from a pass in the order of the rows; nothing where there are too many."""
    found: dict[tuple[str | None, int | None], list[Span]] = {}
    rows: dict[tuple[str | None, int | None], int] = {}
    total, before, start, last = 0, None, 0, 0
    for row in connection.execute(f"SELECT {listed}, rowid FROM {quoted(table)} ORDER BY rowid"):
        key = (_dataset(row[0]) if numbered else None, image_of(row[-2]))
        if key != before:
            if before is not None:
                found.setdefault(before, []).append(Span(start, last))
            total += 1
            if total > STRETCHES:
                return []
            before, start = key, row[-1]
        rows[key] = rows.get(key, 0) + 1
        last = row[-1]
    if before is not None:
        found.setdefault(before, []).append(Span(start, last))
    return [Group(*key, rows[key], tuple(spans)) for key, spans in found.items()]


def _indexes(connection: sqlite3.Connection, table: str) -> Iterator[tuple[bool, list[str]]]:
    """(unique, columns) of each complete index of a table, its primary key among them."""
    key = sorted((row[5], row[1]) for row in connection.execute(f"PRAGMA table_info({quoted(table)})") if row[5])
    if key:
        yield True, [name for _, name in key]
    for row in connection.execute(f"PRAGMA index_list({quoted(table)})").fetchall():
        if row[4]:
            continue
        yield bool(row[2]), [part[2] for part in connection.execute(f"PRAGMA index_info({quoted(row[1])})")]


def _has_rowid(connection: sqlite3.Connection, quoted: str) -> bool:
    """Whether the rows can be found by rowid; those of views and of tables WITHOUT ROWID cannot."""
    try:
        row = connection.execute(f"SELECT rowid FROM {quoted} LIMIT 1").fetchone()
    except sqlite3.OperationalError as error:
        if "no such column" in str(error):
            return False
        raise
    return row is None or row[0] is not None


def _has_index(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(columns[0] == column for _, columns in _indexes(connection, table))


def _uniqueness(connection: sqlite3.Connection, table: str, number: str, keys: Keys) -> tuple[bool, str]:
    names = [name for name in (number, keys.image_number, keys.object_number) if name]
    for unique, columns in _indexes(connection, table):
        if unique and set(columns) <= set(names):
            return True, f"unique by the table's key ({', '.join(columns)})"
    listed = ", ".join(map(quoted, names))
    query = (
        f"SELECT {quoted(keys.image_number)}, {quoted(keys.object_number)}, count(*) FROM {quoted(table)} "
        f"WHERE {is_key(quoted(keys.image_number))} AND {is_key(quoted(keys.object_number))} "
        f"GROUP BY {listed} HAVING count(*) > 1 LIMIT 3"
    )
    repeated = connection.execute(query).fetchall()
    if not repeated:
        return True, "unique (counted)"
    texts = "; ".join(f"image {image}, object {number}: {rows} rows" for image, number, rows in repeated)
    return False, f"repeated: {texts}"
