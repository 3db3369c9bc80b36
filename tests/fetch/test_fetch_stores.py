"""Stores that are shaped unlike the Census: joinids far apart, long texts, bytes, labels that nobody has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import tiledbsoma
from ears import Ear
from fetching_tools import listing

from prefect_cytotable.flows import cli, fetch_obs
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.soma import planning
from prefect_cytotable.tasks.core.soma import rows as rows_module
from prefect_cytotable.tasks.core.soma.errors import SomaBudgetError
from prefect_cytotable.tasks.core.soma.request import make_fetch_options
from prefect_cytotable.tasks.core.soma.rows import tables

pytestmark = pytest.mark.usefixtures("local")

MIB = 1 << 20
ROOM = 5_000_000
"""Bytes of texts in a slice or a group with the smallest budget: about a fifth of it."""
FAR = [5, 1_000, 1_000_001, 3 << 32, (3 << 32) + 1, (3 << 32) + 40_000, 1 << 40, (1 << 55) + 7]


def stored(path: Path, columns: dict[str, pa.Array], joinids: Sequence[int]) -> str:
    """A data frame with these columns; its URI."""
    rows = pa.table({"soma_joinid": pa.array(joinids, pa.int64()), **columns})
    layout = {"tiledb": {"create": {"capacity": 256}}}
    tiledbsoma.DataFrame.create(
        str(path), schema=rows.schema, domain=[[0, (1 << 62) - 1]], platform_config=layout
    ).close()
    with tiledbsoma.DataFrame.open(str(path), "w") as frame:
        frame.write(rows)
    return str(path)


@pytest.fixture
def far(tmp_path: Path) -> str:
    """Eight rows, whose joinids are as far apart as hashes."""
    return stored(tmp_path / "far", {"value": pa.array(range(len(FAR)), pa.int64())}, FAR)


def test_joinids_far_apart_are_found_without_looking_everywhere(far: str) -> None:
    heard = Ear()
    fetched = fetch_obs(far, "out.feather", progress=heard)
    found = pyarrow.feather.read_table("out.feather")
    assert found.to_pydict() == {"soma_joinid": FAR, "value": list(range(len(FAR)))}
    assert (fetched.rows, fetched.table_rows) == (len(FAR), len(FAR))
    assert heard.chunks == len(heard.results) == 1
    some = fetch_obs(far, "some.feather", value_filter="value in [0, 3, 7]")
    assert (some.rows, some.table_rows) == (3, len(FAR))


def test_a_few_gaps_are_read_through(tmp_path: Path) -> None:
    """More slices than rows, and not so many that a look over the joinids pays."""
    joinids = [5, 1_000_000, 10_000_000]
    gaps = stored(tmp_path / "gaps", {"value": pa.array([1.5, 2.5, 3.5])}, joinids)
    heard = Ear()
    fetch_obs(gaps, "out.feather", progress=heard)
    assert pyarrow.feather.read_table("out.feather").column("soma_joinid").to_pylist() == joinids
    assert heard.chunks == len(heard.results) > len(joinids) + 1


def test_chunks_of_joinids_far_apart_have_so_many_rows(tmp_path: Path) -> None:
    joinids = [number << 40 for number in range(400_000)]
    far = stored(tmp_path / "far", {"value": pa.array(range(400_000), pa.int64())}, joinids)
    whole = fetch_obs(far, "whole.feather", memory_budget="72MiB")
    cut = fetch_obs(far, "cut.feather", chunk_size=1, workers=3, memory_budget="72MiB")
    assert (whole.chunks, whole.rows) == (0, 400_000)
    assert cut.chunks > 1
    assert Path("cut.feather").read_bytes() == Path("whole.feather").read_bytes()
    assert pyarrow.feather.read_table("cut.feather").column("soma_joinid").to_pylist() == joinids


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """20,000 rows with 2,000 bytes of text each, one of them with a thousand times as many."""
    texts = [f"{number:08d}" * 250 for number in range(20_000)]
    texts[12_345] = "x" * (2 * MIB)
    texts[12_346] = ""
    made = {"text": pa.array(texts, pa.large_string()), "number": pa.array(range(20_000), pa.int32())}
    return stored(tmp_path_factory.mktemp("wordy") / "store", made, range(20_000))


def plan_of(source: str, **other: Any) -> Any:
    given: dict[str, Any] = {
        "dest_path": "out.feather", "dest_datatype": None, "axis": "obs", "measurement": "RNA",
        "organism": "homo_sapiens", "columns": None, "tissue": None, "value_filter": None, "memory_budget": "24MiB",
        "buffer_bytes": "4MiB", "chunk_size": None, "workers": 1, "work_dir": None, "overwrite": False,
        "keep_chunks": False, "var_joinids": False,
    }  # fmt: skip
    return planning.plan(make_fetch_options(source_path=source, **given | other))


def test_long_texts_are_read_a_few_at_a_time(wordy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(wordy)
    assert plan.sizes.rows > 20_000, "all of it would be one slice"
    held = []
    read = rows_module._slice

    def seen(*arguments: Any) -> list[pa.Table] | None:
        pieces = read(*arguments)
        held.append(sum(piece.nbytes for piece in pieces or ()))
        return pieces

    monkeypatch.setattr(rows_module, "_slice", seen)
    heard: list[int] = []
    rows = 0
    for piece in tables(plan.table, plan.sizes, plan.table.first, plan.table.last, heard.append):
        assert piece.column("number").to_pylist() == list(range(rows, rows + piece.num_rows))
        rows += piece.num_rows
    assert rows == sum(heard) == 20_000
    assert len(heard) == 1
    assert max(held) < ROOM + 2 * MIB
    assert sum(held) > 40 * MIB - 2 * MIB


@pytest.mark.parametrize("ending", ["feather", "parquet"])
def test_groups_of_long_texts_are_small_however_the_rows_come(wordy: str, ending: str) -> None:
    fetched = fetch_obs(wordy, f"out.{ending}", memory_budget="24MiB", buffer_bytes="4MiB")
    fetch_obs(wordy, f"cut.{ending}", memory_budget="24MiB", buffer_bytes="3MiB", chunk_size=3_000)
    assert Path(f"out.{ending}").read_bytes() == Path(f"cut.{ending}").read_bytes()
    if ending == "feather":
        with pa.OSFile("out.feather") as file:
            reader = pa.ipc.open_file(file)
            groups = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    else:
        parquet = pq.ParquetFile("out.parquet")
        groups = [parquet.read_row_group(number) for number in range(parquet.num_row_groups)]
    assert all(group.column("text").nbytes < ROOM + MIB for group in groups)
    assert sum(group.num_rows for group in groups) == fetched.rows == 20_000
    texts = [text for group in groups for text in group.column("text").to_pylist()]
    assert texts[12_344:12_348] == ["00012344" * 250, "x" * (2 * MIB), "", "00012347" * 250]


def test_a_text_longer_than_the_buffer_is_told_at_once(wordy: str, tmp_path: Path) -> None:
    with pytest.raises(SomaBudgetError, match="at least the longest text"):
        fetch_obs(wordy, "out.feather", buffer_bytes="1MiB")
    assert listing(tmp_path) == []
    with pytest.raises(ArgumentError, match="buffer_bytes is 1;"):
        fetch_obs(wordy, "out.feather", buffer_bytes=1)


def test_bytes_are_no_text(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", {"raw": pa.array([b"\xff\x00", None], pa.large_binary())}, [0, 1])
    with pytest.raises(ArgumentError, match="Column 'raw' holds bytes"):
        fetch_obs(store, "out.csv")
    assert listing(tmp_path / "store") != listing(tmp_path)
    assert not Path("out.csv").exists()
    assert fetch_obs(store, "out.csv", columns="soma_joinid").rows == 2
    fetch_obs(store, "out.parquet")
    assert pq.read_table("out.parquet").column("raw").to_pylist() == [b"\xff\x00", None]


def test_a_label_that_nobody_has_is_noted(census: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fetch", str(census), "--value-filter", "sex in ['femal', 'male'] and nnz > 0", "out.feather"]
    assert cli.main(arguments) == 0  # options may stand between source and destination
    assert (
        "note: value_filter names 'femal', which no row of sex has. Did you mean 'female'?" in capsys.readouterr().err
    )
    assert fetch_obs(census, "again.feather", value_filter="sex in ['female', 'male']").notes == ()
    none = fetch_obs(census, "none.feather", value_filter="donor_id == '?'")
    assert none.notes == ("value_filter names '?', which no row of donor_id has.",)
    with pytest.raises(ArgumentError, match="another type"):
        fetch_obs(census, "never.feather", value_filter="sex == 3")
