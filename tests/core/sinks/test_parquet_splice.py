"""Joining Parquet files by their bytes: same rows, same statistics, and no file from damaged parts."""

from __future__ import annotations

import errno
import io
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.errors import CytotableError, DamagedPartError, PartMismatchError
from prefect_cytotable.tasks.core.sinks import parquet_encode, parquet_footer, parquet_splice
from prefect_cytotable.tasks.core.sinks.parquet_encode import encode_zigzag, rebased
from prefect_cytotable.tasks.core.sinks.parquet_footer import MAGIC, Footer, RowGroups
from prefect_cytotable.tasks.core.sinks.parquet_splice import plan_splice, splice

SCHEMA = pa.schema(
    [
        pa.field("ImageNumber", pa.int64(), nullable=False),
        pa.field("Metadata_Well", pa.string()),
        pa.field("Metadata_Compound", pa.dictionary(pa.int32(), pa.string())),
        pa.field("Cells_AreaShape_Area", pa.float64()),
        pa.field("Cells_Intensity_Mean", pa.float32()),
        pa.field("Cells_Touching", pa.bool_()),
        pa.field("Nuclei_Places", pa.list_(pa.field("element", pa.int16()))),
    ],
    metadata={b"prefect-cytotable": b'{"version": "0.1"}', b"empty": b""},
)
SOME_STATISTICS = ["ImageNumber", "Cells_AreaShape_Area"]


def table(rows: int, first: int = 0) -> pa.Table:
    """Return rows `first` to `first + rows`, with nulls, NaN-free numbers and repeated strings."""
    numbers = range(first, first + rows)
    columns: list[list[Any]] = [
        [number * 2**40 for number in numbers],
        [None if number % 7 == 3 else f"{'ABCDEFGH'[number % 8]}{number % 12:02d}" for number in numbers],
        [None if number % 5 == 1 else f"compound {number % 3}" for number in numbers],
        [None if number % 11 == 2 else number / 3 for number in numbers],
        [number / 7 for number in numbers],
        [None if number % 13 == 4 else number % 2 == 0 for number in numbers],
        [None if number % 4 == 3 else list(range(number % 4)) for number in numbers],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def decoded(rows: pa.Table) -> pa.Table:
    """Return the table without dictionaries: each row group has one of its own, in an order of its own."""
    at = SCHEMA.names.index("Metadata_Compound")
    return rows.set_column(at, "Metadata_Compound", rows.column(at).cast(pa.string()))


def template(schema: pa.Schema = SCHEMA, **options: Any) -> bytes:
    """Return an empty Parquet file."""
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink, **options)
    return sink.getvalue()


def write_parts(folder: Path, sizes: Sequence[int], **options: Any) -> tuple[list[Path], pa.Table]:
    """Write parts with so many rows; return their paths and all rows."""
    folder.mkdir(exist_ok=True, parents=True)
    paths, tables, first = [], [], 0
    for number, rows in enumerate(sizes):
        tables.append(table(rows, first))
        paths.append(folder / f"part-{number}.parquet")
        pq.write_table(tables[-1], paths[-1], **options)
        first += rows
    return paths, pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def splice_to(out: Path, parts: Sequence[Path | str], empty: bytes) -> int:
    """Splice to a file."""
    with out.open("wb") as file:
        return splice(parts, empty, file)


def statistics(path: Path | str) -> list[list[Any]]:
    """Return, for each row group, all that the footer says of its columns but where they lie."""
    metadata = pq.read_metadata(path)
    moved = {"file_offset", "data_page_offset", "dictionary_page_offset", "index_page_offset"}
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return [
        [
            {key: value for key, value in group.column(column).to_dict().items() if key not in moved}
            for column in range(group.num_columns)
        ]
        for group in groups
    ]


def footer_of(path: Path) -> Footer:
    """Return the footer of a file."""
    with path.open("rb") as file:
        return parquet_splice.read_footer(file, str(path))[0]


