"""Parquet: one table a file, read by the rows that are asked for; names and types are in its footer.

A file is read from a disk of this machine and is mapped into memory, unless the environment variable
``CYTOTABLE_ARROW_USE_MEMORY_MAPPING`` is 0. However large its row groups are, a few columns are decoded at a time, and
of these a few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Source
from prefect_cytotable.tasks.core.sources import columnar_rows, parquet_rows
from prefect_cytotable.tasks.core.sources.base import Answer, Index, Keys, Request, Sample, Together
from prefect_cytotable.tasks.core.sources.columnar import check_present
from prefect_cytotable.tasks.core.sources.columnar_sample import sample_of
from prefect_cytotable.tasks.core.sources.local_files import LocalFiles, merged
from prefect_cytotable.tasks.core.sources.parquet_file import Opened, open_file, pieces


@dataclass(frozen=True)
class ParquetReader(LocalFiles):
    """Reads Parquet files."""

    def columns(self, source: Source) -> tuple[str, ...]:
        """The names in the footer's schema."""
        with self._opened(source) as opened:
            return tuple(opened.kinds)

    def sample(self, sources: Sequence[Source], limit: int, measures: bool) -> Sample:
        """Types from the schema; texts are looked at in a few rows, and large whole numbers in all."""
        files = {source.path: source for source in sources}
        return merged([self._sample(source, measures) for source in files.values()])

    def _sample(self, source: Source, measures: bool) -> Sample:
        with self._opened(source) as opened:
            known = opened.kinds | dict.fromkeys(parquet_rows.beyond_int64(opened), ColumnType.DOUBLE)
            texts = [name for name, kind in known.items() if kind is ColumnType.STRING]
            seen = parquet_rows.some_rows(opened, texts)
            stored = source.fingerprint.size // max(opened.rows, 1) + 1
        return sample_of(known, seen, stored, measures)

    def numbers(self, source: Source, table_number: str, image_number: str) -> tuple[str | None, ...]:
        """The datasets that a file holds rows of; none where it has no column that tells."""
        with self._opened(source) as opened:
            known = opened.kinds
            if table_number not in known or image_number not in known:
                return ()
            arrays = (piece for _, piece in pieces(opened, [table_number]))
            return columnar_rows.ordered(columnar_rows.key_rows(arrays, Keys("", ""), table_number).names)

    def index(self, sources: Sequence[Source], keys: Keys, objects: bool) -> list[Index]:
        """Rows by image, with the positions where they lie, from the key columns alone."""
        first = sources[0]
        number = first.only.column if first.only else ""
        names = [name for name in (keys.image_number, keys.object_number, number) if name]
        with self._opened(first) as opened:
            check_present(names, opened.kinds, first.where)
            if names:
                arrays = (piece for _, piece in pieces(opened, names))
                rows = columnar_rows.key_rows(arrays, keys, number)
            else:
                rows = columnar_rows.KeyRows(opened.rows, None, None, None, ())
        return columnar_rows.indexes(rows, sources, located=True)

    def objects(self, source: Source, keys: Keys, image: int) -> list[int]:
        """The object numbers of one image in ascending order."""
        request = Request(source, keys, (), (image, image))
        names = list(dict.fromkeys([*columnar_rows.deciding(request), keys.object_number]))
        with self._opened(source) as opened:
            check_present(names, opened.kinds, source.where)
            arrays = (piece for _, piece in pieces(opened, names))
            return columnar_rows.objects(arrays, request)

    def count(self, source: Source) -> int | None:
        """The rows that the footer tells, or those of the source's dataset; None where the file cannot be read."""
        try:
            with self._opened(source) as opened:
                if source.only is None:
                    return opened.rows
                return len(parquet_rows.positions_of(opened, Request(source, Keys("", ""), ())))
        except BadSourceError:
            return None

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """The rows of several datasets of one file, in one pass over it."""
        if not columnar_rows.are_datasets_of_one_table(requests):
            return None
        with self._opened(requests[0].source) as opened:
            return parquet_rows.read_together(opened, requests)

    def read(self, request: Request) -> Answer:
        """The rows of the request's spans, or of the whole file, in the order of the file."""
        with self._opened(request.source) as opened:
            return parquet_rows.read(opened, request)

    def _opened(self, source: Source) -> AbstractContextManager[Opened]:
        return open_file(self._file(source), source.where)
