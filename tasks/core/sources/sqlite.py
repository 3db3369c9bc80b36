"""SQLite: one table inside a database, read by image range through SQLite's own index.

Rows come through the ADBC driver, which asks SQLite itself and therefore uses the key that CellProfiler makes;
DuckDB's scanner reads the whole table for each range. The driver takes a column's type from the first rows, so
each query begins with one row of the planned types. Where a value of another storage class follows all the same
(SQLite lets any column hold any value), the query is repeated with each such column guarded.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from urllib.parse import quote

import adbc_driver_manager
import adbc_driver_sqlite
import numpy as np
import pyarrow as pa

from prefect_cytotable.tasks.core.arrays import from_numpy
from prefect_cytotable.tasks.core.errors import BadSourceError, CytotableError, SourceBusyError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Source, Span
from prefect_cytotable.tasks.core.schema import merge, to_arrow
from prefect_cytotable.tasks.core.sources.base import (
    Answer,
    Finding,
    ImageRows,
    Index,
    Keys,
    Request,
    Sample,
    Together,
)

MAGIC = b"SQLite format 3\0"
BATCH_ROWS = 4096
BUSY_SECONDS = 10.0
SAMPLE_ROWS = 200
_LITERALS = {
    ColumnType.BOOL: "0",
    ColumnType.INT64: "0",
    ColumnType.DOUBLE: "0.0",
    ColumnType.STRING: "''",
}


def looks_like(path: Path) -> bool:
    """Whether the file begins as a SQLite database does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def fingerprint(path: Path) -> Fingerprint:
    """Size, time and change counter of a database, those of its write-ahead log included.

    The change counter is bytes 24-27 of the header (https://www.sqlite.org/fileformat.html#file_change_counter).
    """
    status = path.stat()
    with path.open("rb") as file:
        counter = file.read(28)[24:].hex()
    log = path.with_name(path.name + "-wal")
    with contextlib.suppress(FileNotFoundError):
        log_status = log.stat()
        if log_status.st_size:
            counter += f"+{log_status.st_size}.{log_status.st_mtime_ns}"
    return Fingerprint(status.st_size, status.st_mtime_ns, counter)


def tables(path: Path) -> tuple[str, ...]:
    """The names of a database's tables.

    Raises:
        BadSourceError: The file is no database, or a damaged one.
        SourceBusyError: Another program keeps it locked.
    """
    with _errors(str(path)), _connection(path) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
        return tuple(name for (name,) in rows)


class SqliteReader:
    """Reads tables of SQLite databases; never writes to one."""

    def columns(self, source: Source) -> tuple[str, ...]:
        """The names of the table's columns."""
        return tuple(self._declared(source))

    def sample(self, sources: Sequence[Source], limit: int) -> Sample:
        """Types from the declared affinity; columns without one are sampled."""
        samples = [self._sample(source) for source in sources]
        nothing: dict[str, ColumnType | None] = {}
        types = reduce(merge, (one.types for one in samples), nothing)
        return Sample(types, max(one.row_bytes for one in samples), max(one.text_bytes for one in samples))

    def _sample(self, source: Source) -> Sample:
        declared = self._declared(source)
        types: dict[str, ColumnType | None] = {name: _affinity(type_) for name, type_ in declared.items()}
        with _errors(source.where), _connection(Path(source.path)) as connection:
            for name in [name for name, type_ in types.items() if type_ is None]:
                types[name] = _sampled_type(connection, source.table, name)
            texts = [name for name, type_ in types.items() if type_ in (ColumnType.STRING, None)]
            width = 8 * (len(types) - len(texts)) + _text_width(connection, source.table, texts)
        return Sample(types, width, width)

    def size(self, source: Source) -> int:
        """Bytes of the whole database."""
        return source.fingerprint.size

    def index(self, source: Source, keys: Keys, objects: bool) -> Index:
        """Rows by image: from the table's index where it has one, else with the range of their rowids."""
        image, table = _quoted(keys.image_number), _quoted(source.table)
        with _errors(source.where), _connection(Path(source.path)) as connection:
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
        number = _quoted(keys.object_number)
        with _errors(source.where), _connection(Path(source.path)) as connection:
            rows = connection.execute(
                f"SELECT {number} FROM {_quoted(source.table)} "
                f"WHERE {_quoted(keys.image_number)} = ? AND {number} IS NOT NULL ORDER BY {number}",
                (image,),
            )
            return [int(value) for (value,) in rows if _is_number(value)]

    def count(self, source: Source) -> int | None:
        """The number of rows, None where the table is too damaged to tell."""
        try:
            with _connection(Path(source.path)) as connection:
                (count,) = connection.execute(f"SELECT count(*) FROM {_quoted(source.table)}").fetchone()
                return int(count)
        except sqlite3.Error:
            return None

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """Nothing is gained by it here."""
        return None

    def read(self, request: Request) -> Answer:
        """The rows of a range of images, in no particular order."""
        declared = self._declared(request.source)
        columns = [(name, type_) for name, type_ in request.columns if name in declared]
        if not columns:
            return Answer(pa.table({}))
        with _errors(request.source.where):
            try:
                table = _fetch(request, columns, [_plainly(name, type_, declared[name]) for name, type_ in columns])
            except OSError as error:
                if "Type mismatch" not in str(error):
                    raise
                table = None
            expected = [to_arrow(_stored(type_)) for _, type_ in columns]
            if table is not None and table.schema.types == expected:
                return Answer(_as_planned(table, columns))
            return _guarded(request, columns)

    def _declared(self, source: Source) -> dict[str, str]:
        with _errors(source.where), _connection(Path(source.path)) as connection:
            rows = connection.execute(f"PRAGMA table_info({_quoted(source.table)})").fetchall()
        if not rows:
            raise BadSourceError(source.where, "the table does not exist", "Check the table's name.")
        return {row[1]: row[2] for row in rows}


