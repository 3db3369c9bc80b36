"""The Parquet reader: types, keys, where the rows of each image lie, bounded memory, damage."""

from __future__ import annotations

import datetime as dt
import decimal
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typed import BOOL, DOUBLE, FLOAT, INT, NO_KEYS, PLANNED, TEXT

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Only, Source, Span
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources import columnar_rows, parquet_file
from prefect_cytotable.tasks.core.sources.base import Answer, Cut, Index, Keys, Request
from prefect_cytotable.tasks.core.sources.parquet import ParquetReader

READER = ParquetReader(Places())
OBJECTS = Keys("ImageNumber", "ObjectNumber")
IMAGES = Keys("ImageNumber", "")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one file; each test, and each of Hypothesis' examples, writes it anew."""
    return tmp_path_factory.mktemp("parquet") / 'plate\'s "1" é?.parquet'


def source_of(path: Path, only: Only | None = None) -> Source:
    status = path.stat()
    return Source("cells", str(path), Format.PARQUET, Fingerprint(status.st_size, status.st_mtime_ns), only=only)


def written(path: Path, columns: dict[str, Any], **options: Any) -> Source:
    pq.write_table(pa.table(columns), path, **options)
    return source_of(path)


def read(source: Source, columns: Sequence[tuple[str, ColumnType]], keys: Keys = OBJECTS, **more: Any) -> Answer:
    return READER.read(Request(source, keys, tuple(columns), **more))


def values(path: Path, array: pa.Array, type_: ColumnType, keys: Keys = NO_KEYS) -> list[object]:
    answer = read(written(path, {"Value": array}), [("Value", type_)], keys)
    assert not answer.widened
    return answer.table.column("Value").to_pylist()


def type_of(path: Path, array: pa.Array, measures: bool = True) -> ColumnType | None:
    return READER.sample([written(path, {"Value": array})], 1 << 20, measures).types["Value"]


# Types


@pytest.mark.parametrize(
    ("type_", "given", "kind"),
    [
        *((getattr(pa, f"int{bits}")(), [1, None, -(2 ** (bits - 1))], INT) for bits in (8, 16, 32, 64)),
        *((getattr(pa, f"uint{bits}")(), [1, None, 2**bits - 1], INT) for bits in (8, 16, 32)),
        (pa.uint64(), [1, None, 2**63 - 1], INT),
        (pa.float16(), [1.5, None, float("inf")], FLOAT),
        (pa.float32(), [1.5, None, 0.10000000149011612], FLOAT),
        (pa.float64(), [0.1, None, -0.0], DOUBLE),
        (pa.bool_(), [True, None, False], BOOL),
        *((type_, ["é", None, "", " a "], TEXT) for type_ in (pa.string(), pa.large_string(), pa.string_view())),
        (pa.dictionary(pa.int32(), pa.string()), ["b", None, "a", "b"], TEXT),
        (pa.null(), [None, None], None),
    ],
    ids=str,
)
def test_each_type(file: Path, type_: pa.DataType, given: list[object], kind: ColumnType | None) -> None:
    array = pa.array(given, type_)
    assert type_of(file, array) is kind
    assert list(map(repr, values(file, array, kind or DOUBLE))) == list(map(repr, given))


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary(), pa.binary(3)], ids=str)
def test_bytes_that_are_utf8_are_texts(file: Path, type_: pa.DataType) -> None:
    array = pa.array([b"a\xc3\xa9", None], type_)
    assert type_of(file, array) is TEXT
    assert values(file, array, TEXT) == ["aé", None]


@pytest.mark.parametrize("type_", [pa.binary(), pa.string()], ids=str)
def test_bytes_that_are_no_utf8_are_a_bad_source(file: Path, type_: pa.DataType) -> None:
    array = pa.Array.from_buffers(type_, 1, pa.array([b"\xff\xfe"]).buffers())
    source = written(file, {"Name": array})
    with pytest.raises(BadSourceError, match="'Name' holds bytes that are no UTF-8"):
        read(source, [("Name", TEXT)])