def with_footer(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Write another footer into a file."""
    content = path.read_bytes()
    start, footer = parquet_splice.footer_bytes(io.BytesIO(content))
    path.write_bytes(content[:start] + parquet_encode.closed(change(footer)))


def cut_group(group: bytes) -> RowGroups:
    """Cut a RowGroup struct."""
    cutter = parquet_footer._Cutter(b"\x1c" + group)
    assert cutter.row_groups(0) == 1 + len(group)
    segments, numbers, ordinals = tuple(cutter.segments), tuple(cutter.numbers), tuple(cutter.ordinals)
    return RowGroups(cutter.rows, cutter.groups, frozenset(cutter.columns), segments, numbers, ordinals)


def with_ordinals(path: Path) -> None:
    """Write the row groups' own numbers, which pyarrow leaves out, into the footer."""
    parsed = footer_of(path)
    raw = parsed.raw(parquet_footer.ROW_GROUPS)
    groups, _, at = parquet_footer.read_list_header(raw, 0)
    numbered = b""
    for group in range(groups):
        begin, at = at, parquet_footer._Cutter(raw).struct(at, parquet_footer._ROW_GROUP)
        numbered += raw[begin : at - 1] + b"\x14" + encode_zigzag(group) + b"\x00"
    footer = parquet_encode.compose_footer(parsed, parsed.row_groups.rows, groups, numbered)
    with_footer(path, lambda _: footer)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path, bytes]:
    """Return the bytes of one part, the path of another and a template."""
    folder = tmp_path_factory.mktemp("pair")
    paths, _ = write_parts(folder, [9, 5], row_group_size=4)
    return paths[0].read_bytes(), paths[1], template()


