"""The CSV reader: values, damage, and where the rows of each image lie."""

from __future__ import annotations

import csv
import io
import itertools
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources import csv as csv_source
from prefect_cytotable.tasks.core.sources import csv_index
from prefect_cytotable.tasks.core.sources.base import Answer, Index, Keys, Request, Sample
from prefect_cytotable.tasks.core.sources.csv import CsvReader

READER = CsvReader(Places())
OBJECTS = Keys("ImageNumber", "ObjectNumber")
IMAGES = Keys("ImageNumber", "")
INT, DOUBLE, TEXT = ColumnType.INT64, ColumnType.DOUBLE, ColumnType.STRING
PLANNED = (("ImageNumber", INT), ("ObjectNumber", INT), ("Area", DOUBLE))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for one CSV file; each test, and each of Hypothesis' examples, writes it anew."""
    return tmp_path_factory.mktemp("csv") / "Cells.csv"


def source_of(path: Path) -> Source:
    status = path.stat()
    return Source("cells", str(path), Format.CSV, Fingerprint(status.st_size, status.st_mtime_ns))


def written(path: Path, content: str | bytes) -> Source:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return source_of(path)


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


def read(source: Source, columns: Sequence[tuple[str, ColumnType]] = PLANNED, **more: object) -> Answer:
    return READER.read(Request(source, more.pop("keys", OBJECTS), tuple(columns), **more))  # type: ignore[arg-type]


def column(source: Source, name: str, type_: ColumnType) -> list[object]:
    return read(source, [(name, type_)]).table.column(name).to_pylist()


def sample(source: Source, limit: int = 1 << 20) -> Sample:
    return READER.sample([source], limit, measures=False)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def index_of(source: Source, keys: Keys = OBJECTS) -> Index:
    (index,) = READER.index([source], keys, True)
    return index


# Numbers


FLOAT_TEXTS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda value: f"{value:.17g}"),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda value: f"{value:.16e}"),
    st.floats(min_value=-3e-308, max_value=3e-308).map(repr),
    st.builds("{}{}.{}e{}".format, st.sampled_from(["", "-", "+"]), st.integers(0, 10**25), st.integers(0, 10**25),
              st.integers(-400, 400)),
    st.integers(-(10**30), 10**30).map(str),
)  # fmt: skip


@given(st.lists(FLOAT_TEXTS, min_size=1, max_size=30))
def test_a_number_is_what_python_makes_of_it_bit_for_bit(file: Path, texts: list[str]) -> None:
    source = written(file, lines("Area", *texts))
    values = column(source, "Area", DOUBLE)
    assert [bits(value) for value in values] == [bits(float(text)) for text in texts]


@given(st.lists(FLOAT_TEXTS, min_size=1, max_size=10))
def test_a_text_among_numbers_does_not_change_the_numbers(file: Path, texts: list[str]) -> None:
    source = written(file, lines("Area,Other", *(f"{text},x" for text in texts), "junk,x"))
    values = column(source, "Area", DOUBLE)
    assert [bits(value) for value in values[:-1]] == [bits(float(text)) for text in texts]
    assert values[-1] is None


@pytest.mark.parametrize("text", ["1.", ".5", "+3", " 2.5", "2.5 ", "-0.0", "1E5", '"7.25"'])
def test_a_number_in_an_unusual_form_is_a_number(file: Path, text: str) -> None:
    for others in ([], ["junk"]):
        values = column(written(file, lines("Area,X", *(f"{one},0" for one in [text, *others]))), "Area", DOUBLE)
        assert bits(values[0]) == bits(float(text.strip('"')))


@pytest.mark.parametrize("others", [[], ["junk"]], ids=["alone", "beside a text"])
@pytest.mark.parametrize("text", ["", "nan", "NaN", "NAN", "-nan", "nAn", " nan ", "NA", "NULL"])
def test_what_stands_for_nothing_is_null_and_no_finding(file: Path, text: str, others: list[str]) -> None:
    source = written(file, lines("Area,X", *(f"{one},0" for one in [text, "1", *others])))
    answer = read(source, [("Area", DOUBLE)])
    assert answer.table.column("Area").to_pylist()[:2] == [None, 1.0]
    assert sum(one.count for one in answer.findings) == len(others)