@pytest.mark.parametrize(
    ("type_", "given"),
    [
        (pa.date32(), dt.date(2024, 2, 29)),
        (pa.date64(), dt.date(1969, 12, 31)),
        (pa.time32("s"), dt.time(3, 4, 5)),
        (pa.time64("us"), dt.time(3, 4, 5, 60)),
        *((pa.timestamp(unit), dt.datetime(1969, 2, 3, 4, 5, 6)) for unit in ("ms", "us", "ns")),
        *((pa.timestamp(unit), dt.datetime(2024, 2, 3, 4, 5, 6, 78000)) for unit in ("ms", "us", "ns")),
        (pa.timestamp("us", "Europe/Berlin"), dt.datetime(2024, 2, 3, 4, 5, 6, 7, dt.UTC)),
    ],
    ids=str,
)
def test_dates_and_times_are_texts_that_name_the_same_moment(file: Path, type_: pa.DataType, given: Any) -> None:
    array = pa.array([given, None], type_)
    assert type_of(file, array) is TEXT
    text, missing = values(file, array, TEXT)
    assert missing is None
    assert isinstance(text, str)
    assert type(given).fromisoformat(text) == given
    assert " " not in text
    assert not text.endswith(".000000")


@given(st.lists(st.one_of(st.none(), st.decimals(-(10**20), 10**20, places=6)), min_size=1, max_size=20))
def test_decimals_are_the_nearest_doubles(file: Path, given: list[decimal.Decimal | None]) -> None:
    array = pa.array(given, pa.decimal128(38, 6))
    assert type_of(file, array) is DOUBLE
    assert values(file, array, DOUBLE) == [None if one is None else float(one) for one in given]


@pytest.mark.parametrize(
    "array",
    [
        pa.array([[1, 2]]),
        pa.array([{"a": 1}]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        pa.array([1], pa.duration("s")),
    ],
    ids=lambda one: str(one.type),
)
def test_a_column_of_several_values_is_a_bad_source_that_names_it(file: Path, array: pa.Array) -> None:
    source = written(file, {"ImageNumber": [1], "Embedding": array})
    for action in (READER.columns, lambda one: READER.sample([one], 1 << 20, True), lambda one: read(one, PLANNED)):
        with pytest.raises(BadSourceError, match=r"'Embedding' is of type .*Leave it out when you write the file"):
            action(source)


def test_two_columns_of_one_name_are_a_bad_source(file: Path) -> None:
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), file)
    with pytest.raises(BadSourceError, match="two columns called 'a'"):
        READER.columns(source_of(file))


def test_a_name_that_is_no_utf8_is_a_bad_source(file: Path) -> None:
    written(file, {"Value": [1]}, store_schema=False)
    file.write_bytes(file.read_bytes().replace(b"Value", b"\xffalue"))
    with pytest.raises(BadSourceError, match="cannot be read as Parquet"):
        READER.columns(source_of(file))


def test_columns_come_in_the_order_of_the_file_with_any_name(file: Path) -> None:
    names = ["z", "a.b", "a", 'odd "name"\n', "ü", " "]
    source = written(file, {name: [number] for number, name in enumerate(names)})
    assert READER.columns(source) == tuple(names)
    answer = read(source, [("a", INT), ("ü", INT), ("not there", INT), ('odd "name"\n', INT), ("z", INT)])
    assert answer.table.to_pylist() == [{"a": 2, "ü": 4, 'odd "name"\n': 3, "z": 0}]
    assert not READER.read(Request(source, NO_KEYS, (("not there", INT),))).table.num_columns


def test_a_whole_number_beyond_64_bits_widens_its_column(file: Path) -> None:
    array = pa.array([1, 2**64 - 1, None], pa.uint64())
    source = written(file, {"Value": array, "ImageNumber": array}, row_group_size=1)
    assert READER.sample([source], 1 << 20, True).types["Value"] is DOUBLE
    assert read(source, [("Value", INT)]).widened == (("Value", DOUBLE),)
    assert read(source, [("Value", DOUBLE)]).table.column("Value").to_pylist() == [1.0, float(2**64 - 1), None]
    answer = read(source, [("ImageNumber", INT)])
    assert answer.table.column("ImageNumber").to_pylist() == [1, None, None]
    assert [(one.column, one.count) for one in answer.findings] == [("ImageNumber", 1)]


