"""The SQLite reader: values of any storage class, tables without an index, locks, logs and damage."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.errors import BadSourceError, SourceBusyError
from prefect_cytotable.tasks.core.model import ColumnType, Format, Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources import sqlite_file, sqlite_rows
from prefect_cytotable.tasks.core.sources.base import Answer, Index, Keys, Request
from prefect_cytotable.tasks.core.sources.sqlite import SqliteReader
from prefect_cytotable.tasks.core.sources.sqlite_file import fingerprint, looks_like, tables

READER = SqliteReader(Places())
KEYS = Keys("ImageNumber", "ObjectNumber")
INT, DOUBLE, TEXT = ColumnType.INT64, ColumnType.DOUBLE, ColumnType.STRING
PLANNED = (("ImageNumber", INT), ("ObjectNumber", INT), ("Value", DOUBLE))
INDEXED = "ImageNumber INTEGER, ObjectNumber INTEGER, Value {}, PRIMARY KEY (ImageNumber, ObjectNumber)"
PLAIN = "ImageNumber INTEGER, ObjectNumber INTEGER, Value {}"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one database; each test, and each of Hypothesis' examples, makes it anew."""
    return tmp_path_factory.mktemp("sqlite") / 'plate\'s "1" é?.sqlite'


def made(path: Path, definition: str, rows: Iterable[Sequence[object]], table: str = "Cells") -> Source:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-journal"):
        path.with_name(name).unlink(missing_ok=True)
    rows = list(rows)
    quoted = table.replace('"', '""')
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f'CREATE TABLE "{quoted}" ({definition})')
        if rows:
            connection.executemany(f'INSERT INTO "{quoted}" VALUES ({", ".join("?" * len(rows[0]))})', rows)
    return source_of(path, table)


def source_of(path: Path, table: str = "Cells") -> Source:
    return Source("cells", str(path), Format.SQLITE, fingerprint(path), table)


def index_of(source: Source, keys: Keys = KEYS) -> Index:
    (index,) = READER.index([source], keys, True)
    return index


def values(path: Path, declared: str, given: Sequence[object], type_: ColumnType, definition: str = INDEXED) -> Answer:
    source = made(path, definition.format(declared), [(1, number, one) for number, one in enumerate(given, start=1)])
    columns = (("ImageNumber", INT), ("ObjectNumber", INT), ("Value", type_))
    return READER.read(Request(source, KEYS, columns))


def in_order(answer: Answer) -> list[object]:
    return answer.table.sort_by("ObjectNumber").column("Value").to_pylist()


def rows_of(source: Source, **more: object) -> list[tuple]:
    table = READER.read(Request(source, KEYS, PLANNED, **more)).table  # type: ignore[arg-type]
    return sorted(zip(*(table.column(name).to_pylist() for name, _ in PLANNED), strict=True), key=repr)


# Values


@pytest.mark.parametrize("lead", [0, 5000], ids=["first batch", "a later batch"])
def test_a_real_in_an_integer_column_widens_it_and_is_kept(file: Path, lead: int) -> None:
    given = [*range(lead), 7, 2.5, None]
    answer = values(file, "INTEGER", given, INT)
    assert answer.widened == (("Value", DOUBLE),)
    answer = values(file, "INTEGER", given, DOUBLE)
    assert in_order(answer) == [None if one is None else float(one) for one in given]
    assert answer.table.schema.field("Value").type == pa.float64()
    assert not answer.findings


@pytest.mark.parametrize("lead", [0, 5000], ids=["first batch", "a later batch"])
def test_texts_in_a_numeric_column_are_null_or_infinite_by_rule_and_counted(file: Path, lead: int) -> None:
    given = [*(number / 2 for number in range(lead)), "nan", "NaN", "inf", "-Infinity", "junk", b"\x00\xff", 1.5, None]
    answer = values(file, "REAL", given, DOUBLE)
    assert in_order(answer)[lead:] == [None, None, math.inf, -math.inf, None, None, 1.5, None]
    assert in_order(answer)[:lead] == given[:lead]
    assert {(one.column, one.finding): one.count for one in answer.findings} == {
        ("Value", "text 'nan' became null"): 2,
        ("Value", "a value that is not a number became null"): 2,
    }


