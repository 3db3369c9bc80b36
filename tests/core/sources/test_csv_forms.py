"""CSV files that are not written as CellProfiler writes: other delimiters, decimal commas, two header rows."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.errors import BadSourceError
from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Format, Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources import csv_header, csv_index
from prefect_cytotable.tasks.core.sources.base import Answer, Index, Keys, Request
from prefect_cytotable.tasks.core.sources.csv import CsvReader
from prefect_cytotable.tasks.core.sources.csv_header import groups_of
from prefect_cytotable.tasks.core.sources.text import Text

READER = CsvReader(Places())
KEYS = Keys("ImageNumber", "ObjectNumber")
INT, DOUBLE, TEXT = ColumnType.INT64, ColumnType.DOUBLE, ColumnType.STRING
PLANNED = (("ImageNumber", INT), ("ObjectNumber", INT), ("Area", DOUBLE))


def written(path: Path, content: str | bytes, table: str = "") -> Source:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    status = path.stat()
    return Source("cells", str(path), Format.CSV, Fingerprint(status.st_size, status.st_mtime_ns), table)


def text_of(rows: Sequence[Sequence[object]], delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n", quoting=quoting).writerows(rows)
    return buffer.getvalue()


def read(source: Source, columns: Sequence[tuple[str, ColumnType]] = PLANNED, **more: object) -> Answer:
    return READER.read(Request(source, KEYS, tuple(columns), **more))  # type: ignore[arg-type]


def index_of(source: Source) -> Index:
    (index,) = READER.index([source], KEYS, True)
    return index


def findings(answer: Answer) -> list[tuple[str, str, int]]:
    return [(one.column, one.finding, one.count) for one in answer.findings]


# Delimiters


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_delimiter_is_found_whatever_stands_in_quotes(tmp_path: Path, delimiter: str, quoting: int) -> None:
    names = ["ImageNumber", "ObjectNumber", "Area", "a,b,c,d,e", "f;g;h;i;j", "k\tl\tm\tn", "o|p|q|r|s", 'say "x"\nso']
    rows = [[image, number, image + number / 8, *(f"{image}{one}{number}" for one in ",;\t|\n")] for image in (1, 2)
            for number in range(1, 4)]  # fmt: skip
    source = written(tmp_path / "Cells.csv", text_of([names, *rows], delimiter, quoting))
    assert READER.columns(source) == tuple(names)
    columns = [*PLANNED, *((name, TEXT) for name in names[3:])]
    answer = read(source, columns)
    assert list(map(list, zip(*(answer.table[name].to_pylist() for name in names), strict=True))) == rows
    wanted = [("", f"row(s) whose fields are separated by {delimiter!r}", 6)] if delimiter != "," else []
    assert findings(answer) == wanted
    for one in index_of(source).images:
        part = read(source, images=(one.image, one.image), spans=one.spans).table
        assert part["Area"].to_pylist() == [row[2] for row in rows if row[0] == one.image]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_one_column_alone_has_no_delimiter(tmp_path: Path, ending: str) -> None:
    source = written(tmp_path / "Cells.csv", f"ImageNumber{ending}1{ending}2{ending}")
    assert READER.columns(source) == ("ImageNumber",)
    assert read(source, PLANNED[:1]).table["ImageNumber"].to_pylist() == [1, 2]


# Decimal commas


def with_comma(value: float) -> str:
    return repr(value).replace(".", ",")


@settings(max_examples=25)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.sampled_from([";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
def test_decimal_commas_are_the_same_numbers_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], delimiter: str, quoting: int, junk: bool
) -> None:
    values = [0.5, 0.25, *values]  # as repr writes a float without an exponent, there is a comma to be seen
    rows: list[list[object]] = [[1, number, with_comma(one)] for number, one in enumerate(values, start=1)]
    rows += [[1, len(rows) + 1, "junk"]] * junk
    path = tmp_path_factory.mktemp("comma") / "Cells.csv"
    source = written(path, text_of([["ImageNumber", "ObjectNumber", "Area"], *rows], delimiter, quoting))
    sample = READER.sample([source], 1 << 20, measures=True)
    assert sample.types == {"ImageNumber": INT, "ObjectNumber": INT, "Area": DOUBLE}
    answer = read(source)
    assert not answer.widened
    found = answer.table["Area"].to_pylist()
    assert [repr(one) for one in found[: len(values)]] == [repr(one) for one in values]
    assert found[len(values) :] == [None] * junk
    assert ("", "row(s) whose numbers have a comma before the decimals", len(rows)) in findings(answer)
    assert (("Area", "a value that is not a number became null", 1) in findings(answer)) is junk
    (image,) = index_of(source).images
    part = read(source, images=(1, 1), spans=image.spans)
    assert part.table.equals(answer.table)


def test_decimal_commas_are_seen_behind_a_long_header(tmp_path: Path) -> None:
    names = [f"Area_{'n' * 60}_{number:04d}" for number in range(1500)]
    header = ["ImageNumber", "ObjectNumber", *names]
    rows = [[1, one, *(with_comma(one + place / 16) for place in range(1500))] for one in (1, 2, 3)]
    source = written(tmp_path / "Cells.csv", text_of([header, *rows], ";"))
    assert len(";".join(header)) > csv_header.FIRST_LOOK
    columns = [(name, DOUBLE) for name in (names[0], names[-1])]
    answer = read(source, columns)
    assert answer.table[names[0]].to_pylist() == [1.0, 2.0, 3.0]
    assert answer.table[names[-1]].to_pylist() == [one + 1499 / 16 for one in (1, 2, 3)]
    (image,) = index_of(source).images
    assert read(source, columns, images=(1, 1), spans=image.spans).table.equals(answer.table)
    assert READER.sample([source], 1 << 20, measures=True).types[names[-1]] is DOUBLE


def test_a_comma_in_a_text_is_no_decimal(tmp_path: Path) -> None:
    rows = [[1, 1, "1.5", "a,b"], [1, 2, "2.5", "3,4"], [1, 3, "3.5", "3,4,5"]]
    source = written(tmp_path / "Cells.csv", text_of([["ImageNumber", "ObjectNumber", "Area", "Note"], *rows], ";"))
    answer = read(source, [*PLANNED, ("Note", TEXT)])
    assert answer.table["Area"].to_pylist() == [1.5, 2.5, 3.5]
    assert answer.table["Note"].to_pylist() == ["a,b", "3,4", "3,4,5"]
    assert not any("decimals" in finding for _, finding, _ in findings(answer))


def test_files_of_other_forms_are_sampled_and_read_one_by_one(tmp_path: Path) -> None:
    header, rows = ["ImageNumber", "ObjectNumber", "Area"], [[1, 1, 1.5], [1, 2, 2.5]]
    comma = written(tmp_path / "a.csv", text_of([header, *rows]))
    semicolon = written(tmp_path / "b.csv", text_of([header, *rows], ";"))
    decimal = written(tmp_path / "c.csv", text_of([header, *rows], ";").replace(".", ","))
    marked = written(tmp_path / "d.csv", "\ufeff" + text_of([header, *rows]))
    assert READER.sample([comma, semicolon, decimal, marked], 1 << 20, measures=True).types["Area"] is DOUBLE
    for sources in itertools.permutations([comma, semicolon, decimal], 2):
        assert READER.read_together([Request(one, KEYS, PLANNED) for one in sources]) is None
    for source in (comma, semicolon, decimal, marked):
        assert read(source).table["Area"].to_pylist() == [1.5, 2.5]
        assert READER.columns(source) == tuple(header)


# A column without a name, as pandas' index is written


def test_a_column_without_a_name_is_no_key(tmp_path: Path) -> None:
    source = written(tmp_path / "Image.csv", ",ImageNumber,Area\na,1,2\nb,2,x\n")
    request = Request(source, Keys("ImageNumber", ""), (("", TEXT), ("ImageNumber", INT), ("Area", INT)))
    assert READER.read(request).widened == (("Area", TEXT),)
    request = Request(source, Keys("ImageNumber", ""), (("", INT), ("ImageNumber", INT), ("Area", TEXT)))
    assert READER.read(request).widened == (("", TEXT),)


# Several compartments side by side


HEADERS = [
    ["Image", "Cells", "Cells", "Cells", "Nuclei", "Nuclei"],
    ["ImageNumber", "ObjectNumber", "Parent_Nuclei", "Area", "ObjectNumber", "Area"],
]


def combined(counts: dict[int, tuple[int, int]]) -> list[list[object]]:
    """So many cells and nuclei in each image; a row has nothing of the compartment that has fewer."""
    rows: list[list[object]] = []
    for image, (cells, nuclei) in counts.items():
        for number in range(1, max(cells, nuclei) + 1):
            cell = [number, number, image + number / 8] if number <= cells else ["", "", ""]
            nucleus = [number, 100 + image + number / 8] if number <= nuclei else ["", "nan"]
            rows.append([image, *cell, *nucleus])
    return rows


@settings(max_examples=25)
@given(
    st.dictionaries(st.integers(1, 9), st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=4),
    st.sampled_from([",", ";"]),
    st.integers(40, 400),
)
def test_each_compartment_of_a_combined_file_has_its_own_rows(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[int, tuple[int, int]], delimiter: str, block: int
) -> None:
    path = tmp_path_factory.mktemp("combined") / "object.csv"
    source = written(path, text_of([*HEADERS, *combined(counts)], delimiter))
    assert groups_of(Text(Places(), source)) == ("Cells", "Nuclei")
    for position, (label, lead) in enumerate((("Cells", 0), ("Nuclei", 100))):
        table = written(path, path.read_bytes(), table=label)
        assert READER.columns(table)[:2] == ("ImageNumber", "ObjectNumber")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csv_index, "BLOCK_BYTES", block)
            index = index_of(table)
        expected = {image: two[position] for image, two in counts.items() if two[position]}
        assert {one.image: one.rows for one in index.images} == expected
        assert index.unique is True
        whole = read(table).table
        assert whole.num_rows == sum(expected.values())
        for one in index.images:
            part = read(table, images=(one.image, one.image), spans=one.spans).table
            assert part["ObjectNumber"].to_pylist() == list(range(1, one.rows + 1))
            assert part["Area"].to_pylist() == [lead + one.image + n / 8 for n in range(1, one.rows + 1)]
            assert READER.objects(table, KEYS, one.image) == list(range(1, one.rows + 1))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("Image,Cells\n", "cut off"),
        ("Image,Cells\nImageNumber,ObjectNumber,Area\n", "first header row has 2 fields, its second 3"),
        ("Image,Cells,Cells\nImageNumber,Area,Area\n", "names 'Cells/Area' more than once"),
        ("", "empty"),
        (b"Image,C\xffells\nImageNumber,Area\n", "not UTF-8"),
    ],
)
def test_two_header_rows_that_do_not_fit(tmp_path: Path, content: str | bytes, cause: str) -> None:
    source = written(tmp_path / "object.csv", content, "Cells")
    for step in (READER.columns, lambda one: groups_of(Text(Places(), one))):
        with pytest.raises(BadSourceError) as caught:
            step(source)
        assert cause in caught.value.cause