@pytest.mark.parametrize("type_", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_nan_is_null_and_no_finding_and_infinity_is_kept(file: Path, type_: pa.DataType) -> None:
    given = np.array([1.5, float("nan"), float("inf"), float("-inf")], type_.to_pandas_dtype())
    array = pa.array(given, type_, from_pandas=False)
    assert array.null_count == 0
    for planned in (DOUBLE, FLOAT) if type_ != pa.float64() else (DOUBLE,):
        answer = read(written(file, {"Value": array}), [("Value", planned)])
        assert answer.table.column("Value").to_pylist() == [1.5, None, float("inf"), float("-inf")]
        assert not answer.findings


@pytest.mark.parametrize(
    ("array", "planned", "needed"),
    [
        (pa.array([1.0, 2.5]), INT, DOUBLE),
        (pa.array([1.0, 2.0]), INT, DOUBLE),
        (pa.array([1.0]), FLOAT, DOUBLE),
        (pa.array([1.5], pa.float32()), INT, DOUBLE),
        (pa.array([1]), FLOAT, DOUBLE),
        (pa.array([decimal.Decimal(1)]), INT, DOUBLE),
        (pa.array([True]), INT, TEXT),
        (pa.array([1]), BOOL, TEXT),
    ],
    ids=str,
)
def test_a_wider_type_than_planned_widens_the_column(
    file: Path, array: pa.Array, planned: ColumnType, needed: ColumnType
) -> None:
    source = written(file, {"ImageNumber": [1] * len(array), "Value": array})
    answer = read(source, [("ImageNumber", INT), ("Value", planned)])
    assert answer.widened == (("Value", needed),)
    assert answer.table.num_columns == 0
    none_asked_for = read(source, [("ImageNumber", INT), ("Value", planned)], images=(9, 9))
    assert none_asked_for.widened == answer.widened  # so that it depends on no chunk's values


@pytest.mark.parametrize(
    ("array", "planned", "expected"),
    [
        (pa.array([1, None, 2**53 + 1]), DOUBLE, [1.0, None, float(2**53 + 1)]),
        (pa.array([0.1], pa.float32()), DOUBLE, [0.10000000149011612]),
        (pa.array([1, None]), TEXT, ["1", None]),
        (pa.array([0.1, 2.5]), TEXT, ["0.1", "2.5"]),
    ],
    ids=str,
)
def test_a_narrower_type_than_planned_is_cast(
    file: Path, array: pa.Array, planned: ColumnType, expected: list[object]
) -> None:
    assert values(file, array, planned) == expected


def test_texts_among_measures_become_null_and_are_counted(file: Path) -> None:
    texts = ["2.5", "nan", "", None, "big", " 7 "]
    columns = {"ImageNumber": [1] * 6, "ObjectNumber": range(6), "Value": texts, "Metadata_Site": texts}
    source = written(file, {name: pa.array(one) for name, one in columns.items()})
    types = READER.sample([source], 1 << 20, measures=True).types
    assert types == {"ImageNumber": INT, "ObjectNumber": INT, "Value": DOUBLE, "Metadata_Site": TEXT}
    assert READER.sample([source], 1 << 20, measures=False).types["Value"] is TEXT
    answer = read(source, PLANNED)
    assert answer.table.column("Value").to_pylist() == [2.5, None, None, None, None, 7.0]
    assert [(one.column, one.count) for one in answer.findings] == [("Value", 1)]
    assert read(source, [("Metadata_Site", INT)]).widened == (("Metadata_Site", TEXT),)
    assert read(source, [("Value", FLOAT)]).widened == (("Value", DOUBLE),)


@pytest.mark.parametrize(
    ("array", "expected", "lost"),
    [
        (pa.array([1.0, 2.5, float("nan"), None, float("inf")], from_pandas=False), [1, None, None, None, None], 2),
        (pa.array([1.0, 2.5, None], pa.float32()), [1, None, None], 1),
        (pa.array(["1", "2.0", "x", None, "nan", ""]), [1, 2, None, None, None, None], 1),
        (pa.array([decimal.Decimal("1.0"), decimal.Decimal("1.5"), None]), [1, None, None], 1),
        (pa.array([5, None, 7], pa.int16()), [5, None, 7], 0),
        (pa.array([True, None]), [None, None], 1),
        (pa.array([dt.date(2024, 1, 1), None]), [None, None], 1),
        (pa.nulls(2), [None, None], 0),
        (pa.array(["3", None, "4"]).dictionary_encode(), [3, None, 4], 0),
    ],
    ids=str,
)
def test_a_key_is_a_whole_number_or_null_and_counted_and_the_index_agrees(
    file: Path, array: pa.Array, expected: list[int | None], lost: int
) -> None:
    source = written(file, {"ImageNumber": array, "Value": [1.0] * len(array)})
    answer = read(source, [("ImageNumber", INT), ("Value", DOUBLE)], IMAGES)
    assert not answer.widened
    assert answer.table.schema.field("ImageNumber").type == pa.int64()
    assert answer.table.column("ImageNumber").to_pylist() == expected
    assert sum(one.count for one in answer.findings) == lost
    (index,) = READER.index([source], IMAGES, False)
    known = [one for one in expected if one is not None]
    assert [one.image for one in index.images] == known
    assert index.keyless == expected.count(None)


def test_widths_are_those_of_arrow_and_of_the_file(file: Path) -> None:
    rows = 5000
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "a": rng.random(rows),
            "b": rng.random(rows).astype(np.float32),
            "c": ["the same long text again and again"] * rows,
            "d": [f"a text of its own {number}" for number in range(rows)],
        }
    )
    pq.write_table(table, file)
    sample = READER.sample([source_of(file)], 1 << 20, False)
    assert 0.9 < sample.row_bytes / (table.nbytes / rows) < 1.3
    assert 0.9 < file.stat().st_size / sample.text_bytes / rows <= 1