def _uri(path: Path) -> str:
    """A read-only URI: SQLite then neither writes to the database nor checkpoints its log."""
    return f"file:{quote(str(path.absolute()))}?mode=ro"


@contextlib.contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(_uri(path), uri=True, timeout=BUSY_SECONDS)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def _errors(where: str) -> Iterator[None]:
    """SQLite's errors as ours: a lock may pass, anything else is a bad source."""
    try:
        yield
    except CytotableError:
        raise
    except UnicodeDecodeError as error:
        raise BadSourceError(where, "a text in it is not UTF-8", f"SQLite says: {error}.") from error
    except (sqlite3.Error, adbc_driver_manager.Error, OSError) as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise SourceBusyError(
                f"{where}: another program has locked it ({text}). Wait until that program is done, then run again."
            ) from error
        if isinstance(error, MemoryError | PermissionError | FileNotFoundError):
            raise
        raise BadSourceError(
            where,
            f"SQLite cannot read it ({text})",
            "Check the file with `sqlite3 FILE 'pragma integrity_check'` and export or copy it again.",
        ) from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


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


def _affinity(declared: str) -> ColumnType | None:
    """A column's type from its declaration (https://www.sqlite.org/datatype3.html, section 3.1).

    None where the declaration leaves it open (no type, BLOB, NUMERIC): then rows are sampled.
    """
    name = declared.upper()
    if "INT" in name:
        return ColumnType.INT64
    if any(word in name for word in ("CHAR", "CLOB", "TEXT")):
        return ColumnType.STRING
    if any(word in name for word in ("REAL", "FLOA", "DOUB")):
        return ColumnType.DOUBLE
    return None


def _sampled_type(connection: sqlite3.Connection, table: str, column: str) -> ColumnType | None:
    query = f"SELECT DISTINCT typeof({_quoted(column)}) FROM (SELECT * FROM {_quoted(table)} LIMIT {SAMPLE_ROWS})"
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
    total = " + ".join(f"coalesce(length({_quoted(name)}), 0)" for name in columns)
    (mean,) = connection.execute(
        f"SELECT avg({total}) FROM (SELECT * FROM {_quoted(table)} LIMIT {SAMPLE_ROWS})"
    ).fetchone()
    return int(mean or 0) + 4 * len(columns)