def test_junk_in_a_whole_number_column_becomes_null_and_is_counted(file: Path) -> None:
    answer = values(file, "INTEGER", [1, "x", "nan", 4], INT)
    assert in_order(answer) == [1, None, None, 4]
    assert sum(one.count for one in answer.findings) == 2
    assert not answer.widened


def test_infinity_in_a_whole_number_column_widens_it(file: Path) -> None:
    assert values(file, "INTEGER", [1, "inf"], INT).widened == (("Value", DOUBLE),)
    assert in_order(values(file, "INTEGER", [1, "inf"], DOUBLE)) == [1.0, math.inf]


@pytest.mark.parametrize("type_", [INT, DOUBLE, TEXT, ColumnType.BOOL])
def test_a_column_that_begins_with_nulls(file: Path, type_: ColumnType) -> None:
    last = {INT: 3, DOUBLE: 2.5, TEXT: "x", ColumnType.BOOL: 1}[type_]
    answer = values(file, "", [None] * 5000 + [last], type_)
    assert in_order(answer) == [None] * 5000 + [last]
    assert in_order(values(file, "", [None] * 3, type_)) == [None] * 3


def test_whole_reals_in_a_double_column_stay_doubles(file: Path) -> None:
    answer = values(file, "REAL", [1.0, 2.0, 3], DOUBLE)
    assert in_order(answer) == [1.0, 2.0, 3.0]
    assert answer.table.schema.field("Value").type == pa.float64()


def test_numbers_in_a_text_column_are_texts(file: Path) -> None:
    assert in_order(values(file, "", ["a", 5, 2.5, None, ""], TEXT)) == ["a", "5", "2.5", None, ""]


def test_a_text_that_is_not_utf8_is_a_bad_source(file: Path) -> None:
    source = made(file, PLAIN.format("TEXT"), [(1, 1, "x")])
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE Cells SET Value = CAST(x'ff' AS TEXT)")
    with pytest.raises(BadSourceError, match="not UTF-8"):
        READER.read(Request(source, KEYS, (("ImageNumber", INT), ("Value", TEXT))))


ANY_VALUE = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.sampled_from(["nan", "inf", "-inf", "junk", " 5 ", "", b"\x01"]),
)


@given(st.lists(ANY_VALUE, max_size=12), st.sampled_from(["", "INTEGER", "REAL", "float", "NUMERIC", "BLOB"]))
def test_every_number_of_any_column_comes_out_as_double(file: Path, given: list[object], declared: str) -> None:
    answer = values(file, declared, given, DOUBLE)
    assert not answer.widened
    with closing(sqlite3.connect(file)) as connection:
        stored = [one for (one,) in connection.execute("SELECT Value FROM Cells ORDER BY ObjectNumber")]
    infinite = {"inf": math.inf, "-inf": -math.inf}
    expected = [
        float(one) if isinstance(one, int | float) else infinite.get(one) if isinstance(one, str) else None
        for one in stored
    ]
    assert in_order(answer) == expected
    lost = sum(isinstance(one, str | bytes) and one not in infinite for one in stored)
    assert sum(one.count for one in answer.findings) == lost


# SQLite itself stores -0.0 as 0.
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False).map(lambda one: one or 0.0), min_size=1))
def test_doubles_survive_bit_for_bit(file: Path, given: list[float]) -> None:
    assert [repr(one) for one in in_order(values(file, "REAL", given, DOUBLE))] == [repr(one) for one in given]


def test_declared_types_decide_and_the_others_are_sampled(file: Path) -> None:
    source = made(
        file,
        "a BIGINT, b double, c VARCHAR(9), d, e NUMERIC, f BLOB, g",
        [(1, 1.0, "x", 1, 1.5, "t", None), (1, 1.0, "x", 2, 1, 3, None)],
    )
    sample = READER.sample([source], 1 << 20, measures=True)
    assert sample.types == {"a": INT, "b": DOUBLE, "c": TEXT, "d": INT, "e": DOUBLE, "f": TEXT, "g": None}
    assert sample.row_bytes >= 7 * 4


# Keys