def test_a_sample_of_several_files_unites_their_types(file: Path, tmp_path: Path) -> None:
    sources = [
        written(tmp_path / "1.parquet", {"a": pa.array([1]), "b": pa.nulls(1), "c": pa.array([1.5], pa.float32())}),
        written(tmp_path / "2.parquet", {"a": pa.array([1.5]), "b": ["x"], "c": pa.array([1])}),
    ]
    assert READER.sample(sources, 1 << 20, False).types == {"a": DOUBLE, "b": TEXT, "c": DOUBLE}


# Where rows lie


def plate(images: Sequence[int | None], **more: Any) -> dict[str, Any]:
    return {
        "ImageNumber": pa.array(images, pa.int64()),
        "ObjectNumber": pa.array(range(1, len(images) + 1), pa.int64()),
        "Value": pa.array([number / 8 for number in range(len(images))], pa.float64()),
        **more,
    }


def rows_of(answer: Answer) -> list[tuple[object, ...]]:
    assert not answer.widened
    return list(zip(*(answer.table.column(name).to_pylist() for name in answer.table.column_names), strict=True))


def test_the_index_tells_where_the_rows_of_each_image_lie(file: Path) -> None:
    source = written(file, plate([5, 5, 3, None, 5, 3, 3, None]), row_group_size=3)
    (index,) = READER.index([source], OBJECTS, True)
    assert [(one.image, one.rows, one.spans) for one in index.images] == [
        (3, 3, (Span(2, 3), Span(5, 7))),
        (5, 3, (Span(0, 2), Span(4, 5))),
    ]
    assert (index.keyless, index.keyless_spans) == (2, (Span(3, 4), Span(7, 8)))
    assert index.unique is True
    assert index.rows == 8
    assert READER.objects(source, OBJECTS, 5) == [1, 2, 5]
    assert READER.count(source) == 8


def test_repeated_keys_are_found(file: Path) -> None:
    source = written(file, plate([1, 1, 2]) | {"ObjectNumber": [7, 7, 7]})
    (index,) = READER.index([source], OBJECTS, True)
    assert (index.unique, index.finding) == (False, "repeated: image 1, object 7")
    (index,) = READER.index([source], IMAGES, False)
    assert index.unique is None