def _indexes(connection: sqlite3.Connection, table: str) -> Iterator[tuple[bool, list[str]]]:
    """(unique, columns) of each complete index of a table, its primary key among them."""
    key = sorted((row[5], row[1]) for row in connection.execute(f"PRAGMA table_info({_quoted(table)})") if row[5])
    if key:
        yield True, [name for _, name in key]
    for row in connection.execute(f"PRAGMA index_list({_quoted(table)})").fetchall():
        if row[4]:
            continue
        yield bool(row[2]), [part[2] for part in connection.execute(f"PRAGMA index_info({_quoted(row[1])})")]


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
    pair = f"{_quoted(keys.image_number)}, {_quoted(keys.object_number)}"
    query = (
        f"SELECT {pair}, count(*) FROM {_quoted(table)} WHERE {_quoted(keys.object_number)} IS NOT NULL "
        f"GROUP BY {pair} HAVING count(*) > 1 LIMIT 3"
    )
    repeated = connection.execute(query).fetchall()
    if not repeated:
        return True, "unique (counted)"
    listed = "; ".join(f"image {image}, object {number}: {rows} rows" for image, number, rows in repeated)
    return False, f"repeated: {listed}"


def _where(request: Request) -> tuple[str, list[int]]:
    """The condition of a request, and the values for its question marks."""
    conditions: list[str] = []
    values: list[int] = []
    for column, bounds in (
        (request.keys.image_number, request.images),
        (request.keys.object_number, request.objects),
    ):
        if bounds is not None:
            conditions.append(f"{_quoted(column)} BETWEEN ? AND ? AND {_is_whole(_quoted(column))}")
            values.extend(bounds)
    if request.spans:
        conditions.append("rowid BETWEEN ? AND ?")
        values += [min(span.start for span in request.spans), max(span.stop for span in request.spans)]
    return (" WHERE " + " AND ".join(conditions) if conditions else ""), values


def _is_whole(column: str) -> str:
    return f"{column} = CAST({column} AS INTEGER)"


def _plainly(name: str, type_: ColumnType, declared: str) -> str:
    """SQL for a column whose values are of its type; a number is made a text here, as the driver rounds it."""
    if type_ is ColumnType.STRING and _affinity(declared) is not ColumnType.STRING:
        return f"CAST({_quoted(name)} AS TEXT)"
    return _quoted(name)


def _stored(type_: ColumnType) -> ColumnType:
    """What the driver delivers for a planned type: SQLite has no booleans."""
    return ColumnType.INT64 if type_ is ColumnType.BOOL else type_


