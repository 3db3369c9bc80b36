"""The library under a fetch: groups, labels, sinks, sizes. What is written does not depend on how rows come in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.errors import MemoryBudgetError
from prefect_cytotable.tasks.core.soma import sinks, sizes
from prefect_cytotable.tasks.core.soma.model import TableFormat

MIB = 1 << 20

rows_of = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sampled_from(["a", "b", "c", "d"])),
        st.one_of(st.none(), st.integers(-5, 5)),
        st.one_of(st.none(), st.text(max_size=3)),
    ),
    max_size=40,
)


def table_of(rows: list[tuple[object, ...]], labels: list[str]) -> pa.Table:
    """Rows with a dictionary of its own; a batch of SOMA's carries labels that it does not use, too."""
    letters, numbers, texts = ([row[column] for row in rows] for column in range(3))
    codes = pa.array([None if letter is None else labels.index(str(letter)) for letter in letters], pa.int8())
    return pa.table(
        {
            "letter": pa.DictionaryArray.from_arrays(codes, pa.array(labels, pa.large_string())),
            "number": pa.array(numbers, pa.int16()),
            "text": pa.array(texts, pa.large_string()),
        }
    )


@settings(max_examples=30)
@given(rows=rows_of, cuts=st.lists(st.integers(0, 40), max_size=4), group=st.integers(1, 50))
@pytest.mark.parametrize("format_", [TableFormat.FEATHER, TableFormat.PARQUET])
def test_the_bytes_do_not_depend_on_the_batches(
    tmp_path_factory: pytest.TempPathFactory, format_: TableFormat, rows: list, cuts: list[int], group: int
) -> None:
    folder = tmp_path_factory.mktemp("written")
    schema = table_of([], ["a"]).schema
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    # Each piece has its labels in another order.
    orders = [["a", "b", "c", "d"], ["d", "x", "c", "b", "a"], ["b", "a", "d", "c", "y"]]
    pieces = [table_of(rows[start:end], orders[number % 3]) for number, (start, end) in enumerate(pairwise(edges))]
    whole = sinks.write([table_of(rows, orders[0])], schema, format_, folder / "whole", group)
    cut = sinks.write(pieces, schema, format_, folder / "cut", group)
    assert whole == cut == (len(rows), (folder / "cut").stat().st_size)
    assert (folder / "whole").read_bytes() == (folder / "cut").read_bytes()
    read = pyarrow.feather.read_table if format_ is TableFormat.FEATHER else pq.read_table
    found = read(folder / "cut")
    assert found.to_pylist() == [dict(zip(schema.names, row, strict=True)) for row in rows]
    assert found.column("letter").null_count == sum(row[0] is None for row in rows)
    met = {row[0] for row in rows} - {None}
    assert all(set(chunk.dictionary.to_pylist()) <= met for chunk in found.column("letter").chunks)


def test_a_feather_file_is_an_arrow_file_for_others_too(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    rows: list[tuple[object, ...]] = [("abcd"[one % 4], one, str(one)) for one in range(100)]
    table = table_of(rows, list("dcba"))
    sinks.write([table], table.schema, TableFormat.FEATHER, tmp_path / "x.feather", 7)
    found = polars.read_ipc(tmp_path / "x.feather")
    assert found.rows() == rows
    with pa.memory_map(str(tmp_path / "x.feather")) as file:
        reader = pa.ipc.open_file(file)
        assert reader.num_record_batches == 15
        assert reader.get_batch(14).column("letter").to_pylist() == ["c", "d"]


def test_a_sink_that_fails_leaves_no_destination(tmp_path: Path) -> None:
    table = table_of([("a", 1, "x")] * 10, ["a"])

    def broken() -> object:
        yield table
        raise RuntimeError("no more rows")

    for format_ in TableFormat:
        with pytest.raises(RuntimeError, match="no more rows"):
            sinks.write(broken(), table.schema, format_, tmp_path / format_.value, 4)  # type: ignore[arg-type]


def test_sizes_follow_the_schema_and_the_budget() -> None:
    narrow = sizes.sizes(128 * MIB, 40, 8, 0, 2)
    wide = sizes.sizes(128 * MIB, 4000, 8, 0, 2)
    assert (narrow.rows, wide.rows) == (1 << 18, 1 << 11)
    assert narrow.buffer_bytes == (1 << 18) * 8
    for one, row in ((narrow, 40), (wide, 4000)):
        assert one.readers == 1
        assert (one.readers + 1) * sizes.COPIES * one.rows * row <= 128 * MIB
        assert one.readers * one.tile_bytes <= 128 * MIB
    assert sizes.sizes(128 * MIB, 40, 8, 5_000_000, 2).buffer_bytes == 5_000_000
    assert sizes.sizes(1024 * MIB, 134, 8, 0, 64).readers == sizes.MOST_READERS
    with pytest.raises(MemoryBudgetError, match="Give at least that"):
        sizes.sizes(20 * MIB, 40, 8, 0, 2)
