"""The DuckDB reader: types, keys, datasets, wide tables, locks, damage, and databases that want to read other files."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typed import BOOL, DOUBLE, FLOAT, INT, NO_KEYS, PLANNED, TEXT

from prefect_cytotable.tasks.core.errors import BadSourceError, SourceBusyError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Only, Source, Span
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources import columnar_rows, duckdb_file, duckdb_rows
from prefect_cytotable.tasks.core.sources.base import Answer, Cut, Index, Keys, Request
from prefect_cytotable.tasks.core.sources.duckdb import DuckdbReader

READER = DuckdbReader(Places())
KEYS = Keys("ImageNumber", "ObjectNumber")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A place for one database."""
    return tmp_path / 'plate\'s "1" é\n%?.duckdb'


def made(path: Path, *statements: str, table: str = "Cells") -> Source:
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)
    return source_of(path, table)


def fingerprint(path: Path) -> Fingerprint:
    status = path.stat()
    return Fingerprint(status.st_size, status.st_mtime_ns)


def source_of(path: Path, table: str = "Cells", only: Only | None = None) -> Source:
    return Source("cells", str(path), Format.DUCKDB, fingerprint(path), table, only)


def read(source: Source, columns: Sequence[tuple[str, ColumnType]] = PLANNED, keys: Keys = KEYS, **more: Any) -> Answer:
    return READER.read(Request(source, keys, tuple(columns), **more))


def rows_of(answer: Answer) -> list[tuple[object, ...]]:
    assert not answer.widened
    return list(zip(*(answer.table.column(name).to_pylist() for name in answer.table.column_names), strict=True))


PLATE = (
    "CREATE TABLE Cells AS SELECT * FROM (VALUES (5, 1, 0.5::DOUBLE), (5, 2, 1.5), (3, 1, 2.5), (NULL, 1, 3.5), "
    "(5, 3, 4.5)) t(ImageNumber, ObjectNumber, Value)"
)


# Types


