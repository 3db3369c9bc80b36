"""What holds for any plate that becomes an AnnData: it is the table that Parquet would have been."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest
from anndata_tools import FORMATS, SUFFIX, differences, read
from hypothesis import given, settings
from hypothesis import strategies as st
from small import tables, write_csv
from waiting import without_server

from prefect_cytotable.flows import convert


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No Prefect server is configured."""
    with without_server(tmp_path_factory.mktemp("home")):
        yield


CELLS = st.one_of(st.just(""), st.integers(-5, 5).map(str), st.floats(width=64).map(repr), st.sampled_from("ab"))
PLATE = st.dictionaries(st.integers(1, 9), st.integers(0, 6), min_size=1, max_size=4)


@settings(max_examples=12)
@given(
    images=st.lists(PLATE, min_size=1, max_size=2),
    values=st.lists(CELLS, min_size=1, max_size=12),
    chunk_size=st.integers(1, 9),
    chunk_rows=st.one_of(st.none(), st.integers(1, 5)),
    runner=st.sampled_from(["sequential", "concurrent"]),
    format_=st.sampled_from(FORMATS),
    unmatched=st.sampled_from(["drop", "keep"]),
)
def test_an_anndata_is_the_parquet_table(
    place: Callable[[], Any],
    images: list[dict[int, int]],
    values: list[str],
    chunk_size: int,
    chunk_rows: int | None,
    runner: str,
    format_: str,
    unmatched: str,
) -> None:
    """`values` stand in turn in a column of the cells, which has whatever type they make."""
    with place() as folder:
        for number, plate in enumerate(images):
            content = tables(plate)
            header, rows = content["Cells"]
            odd = [(*row, values[at % len(values)]) for at, row in enumerate(rows) if at % 7 != 6]
            content["Cells"] = ([*header, "Intensity_Odd_DNA"], odd)
            write_csv(folder / "plates" / str(number), content)
        shared = {"chunk_size": chunk_size, "unmatched": unmatched}
        table = pq.read_table(convert(folder / "plates", folder / "out.parquet", **shared))
        out = folder / f"out{SUFFIX[format_]}"
        convert(folder / "plates", out, format_, task_runner=runner, x_chunk_rows=chunk_rows, **shared)
        adata = read(out)
    assert differences(adata, table) == []
    assert adata.obs_names.is_unique
    assert adata.uns["prefect_cytotable"]["rows_out"] == table.num_rows
