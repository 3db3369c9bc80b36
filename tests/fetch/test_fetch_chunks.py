"""Chunks: the same bytes however many, on every runner; what is done is not done again; nothing half-written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from ears import Ear
from fetching_tools import EXPERIMENT, frame_of, listing
from test_fetch_rows import numbered

from prefect_cytotable.flows import fetch_obs
from prefect_cytotable.tasks.core.errors import DestinationBusyError, DestinationExistsError, MemoryBudgetError
from prefect_cytotable.tasks.core.locks import lock
from prefect_cytotable.tasks.core.model import ChunkResult
from prefect_cytotable.tasks.core.store import neighbour

pytestmark = pytest.mark.usefixtures("local")

CHUNK = 8_000
CHUNKS = 4


@pytest.fixture(scope="module")
def direct(census: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a fetch without chunks writes."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("direct")
        patch.setenv("PREFECT_HOME", str(folder))
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder))
        patch.delenv("PREFECT_API_URL", raising=False)
        fetched = fetch_obs(census, folder / "out.feather", tissue="lung")
        assert fetched.chunks == 0
        return Path(fetched.path).read_bytes()


@pytest.mark.parametrize("runner", ["sequential", "concurrent", "process"])
def test_chunks_give_the_bytes_of_one_stream_on_every_runner(
    census: Path, direct: bytes, runner: str, tmp_path: Path
) -> None:
    fetched = fetch_obs(census, "out.feather", tissue="lung", chunk_size=CHUNK, task_runner=runner, workers=2)
    assert (fetched.chunks, fetched.chunks_reused) == (CHUNKS, 0)
    assert Path(fetched.path).read_bytes() == direct
    assert listing(tmp_path) == ["out.feather"]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_other_formats_too(census: Path, ending: str) -> None:
    one = fetch_obs(census, f"one.{ending}", tissue="lung")
    many = fetch_obs(census, f"many.{ending}", tissue="lung", chunk_size=3_000, workers=3)
    assert Path(one.path).read_bytes() == Path(many.path).read_bytes()


def test_a_later_run_takes_over_what_is_whole_and_does_the_rest(census: Path, direct: bytes, tmp_path: Path) -> None:
    def again(**more: object) -> tuple[int, int, bytes]:
        fetched = fetch_obs(
            census, "out.feather", chunk_size=CHUNK, keep_chunks=True, overwrite=True, work_dir="work",
            **{"tissue": "lung", **more},
        )  # fmt: skip
        return fetched.chunks, fetched.chunks_reused, Path(fetched.path).read_bytes()

    assert again() == (CHUNKS, 0, direct)
    assert again() == (CHUNKS, CHUNKS, direct)
    parts = sorted(tmp_path.glob("work/*/parts/*"))
    assert len(parts) == CHUNKS
    content = bytearray(parts[0].read_bytes())
    content[len(content) // 2] ^= 1
    parts[0].write_bytes(content)
    parts[1].unlink()
    assert again() == (CHUNKS, CHUNKS - 2, direct)
    assert again(value_filter="nnz > 0")[:2] == (CHUNKS, 0)
    assert again(memory_budget="1GiB")[:2] == (CHUNKS, 0)


@pytest.mark.parametrize("change", ["rows", "values"])
def test_a_store_that_changed_is_read_again(tmp_path: Path, change: str) -> None:
    frame = frame_of(tmp_path / "obs", numbered(list(range(100))))

    def again() -> tuple[int, list[int]]:
        fetched = fetch_obs(frame, "out.csv", chunk_size=40, keep_chunks=True, overwrite=True)
        lines = Path(fetched.path).read_text().splitlines()[1:]
        return fetched.chunks_reused, [int(line.split(",")[1]) for line in lines]

    assert again() == (0, [10 * one for one in range(100)])
    assert again()[0] == 3
    table = numbered(list(range(100, 130))) if change == "rows" else numbered(list(range(100)))
    if change == "values":
        table = table.set_column(1, "x", [[7] * 100])
    import tiledbsoma

    with tiledbsoma.DataFrame.open(str(frame), "w") as opened:
        opened.write(table)
    expected = [10 * one for one in range(130)] if change == "rows" else [7] * 100
    assert again() == (0, expected)


class Breaker(Ear):
    """Breaks the run off, as the keyboard does, after two chunks."""

    def advance(self, result: ChunkResult) -> None:
        super().advance(result)
        if len(self.results) == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("chunk_size", [CHUNK, None])
def test_a_run_that_is_broken_off_leaves_no_destination_and_goes_on_later(
    census: Path, direct: bytes, tmp_path: Path, chunk_size: int | None
) -> None:
    arguments = {"tissue": "lung", "chunk_size": chunk_size, "task_runner": "sequential", "memory_budget": "24MiB"}
    whole = Path(fetch_obs(census, "whole.feather", **arguments).path).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        fetch_obs(census, "out.feather", progress=Breaker(), **arguments)
    left = [name for name in listing(tmp_path) if not name.startswith("whole")]
    assert "out.feather" not in left
    assert not [name for name in left if ".tmp-" in name]
    if chunk_size is None:
        assert left == []
    fetched = fetch_obs(census, "out.feather", **arguments)
    assert fetched.chunks_reused >= (2 if chunk_size else 0)
    assert Path(fetched.path).read_bytes() == whole
    assert listing(tmp_path) == ["out.feather", "whole.feather"]


def test_a_destination_that_is_there_is_replaced_only_where_that_is_wished(census: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DestinationExistsError, match="overwrite=True"):
        fetch_obs(census, "out.csv", tissue="ureter")
    with pytest.raises(DestinationExistsError, match="is a folder"):
        fetch_obs(census, "folder.csv", tissue="ureter", overwrite=True)
    assert (tmp_path / "out.csv").read_text() == "mine"
    with lock(neighbour(tmp_path / "out.csv"), "out.csv"), pytest.raises(DestinationBusyError):
        fetch_obs(census, "out.csv", tissue="ureter", overwrite=True)
    fetch_obs(census, "out.csv", tissue="ureter", overwrite=True)
    assert (tmp_path / "out.csv").read_text().startswith('"soma_joinid","dataset_id"')
    assert listing(tmp_path) == ["folder.csv", "out.csv"]


def test_rows_that_cannot_be_read_are_an_error_and_nothing_is_written(census: Path, tmp_path: Path) -> None:
    from prefect_cytotable.tasks.core.soma.errors import SomaReadError

    copy = tmp_path / "copy"
    shutil.copytree(census / EXPERIMENT / "obs", copy)
    for file in copy.glob("__fragments/*/*.tdb"):
        if not file.name.startswith("__"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(SomaReadError, match=f"{re.escape(str(copy))}.*cannot be read"):
        fetch_obs(copy, "out.feather")
    assert not [name for name in listing(tmp_path) if not name.startswith("copy")]


def test_workers_share_the_budget(census: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="Give at least that"):
        fetch_obs(census, "out.feather", memory_budget="20MiB")
    one, two, four = (
        fetch_obs(census, f"{workers}.feather", memory_budget="64MiB", chunk_size=CHUNK, workers=workers)
        for workers in (1, 2, 4)
    )
    assert two.batch_rows * 2 == one.batch_rows
    assert (four.batch_rows, four.buffer_bytes) == (two.batch_rows, two.buffer_bytes)  # there is no memory for more
    assert Path(one.path).read_bytes() == Path(two.path).read_bytes()
    assert one.buffer_bytes < fetch_obs(census, "b.feather", memory_budget="1GiB").buffer_bytes
    assert fetch_obs(census, "c.feather", buffer_bytes="100kB").buffer_bytes == 100_000


def test_a_listener_hears_of_every_row(census: Path) -> None:
    for number, chunk_size in enumerate((None, CHUNK)):
        listener = Ear()
        fetched = fetch_obs(census, f"{number}.feather", tissue="lung", chunk_size=chunk_size, progress=listener)
        assert sum(account.rows_in for one in listener.results for account in one.accounts) == fetched.rows
        assert len(listener.results) == listener.chunks
        assert any(line.startswith(f"rows: {fetched.rows:,} of 30,000, 28 columns") for line in listener.said)
        assert any(re.fullmatch(r"open [\d.]+ s, query [\d.]+ s, fetch [\d.]+ s", line) for line in listener.said)