@pytest.mark.parametrize("definition", [PLAIN, INDEXED], ids=["no index", "index"])
def test_rows_without_numbers_are_kept_apart(file: Path, definition: str) -> None:
    source = made(file, definition.format("REAL"), [(1, 1, 0.5), (None, 1, 1.5), (2, None, 2.5), (None, None, 3.5)])
    index = index_of(source)
    assert [(one.image, one.rows) for one in index.images] == [(1, 1), (2, 1)]
    assert index.keyless == 2
    assert index.unique is True
    assert rows_of(source, images=(1, 2)) == [(1, 1, 0.5), (2, None, 2.5)]


@pytest.mark.parametrize("declared", ["", "REAL", "TEXT", "NUMERIC"])
def test_keys_of_another_class_are_numbers_all_the_same(file: Path, declared: str) -> None:
    definition = f"ImageNumber {declared}, ObjectNumber {declared}, Value REAL"
    source = made(file, definition, [(1.0, 1.0, 0.5), (1, 2, 1.5), (2.0, 1, 2.5)])
    answer = READER.read(Request(source, KEYS, PLANNED))
    assert not answer.widened
    assert answer.table.schema.field("ImageNumber").type == pa.int64()
    if declared != "TEXT":  # a number that is stored as text numbers nothing for SQLite's comparisons
        index = index_of(source)
        assert [(one.image, one.rows) for one in index.images] == [(1, 2), (2, 1)]
        assert rows_of(source) == [(1, 1, 0.5), (1, 2, 1.5), (2, 1, 2.5)]
        assert READER.objects(source, KEYS, 1) == [1, 2]


def test_keys_that_number_nothing_are_null_and_never_widen(file: Path) -> None:
    rows = [(1, 1, 0.5), ("x", 2, 1.5), (1.5, 3, 2.5), (1, "y", 3.5), (2, 1.5, 4.5)]
    source = made(file, "ImageNumber, ObjectNumber, Value REAL", rows)
    answer = READER.read(Request(source, KEYS, PLANNED))
    assert not answer.widened
    table = answer.table.sort_by("Value")
    assert table.column("ImageNumber").to_pylist() == [1, None, None, 1, 2]
    assert table.column("ObjectNumber").to_pylist() == [1, 2, 3, None, None]
    index = index_of(source)
    assert [(one.image, one.rows) for one in index.images] == [(1, 2), (2, 1)]
    assert index.keyless == 2
    assert [row[0] for row in rows_of(source, images=(1, 2))] == [1, 1, 2]
    assert READER.objects(source, KEYS, 1) == [1]


def test_repeated_keys_are_found_and_named(file: Path) -> None:
    source = made(file, PLAIN.format("REAL"), [(1, 1, 0.5), (1, 2, 0.5), (1, 2, 0.5)])
    index = index_of(source)
    assert index.unique is False
    assert "image 1, object 2: 2 rows" in index.finding


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), unique=True, max_size=30), st.booleans())
def test_the_images_of_an_index_hold_every_row_once(file: Path, keys: list[tuple[int, int]], indexed: bool) -> None:
    rows = [(image, number, image + number / 16) for image, number in keys]
    source = made(file, (INDEXED if indexed else PLAIN).format("REAL"), rows)
    index = index_of(source)
    assert [one.image for one in index.images] == sorted({image for image, _ in keys})
    for one in index.images:
        assert bool(one.spans) is not indexed
        found = rows_of(source, images=(one.image, one.image), spans=one.spans)
        assert found == sorted((row for row in rows if row[0] == one.image), key=repr)
        assert one.rows == len(found)
        assert READER.objects(source, KEYS, one.image) == sorted(number for image, number in keys if image == one.image)


def test_a_range_of_objects(file: Path) -> None:
    source = made(file, INDEXED.format("REAL"), [(image, number, 0.5) for image in (1, 2) for number in range(1, 9)])
    assert [row[:2] for row in rows_of(source, images=(2, 2), objects=(3, 5))] == [(2, 3), (2, 4), (2, 5)]


# Names