@pytest.mark.parametrize("others", [[], ["junk"]], ids=["alone", "beside a text"])
@pytest.mark.parametrize("text", ["inf", "-inf", "Inf", "INF", "Infinity", "-infinity", "1e999"])
def test_infinity_is_kept(file: Path, text: str, others: list[str]) -> None:
    source = written(file, lines("Area,X", *(f"{one},0" for one in [text, *others])))
    assert column(source, "Area", DOUBLE)[0] == float(text)


def test_texts_in_a_measured_column_become_null_and_are_counted(file: Path) -> None:
    source = written(file, lines("ImageNumber,ObjectNumber,Area", "1,1,2.5", "1,2,big", "1,3,bigger", "1,4,nan"))
    answer = read(source)
    assert answer.table.column("Area").to_pylist() == [2.5, None, None, None]
    assert answer.table.column("ObjectNumber").to_pylist() == [1, 2, 3, 4]
    assert [(one.column, one.count) for one in answer.findings] == [("Area", 2)]
    assert not answer.widened


def test_a_text_in_an_image_column_makes_it_text(file: Path) -> None:
    source = written(file, lines("ImageNumber,Metadata_Site", "1,1", "2,s2"))
    answer = read(source, [("ImageNumber", INT), ("Metadata_Site", INT)], keys=IMAGES)
    assert answer.widened == (("Metadata_Site", TEXT),)
    assert column(source, "Metadata_Site", TEXT) == ["1", "s2"]


def test_a_fraction_in_a_whole_number_column_widens_it(file: Path) -> None:
    source = written(file, lines("ImageNumber,ObjectNumber,Area", "1,1,3", "1,2,3.5"))
    answer = read(source, [("ImageNumber", INT), ("ObjectNumber", INT), ("Area", INT)])
    assert answer.widened == (("Area", DOUBLE),)
    assert read(source).table.column("Area").to_pylist() == [3.0, 3.5]


def test_a_whole_number_beyond_64_bits_widens_its_column(file: Path) -> None:
    source = written(file, lines("Area,X", "1,0", f"{2**70},0"))
    assert read(source, [("Area", INT)]).widened == (("Area", DOUBLE),)
    assert column(source, "Area", DOUBLE) == [1.0, float(2**70)]


@pytest.mark.parametrize("keys", [OBJECTS, IMAGES])
@pytest.mark.parametrize("text", ["x", "1.5", "nan", "", "inf"])
def test_a_key_is_never_widened_and_one_that_numbers_nothing_is_null(file: Path, text: str, keys: Keys) -> None:
    source = written(file, lines("ImageNumber,ObjectNumber,Area", "1,1,1", f"{text},2,1"))
    answer = read(source, keys=keys)
    assert not answer.widened
    assert answer.table.column("ImageNumber").to_pylist() == [1, None]
    index = index_of(source, keys)
    assert [(one.image, one.rows) for one in index.images] == [(1, 1)]
    assert index.keyless == 1


def test_keys_written_as_fractions_are_whole_numbers(file: Path) -> None:
    source = written(file, lines("ImageNumber,ObjectNumber,Area", "1.0,1.0,1", "2.0,7,1"))
    table = read(source).table
    assert table.column("ImageNumber").to_pylist() == [1, 2]
    assert table.column("ObjectNumber").to_pylist() == [1, 7]
    assert table.schema.field("ImageNumber").type == pa.int64()
    assert [one.image for one in index_of(source).images] == [1, 2]


@pytest.mark.parametrize(
    ("true", "false"), [("True", "False"), ("true", "false"), ("TRUE", "FALSE"), ("Yes", "No"), ("yes", "NO")]
)
def test_truth_values(file: Path, true: str, false: str) -> None:
    source = written(file, lines("Flag,X", f"{true},0", f"{false},0", ",0"))
    assert sample(source).types["Flag"] is ColumnType.BOOL
    assert column(source, "Flag", ColumnType.BOOL) == [True, False, None]
    spaced = written(file, lines("Flag,X", f" {true},0", f"{false} ,0", ",0"))
    assert column(spaced, "Flag", ColumnType.BOOL) == [True, False, None]
    assert column(spaced, "Flag", TEXT) == [f" {true}", f"{false} ", None]
    assert read(written(file, lines("Flag,X", f"{true},0", "maybe,0")), [("Flag", ColumnType.BOOL)]).widened


def test_texts_keep_their_blanks_and_an_empty_one_is_null(file: Path) -> None:
    source = written(file, lines("Name,X", " a b ,0", ",0", '"",0', "nan,0"))
    assert column(source, "Name", TEXT) == [" a b ", None, None, "nan"]


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12),
                min_size=1, max_size=12))  # fmt: skip