OPTIONS = st.fixed_dictionaries(
    {
        "row_group_size": st.integers(1, 9),
        "use_dictionary": st.sampled_from([True, False, ["Metadata_Well"]]),
        "write_statistics": st.sampled_from([True, False, SOME_STATISTICS]),
        "compression": st.sampled_from(["none", "snappy", "zstd"]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "data_page_size": st.sampled_from([8, 1 << 20]),
    }
)


class TestSameRows:
    """The joined file has the rows of the parts, in order, for any reader."""

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(sizes=st.lists(st.integers(0, 20), max_size=5), options=OPTIONS)
    @example(sizes=[], options={})
    @example(sizes=[0], options={})
    @example(sizes=[0, 3, 0, 0, 4, 0], options={"row_group_size": 2})
    @example(sizes=[7], options={"row_group_size": 3})
    def test_equals_the_concatenated_parts(self, tmp_path: Path, sizes: list[int], options: dict[str, Any]) -> None:
        parts, wanted = write_parts(tmp_path, sizes, **options)
        out = tmp_path / "out.parquet"
        assert splice_to(out, parts, template(**options)) == wanted.num_rows

        found = pq.read_table(out)
        assert found.schema.equals(SCHEMA, check_metadata=True)
        assert decoded(found).equals(decoded(wanted))
        plain = duckdb.sql(f"from read_parquet('{out}')").to_arrow_table()
        assert plain.to_pylist() == wanted.to_pylist()
        assert statistics(out) == [
            group for part in parts if pq.read_metadata(part).num_rows for group in statistics(part)
        ]

    def test_each_row_group_can_be_read_alone(self, tmp_path: Path) -> None:
        parts, wanted = write_parts(tmp_path, [5, 0, 7], row_group_size=3)
        splice_to(tmp_path / "out.parquet", parts, template())
        file = pq.ParquetFile(tmp_path / "out.parquet")
        groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
        assert [group.num_rows for group in groups] == [3, 2, 3, 3, 1]
        assert pa.concat_tables(groups).equals(wanted)

    def test_metadata_is_that_of_the_template(self, tmp_path: Path) -> None:
        parts, _ = write_parts(tmp_path, [5, 4], row_group_size=3, version="2.4")
        other = SCHEMA.with_metadata({b"finished": b"yes"})
        splice_to(tmp_path / "out.parquet", parts, template(other, version="2.4"))
        metadata = pq.ParquetFile(tmp_path / "out.parquet").metadata
        assert metadata.num_rows == 9
        assert metadata.num_row_groups == 4
        assert metadata.num_columns == len(SCHEMA)
        assert metadata.format_version == "2.6"
        assert metadata.created_by == pq.read_metadata(parts[0]).created_by
        assert pq.read_schema(tmp_path / "out.parquet").metadata == other.metadata

    def test_a_filter_on_statistics_finds_the_rows(self, tmp_path: Path) -> None:
        parts, _ = write_parts(tmp_path, [50, 50], row_group_size=10)
        splice_to(tmp_path / "out.parquet", parts, template())
        found = pq.read_table(tmp_path / "out.parquet", filters=[("ImageNumber", "==", 77 * 2**40)])
        assert found.num_rows == 1

    def test_a_joined_file_can_be_joined_again(self, tmp_path: Path) -> None:
        parts, wanted = write_parts(tmp_path, [5, 4, 8], row_group_size=3)
        splice_to(tmp_path / "first", parts[:2], template())
        splice_to(tmp_path / "twice", [tmp_path / "first", str(parts[2])], template())
        assert pq.read_table(tmp_path / "twice").equals(wanted)

    def test_one_part_with_the_template_of_its_own_is_itself(self, tmp_path: Path) -> None:
        parts, _ = write_parts(tmp_path, [9], row_group_size=4)
        splice_to(tmp_path / "out.parquet", parts, template())
        assert (tmp_path / "out.parquet").read_bytes() == parts[0].read_bytes()

    @pytest.mark.parametrize("groups", [0, 1])
    def test_templates_with_and_without_an_empty_row_group(self, tmp_path: Path, groups: int) -> None:
        empty = io.BytesIO()
        with pq.ParquetWriter(empty, SCHEMA) as writer:
            for _ in range(groups):
                writer.write_table(SCHEMA.empty_table())
        assert pq.read_metadata(io.BytesIO(empty.getvalue())).num_row_groups == groups
        parts, wanted = write_parts(tmp_path, [3, 4])
        splice_to(tmp_path / "out.parquet", parts, empty.getvalue())
        assert pq.read_metadata(tmp_path / "out.parquet").num_row_groups == 2
        assert pq.read_table(tmp_path / "out.parquet").equals(wanted)

    def test_bloom_filters_are_found(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {
            "bloom_filter_options": {"Metadata_Well": {"ndv": 50}},
            "row_group_size": 25,
        }
        try:
            parts, wanted = write_parts(tmp_path, [50, 50], **options)
        except TypeError:
            pytest.skip("this pyarrow writes no Bloom filters")
        splice_to(tmp_path / "out.parquet", parts, template(**options))
        assert pq.read_table(tmp_path / "out.parquet").equals(wanted)
        probe = duckdb.sql(
            f"select distinct bloom_filter_excludes from parquet_bloom_probe('{tmp_path / 'out.parquet'}', "
            "'Metadata_Well', 'A00')"
        ).fetchall()
        assert probe == [(False,)]
        probe = duckdb.sql(
            f"select distinct bloom_filter_excludes from parquet_bloom_probe('{tmp_path / 'out.parquet'}', "
            "'Metadata_Well', 'no such well')"
        ).fetchall()
        assert probe == [(True,)]


class TestManyParts:
    """What joining holds does not grow with what the parts' footers say."""

    def test_pyarrow_reads_a_footer_in_blocks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        parts, _ = write_parts(tmp_path, [3])
        one = len(footer_of(parts[0]).raw(parquet_footer.ROW_GROUPS))
        read: list[int] = []
        described = parquet_splice._described

        def spied(file: Path | bytes, name: str) -> tuple[int, pa.Schema]:
            read.append(len(file) if isinstance(file, bytes) else 0)
            return described(file, name)

        monkeypatch.setattr(parquet_splice, "_described", spied)
        monkeypatch.setattr(parquet_splice, "LISTED_BLOCK", 10 * one)
        plan = plan_splice(parts * 1000, template())
        assert plan.length > 900 * one
        assert len(read) > 90
        assert max(read) < 12 * one + 2 * len(template())
        assert sum(read) > plan.length, "every row group is read"

    def test_what_is_held_of_a_part_is_a_fraction_of_its_footer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet_splice, "LISTED_BLOCK", 1 << 14)
        wide = pa.table({f"Cells_Texture_{number}": [number / 7] for number in range(80)})
        pq.write_table(wide, tmp_path / "part")
        empty = template(wide.schema)
        one = len(footer_of(tmp_path / "part").raw(parquet_footer.ROW_GROUPS))
        peaks = []
        for parts in (40, 80):
            tracemalloc.start()
            try:
                plan = plan_splice([tmp_path / "part"] * parts, empty)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        assert plan.length > 79 * one
        assert peaks[1] - peaks[0] < 40 * one / 2
        assert len(b"".join(plan.footer())) == plan.length

    def test_blocks_make_the_same_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        parts, wanted = write_parts(tmp_path, [20, 0, 30, 7, 7], row_group_size=7)
        splice_to(tmp_path / "whole", parts, template())
        monkeypatch.setattr(parquet_splice, "LISTED_BLOCK", 1)
        splice_to(tmp_path / "blocks", parts, template())
        assert (tmp_path / "blocks").read_bytes() == (tmp_path / "whole").read_bytes()
        assert decoded(pq.read_table(tmp_path / "blocks")).equals(decoded(wanted))


class TestPlainChunks:
    """The short way over a column chunk and the long one cut at the same places."""

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(options=OPTIONS, text=st.text(max_size=200))
    @example(options={"use_dictionary": ["Metadata_Well"], "write_statistics": SOME_STATISTICS}, text="")
    def test_both_ways_find_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], text: str
    ) -> None:
        column = pa.array([f"{text} {number}" for number in range(9)])
        path = tmp_path / "part"
        pq.write_table(table(9).append_column("x" + text[:60], column), path, **options)
        here = footer_of(path)
        with monkeypatch.context() as patch:
            patch.setattr(parquet_footer, "_plain_chunk", lambda: re.compile(b"(?!)"))
            assert footer_of(path) == here

    def test_the_short_way_is_taken_for_a_part_of_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        flat = table(9).drop_columns(["Nuclei_Places"])
        texts = ["Metadata_Well", "Metadata_Compound"]
        pq.write_table(flat, tmp_path / "part", use_dictionary=texts, write_statistics=[*texts, "ImageNumber"])
        monkeypatch.setattr(parquet_footer, "_COLUMN_CHUNK", None)
        assert footer_of(tmp_path / "part").row_groups.rows == 9

    def test_what_is_known_is_what_is_read(self, tmp_path: Path) -> None:
        parts, _ = write_parts(tmp_path, [9, 5])
        for like in (footer_of(parts[1]), footer_of(parts[0])):
            with parts[0].open("rb") as file:
                assert parquet_splice.read_footer(file, "part", like)[0] == footer_of(parts[0])