@pytest.mark.parametrize(
    ("type_", "given", "kind", "expected"),
    [
        *((name, "1", INT, 1) for name in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")),
        *((name, "200", INT, 200) for name in ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT", "UHUGEINT")),
        ("BIGINT", str(-(2**63)), INT, -(2**63)),
        ("HUGEINT", str(2**63 - 1), INT, 2**63 - 1),
        ("FLOAT", "0.1", FLOAT, 0.10000000149011612),
        ("DOUBLE", "0.1", DOUBLE, 0.1),
        ("DECIMAL(38, 12)", "12345678901234567.123456789012", DOUBLE, 12345678901234567.123456789012),
        ("BOOLEAN", "true", BOOL, True),
        ("VARCHAR", "' é'", TEXT, " é"),
        ("ENUM('a', 'b')", "'b'", TEXT, "b"),
        ("BLOB", "'x'", TEXT, "x"),
        ("UUID", "'00000000-0000-0000-0000-00000000000a'", TEXT, "00000000-0000-0000-0000-00000000000a"),
        ("JSON", "'{}'", TEXT, "{}"),
    ],
)
def test_each_type(file: Path, type_: str, given: str, kind: ColumnType, expected: object) -> None:
    source = made(file, f"CREATE TABLE Cells (Value {type_})", f"INSERT INTO Cells VALUES ({given}), (NULL)")
    assert READER.sample([source], 1 << 20, True).types == {"Value": kind}
    assert rows_of(read(source, [("Value", kind)], NO_KEYS)) == [(expected,), (None,)]


@pytest.mark.parametrize(
    ("type_", "given"),
    [
        ("DATE", dt.date(2024, 2, 29)),
        ("TIME", dt.time(3, 4, 5, 60)),
        ("TIMESTAMP", dt.datetime(1969, 2, 3, 4, 5, 6, 7000)),
        ("TIMESTAMP_S", dt.datetime(2024, 2, 3, 4, 5, 6)),
        ("TIMESTAMP_MS", dt.datetime(2024, 2, 3, 4, 5, 6, 7000)),
        ("TIMESTAMP_NS", dt.datetime(2024, 2, 3, 4, 5, 6, 7)),
        ("TIMESTAMPTZ", dt.datetime(2024, 2, 3, 4, 5, 6, 7, dt.timezone(dt.timedelta(hours=2)))),
    ],
    ids=str,
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_dates_and_times_are_texts_that_name_the_same_moment(
    file: Path, type_: str, given: Any, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    source = made(file, f"CREATE TABLE Cells (Value {type_})", f"INSERT INTO Cells VALUES ('{given}'), (NULL)")
    assert READER.sample([source], 1 << 20, True).types == {"Value": TEXT}
    (text,), missing = rows_of(read(source, [("Value", TEXT)], NO_KEYS))
    assert missing == (None,)
    assert isinstance(text, str)
    assert type(given).fromisoformat(text) == given
    assert " " not in text


@pytest.mark.parametrize(
    "type_", ["INTEGER[]", "INTEGER[2]", "STRUCT(a INTEGER)", "MAP(VARCHAR, INTEGER)", "UNION(a INTEGER, b VARCHAR)"]
)
def test_a_column_of_several_values_is_a_bad_source_that_names_it(file: Path, type_: str) -> None:
    source = made(file, f'CREATE TABLE Cells (ImageNumber INTEGER, "Embed ding" {type_})')
    for action in (READER.columns, lambda one: READER.sample([one], 1 << 20, True), read):
        with pytest.raises(BadSourceError, match=r"'Embed ding' is of type .*Leave it out when you write the file"):
            action(source)


def test_a_blob_that_is_no_utf8_is_a_bad_source(file: Path) -> None:
    source = made(file, "CREATE TABLE Cells AS SELECT '\\xFF'::BLOB AS Name")
    with pytest.raises(BadSourceError, match="'Name' holds bytes that are no UTF-8"):
        read(source, [("Name", TEXT)], NO_KEYS)


@pytest.mark.parametrize("type_", ["UBIGINT", "HUGEINT", "UHUGEINT"])
def test_a_whole_number_beyond_64_bits_widens_its_column(file: Path, type_: str) -> None:
    source = made(
        file,
        f"CREATE TABLE Cells (ImageNumber {type_}, Value {type_})",
        f"INSERT INTO Cells VALUES (1, 1), ({2**64 - 1}, {2**64 - 1})",
    )
    assert READER.sample([source], 1 << 20, True).types == {"ImageNumber": DOUBLE, "Value": DOUBLE}
    assert read(source, [("Value", INT)]).widened == (("Value", DOUBLE),)
    assert rows_of(read(source, [("Value", DOUBLE)])) == [(1.0,), (float(2**64 - 1),)]
    answer = read(source, [("ImageNumber", INT)])
    assert rows_of(answer) == [(1,), (None,)]
    assert [(one.column, one.count) for one in answer.findings] == [("ImageNumber", 1)]


def test_nan_is_null_and_infinity_is_kept(file: Path) -> None:
    source = made(file, "CREATE TABLE Cells AS SELECT unnest(['nan', 'inf', '-inf', '1.5'])::DOUBLE AS Value")
    answer = read(source, [("Value", DOUBLE)], NO_KEYS)
    assert rows_of(answer) == [(None,), (math.inf,), (-math.inf,), (1.5,)]
    assert not answer.findings


def test_texts_among_measures_become_null_and_are_counted(file: Path) -> None:
    source = made(
        file,
        "CREATE TABLE Cells (ImageNumber INTEGER, ObjectNumber INTEGER, Value VARCHAR)",
        "INSERT INTO Cells VALUES (1, 1, '2.5'), (1, 2, 'nan'), (1, 3, 'big'), (1, 4, ' 7 '), (1, 5, NULL)",
    )
    assert READER.sample([source], 1 << 20, True).types["Value"] is DOUBLE
    assert READER.sample([source], 1 << 20, False).types["Value"] is TEXT
    answer = read(source)
    assert [row[2] for row in rows_of(answer)] == [2.5, None, None, 7.0, None]
    assert [(one.column, one.count) for one in answer.findings] == [("Value", 1)]


@pytest.mark.parametrize(
    ("type_", "given", "expected", "lost"),
    [
        ("DOUBLE", "1.0, 2.5, NULL, 'nan', 3", [1, None, None, None, 3], 1),
        ("VARCHAR", "'1', '2.0', 'x', NULL, ' 3'", [1, 2, None, None, 3], 1),
        ("DECIMAL(5, 1)", "1.0, 2.5, NULL, 4, 3", [1, None, None, 4, 3], 1),
        ("HUGEINT", "1, 2, NULL, 4, 3", [1, 2, None, 4, 3], 0),
        ("TINYINT", "1, 2, NULL, -4, 3", [1, 2, None, -4, 3], 0),
    ],
)
def test_a_key_is_a_whole_number_or_null_and_every_range_of_them_agrees(
    file: Path, type_: str, given: str, expected: list[int | None], lost: int
) -> None:
    source = made(
        file,
        f"CREATE TABLE Cells (ImageNumber {type_}, Value INTEGER DEFAULT 1)",
        *(f"INSERT INTO Cells (ImageNumber) VALUES ({one})" for one in given.split(", ")),
    )
    keys = Keys("ImageNumber", "")
    answer = read(source, [("ImageNumber", INT)], keys)
    assert [row[0] for row in rows_of(answer)] == expected
    assert sum(one.count for one in answer.findings) == lost
    (index,) = READER.index([source], keys, False)
    assert [one.image for one in index.images] == sorted(one for one in expected if one is not None)
    assert index.keyless == expected.count(None)
    for first, last in ((2, 3), (-200, 0), (1, 1000), (3, 2)):
        known = [one for one in expected if one is not None and first <= one <= last]
        assert [row[0] for row in rows_of(read(source, [("ImageNumber", INT)], keys, images=(first, last)))] == known


# Tables, images, datasets


def test_tables_are_those_of_the_schema_main_by_any_name(tmp_path: Path) -> None:
    for name in ("main.duckdb", "temp.duckdb", "system.duckdb", 'a "b"; DROP.duckdb'):
        path = tmp_path / name
        made(
            path,
            'CREATE TABLE "odd ""name""; DROP" ("select" INTEGER, "c0" INTEGER, "a.b" INTEGER)',
            'INSERT INTO "odd ""name""; DROP" VALUES (1, 2, 3)',
            "CREATE VIEW Ünï AS SELECT 7 AS Value",
            "CREATE SCHEMA other",
            "CREATE TABLE other.hidden (a INTEGER)",
            "CREATE TEMP TABLE passing (a INTEGER)",
        )
        assert READER.tables(str(path), fingerprint(path)) == ('odd "name"; DROP', "Ünï")
        odd = source_of(path, 'odd "name"; DROP')
        assert READER.columns(odd) == ("select", "c0", "a.b")
        assert rows_of(read(odd, [("a.b", INT), ("select", INT), ("none", INT), ("c0", INT)], NO_KEYS)) == [(3, 1, 2)]
        assert rows_of(read(source_of(path, "Ünï"), [("Value", INT)], NO_KEYS)) == [(7,)]
        with pytest.raises(BadSourceError, match="the table does not exist"):
            READER.columns(source_of(path, "hidden"))


def test_the_index_counts_the_rows_of_each_image(file: Path) -> None:
    source = made(file, PLATE)
    (index,) = READER.index([source], KEYS, True)
    assert [(one.image, one.rows, one.spans) for one in index.images] == [(3, 1, ()), (5, 3, ())]
    assert (index.keyless, index.unique, index.rows) == (1, True, 5)
    assert READER.objects(source, KEYS, 5) == [1, 2, 3]
    assert READER.count(source) == 5
    assert rows_of(read(source, images=(5, 9), objects=(2, 3))) == [(5, 2, 1.5), (5, 3, 4.5)]
    assert len(rows_of(read(source))) == 5
    with duckdb.connect(str(file)) as connection:
        connection.execute("INSERT INTO Cells VALUES (5, 3, 0)")
    (index,) = READER.index([source_of(file)], KEYS, True)
    assert (index.unique, index.finding) == (False, "repeated: image 5, object 3")


def test_rows_without_keys_come_in_stretches_of_a_table_and_whole_of_a_view(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar_rows, "SPLIT_ROWS", 4)
    made(
        file,
        "CREATE TABLE Cells AS SELECT range AS Value FROM range(10)",
        "DELETE FROM Cells WHERE Value = 5",
        "CREATE VIEW Seen AS SELECT * FROM Cells",
        "CREATE TABLE Odd AS SELECT 9 - Value AS rowid FROM Cells",
    )
    (index,) = READER.index([source_of(file)], NO_KEYS, False)
    assert [(one.image, one.rows) for one in index.images] == [(1, 4), (2, 4), (3, 1)]
    read_rows = [
        value
        for one in index.images
        for (value,) in rows_of(
            read(source_of(file), [("Value", INT)], NO_KEYS, images=(one.image, one.image), spans=one.spans)
        )
    ]
    assert read_rows == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    for table, column, missing in (("Seen", "Value", 5), ("Odd", "rowid", 4)):
        assert READER.sample([source_of(file, table)], 1 << 20, True).types == {column: INT}
        (index,) = READER.index([source_of(file, table)], NO_KEYS, False)
        assert [(one.image, one.rows, one.spans) for one in index.images] == [(1, 9, ())]
        answer = read(source_of(file, table), [(column, INT)], NO_KEYS, images=(1, 1))
        assert sorted(rows_of(answer)) == [(number,) for number in range(10) if number != missing]


def order(name: str | None) -> tuple[bool, bool, int, str]:
    """Nothing first, whole numbers by their size, then texts."""
    number = name is not None and name.isdigit()
    return name is not None, not number, int(name or 0) if number else 0, name or ""


@pytest.mark.parametrize(
    ("type_", "rows"),
    [
        ("INTEGER", ["7", "7", None, "12"]),
        ("UBIGINT", ["7", "7", None, "12"]),
        ("HUGEINT", ["7", "7", None, "12"]),
        ("DOUBLE", ["7", "nan", None, "1.5"]),
        ("FLOAT", ["7", "7", None, "0.1"]),
        ("VARCHAR", ["a'b", "a'b", None, ""]),
        ("ENUM('x', 'y')", ["y", "y", None, "x"]),
        ("BLOB", ["y", "y", None, "x"]),
        ("DECIMAL(5, 1)", ["7", "7.5", None, "12"]),
        ("DATE", ["2024-02-29", "2024-02-29", None, "2024-03-01"]),
        ("BOOLEAN", ["True", "True", None, "False"]),
    ],
)
def test_datasets_inside_one_table(file: Path, type_: str, rows: list[str | None]) -> None:
    made(file, f"CREATE TABLE Cells (ImageNumber INTEGER, ObjectNumber INTEGER, Value DOUBLE, TableNumber {type_})")
    with duckdb.connect(str(file)) as connection:
        for place, number in enumerate(rows, start=1):
            connection.execute("INSERT INTO Cells VALUES (?, ?, 0.5, ?)", [2 if place == 2 else 1, place, number])
    whole = source_of(file)
    if type_ == "FLOAT":
        rows = [str(0.10000000149011612) if one == "0.1" else one for one in rows]
    rows = [None if one == "nan" else one for one in rows]
    assert READER.numbers(whole, "TableNumber", "ImageNumber") == tuple(sorted(set(rows), key=order))
    assert READER.numbers(whole, "Other", "ImageNumber") == READER.numbers(whole, "TableNumber", "Other") == ()
    expected = {name: [place for place, one in enumerate(rows, start=1) if one == name] for name in dict.fromkeys(rows)}
    sources = [source_of(file, only=Only("TableNumber", name)) for name in expected]
    for source, index, objects in zip(sources, READER.index(sources, KEYS, True), expected.values(), strict=True):
        assert index.rows == READER.count(source) == len(objects)
        assert [row[1] for row in rows_of(read(source))] == objects
        assert READER.objects(source, KEYS, 1) == [one for one in objects if one != 2]
    together = READER.read_together([Request(one, KEYS, PLANNED) for one in sources])
    assert together is not None
    assert together.counts == tuple(map(len, expected.values()))
    some = READER.read_together([Request(one, KEYS, PLANNED) for one in sources[:1]])
    assert some is not None
    assert some.table.column("ObjectNumber").to_pylist() == expected[rows[0]]
    for place, objects in enumerate(expected.values()):
        here = together.table.filter(pa.array(together.order == place))
        assert here.column("ObjectNumber").to_pylist() == objects
    nothing = source_of(file, only=Only("TableNumber", "none such"))
    assert READER.count(nothing) == 0
    assert rows_of(read(nothing)) == []
    assert READER.read_together([Request(whole, KEYS, PLANNED), Request(sources[0], KEYS, PLANNED)]) is None


def test_a_wide_table_is_read_a_few_columns_at_a_time_and_a_wide_view_says_so(file: Path) -> None:
    """DuckDB holds a block of 256 KiB of each column that it scans: of 1,100 more than its memory here."""
    width, rows = 1100, 33_000
    columns = ", ".join(f"random() AS f{number}" for number in range(width))
    made(
        file,
        f"CREATE TABLE Cells AS SELECT range // 100 AS ImageNumber, range % 100 AS ObjectNumber, {columns}, "
        f"range AS Place FROM range({rows})",
        "CREATE VIEW Seen AS SELECT * FROM Cells",
    )
    source = source_of(file)
    planned = [(name, INT if "Number" in name or name == "Place" else DOUBLE) for name in READER.columns(source)]
    table = read(source, planned, images=(300, 309)).table
    assert table.column("Place").to_pylist() == list(range(30_000, 31_000))
    with duckdb.connect(str(file), read_only=True) as connection:
        expected = connection.execute("SELECT f0, f63, f64, f1099 FROM Cells WHERE ImageNumber BETWEEN 300 AND 309")
        known = expected.fetchall()
    assert list(zip(*(table.column(f"f{one}").to_pylist() for one in (0, 63, 64, 1099)), strict=True)) == known
    with pytest.raises(BadSourceError, match=r"more than 256MB.*make it a table"):
        read(source_of(file, "Seen"), planned, images=(300, 309))


def test_rows_that_come_in_another_order_each_time_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made(file, PLATE)
    orders = iter(["", "ORDER BY rowid DESC", ""])
    condition = duckdb_rows.condition
    monkeypatch.setattr(duckdb_rows, "GROUP", 1)
    monkeypatch.setattr(duckdb_rows, "condition", lambda *given: (next(orders), condition(*given)[1]))
    with pytest.raises(BadSourceError, match="another order"):
        read(source)


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[object, ...]]:
    number = st.one_of(st.none(), st.integers(0, 2))
    image = st.one_of(st.none(), st.integers(-1, 4))
    keys = draw(st.lists(st.tuples(image, number, st.one_of(st.none(), st.floats(allow_nan=False))), max_size=30))
    return [(place, *row) for place, row in enumerate(keys)]


def cuts(data: st.DataObject, index: Index) -> Iterator[tuple[tuple[int, int], tuple[Span, ...], int]]:
    """(images, spans, rows) of consecutive ranges."""
    images = list(index.images)
    while images:
        size = data.draw(st.integers(1, len(images)))
        here, images = images[:size], images[size:]
        spans = tuple(span for one in here for span in one.spans)
        yield (here[0].image, here[-1].image), spans, sum(one.rows for one in here)


@settings(max_examples=25)
@given(tables(), st.sampled_from(["INTEGER", "DOUBLE", "VARCHAR"]), st.booleans(), st.booleans(), st.data())
def test_every_cut_reads_every_row_once(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[object, ...]],
    type_: str,
    keyed: bool,
    numbered: bool,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("cuts") / "plate.duckdb"
    keys = KEYS if keyed else NO_KEYS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar_rows, "SPLIT_ROWS", 3)
        patch.setattr(duckdb_rows, "GROUP", data.draw(st.sampled_from([1, 64])))
        made(path, f"CREATE TABLE Cells (ObjectNumber INTEGER, ImageNumber {type_}, TableNumber {type_}, Value DOUBLE)")
        if rows:
            with duckdb.connect(str(path)) as connection:
                marks = ", ".join(["(?, ?, ?, ?)"] * len(rows))
                connection.execute(f"INSERT INTO Cells VALUES {marks}", [value for row in rows for value in row])
        sources = [source_of(path)]
        if numbered:
            names = READER.numbers(sources[0], "TableNumber", "ImageNumber")
            sources = [source_of(path, only=Only("TableNumber", name)) for name in names]
        columns = [("ObjectNumber", INT), ("Value", DOUBLE)]
        seen: list[tuple[object, ...]] = []
        for source, index in zip(sources, READER.index(sources, keys, True) if sources else [], strict=True):
            for images, spans, count in cuts(data, index):
                found = rows_of(read(source, columns, keys, images=images, spans=spans))
                assert len(found) == count
                seen += found
            assert len(rows_of(read(source, columns, keys))) == index.rows
    expected = [(row[0], row[3]) for row in rows if not keyed or row[1] is not None]
    assert sorted(seen, key=repr) == sorted(expected, key=repr)


# The file


def test_checksum_is_that_of_the_bytes(file: Path) -> None:
    source = made(file, PLATE)
    assert READER.checksum(source) == zlib.crc32(file.read_bytes())
    assert READER.cut is Cut.ALWAYS


def test_reading_changes_nothing_and_keeps_nothing_open(file: Path) -> None:
    source = made(file, PLATE)
    before = file.read_bytes()
    READER.tables(str(file), fingerprint(file))
    READER.sample([source], 1 << 20, True)
    READER.index([source], KEYS, True)
    read(source)
    with pytest.raises(BadSourceError):
        READER.columns(source_of(file, "none"))
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == before
    code = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('CREATE TABLE Other (a INTEGER)')"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=120)
    assert READER.tables(str(file), fingerprint(file)) == ("Cells", "Other")


def test_several_threads_read_one_file_at_once(file: Path) -> None:
    rows = 20_000
    source = made(
        file,
        f"CREATE TABLE Cells AS SELECT range // 100 AS ImageNumber, range % 100 AS ObjectNumber, range / 8 AS Value "
        f"FROM range({rows})",
    )
    wrong: list[object] = []

    def work(start: int) -> None:
        try:
            for image in range(start, 200, 40):
                found = rows_of(read(source, images=(image, image + 4)))
                expected = [(n // 100, n % 100, n / 8) for n in range(image * 100, image * 100 + 500)]
                wrong.extend([image] if found != expected else [])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(5 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_only_so_many_connections_read_at_once_as_fit_their_memory(file: Path) -> None:
    made(file, PLATE)
    with contextlib.ExitStack() as stack:
        for _ in range(duckdb_file.AT_ONCE):
            assert duckdb_file._turns.acquire(blocking=False)
            duckdb_file._turns.release()
            stack.enter_context(duckdb_file.reading(file, "x"))
        assert not duckdb_file._turns.acquire(blocking=False)
    assert duckdb_file._turns.acquire(blocking=False)
    duckdb_file._turns.release()


HOLD = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_database_that_another_program_writes_is_busy(file: Path) -> None:
    source = made(file, PLATE)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "locked\n"
            with pytest.raises(SourceBusyError, match="another program has it open to write"):
                read(source)
            with pytest.raises(SourceBusyError):
                READER.tables(str(file), fingerprint(file))
        finally:
            writer.communicate("\n", timeout=120)
    assert len(rows_of(read(source))) == 5


def test_a_database_that_this_process_has_open_otherwise_is_busy(file: Path) -> None:
    source = made(file, PLATE)
    with duckdb.connect(str(file), read_only=True), pytest.raises(SourceBusyError, match="this process has it open"):
        read(source)
    assert len(rows_of(read(source))) == 5


LEAVE_LOG = """
import duckdb, os, sys
connection = duckdb.connect(sys.argv[1])
connection.execute("SET wal_autocheckpoint = '1TB'")
connection.execute("CREATE TABLE Cells AS SELECT 7 AS Value")
os._exit(0)
"""


def test_what_is_not_yet_written_back_is_read_and_left_where_it_is(file: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVE_LOG, str(file)], check=True, timeout=120)
    (log,) = [one for one in file.parent.iterdir() if one != file]
    before = log.read_bytes()
    assert rows_of(read(source_of(file), [("Value", INT)], NO_KEYS)) == [(7,)]
    assert log.read_bytes() == before


def newer(data: bytes) -> bytes:
    """The file as of a version that is not there yet: its number, and the checksum of the header with it."""
    header = data[8:12] + (10**6).to_bytes(8, "little") + data[20:4096]
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", header):
        checksum ^= word * 0xBF58476D1CE4E5B9 % 2**64
    return checksum.to_bytes(8, "little") + header + data[4096:]


def test_other_files_are_bad_sources(file: Path) -> None:
    made(file, PLATE)
    data = file.read_bytes()
    page = bytearray(data)
    for place in range(12_288, len(page), 64):
        page[place] ^= 0xFF
    for content, cause in (
        (b"", "no DuckDB database"),
        (b"ImageNumber,ObjectNumber\n" * 100, "no DuckDB database"),
        (b"SQLite format 3\0" + bytes(4080), "no DuckDB database"),
        (data[:5000], "DuckDB cannot read it"),
        (newer(data), "another version of DuckDB"),
        (bytes(page), "DuckDB cannot read it"),
    ):
        file.write_bytes(content)
        for action in (lambda: READER.tables(str(file), fingerprint(file)), lambda: read(source_of(file))):
            with pytest.raises(BadSourceError, match=cause):
                action()
        assert READER.count(source_of(file)) is None


def test_a_missing_file_is_no_bad_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(Source("cells", str(tmp_path / "none.duckdb"), Format.DUCKDB, Fingerprint(1, 1), "Cells"))
    assert not list(tmp_path.iterdir())


SECRETS = """
import sys
from pathlib import Path
import pyarrow
from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources.base import Keys, Request
from prefect_cytotable.tasks.core.sources.duckdb import DuckdbReader

path = Path(sys.argv[1])
reader = DuckdbReader(Places())
fingerprint = Fingerprint(path.stat().st_size, 0)
secret = pyarrow.table([pyarrow.nulls(1)], names=["line"])
for table in reader.tables(str(path), fingerprint):
    source = Source("cells", str(path), Format.DUCKDB, fingerprint, table)
    for action in (
        lambda: reader.sample([source], 1 << 20, False),
        lambda: reader.read(Request(source, Keys("", ""), (("line", ColumnType.STRING),))).table.to_pydict(),
    ):
        try:
            print(table, "read", action())
        except BadSourceError as error:
            print(table, "refused", error)
print("pandas" in sys.modules)
"""


def test_a_database_reads_nothing_outside_its_file(tmp_path: Path) -> None:
    """Made with everything permitted, as an attacker would."""
    secret = tmp_path / "secret.csv"
    secret.write_text("line\nsesame\n", encoding="utf-8")
    other = tmp_path / "other.duckdb"
    made(other, "CREATE TABLE Cells AS SELECT 'sesame' AS line")
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT 'sesame' AS line) TO '{tmp_path}/secret.parquet' (FORMAT parquet)")
    views = {
        "csv": f"SELECT * FROM read_csv('{secret}')",
        "text": f"SELECT content AS line FROM read_text('{secret}')",
        "blob": f"SELECT content AS line FROM read_blob('{secret}')",
        "parquet": f"SELECT * FROM read_parquet('{tmp_path}/secret.parquet')",
        "name": f"SELECT * FROM '{secret}'",
        "listing": f"SELECT file AS line FROM glob('{tmp_path}/sec*')",
        "sniff": f"SELECT Columns::VARCHAR AS line FROM sniff_csv('{secret}')",
        "footer": f"SELECT file_name AS line FROM parquet_metadata('{tmp_path}/secret.parquet')",
        "macro": "SELECT * FROM peek()",
        "inner": f"SELECT (SELECT content FROM read_text('{secret}')) AS line",
    }
    file = tmp_path / "plate.duckdb"
    made(file, f"CREATE MACRO peek() AS TABLE SELECT content AS line FROM read_text('{secret}')")
    with duckdb.connect(str(file)) as connection:
        connection.execute(f"ATTACH '{other}' AS other")
        connection.execute("CREATE VIEW attached AS SELECT * FROM other.main.Cells")
        for name, sql in views.items():
            connection.execute(f'CREATE VIEW "{name}" AS {sql}')
        connection.execute("CREATE TABLE harmless AS SELECT 'seen' AS line")
        connection.execute("CREATE TABLE secret AS SELECT 'x' AS line")
        connection.execute("CREATE VIEW variable AS SELECT * FROM secret")
        connection.execute("DROP TABLE secret")
    result = subprocess.run(
        [sys.executable, "-c", SECRETS, str(file)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=tmp_path,
    )
    *lines, pandas = result.stdout.splitlines()
    assert len(lines) == 2 * (len(views) + 3)
    assert [line[:29] for line in lines if " refused " not in line] == [
        "harmless read Sample(types={'",
        "harmless read {'line': ['seen",
    ]
    assert "sesame" not in result.stdout
    assert "attached refused" in result.stdout
    assert pandas == "False" or duckdb.__version__.startswith("1.")  # which imports it itself


def test_settings_are_locked_and_nothing_is_put_beside_the_file(file: Path) -> None:
    made(file, PLATE)
    with duckdb_file.reading(file, "x") as opened:
        for statement in (
            "SET enable_external_access = true",
            "SET memory_limit = '10GB'",
            f"ATTACH '{file.parent / 'new.duckdb'}' AS new",
            f"COPY (SELECT 1) TO '{file.parent / 'new.csv'}'",
            "INSERT INTO Cells VALUES (1, 1, 1)",
            "INSTALL httpfs",
            "LOAD httpfs",
        ):
            with pytest.raises(duckdb.Error):
                opened.execute(statement)
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_what_does_not_fit_the_memory_is_not_put_on_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(duckdb_file._SETTINGS, "memory_limit", "32MB")
    made(
        file,
        "CREATE VIEW Cells AS SELECT number AS Value FROM (SELECT number, row_number() OVER (ORDER BY number) AS place "
        "FROM (SELECT hash(range) AS number FROM range(4000000))) WHERE place % 2 = 0",
    )
    with pytest.raises(BadSourceError, match="make it a table"):
        READER.index([source_of(file)], NO_KEYS, False)
    assert [one.name for one in file.parent.iterdir()] == [file.name]