def test_texts_with_quotes_delimiters_and_line_breaks_survive(file: Path, texts: list[str]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([["ImageNumber", 'odd "name", ü'], *enumerate(texts, start=1)])
    source = written(file, buffer.getvalue())
    assert READER.columns(source) == ("ImageNumber", 'odd "name", ü')
    assert column(source, 'odd "name", ü', TEXT) == [text or None for text in texts]
    assert [(one.image, one.rows) for one in index_of(source, IMAGES).images] == [
        (number, 1) for number in range(1, len(texts) + 1)
    ]


def test_a_field_longer_than_the_csv_module_allows(file: Path) -> None:
    long = "x" * 200_000
    source = written(file, lines("ImageNumber,Pipeline,ObjectNumber,Area", f"1,{long},1,2.5", f"2,{long},1,3.5"))
    assert read(source).table.column("Area").to_pylist() == [2.5, 3.5]
    assert column(source, "Pipeline", TEXT) == [long, long]
    assert sample(source).types["Area"] is DOUBLE
    assert [one.image for one in index_of(source).images] == [1, 2]


def test_a_row_longer_than_a_block_of_the_parser(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "BLOCK_BYTES", 64)
    source = written(file, lines("ImageNumber,ObjectNumber,Area,Note", "1,1,2.5,a", f"1,2,3.5,{'n' * 500}", "1,3,x,b"))
    assert read(source).table.column("Area").to_pylist() == [2.5, 3.5, None]
    bad = written(file, lines("Area,Note", "1,a", f"2,{'n' * 500}").encode() + b"3,\xff\n")
    with pytest.raises(BadSourceError, match="not UTF-8"):
        column(bad, "Note", TEXT)


@pytest.mark.parametrize("blocks", [1 << 20, 40])
def test_carriage_returns_and_empty_lines(file: Path, monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    monkeypatch.setattr(csv_index, "BLOCK_BYTES", blocks)
    source = written(file, "ImageNumber,ObjectNumber,Area\r\n1,1,2.5\r\n\r\n1,2,3.5\r\n\n")
    assert READER.columns(source) == ("ImageNumber", "ObjectNumber", "Area")
    assert read(source).table.column("Area").to_pylist() == [2.5, 3.5]
    assert [(one.image, one.rows) for one in index_of(source).images] == [(1, 2)]


# The header


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"\0" * 100, "zero bytes"),
        ("ImageNumber,ObjectNumber\n1,2\n".encode("utf-16"), "not UTF-8"),
        ("ImageNumber,ObjectNumber\n1,2\n".encode("utf-16-le"), "zero bytes"),
        (b"ImageNumber,Area\xb5\n1,2\n", "not UTF-8"),
        (b"ImageNumber,Area,Area\n1,2,3\n", "'Area' more than once"),
        (b"ImageNumber,ObjectNumber\r1,1\r1,2\r", "line break"),
        (b"ImageNumber,ObjectNumber\r1,1\r1,2\r\n", "cannot be parsed"),
        (b'ImageNumber,"ObjectNumber\n1,1\n', "quote"),
        (b"ImageNumber,ObjectNumb", "line break"),
    ],
)
def test_a_header_that_is_none_is_a_bad_source(file: Path, content: bytes, cause: str) -> None:
    source = written(file, content)
    with pytest.raises(BadSourceError) as caught:
        READER.columns(source)
    assert cause in caught.value.cause
    assert str(file) in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_name(file: Path) -> None:
    source = written(file, b"\xef\xbb\xbfImageNumber,ObjectNumber,Area\n1,2,3.5\n")
    assert READER.columns(source)[0] == "ImageNumber"
    assert read(source).table.column("Area").to_pylist() == [3.5]
    assert [one.image for one in index_of(source).images] == [1]


def test_a_name_with_a_line_break_and_quotes(file: Path) -> None:
    source = written(file, 'ImageNumber,"a ""b""\nc"\n1,2\n')
    assert READER.columns(source) == ("ImageNumber", 'a "b"\nc')
    assert column(source, 'a "b"\nc', INT) == [2]


def test_a_header_alone_is_a_table_without_rows(file: Path) -> None:
    source = written(file, lines("ImageNumber,ObjectNumber,Area"))
    assert read(source).table.num_rows == 0
    assert read(source).table.schema.field("Area").type == pa.float64()
    assert sample(source).types == {"ImageNumber": None, "ObjectNumber": None, "Area": None}
    assert index_of(source).images == ()
    assert READER.count(source) == 0


