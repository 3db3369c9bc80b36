"""SQLite: one table inside a database, read by image range through SQLite's own index; never written to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Source, Span
from prefect_cytotable.tasks.core.schema import merge
from prefect_cytotable.tasks.core.sources import sqlite_rows
from prefect_cytotable.tasks.core.sources.base import Answer, ImageRows, Index, Keys, Request, Sample, Together
from prefect_cytotable.tasks.core.sources.sqlite_file import affinity, errors, quoted, reading

SAMPLE_ROWS = 200


class SqliteReader:
    """Reads tables of SQLite databases; never writes to one."""

    def columns(self, source: Source) -> tuple[str, ...]:
        """The names of the table's columns."""
        return tuple(self._declared(source))

    def sample(self, sources: Sequence[Source], limit: int, measures: bool) -> Sample:
        """Types from the declared affinity; columns without one are sampled."""
        samples = [self._sample(source) for source in sources]
        nothing: dict[str, ColumnType | None] = {}
        types = reduce(merge, (one.types for one in samples), nothing)
        return Sample(types, max(one.row_bytes for one in samples), max(one.text_bytes for one in samples))

    def _sample(self, source: Source) -> Sample:
        declared = self._declared(source)
        types: dict[str, ColumnType | None] = {name: affinity(type_) for name, type_ in declared.items()}
        with errors(source.where), reading(Path(source.path)) as connection:
            for name in [name for name, type_ in types.items() if type_ is None]:
                types[name] = _sampled_type(connection, source.table, name)
            texts = [name for name, type_ in types.items() if type_ in (ColumnType.STRING, None)]
            width = 8 * (len(types) - len(texts)) + _text_width(connection, source.table, texts)
        return Sample(types, width, width)

    def index(self, source: Source, keys: Keys, objects: bool) -> Index:
        """Rows by image: from the table's index where it has one, else with the range of their rowids."""
        image, table = quoted(keys.image_number), quoted(source.table)
        with errors(source.where), reading(Path(source.path)) as connection:
            indexed = _has_index(connection, source.table, keys.image_number) or not _has_rowid(connection, table)
            where = "0, 0" if indexed else "min(rowid), max(rowid)"
            rows = connection.execute(
                f"SELECT {image}, count(*), {where} FROM {table} GROUP BY {image} ORDER BY {image}"
            ).fetchall()
            unique, finding = (None, "one row for each image")
            if keys.object_number:
                unique, finding = _uniqueness(connection, source.table, keys)
        keyless = sum(count for number, count, *_ in rows if not _is_number(number))
        images = tuple(
            ImageRows(int(number), count, () if indexed else (Span(first, last),))
            for number, count, first, last in rows
            if _is_number(number)
        )
        return Index(_merged(images), keyless, unique, finding)

    def objects(self, source: Source, keys: Keys, image: int) -> list[int]:
        """The object numbers of one image in ascending order."""
        number = quoted(keys.object_number)
        with errors(source.where), reading(Path(source.path)) as connection:
            rows = connection.execute(
                f"SELECT {number} FROM {quoted(source.table)} "
                f"WHERE {quoted(keys.image_number)} = ? AND {number} IS NOT NULL ORDER BY {number}",
                (image,),
            )
            return [int(value) for (value,) in rows if _is_number(value)]

    def count(self, source: Source) -> int | None:
        """The number of rows, None where the table is too damaged to tell."""
        try:
            with reading(Path(source.path)) as connection:
                (count,) = connection.execute(f"SELECT count(*) FROM {quoted(source.table)}").fetchone()
                return int(count)
        except sqlite3.Error:
            return None

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """Nothing is gained by it here."""
        return None

    def read(self, request: Request) -> Answer:
        """The rows of a range of images, in no particular order."""
        return sqlite_rows.read(request, self._declared(request.source))

    def _declared(self, source: Source) -> dict[str, str]:
        with errors(source.where), reading(Path(source.path)) as connection:
            rows = connection.execute(f"PRAGMA table_info({quoted(source.table)})").fetchall()
        if not rows:
            raise BadSourceError(source.where, "the table does not exist", "Check the table's name.")
        return {row[1]: row[2] for row in rows}


def _is_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _merged(images: tuple[ImageRows, ...]) -> tuple[ImageRows, ...]:
    """One entry an image: 3 and 3.0 group apart in SQLite where the column has no declared type."""
    if len({one.image for one in images}) == len(images):
        return images
    merged: dict[int, ImageRows] = {}
    for one in images:
        before = merged.get(one.image, ImageRows(one.image, 0))
        merged[one.image] = ImageRows(one.image, before.rows + one.rows, before.spans + one.spans)
    return tuple(merged[image] for image in sorted(merged))


def _sampled_type(connection: sqlite3.Connection, table: str, column: str) -> ColumnType | None:
    query = f"SELECT DISTINCT typeof({quoted(column)}) FROM (SELECT * FROM {quoted(table)} LIMIT {SAMPLE_ROWS})"
    classes = {kind for (kind,) in connection.execute(query)} - {"null"}
    if not classes:
        return None
    if classes == {"integer"}:
        return ColumnType.INT64
    return ColumnType.DOUBLE if classes <= {"integer", "real"} else ColumnType.STRING


def _text_width(connection: sqlite3.Connection, table: str, columns: list[str]) -> int:
    """Mean bytes of a row's texts, offsets included, over the first rows."""
    if not columns:
        return 0
    total = " + ".join(f"coalesce(length({quoted(name)}), 0)" for name in columns)
    (mean,) = connection.execute(
        f"SELECT avg({total}) FROM (SELECT * FROM {quoted(table)} LIMIT {SAMPLE_ROWS})"
    ).fetchone()
    return int(mean or 0) + 4 * len(columns)


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


def _has_index(connection: sqlite3.Connection, table: str, image_number: str) -> bool:
    return any(columns[0] == image_number for _, columns in _indexes(connection, table))


def _uniqueness(connection: sqlite3.Connection, table: str, keys: Keys) -> tuple[bool, str]:
    for unique, columns in _indexes(connection, table):
        if unique and set(columns) <= {keys.image_number, keys.object_number}:
            return True, f"unique by the table's key ({', '.join(columns)})"
    pair = f"{quoted(keys.image_number)}, {quoted(keys.object_number)}"
    query = (
        f"SELECT {pair}, count(*) FROM {quoted(table)} WHERE {quoted(keys.object_number)} IS NOT NULL "
        f"GROUP BY {pair} HAVING count(*) > 1 LIMIT 3"
    )
    repeated = connection.execute(query).fetchall()
    if not repeated:
        return True, "unique (counted)"
    listed = "; ".join(f"image {image}, object {number}: {rows} rows" for image, number, rows in repeated)
    return False, f"repeated: {listed}"