def _fetch(request: Request, columns: list[tuple[str, ColumnType]], expressions: list[str]) -> pa.Table:
    """One query; the result's first row is the row of planned types, which is cut off again.

    The driver's first batch ends with that row's type for each column, wider where its rows need it.
    """
    first = ", ".join(f"{_LITERALS[type_]} AS c{number}" for number, (_, type_) in enumerate(columns))
    where, values = _where(request)
    query = f"SELECT {first} UNION ALL SELECT {', '.join(expressions)} FROM {_quoted(request.source.table)}{where}"
    with (
        adbc_driver_sqlite.connect(_uri(Path(request.source.path))) as database,
        adbc_driver_manager.AdbcConnection(database) as connection,
        adbc_driver_manager.AdbcStatement(connection) as statement,
    ):
        statement.set_sql_query(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        statement.execute_update()
        statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
        statement.set_sql_query(query)
        if values:
            statement.prepare()
            statement.bind(
                pa.record_batch(
                    [from_numpy(np.array([value])) for value in values], [str(n) for n in range(len(values))]
                )
            )
        stream, _ = statement.execute_query()
        with pa.RecordBatchReader._import_from_c(stream.address) as reader:
            return reader.read_all().slice(1).combine_chunks()


def _as_planned(table: pa.Table, columns: list[tuple[str, ColumnType]]) -> pa.Table:
    arrays = [
        column.cast(to_arrow(type_)) if column.type != to_arrow(type_) else column
        for column, (_, type_) in zip(table.columns, columns, strict=True)
    ]
    table = pa.table(arrays, names=[name for name, _ in columns])
    for (name, type_), array in zip(columns, arrays, strict=True):
        if type_ is ColumnType.STRING:
            try:
                array.validate(full=True)
            except pa.ArrowInvalid as error:
                raise UnicodeDecodeError("utf-8", b"", 0, 1, f"column {name}: {error}") from error
    return table


def _guarded(request: Request, columns: list[tuple[str, ColumnType]]) -> Answer:
    """The same rows where some value is not of its column's type: kept, widened or null by rule, and counted.

    A text in a numeric column is never a number, because SQLite's affinity would have made it one: `inf` is kept
    as infinity, `nan` and anything else becomes null. A real in an integer column widens it, unless that numbers
    images or objects: there 3.0 is 3, and what is no whole number becomes null.
    """
    keys = (request.keys.image_number, request.keys.object_number)
    classes = _storage_classes(request, columns)
    widened, findings, expressions = [], [], []
    for (name, type_), counts in zip(columns, classes, strict=True):
        reals, others, nans, infinities = counts
        quoted = _quoted(name)
        if type_ is ColumnType.STRING:
            expressions.append(f"CAST({quoted} AS TEXT)")
            continue
        if type_ in (ColumnType.INT64, ColumnType.BOOL) and (reals or infinities) and name not in keys:
            widened.append((name, ColumnType.DOUBLE))
        if nans:
            findings.append(Finding(name, "text 'nan' became null", nans))
        if others - nans - infinities:
            findings.append(Finding(name, "a value that is not a number became null", others - nans - infinities))
        expressions.append(_key(quoted) if name in keys else _number(quoted, type_) if others else quoted)
    if widened:
        return Answer(pa.table({}), widened=tuple(widened))
    return Answer(_as_planned(_fetch(request, columns, expressions), columns), findings=tuple(findings))


_INFINITE = "('inf', '+inf', 'infinity', '+infinity', '-inf', '-infinity')"


def _storage_classes(request: Request, columns: list[tuple[str, ColumnType]]) -> list[tuple[int, int, int, int]]:
    """For each column the number of reals, of texts and blobs, and among the texts of nan and of infinities.

    A first query finds the columns in which a value is of another class than planned; only these are looked into.
    """
    expected = {ColumnType.INT64: "integer", ColumnType.BOOL: "integer", ColumnType.DOUBLE: "real"}
    numeric = [name for name, type_ in columns if type_ in expected]
    types = dict(columns)
    nothing = (0, 0, 0, 0)
    found = dict.fromkeys((name for name, _ in columns), nothing)
    where, values = _where(request)
    rows = f"FROM {_quoted(request.source.table)}{where}"
    with _connection(Path(request.source.path)) as connection:
        strange: list[str] = []
        for start in range(0, len(numeric), 500):
            group = numeric[start : start + 500]
            tests = ", ".join(
                f"total(typeof({_quoted(name)}) NOT IN ('null', '{expected[types[name]]}'))" for name in group
            )
            counts = connection.execute(f"SELECT {tests} {rows}", values).fetchone()
            strange += [name for name, count in zip(group, counts, strict=True) if count]
        for name in strange:
            column = _quoted(name)
            text = f"lower(trim(CASE typeof({column}) WHEN 'text' THEN {column} END))"
            counts = connection.execute(
                f"SELECT total(typeof({column}) = 'real'), total(typeof({column}) IN ('text', 'blob')), "
                f"total({text} IN ('nan', '-nan', '')), total({text} IN {_INFINITE}) {rows}",
                values,
            ).fetchone()
            reals, others, nans, infinities = (int(value) for value in counts)
            found[name] = (reals, others, nans, infinities)
    return [found[name] for name, _ in columns]


def _key(column: str) -> str:
    """SQL for a column that numbers images or objects."""
    number = f"typeof({column}) IN ('integer', 'real') AND {_is_whole(column)}"
    return f"CASE WHEN {number} THEN CAST({column} AS INTEGER) END"


def _number(column: str, type_: ColumnType) -> str:
    """SQL for a numeric column in which texts occur."""
    if type_ is not ColumnType.DOUBLE:
        return f"CASE typeof({column}) WHEN 'integer' THEN {column} END"
    return (
        f"CASE WHEN typeof({column}) IN ('integer', 'real') THEN {column} "
        f"WHEN lower(trim({column})) IN ('inf', '+inf', 'infinity', '+infinity') THEN 9e999 "
        f"WHEN lower(trim({column})) IN ('-inf', '-infinity') THEN -9e999 END"
    )