def test_a_large_image_has_spans_bounded_by_object_number(file: Path) -> None:
    count = columnar_rows.SPLIT_ROWS * 2 + 5
    source = written(file, plate([1] * 3 + [2] * count), row_group_size=700)
    (index,) = READER.index([source], OBJECTS, True)
    assert [(one.start, one.stop, one.first_object, one.last_object) for one in index.images[1].spans] == [
        (3, 515, 4, 515),
        (515, 1027, 516, 1027),
        (1027, count + 3, 1028, count + 3),
    ]
    answer = read(source, PLANNED, images=(2, 2), objects=(600, 610), spans=index.images[1].spans[1:2])
    assert answer.table.column("ObjectNumber").to_pylist() == list(range(600, 611))


def test_rows_without_keys_come_in_stretches(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar_rows, "SPLIT_ROWS", 4)
    source = written(file, {"Value": [number / 2 for number in range(10)]}, row_group_size=3)
    (index,) = READER.index([source], NO_KEYS, False)
    assert [(one.image, one.rows, one.spans) for one in index.images] == [
        (1, 4, (Span(0, 4),)),
        (2, 4, (Span(4, 8),)),
        (3, 2, (Span(8, 10),)),
    ]
    assert (index.unique, index.keyless) == (None, 0)
    answer = read(source, [("Value", DOUBLE)], NO_KEYS, images=(2, 3), spans=(Span(4, 10),))
    assert answer.table.column("Value").to_pylist() == [2.0, 2.5, 3.0, 3.5, 4.0, 4.5]


def test_a_table_in_no_order_has_one_span_for_each_image(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar_rows, "STRETCHES", 3)
    source = written(file, plate([1, 2, 1, 2, 2]))
    (index,) = READER.index([source], OBJECTS, True)
    assert [one.spans for one in index.images] == [(Span(0, 3),), (Span(1, 5),)]
    assert [row[1] for row in rows_of(read(source, PLANNED, images=(2, 2), spans=(Span(1, 5),)))] == [2, 4, 5]


@pytest.mark.parametrize(
    ("array", "rows"),
    [
        (pa.array([7, 7, None, 12]), ["7", "7", None, "12"]),
        (pa.array([7.0, 7.0, None, 1.5]), ["7", "7", None, "1.5"]),
        (pa.array([7.0, 7.0, float("nan"), 1.5], from_pandas=False), ["7", "7", None, "1.5"]),
        (pa.array(["a", "a", None, ""]), ["a", "a", None, ""]),
        (pa.array(["a", "a", None, ""]).dictionary_encode(), ["a", "a", None, ""]),
        (pa.nulls(4), [None, None, None, None]),
    ],
    ids=str,
)
def test_datasets_inside_one_file(file: Path, array: pa.Array, rows: list[str | None]) -> None:
    whole = written(file, plate([1, 2, 1, 1], TableNumber=array), row_group_size=1)
    assert READER.numbers(whole, "TableNumber", "ImageNumber") == tuple(sorted(set(rows), key=order))
    assert READER.numbers(whole, "Other", "ImageNumber") == ()
    assert READER.numbers(whole, "TableNumber", "Other") == ()
    expected = {name: [place for place, one in enumerate(rows, start=1) if one == name] for name in dict.fromkeys(rows)}
    sources = [source_of(file, Only("TableNumber", name)) for name in expected]
    indexes = READER.index(sources, OBJECTS, True)
    for source, index, objects in zip(sources, indexes, expected.values(), strict=True):
        assert index.rows == READER.count(source) == len(objects)
        assert [row[1] for row in rows_of(read(source, PLANNED))] == objects
        assert READER.objects(source, OBJECTS, 1) == [one for one in objects if one != 2]
    together = READER.read_together([Request(one, OBJECTS, PLANNED) for one in sources])
    assert together is not None
    assert together.counts == tuple(map(len, expected.values()))
    some = READER.read_together([Request(one, OBJECTS, PLANNED) for one in sources[:1]])
    assert some is not None
    assert some.table.column("ObjectNumber").to_pylist() == expected[rows[0]]
    for place, objects in enumerate(expected.values()):
        here = together.table.filter(pa.array(together.order == place))
        assert here.column("ObjectNumber").to_pylist() == objects
    assert READER.count(source_of(file, Only("TableNumber", "none such"))) == 0
    assert READER.index([source_of(file, Only("TableNumber", "none such"))], OBJECTS, True)[0].rows == 0