def test_a_column_that_the_file_lacks_is_left_out(file: Path) -> None:
    source = written(file, lines("ImageNumber,ObjectNumber", "1,1"))
    assert read(source).table.column_names == ["ImageNumber", "ObjectNumber"]


# Many small files at once


BODIES = st.sampled_from(
    [
        "1,1,2.5,a",
        "1,2,,b",
        '1,3,4,"c"',
        '2,1,5,"d\nd"',
        "2,2,nan,",
        "",
        "3,1,x,e",
        "3,2,inf,f",
        "4,1,1,g\rh",
        "5,1",
        "6,,7,i",
    ]
)


@given(st.lists(st.lists(BODIES, max_size=4), min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]))
def test_files_that_are_read_together_are_what_each_is_alone(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], ending: str
) -> None:
    folder = tmp_path_factory.mktemp("together")
    columns = (*PLANNED, ("Note", TEXT), ("Absent", DOUBLE))
    requests = []
    for number, rows in enumerate(files):
        content = "".join(f"{row}{ending}" for row in ["ImageNumber,ObjectNumber,Area,Note", *rows])
        requests.append(Request(written(folder / f"{number}.csv", content), OBJECTS, columns))
    together = READER.read_together(requests)
    if together is None:
        return
    alone = [READER.read(one) for one in requests]
    assert not any(one.widened or one.findings for one in alone)
    assert together.counts == tuple(one.table.num_rows for one in alone)
    assert together.order.tolist() == [number for number, rows in enumerate(together.counts) for _ in range(rows)]
    assert together.table.combine_chunks().equals(pa.concat_tables(one.table for one in alone).combine_chunks())


def test_plain_files_are_read_together(tmp_path: Path) -> None:
    header, files = "ImageNumber,ObjectNumber,Area", (["1,1,0.5", "1,2,"], [], ["2,1,nan"])
    sources = [written(tmp_path / f"{number}.csv", lines(header, *rows)) for number, rows in enumerate(files)]
    together = READER.read_together([Request(one, OBJECTS, PLANNED) for one in sources])
    assert together is not None
    assert together.counts == (2, 0, 1)
    assert together.order.tolist() == [0, 0, 2]
    assert together.table.column("Area").to_pylist() == [0.5, None, None]


@pytest.mark.parametrize("odd", ["ImageNumber,Area,ObjectNumber\n1,1,1\n", "ImageNumber,ObjectNumber,Area\n1,1,1"])
def test_an_unusual_file_is_read_alone(tmp_path: Path, odd: str) -> None:
    plain = written(tmp_path / "a.csv", lines("ImageNumber,ObjectNumber,Area", "1,1,0.5"))
    strange = written(tmp_path / "b.csv", odd)
    for sources in ((plain, strange), (strange, plain)):
        assert READER.read_together([Request(one, OBJECTS, PLANNED) for one in sources]) is None


# Damage


WHOLE = lines("ImageNumber,ObjectNumber,Area,Note", '1,1,2.5,"a, b"', '1,2,-1e-3,"c\nd"', "2,1,7,", "3,1,8.25,ü")


def complete_rows(data: bytes) -> list[tuple[int, int, float]]:
    ends = [place + 1 for place in range(len(data)) if data[place : place + 1] == b"\n"]
    ends = [end for end in ends if data.count(b'"', 0, end) % 2 == 0]
    text = data[: ends[-1]].decode()
    return [(int(row[0]), int(row[1]), float(row[2])) for row in list(csv.reader(io.StringIO(text)))[1:]]


@given(st.integers(0, len(WHOLE.encode())))
def test_a_file_cut_off_anywhere_is_bad_or_whole_up_to_there(file: Path, cut: int) -> None:
    data = WHOLE.encode()[:cut]
    source = written(file, data)
    whole = data.endswith(b"\n") and data.count(b'"') % 2 == 0
    columns = [*PLANNED, ("Note", TEXT)]
    try:
        table = read(source, columns).table
    except BadSourceError:
        assert not whole
        with pytest.raises(BadSourceError):
            index_of(source)
        return
    assert whole
    found = list(zip(*(table.column(name).to_pylist() for name, _ in PLANNED), strict=True))
    assert found == complete_rows(data)
    assert sum(one.rows for one in index_of(source).images) == len(found)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_one_wrong_byte_is_a_bad_source_at_worst(file: Path, place: int, byte: int) -> None:
    data = bytearray(WHOLE.encode())
    data[place % len(data)] = byte
    source = written(file, bytes(data))
    for step in (READER.columns, sample, lambda one: read(one, [*PLANNED, ("Note", TEXT)]), READER.count):
        try:
            step(source)
        except BadSourceError as error:
            assert error.cause and error.source == str(file)
    try:
        if {"ImageNumber", "ObjectNumber"} <= set(READER.columns(source)):
            index_of(source)
    except BadSourceError as error:
        assert error.cause