@pytest.mark.parametrize("name", ['Per "Cells"', "Per Cells", "Zellen; DROP TABLE x", "Zelle_é", "a'b", "c[0]", "n\nl"])
def test_names_with_quotes_blanks_and_unicode(file: Path, name: str) -> None:
    column = name.replace('"', '""')
    source = made(
        file,
        f'ImageNumber INTEGER, "{column}" INTEGER, Value REAL, PRIMARY KEY (ImageNumber, "{column}")',
        [(1, 1, 0.5), (1, 2, "junk")],
        table=name,
    )
    keys = Keys("ImageNumber", name)
    assert READER.columns(source) == ("ImageNumber", name, "Value")
    assert name in tables(file, str(file))
    assert READER.sample([source], 1 << 20, measures=True).types[name] is INT
    answer = READER.read(Request(source, keys, (("ImageNumber", INT), (name, INT), ("Value", DOUBLE)), images=(1, 1)))
    assert answer.table.sort_by(name).column("Value").to_pylist() == [0.5, None]
    assert index_of(source, keys).unique is True
    assert READER.objects(source, keys, 1) == [1, 2]


def test_a_column_that_the_table_lacks_is_left_out_and_is_no_text(file: Path) -> None:
    source = made(file, PLAIN.format("REAL"), [(1, 1, 0.5)])
    answer = READER.read(Request(source, KEYS, (("ImageNumber", INT), ("Nothing", TEXT))))
    assert answer.table.column_names == ["ImageNumber"]


# Logs and locks


def state(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.parent.iterdir() if not one.name.endswith("-shm")}


OTHER_PROGRAM = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    connection.execute(line)
    print("done", flush=True)
"""


class Program:
    """Another program with a database open: locks count between processes, not within one."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", OTHER_PROGRAM, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def execute(self, sql: str) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(sql + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[Path], Program]]:
    programs: list[Program] = []

    def start(path: Path) -> Program:
        programs.append(Program(path))
        return programs[-1]

    yield start
    for one in programs:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def written(tmp_path: Path, program: Callable[[Path], Program]) -> tuple[Source, Program]:
    """A database in write-ahead mode that another program has open, with rows in its log only."""
    path = tmp_path / "plate.sqlite"
    made(path, INDEXED.format("REAL"), [(1, number, 0.5) for number in range(1, 50)])
    other = program(path)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("PRAGMA wal_autocheckpoint=0")
    other.execute("INSERT INTO Cells SELECT 2, ObjectNumber, 1.5 FROM Cells WHERE ObjectNumber < 30")
    return source_of(path), other


def test_a_database_being_written_is_read_as_last_committed_and_never_changed(written: tuple[Source, Program]) -> None:
    source, other = written
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO Cells VALUES (3, 1, 9.5)")
    before = state(Path(source.path))
    assert before["plate.sqlite-wal"]
    assert sum(one.rows for one in index_of(source).images) == 49 + 29
    assert len(rows_of(source)) == 49 + 29
    assert READER.count(source) == 49 + 29
    assert state(Path(source.path)) == before
    other.execute("COMMIT")
    assert len(rows_of(source)) == 49 + 29 + 1
    assert fingerprint(Path(source.path)) != source.fingerprint