def order(name: str | None) -> tuple[bool, bool, int, str]:
    """Nothing first, whole numbers by their size, then texts."""
    number = name is not None and name.isdigit()
    return name is not None, not number, int(name or 0) if number else 0, name or ""


def test_equal_keys_of_two_datasets_are_no_repetition(file: Path) -> None:
    columns = plate([1, 1, 1], TableNumber=["a", "b", "b"]) | {"ObjectNumber": [7, 7, 8]}
    whole = written(file, columns)
    assert READER.index([whole], OBJECTS, True)[0].unique is False
    sources = [source_of(file, Only("TableNumber", name)) for name in ("a", "b")]
    assert [one.unique for one in READER.index(sources, OBJECTS, True)] == [True, True]


def test_what_cannot_be_read_together_is_read_one_by_one(file: Path) -> None:
    source = written(file, plate([1, 2], TableNumber=["a", "b"]))
    one, other = (Request(source_of(file, Only("TableNumber", name)), OBJECTS, PLANNED) for name in ("a", "b"))
    assert READER.read_together([one, other]) is not None
    whole = Request(source, OBJECTS, PLANNED)
    for strange in (whole, one, Request(other.source, OBJECTS, PLANNED[:2]), Request(other.source, IMAGES, PLANNED)):
        assert READER.read_together([one, strange]) is None
    assert READER.read_together([one, Request(other.source, OBJECTS, PLANNED, images=(1, 1))]) is None
    narrow = READER.read_together([Request(one.source, OBJECTS, (("Value", INT),)) for one in (one, other)])
    assert narrow is not None
    assert narrow.widened == (("Value", DOUBLE),)


def test_a_column_that_the_keys_need_and_the_file_lacks_is_a_bad_source(file: Path) -> None:
    source = written(file, {"ImageNumbr": [1]})
    with pytest.raises(BadSourceError, match=r"no column 'ImageNumber'.*'ImageNumbr'"):
        READER.index([source], IMAGES, False)


MAYBE = st.one_of(st.none(), st.integers(-1, 4))


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(0, 40))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    images = column(MAYBE)
    if draw(st.booleans()):
        images.sort(key=lambda one: (one is None, one or 0))
    key = draw(st.sampled_from([pa.int64(), pa.int16(), pa.float64(), pa.string()]))
    number = draw(st.sampled_from([pa.int32(), pa.float64(), pa.string(), pa.dictionary(pa.int8(), pa.string())]))
    names = [None if one is None else str(one) for one in column(st.one_of(st.none(), st.integers(0, 2)))]
    return pa.table(
        {
            "ImageNumber": pa.array(images).cast(pa.int64()).cast(key),
            "ObjectNumber": pa.array(draw(st.permutations(range(count))), pa.int64()),
            "TableNumber": pa.array(names, pa.string())
            .cast(number.value_type if pa.types.is_dictionary(number) else number)
            .cast(number),
            "Value": pa.array(column(st.floats(width=32)), pa.float32()),
            "Place": pa.array(range(count), pa.int64()),
        }
    )


def cuts(draw: st.DataObject, index: Index) -> Iterator[tuple[tuple[int, int], tuple[Span, ...], int]]:
    """(images, spans, rows) of consecutive ranges; neighbouring spans joined as the plan joins them."""
    images = list(index.images)
    while images:
        size = draw.draw(st.integers(1, len(images)))
        here, images = images[:size], images[size:]
        spans: list[Span] = []
        for span in sorted((span for one in here for span in one.spans), key=lambda one: one.start):
            if spans and spans[-1].stop in (span.start, span.start - 1):
                spans[-1] = Span(spans[-1].start, span.stop)
            else:
                spans.append(span)
        yield (here[0].image, here[-1].image), tuple(spans), sum(one.rows for one in here)