@pytest.mark.parametrize(
    ("row", "cause"),
    [(b"1,2", "number of fields"), (b"1,2,3,4,5", "number of fields"), (b"1,2,3.5,\xff", "not UTF-8")],
)
def test_a_damaged_row_is_a_bad_source(file: Path, row: bytes, cause: str) -> None:
    source = written(file, b"ImageNumber,ObjectNumber,Area,Note\n1,1,2.5,a\n" + row + b"\n")
    with pytest.raises(BadSourceError) as caught:
        read(source, [*PLANNED, ("Note", TEXT)])
    assert cause in caught.value.cause


def test_a_row_without_its_keys_is_found_by_the_index(file: Path) -> None:
    with pytest.raises(BadSourceError, match="fewer fields"):
        index_of(written(file, lines("Area,ImageNumber,ObjectNumber", "1,1,1", "2,1")))


def test_an_open_quote_in_a_large_file_is_found_in_bounded_memory(file: Path, monkeypatch) -> None:
    monkeypatch.setattr(csv_index, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(csv_index, "LONGEST_ROW", 1 << 14)
    rows = "".join(f"{number},1,0.5\n" for number in range(40_000))
    source = written(file, f'ImageNumber,ObjectNumber,Area\n1,1,"0.5\n{rows}')
    with pytest.raises(BadSourceError, match="quote"):
        index_of(source)


def test_rows_of_a_damaged_file_are_counted_by_lines(file: Path) -> None:
    assert READER.count(written(file, "a,b\n1,2\n3")) == 2
    assert READER.count(written(file, "")) == 0


# Samples


def test_types_are_sampled_from_the_end_of_a_large_file_too(file: Path) -> None:
    rows = [f"1,{number},{number}" for number in range(1, 300)] + ["1,300,0.5"]
    found = sample(written(file, lines("ImageNumber,ObjectNumber,Area", *rows)), 600)
    assert found.types == {"ImageNumber": INT, "ObjectNumber": INT, "Area": DOUBLE}
    assert 5 <= found.text_bytes <= 20
    assert found.row_bytes >= 24


def test_a_sample_of_many_files_holds_the_types_of_all(tmp_path: Path) -> None:
    texts = (lines("Area,X", "1,1"), lines("Area,X", "1.5,"), lines("Area,X"))
    sources = [written(tmp_path / f"{number}.csv", text) for number, text in enumerate(texts)]
    assert READER.sample(sources, 1 << 20, measures=True).types == {"Area": DOUBLE, "X": INT}


def test_a_sample_holds_at_least_one_row_however_long(file: Path) -> None:
    source = written(file, lines("ImageNumber,Note,Area", *(f"1,{'n' * 5000},2.5" for _ in range(5))))
    assert sample(source, 600).types == {"ImageNumber": INT, "Note": TEXT, "Area": DOUBLE}


def test_a_sample_from_inside_a_long_text_is_no_damage(file: Path) -> None:
    note = "line\n" * 2000
    source = written(file, lines("ImageNumber,Note,Area", "1,,2.5", f'2,"{note}",3.5', "3,,4"))
    assert sample(source, 600).types["Area"] is DOUBLE
    assert read(source, PLANNED[2:]).table.column("Area").to_pylist() == [2.5, 3.5, 4.0]


# The index


def spans_of(index: Index) -> list[tuple[int, int]]:
    return sorted((span.start, span.stop) for one in index.images for span in one.spans)


def rows_in(source: Source, columns: Sequence[tuple[str, ColumnType]] = PLANNED, **more: object) -> list[tuple]:
    table = read(source, columns, **more).table
    return list(zip(*(table.column(name).to_pylist() for name, _ in columns), strict=True))


@st.composite
def plates(draw: st.DrawFn) -> list[tuple[int, int, str]]:
    """Rows of (image, object, note), images in any order, with gaps; notes need quotes at times."""
    images = draw(st.lists(st.integers(1, 30), max_size=8, unique=True))
    rows = [(image, number) for image in images for number in range(1, draw(st.integers(1, 7)) + 1)]
    if draw(st.booleans()):
        rows = draw(st.permutations(rows))
    notes = st.sampled_from(["", "x", "a,b", 'say "x"', "two\nlines", "ü" * 9, "\r\n"])
    return [(image, number, draw(notes)) for image, number in rows]


def plate_text(rows: Iterable[tuple[int, int, str]], ending: str, quote: int) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=ending, quoting=quote)
    writer.writerow(["Note", "ObjectNumber", "Area", "ImageNumber"])
    writer.writerows((note, number, image + number / 8, image) for image, number, note in rows)
    return buffer.getvalue().encode()