class TestRebasing:
    """The arithmetic of offsets, without files of that size."""

    @given(
        numbers=st.lists(st.integers(1, 2**62), max_size=20),
        shift=st.integers(0, 2**62),
        seed=st.binary(max_size=4),
    )
    def test_offsets_grow_by_the_shift(self, numbers: list[int], shift: int, seed: bytes) -> None:
        segments = tuple(seed + bytes([at]) for at in range(len(numbers) + 1))
        groups = RowGroups(1, 1, frozenset(), segments, tuple(numbers))
        wanted = b"".join(
            segment + encode_zigzag(number + shift) for segment, number in zip(segments, numbers, strict=False)
        )
        assert rebased(groups, shift, 0) == wanted + segments[-1]

    @pytest.mark.parametrize("base", [0, 1 << 31, (1 << 32) + 5, 1 << 50])
    def test_pyarrow_reads_huge_offsets(self, tmp_path: Path, base: int) -> None:
        parts, _ = write_parts(tmp_path, [9], row_group_size=4)
        head, _ = parquet_splice.read_footer(io.BytesIO(template()), "the template")
        groups = rebased(footer_of(parts[0]).row_groups, base, 0)
        footer = parquet_encode.compose_footer(head, 9, 3, groups)
        moved = pq.read_metadata(io.BytesIO(MAGIC + parquet_encode.closed(footer)))
        original = pq.read_metadata(parts[0])
        for group in range(3):
            for column in range(moved.num_columns):
                here, there = moved.row_group(group).column(column), original.row_group(group).column(column)
                assert here.data_page_offset == there.data_page_offset + base
                assert here.dictionary_page_offset in (None, (there.dictionary_page_offset or 0) + base)
                assert here.has_dictionary_page == there.has_dictionary_page
                assert here.file_offset == there.file_offset == 0

    @staticmethod
    def row_group(shift: int) -> bytes:
        """Return a RowGroup of one column that has every offset there is, and fields nobody knows."""
        meta = b"\x15\x0a"  # type (1)
        for header, offset in (
            (b"\x86", 200),
            (b"\x16", 300),
            (b"\x16", 400),
            (b"\x36", 500),
        ):  # 9, 10, 11, 14
            meta += header + encode_zigzag(offset + shift)
        meta += b"\x06\x80\x08" + encode_zigzag(555) + b"\x00"  # an unknown i64 (512) in the long form
        chunk = b"\x26" + encode_zigzag(100 + shift) + b"\x1c" + meta  # file_offset (2), meta_data (3)
        chunk += b"\x00"
        group = b"\x19\x1c" + chunk + b"\x26\x0a"  # columns (1), num_rows (3)
        return group + b"\x26" + encode_zigzag(900 + shift) + b"\x16\x02\x00"  # file_offset (5), a size (6)

    @pytest.mark.parametrize("shift", [1, 1 << 33])
    def test_every_offset_is_shifted_and_nothing_else(self, shift: int) -> None:
        group = self.row_group(0)
        groups = cut_group(group)
        assert (groups.rows, groups.groups, groups.columns) == (5, 1, {1})
        assert rebased(groups, 0, 0) == group
        assert rebased(groups, shift, 0) == self.row_group(shift)

    @given(st.integers(-(2**63), 2**63 - 1))
    @example(-(2**63))
    @example(63)
    @example(64)
    def test_zigzag_comes_back(self, number: int) -> None:
        encoded = encode_zigzag(number)
        assert parquet_footer.read_zigzag(encoded, 0) == (number, len(encoded))

    @given(st.integers(0, 40), st.integers(1, 13), st.integers(0, 200))
    def test_field_header_comes_back(self, previous: int, kind: int, number: int) -> None:
        encoded = parquet_encode.encode_header(number, kind, previous)
        assert parquet_footer.read_header(encoded, 0, previous) == (number, kind, len(encoded))