@settings(max_examples=50)
@given(tables(), st.integers(1, 12), st.sampled_from([OBJECTS, NO_KEYS]), st.booleans(), st.data())
def test_every_cut_reads_every_row_once(
    file: Path, table: pa.Table, group: int, keys: Keys, numbered: bool, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar_rows, "SPLIT_ROWS", 3)
        patch.setattr(columnar_rows, "STRETCHES", data.draw(st.sampled_from([2, 200])))
        patch.setattr(parquet_file, "DECODER_BYTES", data.draw(st.sampled_from([1, 1 << 20])))
        patch.setattr(parquet_file, "BATCH_ROWS", (1, data.draw(st.integers(1, 7))))
        pq.write_table(table, file, row_group_size=group)
        whole = source_of(file)
        sources = [whole]
        names_of_keys = (keys.image_number,) if keys.image_number else ()
        columns = (("Value", FLOAT), *((name, INT) for name in names_of_keys), ("Place", INT))
        if numbered:
            names = READER.numbers(whole, "TableNumber", "ImageNumber")
            sources = [source_of(file, Only("TableNumber", name)) for name in names]
        seen: list[tuple[object, ...]] = []
        indexes = READER.index(sources, keys, True) if sources else []
        for source, index in zip(sources, indexes, strict=True):
            for images, spans, rows in cuts(data, index):
                found = rows_of(read(source, columns, keys, images=images, spans=spans))
                assert len(found) == rows
                seen += found
            keyless = read(source, columns[-1:], keys, spans=index.keyless_spans) if index.keyless else None
            assert keyless is None or keyless.table.num_rows >= index.keyless
            assert len(rows_of(read(source, columns, keys))) == index.rows
    expected = list(zip(*(table.column(name).to_pylist() for name in ("Value", *names_of_keys, "Place")), strict=True))
    expected = [(None if row[0] != row[0] else row[0], *map(number, row[1:])) for row in expected]
    assert sorted(seen, key=lambda row: row[-1]) == [row for row in expected if None not in row[1:-1]]


def number(value: object) -> int | None:
    return None if value is None else int(str(value).removesuffix(".0"))


# The file


def test_checksum_is_that_of_the_bytes_whatever_the_name(file: Path) -> None:
    source = written(file, {"a": [1]})
    assert READER.checksum(source) == zlib.crc32(file.read_bytes())
    assert READER.cut is Cut.ALWAYS


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_compression_and_page_version(file: Path, codec: str, version: str) -> None:
    source = written(file, plate([1] * 100), compression=codec, data_page_version=version)
    assert read(source, PLANNED).table.column("ObjectNumber").to_pylist() == list(range(1, 101))


def damaged(path: Path, how: str) -> Source:
    columns = plate([1] * 1000)
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    if how == "cut off":
        data = data[:-100]
    elif how == "empty":
        data = bytearray()
    elif how == "no Parquet":
        data = bytearray(b"ImageNumber,ObjectNumber\n" * 100)
    elif how == "footer":
        data[-60:-20] = b"\xff" * 40
    elif how == "page":
        data[2000] ^= 1
    path.write_bytes(data)
    return source_of(path)


@pytest.mark.parametrize("how", ["cut off", "empty", "no Parquet", "footer"])
def test_a_file_that_is_no_parquet_is_a_bad_source(file: Path, how: str) -> None:
    source = damaged(file, how)
    for action in (READER.columns, lambda one: READER.index([one], OBJECTS, True), lambda one: read(one, PLANNED)):
        with pytest.raises(BadSourceError, match="cannot be read as Parquet"):
            action(source)
    assert READER.count(source) is None


