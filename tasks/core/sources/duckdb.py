"""DuckDB: one table or view inside a database, read by image range; never written to.

`import duckdb` in here and in the modules beside it is the library: imports are absolute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prefect_cytotable.tasks.core.arrays import to_numpy
from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Source
from prefect_cytotable.tasks.core.sources import columnar_rows, duckdb_file, duckdb_rows
from prefect_cytotable.tasks.core.sources.base import Answer, Index, Keys, Request, Sample, Together
from prefect_cytotable.tasks.core.sources.columnar import check_present
from prefect_cytotable.tasks.core.sources.columnar_sample import sample_of
from prefect_cytotable.tasks.core.sources.duckdb_file import Described, reading
from prefect_cytotable.tasks.core.sources.duckdb_rows import ROWID
from prefect_cytotable.tasks.core.sources.local_files import LocalFiles, merged

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class DuckdbReader(LocalFiles):
    """Reads tables of DuckDB databases; never writes to one, and reads nothing that is outside its file."""

    def tables(self, path: str, fingerprint: Fingerprint) -> tuple[str, ...]:
        """The names of the tables and views in the schema main."""
        with reading(self.places.local(path, fingerprint.size, fingerprint.mark), path) as opened:
            return duckdb_file.tables(opened)

    def columns(self, source: Source) -> tuple[str, ...]:
        """The names of the table's columns."""
        with self._table(source) as (_, table):
            return tuple(table.columns)

    def sample(self, sources: Sequence[Source], limit: int, measures: bool) -> Sample:
        """Types by declaration; texts are looked at, in the first rows."""
        tables = {source.where: source for source in sources}
        return merged([self._sample(source, measures) for source in tables.values()])

    def _sample(self, source: Source, measures: bool) -> Sample:
        with self._table(source) as (opened, table):
            kinds = table.kinds | duckdb_rows.beyond_int64(opened, table)
            texts = [name for name, kind in kinds.items() if kind is ColumnType.STRING]
            seen = duckdb_rows.first_rows(opened, table, texts, source.where)
            rows = duckdb_rows.count(opened, table)
        return sample_of(kinds, seen, source.fingerprint.size // max(rows, 1) + 1, measures)

    def numbers(self, source: Source, table_number: str, image_number: str) -> tuple[str | None, ...]:
        """The datasets that a table holds rows of; none where it has no column that tells."""
        with self._table(source) as (opened, table):
            if table_number not in table.columns or image_number not in table.columns:
                return ()
            pieces = duckdb_rows.pieces(opened, table, [table_number], source.where)
            return columnar_rows.ordered(columnar_rows.key_rows(pieces, Keys("", ""), table_number).names)

    def index(self, sources: Sequence[Source], keys: Keys, objects: bool) -> list[Index]:
        """Rows by image, from the key columns alone; DuckDB finds them by number, and unkeyed ones by `rowid`."""
        first = sources[0]
        number = first.only.column if first.only else ""
        names = [name for name in (keys.image_number, keys.object_number, number) if name]
        with self._table(first) as (opened, table):
            check_present(names, table.columns, first.where)
            if not keys.image_number:
                return _unkeyed(opened, table, sources, number)
            rows = columnar_rows.key_rows(duckdb_rows.pieces(opened, table, names, first.where), keys, number)
        return columnar_rows.indexes(rows, sources, located=False)

    def objects(self, source: Source, keys: Keys, image: int) -> list[int]:
        """The object numbers of one image in ascending order."""
        request = Request(source, keys, (), (image, image))
        names = list(dict.fromkeys([*columnar_rows.deciding(request), keys.object_number]))
        with self._table(source) as (opened, table):
            check_present(names, table.columns, source.where)
            condition, values = duckdb_rows.condition(table, [request])
            pieces = duckdb_rows.pieces(opened, table, names, source.where, condition, values)
            return columnar_rows.objects(pieces, request)

    def count(self, source: Source) -> int | None:
        """The number of rows, None where the table is too damaged to tell."""
        try:
            with self._table(source) as (opened, table):
                if source.only is None:
                    return duckdb_rows.count(opened, table)
                number = source.only.column
                check_present([number], table.columns, source.where)
                rows = columnar_rows.key_rows(
                    duckdb_rows.pieces(opened, table, [number], source.where), Keys("", ""), number
                )
                return int(np.count_nonzero(columnar_rows.of_source(rows, source)))
        except BadSourceError:
            return None

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """The rows of several datasets of one table, in one pass over it."""
        if not columnar_rows.are_datasets_of_one_table(requests):
            return None
        with self._table(requests[0].source) as (opened, table):
            return duckdb_rows.read_together(opened, table, requests)

    def read(self, request: Request) -> Answer:
        """The rows of a range of images, in the order of the table."""
        with self._table(request.source) as (opened, table):
            return duckdb_rows.read(opened, table, request)

    @contextmanager
    def _table(self, source: Source) -> Iterator[tuple[duckdb.DuckDBPyConnection, Described]]:
        with reading(self._file(source), source.where) as opened:
            yield opened, duckdb_file.described(opened, source.table, source.where)


def _unkeyed(
    opened: duckdb.DuckDBPyConnection, table: Described, sources: Sequence[Source], number: str
) -> list[Index]:
    names = [name for name in (number, ROWID if table.rowid else "") if name] or list(table.columns)[:1]
    rowids = [np.empty(0, np.int64)]

    def read() -> Iterator[columnar_rows.Arrays]:
        for piece in duckdb_rows.pieces(opened, table, names, sources[0].where):
            if table.rowid:
                rowids.append(to_numpy(piece[ROWID]))
            yield piece

    rows = columnar_rows.key_rows(read(), Keys("", ""), number)
    places = np.concatenate(rowids) if table.rowid else np.arange(rows.rows)
    return [columnar_rows.unkeyed(places[columnar_rows.of_source(rows, one)], table.rowid) for one in sources]