class TestOrdinals:
    """RowGroup.ordinal is an i16: 32,767 is the last one."""

    def test_ordinals_count_on_over_the_parts(self, tmp_path: Path) -> None:
        parts, wanted = write_parts(tmp_path, [6, 0, 4], row_group_size=2)
        for part in parts:
            with_ordinals(part)
        splice_to(tmp_path / "out.parquet", parts, template())
        assert pq.read_table(tmp_path / "out.parquet").equals(wanted)
        groups = footer_of(tmp_path / "out.parquet").row_groups
        assert [groups.numbers[ordinal] for ordinal in groups.ordinals] == [0, 1, 2, 3, 4]

    def test_only_the_ordinal_changes(self) -> None:
        # num_rows (3) = 5, ordinal (7) = 0, an unknown i32 (8) = 9, stop
        groups = cut_group(b"\x36\x0a" + b"\x44\x00" + b"\x15\x12" + b"\x00")
        assert rebased(groups, 1000, 32_767) == b"\x36\x0a\x44" + encode_zigzag(32_767) + b"\x15\x12\x00"

    @pytest.mark.parametrize("numbered", [True, False])
    def test_more_row_groups_than_ordinals(self, tmp_path: Path, numbered: bool) -> None:
        rows = pa.table({"a": pa.array(range(16_400), pa.int16())})
        part, out = tmp_path / "part", tmp_path / "out.parquet"
        pq.write_table(rows, part, row_group_size=1, use_dictionary=False, write_statistics=False)
        if numbered:
            with_ordinals(part)
            with pytest.raises(PartMismatchError, match="row groups beyond number 32768; write larger"):
                splice_to(out, [part] * 2, template(rows.schema))
            return
        splice_to(out, [part] * 2, template(rows.schema))
        assert footer_of(out).row_groups.groups == 32_800
        assert pq.ParquetFile(out).read_row_group(32_799)["a"].to_pylist() == [16_399]
        assert duckdb.sql(f"select sum(a) from read_parquet('{out}')").fetchall() == [(16_399 * 16_400,)]