EVERY_BYTE = """
import sys
from pathlib import Path
from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources.base import Keys, Request
from prefect_cytotable.tasks.core.sources.parquet import ParquetReader

path, reader, keys = Path(sys.argv[1]), ParquetReader(Places()), Keys("ImageNumber", "ObjectNumber")
source = Source("cells", str(path), Format.PARQUET, Fingerprint(path.stat().st_size, 0))
columns = (("ImageNumber", ColumnType.INT64), ("Value", ColumnType.DOUBLE), ("Name", ColumnType.STRING))
data = path.read_bytes()
bad = 0
for place in range(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data), 2):
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    try:
        reader.sample([source], 1 << 20, True)
        reader.index([source], keys, True)
        reader.read(Request(source, keys, columns))
    except BadSourceError:
        bad += 1
print(bad)
"""


def test_no_damage_of_the_footer_ends_the_process(file: Path) -> None:
    columns = plate([1, 2], Name=["a", "b"])
    written(file, columns, store_schema=False, compression="none")
    result = subprocess.run(
        [sys.executable, "-c", EVERY_BYTE, str(file)], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 50


@pytest.mark.parametrize("mapping", ["0", "1"])
def test_a_damaged_page_is_a_bad_source_and_its_rows_are_counted(
    file: Path, mapping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(parquet_file.MEMORY_MAPPING, mapping)
    source = damaged(file, "page")
    with pytest.raises(BadSourceError, match="cannot be read as Parquet"):
        read(source, PLANNED)
    assert READER.count(source) == 1000


def test_a_missing_file_is_no_bad_source(tmp_path: Path) -> None:
    source = Source("cells", str(tmp_path / "none.parquet"), Format.PARQUET, Fingerprint(1, 1))
    with pytest.raises(FileNotFoundError):
        READER.read(Request(source, OBJECTS, PLANNED))


@pytest.mark.parametrize("setting", [None, "1", "0", ""])
def test_files_are_mapped_into_memory_unless_that_is_turned_off(
    file: Path, setting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(file, plate([1, 2]))
    monkeypatch.delenv(parquet_file.MEMORY_MAPPING, raising=False)
    if setting is not None:
        monkeypatch.setenv(parquet_file.MEMORY_MAPPING, setting)
    with parquet_file.open_file(file, str(file)):
        mapped = str(file) in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert mapped is (setting != "0")
    assert str(file) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert len(rows_of(read(source_of(file), PLANNED))) == 2


ONE_CHUNK = """
import os, sys
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Source, Span
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources.base import Keys, Request
from prefect_cytotable.tasks.core.sources.parquet import ParquetReader

path, last = sys.argv[1], int(sys.argv[2])
source = Source("cells", path, Format.PARQUET, Fingerprint(os.path.getsize(path), 0))
reader, keys = ParquetReader(Places()), Keys("ImageNumber", "ObjectNumber")
names = reader.columns(source)
reader.sample([source], 1 << 20, True)
reader.index([source], keys, True)
reader.objects(source, keys, 1)

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10

before = peak()
columns = tuple((name, ColumnType.INT64 if "Number" in name else ColumnType.DOUBLE) for name in names)
answer = reader.read(Request(source, keys, columns, (last, last), spans=(Span(0, 10**9),)))
assert answer.table.num_rows == 100, answer
print(peak() - before, "pandas" in sys.modules)
"""


def test_one_huge_row_group_is_read_in_bounded_memory_and_without_pandas(file: Path) -> None:
    """As pandas writes a plate: every row in one row group, here 115 MB of it."""
    rows, width = 60_000, 240
    values = np.random.default_rng(1).random(rows)
    columns: dict[str, Any] = {"ImageNumber": np.arange(rows) // 100, "ObjectNumber": np.arange(rows) % 100}
    columns |= {f"Value_{number}": np.roll(values, number) for number in range(width)}
    written(file, columns, row_group_size=rows, compression="none", use_dictionary=False)
    environment = {**os.environ, parquet_file.MEMORY_MAPPING: "0"}
    result = subprocess.run(
        [sys.executable, "-c", ONE_CHUNK, str(file), str(rows // 100 - 1)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=environment,
    )
    grown, pandas = result.stdout.split()
    file.unlink()
    assert int(grown) < 64 << 20
    assert pandas == "False"