def test_a_log_that_a_dead_program_left_is_read_and_left(written: tuple[Source, Program], tmp_path: Path) -> None:
    assert written
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("plate.sqlite", "plate.sqlite-wal"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    before = state(copy / "plate.sqlite")
    left = source_of(copy / "plate.sqlite")
    assert len(rows_of(left)) == 49 + 29
    assert sum(one.rows for one in index_of(left).images) == 49 + 29
    assert state(copy / "plate.sqlite") == before


def test_a_database_in_write_ahead_mode_without_a_log(tmp_path: Path) -> None:
    path = tmp_path / "plate.sqlite"
    made(path, INDEXED.format("REAL"), [(1, 1, 0.5)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    data = path.read_bytes()
    assert rows_of(source_of(path)) == [(1, 1, 0.5)]
    assert path.read_bytes() == data


def test_a_locked_database_is_busy(
    file: Path, program: Callable[[Path], Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made(file, INDEXED.format("REAL"), [(1, 1, 0.5)])
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.1)
    program(file).execute("BEGIN EXCLUSIVE")
    for step in (
        lambda: tables(file, str(file)),
        lambda: READER.columns(source),
        lambda: index_of(source),
        lambda: READER.read(Request(source, KEYS, PLANNED)),
        lambda: fetched(source),
    ):
        with pytest.raises(SourceBusyError) as caught:
            step()
        assert caught.value.retriable
        assert str(file) in str(caught.value)


def fetched(source: Source) -> pa.Table:
    """The rows through the driver alone, without the look at the table that comes before."""
    with sqlite_file.errors(source.where):
        names = [f'"{name}"' for name, _ in PLANNED]
        query = sqlite_rows.Query(Path(source.path), "", 'FROM "Cells"', ())
        return sqlite_rows.fetch(query, list(PLANNED), names)


def test_the_driver_waits_for_a_lock_that_passes(file: Path, program: Callable[[Path], Program]) -> None:
    source = made(file, INDEXED.format("REAL"), [(1, 1, 0.5)])
    other = program(file)
    other.execute("BEGIN EXCLUSIVE")
    later = threading.Timer(0.5, other.end)
    later.start()
    try:
        assert fetched(source).num_rows == 1
    finally:
        later.join()


# Damage


def test_a_database_with_damaged_pages_is_a_bad_source_or_whole(file: Path) -> None:
    count = 3000
    for fraction in (0.2, 0.35, 0.5, 0.65, 0.8):
        source = made(file, PLAIN.format("TEXT"), [(number // 50, number, "x" * 40) for number in range(count)])
        data = bytearray(file.read_bytes())
        middle = int(len(data) * fraction)
        data[middle : middle + 9000] = b"\xa5" * 9000
        file.write_bytes(data)
        columns = (("ImageNumber", INT), ("ObjectNumber", INT), ("Value", TEXT))
        with pytest.raises(BadSourceError) as caught:
            READER.read(Request(source, KEYS, columns))
        assert "Cells" in str(caught.value)
        with pytest.raises(BadSourceError):
            index_of(source)
        assert READER.count(source) in (None, count)


def test_a_database_cut_off_is_a_bad_source(file: Path) -> None:
    source = made(file, PLAIN.format("TEXT"), [(number // 50, number, "x" * 40) for number in range(3000)])
    file.write_bytes(file.read_bytes()[: 10 * 4096 + 100])
    with pytest.raises(BadSourceError):
        READER.read(Request(source, KEYS, PLANNED))


@pytest.mark.parametrize("content", [b"", b"ImageNumber,ObjectNumber\n1,2\n", b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "plate.sqlite"
    file.write_bytes(content)
    if not content.startswith(b"SQLite"):
        assert not looks_like(file)
    source = source_of(file)
    with pytest.raises(BadSourceError) as caught:
        READER.columns(source)
    assert str(file) in str(caught.value)
    assert file.read_bytes() == content


def test_a_table_that_is_not_there(file: Path) -> None:
    made(file, PLAIN.format("REAL"), [])
    with pytest.raises(BadSourceError, match="does not exist"):
        READER.columns(source_of(file, "Nuclei"))


def test_a_file_that_went_away_is_not_made_anew(tmp_path: Path) -> None:
    source = made(tmp_path / "plate.sqlite", PLAIN.format("REAL"), [(1, 1, 0.5)])
    Path(source.path).unlink()
    with pytest.raises((BadSourceError, FileNotFoundError)):
        READER.read(Request(source, KEYS, PLANNED))
    assert not Path(source.path).exists()


def test_a_table_without_rows(file: Path) -> None:
    source = made(file, PLAIN.format("REAL"), [])
    assert rows_of(source) == []
    assert index_of(source).images == ()
    assert READER.sample([source], 1 << 20, measures=True).types["Value"] is DOUBLE


def test_a_view_is_read_as_a_table(file: Path) -> None:
    made(file, INDEXED.format("REAL"), [(2, 1, 0.5), (1, 1, 1.5)])
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE VIEW Nuclei AS SELECT * FROM Cells")
    view = source_of(file, "Nuclei")
    assert rows_of(view, images=(2, 2)) == [(2, 1, 0.5)]
    index = index_of(view)
    for one in index.images:
        assert len(rows_of(view, images=(one.image, one.image), spans=one.spans)) == one.rows