class TestMismatch:
    """Sound files that do not fit together are refused by name, before a byte is written."""

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (SCHEMA.remove(3), "'Cells_Intensity_Mean' is where 'Cells_AreaShape_Area' should be"),
            (SCHEMA.remove(6), "column 'Nuclei_Places' is missing"),
            (SCHEMA.append(pa.field("extra", pa.int8())), "column 'extra' is not in the others"),
            (
                SCHEMA.set(4, pa.field("Cells_Intensity_Mean", pa.float64())),
                "'Cells_Intensity_Mean' has another",
            ),
            (
                SCHEMA.set(3, pa.field("Cells_AreaShape_Area", pa.float64(), nullable=False)),
                "another type or null",
            ),
        ],
    )
    def test_another_schema(self, tmp_path: Path, changed: pa.Schema, message: str) -> None:
        parts, _ = write_parts(tmp_path, [5, 5])
        odd = tmp_path / "odd.parquet"
        pq.write_table(changed.empty_table(), odd)
        out = io.BytesIO()
        with pytest.raises(PartMismatchError, match=message) as caught:
            splice([*parts, odd], template(), out)
        assert str(odd) in str(caught.value)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, CytotableError)
        assert out.getvalue() == b""

    def test_a_template_with_rows(self, tmp_path: Path) -> None:
        parts, _ = write_parts(tmp_path, [5])
        with pytest.raises(PartMismatchError, match="the template has 5 rows"):
            splice(parts, parts[0].read_bytes(), io.BytesIO())

    def test_another_order_of_statistics(self, tmp_path: Path) -> None:
        parts, _ = write_parts(tmp_path, [5])
        orders = footer_of(parts[0]).raw(parquet_footer.COLUMN_ORDERS)
        # TypeDefinedOrder (field 1) of the last column becomes IEEE754TotalOrder (field 2)
        with_footer(parts[0], lambda footer: footer.replace(orders, orders[:-3] + b"\x2c\x00\x00"))
        with pytest.raises(PartMismatchError, match="orders the values of its statistics in another way"):
            splice(parts, template(), io.BytesIO())

    @pytest.mark.parametrize("which", ["first", "last"])
    def test_an_encrypted_footer(self, tmp_path: Path, which: str) -> None:
        parts, _ = write_parts(tmp_path, [5])
        content = parts[0].read_bytes()
        parts[0].write_bytes(b"PARE" + content[4:] if which == "first" else content[:-4] + b"PARE")
        with pytest.raises(PartMismatchError, match="encrypted"):
            footer_of(parts[0])

    @pytest.mark.parametrize("field", [b"\x8c\x00", b"\x98\x00"])
    def test_encrypted_columns(self, field: bytes) -> None:
        with pytest.raises(PartMismatchError, match="encrypted columns"):
            cut_group(b"\x19\x1c" + field + b"\x00" + b"\x00")

    def test_data_in_another_file(self) -> None:
        with pytest.raises(PartMismatchError, match="another file"):
            cut_group(b"\x19\x1c" + b"\x18\x01x\x00" + b"\x00")

    @pytest.mark.parametrize("statistics", [True, False], ids=["both indexes", "only the offset index"])
    def test_a_page_index(self, tmp_path: Path, statistics: bool) -> None:
        parts, _ = write_parts(tmp_path, [5], write_page_index=True, write_statistics=statistics)
        out = io.BytesIO()
        with pytest.raises(PartMismatchError, match=r"part-0\.parquet has a page index.*; write it without"):
            splice(parts, template(), out)
        assert out.getvalue() == b""


