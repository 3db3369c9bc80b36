"""SQLite: one table inside a database, read by image range through SQLite's own index; never written to."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Source
from prefect_cytotable.tasks.core.sources import sqlite_file, sqlite_index, sqlite_rows
from prefect_cytotable.tasks.core.sources.base import Answer, Index, Keys, Request, Sample, Together
from prefect_cytotable.tasks.core.sources.local_files import LocalFiles, merged
from prefect_cytotable.tasks.core.sources.sqlite_file import affinity, errors, quoted, reading

SAMPLE_ROWS = 200


@dataclass(frozen=True)
class SqliteReader(LocalFiles):
    """Reads tables of SQLite databases; never writes to one."""

    def tables(self, path: str, fingerprint: Fingerprint) -> tuple[str, ...]:
        """The names of the tables and views of a database."""
        file = self.places.local(path, fingerprint.size, fingerprint.mark)
        if not sqlite_file.looks_like(file):
            raise BadSourceError(path, "it is no SQLite database", "Export it again, or take it away.")
        return sqlite_file.tables(file, path)

    def columns(self, source: Source) -> tuple[str, ...]:
        """The names of the table's columns."""
        return tuple(self._declared(source))

    def sample(self, sources: Sequence[Source], limit: int, measures: bool) -> Sample:
        """Types from the declared affinity; columns without one are sampled."""
        tables = {source.where: source for source in sources}
        return merged([self._sample(source) for source in tables.values()])

    def _sample(self, source: Source) -> Sample:
        declared = self._declared(source)
        types: dict[str, ColumnType | None] = {name: affinity(type_) for name, type_ in declared.items()}
        with errors(source.where), reading(self._file(source)) as connection:
            for name in [name for name, type_ in types.items() if type_ is None]:
                types[name] = _sampled_type(connection, source.table, name)
            texts = [name for name, type_ in types.items() if type_ in (ColumnType.STRING, None)]
            width = 8 * (len(types) - len(texts)) + _text_width(connection, source.table, texts)
        return Sample(types, width, width)

    def numbers(self, source: Source, table_number: str, image_number: str) -> tuple[str | None, ...]:
        """The datasets that a table holds rows of; none where it has no column that tells."""
        declared = self._declared(source)
        if table_number not in declared or image_number not in declared:
            return ()
        with errors(source.where):
            try:
                found = sqlite_index.groups(
                    self._file(source), source.fingerprint, source.table, table_number, image_number
                )
            except sqlite_index.NumberError as error:
                raise BadSourceError(source.where, str(error), "Number its datasets, one number for each.") from error
        return tuple(dict.fromkeys(one.dataset for one in found))

    def index(self, sources: Sequence[Source], keys: Keys, objects: bool) -> list[Index]:
        """Rows by image: from the table's index where it has one, else with the range of their rowids."""
        with errors(sources[0].where):
            return sqlite_index.index(self._file(sources[0]), sources, keys)

    def objects(self, source: Source, keys: Keys, image: int) -> list[int]:
        """The object numbers of one image in ascending order."""
        with errors(source.where):
            return sqlite_rows.objects(self._file(source), source, keys, image, self._declared(source))

    def count(self, source: Source) -> int | None:
        """The number of rows, None where the table is too damaged to tell."""
        try:
            with reading(self._file(source)) as connection:
                (count,) = connection.execute(f"SELECT count(*) FROM {quoted(source.table)}").fetchone()
                return int(count)
        except (sqlite3.Error, UnicodeDecodeError):  # the text of an error may be no UTF-8
            return None

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """The rows of several datasets of one table, in one query."""
        first = requests[0]
        if any(
            one.source.where != first.source.where or one.columns != first.columns or one.images or one.objects
            for one in requests
        ):
            return None
        return sqlite_rows.read_together(self._file(first.source), requests, self._declared(first.source))

    def read(self, request: Request) -> Answer:
        """The rows of a range of images, in no particular order."""
        return sqlite_rows.read(self._file(request.source), request, self._declared(request.source))

    def _declared(self, source: Source) -> dict[str, str]:
        with errors(source.where), reading(self._file(source)) as connection:
            rows = connection.execute(f"PRAGMA table_info({quoted(source.table)})").fetchall()
        if not rows:
            raise BadSourceError(source.where, "the table does not exist", "Check the table's name.")
        return {row[1]: row[2] for row in rows}


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