@given(
    plates(),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.integers(1, 200),
    st.integers(1, 4),
)
def test_the_spans_hold_every_row_once_however_it_is_read(
    file: Path, rows: list[tuple[int, int, str]], ending: str, quote: int, block: int, split: int
) -> None:
    source = written(file, plate_text(rows, ending, quote))
    large = index_of(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_index, "BLOCK_BYTES", block)
        assert index_of(source) == large
        patch.setattr(csv_index, "SPLIT_ROWS", split)
        split_index = index_of(source)
    assert [(one.image, one.rows) for one in split_index.images] == [(one.image, one.rows) for one in large.images]
    assert [one.image for one in large.images] == sorted({image for image, *_ in rows})
    assert sum(one.rows for one in large.images) == len(rows)
    assert large.unique is True
    for index in (large, split_index):
        spans = spans_of(index)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
        header = len(plate_text([], ending, quote))
        assert sum(stop - start for start, stop in spans) == file.stat().st_size - header
        for one in index.images:
            expected = [(image, number, image + number / 8) for image, number, _ in rows if image == one.image]
            assert rows_in(source, spans=one.spans, images=(one.image, one.image)) == expected
            assert one.rows == len(expected)


def test_a_giant_image_is_split_with_the_bounds_of_its_objects(file: Path) -> None:
    count = csv_index.SPLIT_ROWS * 2 + 5
    rows = [f"1,{number},0.5" for number in range(1, count + 1)] + ["2,1,0.5"]
    source = written(file, lines("ImageNumber,ObjectNumber,Area", *rows))
    giant, small = index_of(source).images
    assert [(one.first_object, one.last_object) for one in giant.spans] == [
        (1, csv_index.SPLIT_ROWS),
        (csv_index.SPLIT_ROWS + 1, 2 * csv_index.SPLIT_ROWS),
        (2 * csv_index.SPLIT_ROWS + 1, count),
    ]
    assert len(small.spans) == 1
    assert READER.objects(source, OBJECTS, 1) == list(range(1, count + 1))
    middle = rows_in(source, spans=(giant.spans[1],), images=(1, 1), objects=(600, 602))
    assert [number for _, number, _ in middle] == [600, 601, 602]


def test_a_giant_image_out_of_order_is_one_span_without_bounds(file: Path) -> None:
    count = csv_index.SPLIT_ROWS + 5
    rows = [f"1,{number},0.5" for number in range(count, 0, -1)]
    (giant,) = index_of(written(file, lines("ImageNumber,ObjectNumber,Area", *rows))).images
    assert [(one.first_object, one.last_object) for one in giant.spans] == [(0, 0)]


def test_repeated_keys_are_found_and_named(file: Path) -> None:
    index = index_of(written(file, lines("ImageNumber,ObjectNumber", "1,1", "1,2", "4,7", "1,1", "4,7", "4,")))
    assert index.unique is False
    assert "image 1, object 1" in index.finding
    assert "image 4, object 7" in index.finding


def test_rows_without_an_image_number_are_counted_apart(file: Path) -> None:
    index = index_of(written(file, lines("ImageNumber,ObjectNumber", "1,1", ",2", "nan,3", "2,1")))
    assert index.keyless == 2
    assert [one.image for one in index.images] == [1, 2]


def test_missing_parts_of_nothing_are_not_numbers(file: Path) -> None:
    (only,) = index_of(written(file, lines("ImageNumber,ObjectNumber,Area", "1,-3,0", "1,007,1"))).images
    assert only.rows == 2
    assert math.isfinite(rows_in(source_of(file))[0][2])