class TestDamage:
    """Whatever happens to a part, there is one of our errors or a file that opens."""

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\x00\x00\x00\x00PAR1", b"a,b\n1,2\n" * 9])
    def test_no_parquet(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "part").write_bytes(content)
        with pytest.raises(DamagedPartError, match=r"part is damaged: .*write it again"):
            splice([tmp_path / "part"], template(), io.BytesIO())

    def test_rows_that_do_not_add_up(self, tmp_path: Path) -> None:
        parts, _ = write_parts(tmp_path, [5])
        parsed = footer_of(parts[0])
        other = parquet_encode.compose_footer(parsed, 6, 1, parsed.raw(parquet_footer.ROW_GROUPS)[1:])
        with_footer(parts[0], lambda _: other)
        with pytest.raises(DamagedPartError, match="its row groups have 5 rows"):
            footer_of(parts[0])

    @pytest.mark.parametrize("field", [b"\x60", b"\x6e", b"\x6f"])
    def test_a_field_of_no_type(self, tmp_path: Path, field: bytes) -> None:
        parts, _ = write_parts(tmp_path, [5])
        with_footer(parts[0], lambda footer: footer[:-1] + field + footer[-1:])
        with pytest.raises(DamagedPartError, match="of unknown type"):
            plan_splice(parts, template())

    def test_an_unknown_field_survives(self, tmp_path: Path) -> None:
        unknown = b"\x6c" + b"\x15\x02" + b"\x1b\x01\x55\x02\x04" + b"\x17" + bytes(8) + b"\x00"  # i32, map, double
        empty, whole = tmp_path / "empty", tmp_path / "whole"
        empty.write_bytes(template())
        with_footer(empty, lambda footer: footer[:-1] + unknown + footer[-1:])
        parts, wanted = write_parts(tmp_path, [5])
        splice_to(whole, parts, empty.read_bytes())
        assert unknown in whole.read_bytes()
        assert pq.read_table(whole).equals(wanted)

    def test_a_missing_part(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            splice([tmp_path / "part"], template(), io.BytesIO())

    def test_a_damaged_template(self, tmp_path: Path) -> None:
        with pytest.raises(DamagedPartError, match="the template is damaged"):
            splice([], template()[:-9] + b"PAR1", io.BytesIO())

    def test_truncated_at_any_byte(self, pair: tuple[bytes, Path, bytes]) -> None:
        content, _, _ = pair
        for length in range(len(content)):
            with pytest.raises(DamagedPartError):
                parquet_splice.read_footer(io.BytesIO(content[:length]), "part")

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(place=st.integers(0), change=st.integers(1, 255))
    def test_one_byte_of_the_footer_changed(
        self, tmp_path: Path, pair: tuple[bytes, Path, bytes], place: int, change: int
    ) -> None:
        content, sound, empty = pair
        footer = int.from_bytes(content[-8:-4], "little") + 8
        damaged = bytearray(content)
        damaged[-1 - place % footer] ^= change
        self.refused_or_readable(tmp_path, bytes(damaged), sound, empty)

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_stretch_of_the_footer_replaced(
        self, tmp_path: Path, pair: tuple[bytes, Path, bytes], data: st.DataObject
    ) -> None:
        content, sound, empty = pair
        start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        footer = content[start:-8]
        begin = data.draw(st.integers(0, len(footer)))
        end = data.draw(st.integers(begin, min(begin + 30, len(footer))))
        footer = footer[:begin] + data.draw(st.binary(max_size=30)) + footer[end:]
        self.refused_or_readable(tmp_path, content[:start] + parquet_encode.closed(footer), sound, empty)

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=200))
    @example(b"\x1b\xff\xff\xff\xff\x0f\x55")  # a map of 4 billion entries
    @example(b"\x19\xfc\xff\xff\xff\xff\x0f")  # a list of 4 billion structs
    @example(b"\x18" + b"\xff" * 9 + b"\x01")  # a string of 2**63 bytes
    @example(b"\x1c" * 5000)  # 5,000 levels
    @example(b"\x19\x19" * 5000)
    @example(b"\x16" + b"\xff" * 5000)  # a number without an end
    def test_any_footer(self, footer: bytes) -> None:
        with pytest.raises((DamagedPartError, PartMismatchError)):
            parquet_splice.read_footer(io.BytesIO(MAGIC + parquet_encode.closed(footer)), "part")

    @staticmethod
    def refused_or_readable(folder: Path, damaged: bytes, sound: Path, empty: bytes) -> None:
        part, out = folder / "part", folder / "out"
        part.write_bytes(damaged)
        try:
            rows = splice_to(out, [sound, part, sound], empty)
        except (DamagedPartError, PartMismatchError) as error:
            assert str(part) in str(error)
            assert out.read_bytes() == b""
        else:
            assert pq.ParquetFile(out).metadata.num_rows == rows
            assert pq.ParquetFile(out).schema_arrow.equals(SCHEMA)

    def test_a_part_that_shrinks_after_the_check(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        parts, _ = write_parts(tmp_path, [50])
        plan = plan_splice(parts, template())
        monkeypatch.setattr(parquet_splice, "plan_splice", lambda *_: plan)
        parts[0].write_bytes(parts[0].read_bytes()[:100])
        with pytest.raises(DamagedPartError, match="became shorter while it was copied: it ends at byte 100"):
            splice_to(tmp_path / "out", parts, template())


class _Dribble(io.RawIOBase):
    """An unbuffered file that takes at most five bytes at a time."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.taken += bytes(data[:5])
        return min(5, len(data))


class TestCopying:
    """The bytes are the same, whoever copies them."""

    @pytest.fixture(params=["kernel", "unsupported", "gives up", "absent", "moves nothing"])
    def copier(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        """Let os.copy_file_range fail in different ways; yield the sizes it was asked for."""
        asked: list[int] = []
        original = getattr(os, "copy_file_range", None)
        if request.param == "absent":
            monkeypatch.delattr(os, "copy_file_range", raising=False)
        elif original is None:
            pytest.skip("no copy_file_range on this platform")
        else:

            def copy(source: int, target: int, length: int, begin: int, to: int) -> int:
                asked.append(length)
                if request.param == "unsupported" or (request.param == "gives up" and len(asked) % 3 == 2):
                    raise OSError(errno.EXDEV, "another file system")
                if request.param == "moves nothing":
                    return 0
                few = length if request.param == "kernel" else min(length, 200)
                return int(original(source, target, few, begin, to))

            monkeypatch.setattr(os, "copy_file_range", copy)
        monkeypatch.setattr(parquet_splice, "COPY_BLOCK", 100)
        yield asked
        assert bool(asked) == (request.param != "absent")

    def test_every_way_gives_the_same_file(self, tmp_path: Path, copier: list[int]) -> None:
        parts, wanted = write_parts(tmp_path, [20, 0, 30], row_group_size=7)
        empty = template()
        memory = io.BytesIO()
        splice(parts, empty, memory)
        assert not copier
        assert pq.read_table(io.BytesIO(memory.getvalue())).equals(wanted)
        for name, mode, buffering in (("a", "wb", -1), ("b", "wb", 0), ("c", "w+b", -1), ("d", "ab", -1)):
            with (tmp_path / name).open(mode, buffering=buffering) as file:
                splice(parts, empty, file)  # type: ignore[arg-type]
                assert file.tell() == len(memory.getvalue())
            assert (tmp_path / name).read_bytes() == memory.getvalue()

    def test_an_output_that_takes_little_at_a_time(self, tmp_path: Path) -> None:
        parts, wanted = write_parts(tmp_path, [20, 30])
        out = _Dribble()
        assert splice(parts, template(), out) == 50  # type: ignore[arg-type]
        assert pq.read_table(io.BytesIO(out.taken)).equals(wanted)

    def test_an_output_that_does_not_begin_at_zero(self, tmp_path: Path) -> None:
        out = io.BytesIO(b"abc")
        out.seek(3)
        with pytest.raises(ValueError, match="the output is at byte 3"):
            splice([], template(), out)
        assert out.getvalue() == b"abc"
