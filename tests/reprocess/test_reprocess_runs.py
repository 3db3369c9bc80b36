"""Runs over many plates in this process: what is converted, what is left alone, and what is remembered of it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ears import Ear
from screens import (
    ROWS,
    again,
    aged,
    cells_of,
    executed,
    index_of,
    kept_parts,
    listing,
    plate_of_sites,
    plate_of_sqlite,
    set_area,
)

from prefect_cytotable.flows import convert
from prefect_cytotable.flows.reprocessing import LocalPlates
from prefect_cytotable.tasks.core.errors import DestinationBusyError, MemoryBudgetError
from prefect_cytotable.tasks.core.model import ChunkResult, Report
from prefect_cytotable.tasks.core.presets import preset_text
from prefect_cytotable.tasks.core.reprocess import run as runs
from prefect_cytotable.tasks.core.reprocess.errors import IndexFileError, PlatesFailedError
from prefect_cytotable.tasks.core.reprocess.settings import share_of

pytestmark = pytest.mark.usefixtures("local")


def converted(root: Path, tmp_path: Path, plate: str) -> Any:
    """What `convert` makes of a plate."""
    path = tmp_path / "alone" / f"{plate}.parquet"
    convert(root / plate, path, overwrite=True)
    return cells_of(path.parent, plate)


def test_new_plates_are_converted_and_then_left_alone(root: Path, out: Path, tmp_path: Path) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    done = again(root, out)
    assert (done.converted, done.unchanged) == (("a", "b", "c"), ())
    assert listing(out) == [".prefect-cytotable", "a.parquet", "b.parquet", "c.parquet", "index.parquet"]
    for plate in done.converted:
        assert cells_of(out, plate).equals(converted(root, tmp_path, plate))
    row = index_of(out)["b"]
    assert (row["status"], row["path"], row["source"]) == ("converted", str(out / "b.parquet"), str(root / "b"))
    table = pq.read_metadata(out / "b.parquet")
    assert (row["rows"], row["columns"], row["bytes"]) == (
        table.num_rows,
        table.num_columns,
        (out / "b.parquet").stat().st_size,
    )
    assert before <= row["converted_at"] <= datetime.now(UTC)
    assert (row["source_files"], row["chunks_reused"], row["error"], row["rows_dropped"]) == (16, 0, None, 0)
    assert row["chunks"] >= 3

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "lock"}
    done = again(root, out)
    assert (done.converted, done.unchanged) == ((), ("a", "b", "c"))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "lock"} == times


def test_when_one_site_changes_only_its_chunks_are_converted_again(root: Path, out: Path, tmp_path: Path) -> None:
    plate_of_sites(root / "b", seed=9, wells=12)
    again(root, out)
    chunks = index_of(out)["b"]["chunks"]
    assert chunks >= 10
    set_area(root / "b" / "b-A05-2", "4711")
    heard = Ear()
    done = again(root, out, progress=heard)
    assert done.converted == ("b",)
    row = index_of(out)["b"]
    assert (row["chunks"], row["chunks_reused"]) == (chunks, chunks - 1)
    assert f"{chunks} chunk(s), {chunks - 1} done before" in heard.text
    assert kept_parts(out)["b"] == chunks  # the part of the earlier state is gone
    assert cells_of(out, "b").equals(converted(root, tmp_path, "b"))

    plate_of_sites(tmp_path / "more", seed=3, wells=1, sites=1)
    shutil.copytree(tmp_path / "more" / "more-A01-1", root / "b" / "one-more")
    again(root, out)
    row = index_of(out)["b"]
    assert row["chunks"] - row["chunks_reused"] <= 4
    assert row["chunks_reused"] >= chunks - 4
    assert cells_of(out, "b").equals(converted(root, tmp_path, "b"))


def test_plates_come_and_go_and_settle(root: Path, out: Path) -> None:
    aged(root / "a")
    aged(root / "b")
    heard = Ear()
    done = again(root, out, settle="10min", progress=heard)
    assert (done.converted, done.waiting) == (("a", "b"), ("c",))
    assert "c: new; changed 0 s ago, settles after 10 min" in heard.text
    assert {name: row["status"] for name, row in index_of(out).items()} == {
        "a": "converted",
        "b": "converted",
        "c": "waiting",
    }
    aged(root / "c")
    shutil.rmtree(root / "a")
    set_area(root / "b" / "b-A01-1", "5")
    done = again(root, out, settle="10min")
    assert (done.converted, done.waiting, done.gone) == (("c",), ("b",), ("a",))
    assert index_of(out)["a"]["status"] == "gone"
    assert (out / "a.parquet").exists()  # nothing is deleted
    aged(root / "b")
    assert again(root, out, settle="10min").converted == ("b",)
    future = aged(plate_of_sites(root / "d"), -86400)
    done = again(root, out)
    assert done.waiting == ("d",)
    assert "in the future" in done.outcomes[-1].why
    assert again(aged(future).parent, out).converted == ("d",)


def test_a_plate_that_fails_stops_no_other_and_is_tried_again(root: Path, out: Path) -> None:
    again(root, out)
    before = cells_of(out, "b")
    good = index_of(out)["b"]
    image = root / "b" / "b-A01-1" / "Image.csv"
    text = image.read_text()
    image.write_text(text + text.splitlines()[1] + "\n")  # an image twice
    set_area(root / "c" / "c-A01-1", "5")
    heard = Ear()
    with pytest.raises(PlatesFailedError, match=r"1 of 2 plate\(s\) failed. b: .*Image.csv"):
        again(root, out, progress=heard)
    assert "b: failed (changed): " in heard.text
    rows = index_of(out)
    assert {name: row["status"] for name, row in rows.items()} == {"a": "converted", "b": "failed", "c": "converted"}
    assert "Image.csv" in rows["b"]["error"]
    assert (rows["b"]["rows"], rows["b"]["converted_at"]) == (good["rows"], good["converted_at"])
    assert rows["b"]["source_fingerprint"] is None
    assert cells_of(out, "b").equals(before)  # the output of the last good state
    with pytest.raises(PlatesFailedError, match="1 of 1"):
        again(root, out)
    image.write_text(text)
    done = again(root, out)
    assert [(one.plate, one.why) for one in done.outcomes if one.plate in done.converted] == [("b", "failed before")]
    assert index_of(out)["b"]["error"] is None


@pytest.mark.parametrize("harm", ["deleted", "shortened"])
def test_an_output_that_is_not_what_was_written_is_made_anew(root: Path, out: Path, harm: str) -> None:
    again(root, out)
    path = out / "b.parquet"
    whole = path.read_bytes()
    if harm == "deleted":
        path.unlink()
    else:
        path.write_bytes(whole[:-1])
    done = again(root, out)
    assert done.converted == ("b",)
    assert path.read_bytes() == whole
    row = index_of(out)["b"]
    assert row["chunks_reused"] == row["chunks"]


def test_what_somebody_else_put_there_is_not_replaced(root: Path, out: Path) -> None:
    out.mkdir()
    (out / "b.parquet").write_text("mine")
    for _ in range(2):  # the second time as well: a refusal makes it none of ours
        with pytest.raises(PlatesFailedError, match=r"b\.parquet is there already, and the index does not know it"):
            again(root, out)
        assert (out / "b.parquet").read_text() == "mine"
    assert index_of(out)["b"]["path"] is None
    assert again(root, out, overwrite=True).converted == ("b",)
    assert cells_of(out, "b").num_rows > 0


def test_other_options_convert_everything_again_and_another_version_where_that_is_wanted(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(root, out)
    assert again(root, out, workers=1, memory_budget="2GiB", options={"chunk_size": 5}).converted == ()
    options = {"chunk_size": ROWS, "image_columns": "filenames"}
    done = again(root, out, options=options)
    assert done.converted == ("a", "b", "c")
    assert {one.why for one in done.outcomes} == {"converted with other options"}
    with monkeypatch.context() as patch:
        patch.setattr(runs, "version", lambda name: "99.0")
        assert again(root, out, options=options).converted == ()
        done = again(root, out, options=options, new_version="convert")
        assert done.converted == ("a", "b", "c")
        assert index_of(out)["a"]["tool_version"] == "99.0"


def test_a_preset_that_changes_is_another_option(root: Path, out: Path, tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text(preset_text("cellprofiler_csv"))
    again(root, out, preset=str(preset))
    assert again(root, out, preset=str(preset)).converted == ()
    preset.write_text(preset.read_text().replace('image_columns = ["Image_FileName_*"]', "image_columns = []"))
    assert len(again(root, out, preset=str(preset)).converted) == 3


def test_a_dry_run_writes_nothing(root: Path, out: Path) -> None:
    heard = Ear()
    done = again(root, out, dry_run=True, progress=heard)
    assert done.converted == ("a", "b", "c")
    assert not out.exists()
    assert "plates: 3, 3 to convert" in heard.text
    assert "  b: new" in heard.said


def test_the_index_is_read_by_others(root: Path, out: Path) -> None:
    plate_of_sites(root / "it's \u00e4 'plate'")
    again(root, out)
    duckdb = pytest.importorskip("duckdb")
    asked = "SELECT plate, rows, converted_at FROM read_parquet(?) WHERE status = 'converted' ORDER BY plate"
    with duckdb.connect() as connection:
        answer = connection.execute(asked, [str(out / "index.parquet")]).fetchall()
    assert [row[0] for row in answer] == ["a", "b", "c", "it's \u00e4 'plate'"]
    assert all(row[1] > 0 for row in answer)
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(out / "index.parquet")
    assert str(frame["converted_at"].dtype) == "datetime64[us, UTC]"
    assert frame["rows"].sum() == sum(row[1] for row in answer)


@pytest.mark.parametrize("content", [b"", b"no table", "other table"])
def test_an_index_that_is_none_is_an_error_and_stays(root: Path, out: Path, content: bytes | str) -> None:
    again(root, out)
    index = out / "index.parquet"
    if isinstance(content, str):
        shutil.copy(out / "a.parquet", index)
    else:
        index.write_bytes(content)
    before = index.read_bytes()
    with pytest.raises(IndexFileError, match="is no index of plates"):
        again(root, out)
    assert index.read_bytes() == before
    index.unlink()
    with pytest.raises(PlatesFailedError, match="3 of 3"):
        again(root, out)
    assert len(again(root, out, overwrite=True).converted) == 3


def test_a_second_run_to_one_destination_is_refused(root: Path, out: Path) -> None:
    refused: list[str] = []

    class Nosy(Ear):
        def say(self, text: str) -> None:
            if text.startswith("a: new"):
                with pytest.raises(DestinationBusyError) as caught:
                    again(root, out)
                refused.append(str(caught.value))

    assert len(again(root, out, progress=Nosy(), plates_at_once=1).converted) == 3
    assert refused == [
        f"{out}: another run converts plates to this destination. Wait for it; it does what this one would do."
    ]


def test_several_at_a_time_give_the_same_bytes(root: Path, out: Path, tmp_path: Path) -> None:
    given: list[tuple[int, int]] = []
    converting = LocalPlates.convert

    def watched(self: LocalPlates, arguments: dict[str, Any], plate: str, progress: runs.Stop) -> Report:
        given.append((arguments["workers"], arguments["memory_budget"]))
        return converting(self, arguments, plate, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalPlates, "convert", watched)
        again(root, out, plates_at_once=2, workers=5)
    assert given == [(2, share_of(1 << 30, 2))] * 3
    again(root, tmp_path / "one", plates_at_once=2, workers=1)
    again(root, tmp_path / "many", plates_at_once=2, workers=2, task_runner="process")
    for plate in ("a", "b", "c"):
        expected = (tmp_path / "one" / f"{plate}.parquet").read_bytes()
        assert (out / f"{plate}.parquet").read_bytes() == expected
        assert (tmp_path / "many" / f"{plate}.parquet").read_bytes() == expected


def test_the_budget_is_shared_and_never_more_than_given() -> None:
    gib = 1 << 30
    assert share_of(gib, 1) == gib
    base = 190 << 20
    for at_once in (2, 3, 4):
        share = share_of(4 * gib, at_once)
        assert base + at_once * (share - base) <= 4 * gib
        assert share > 4 * gib // at_once
    with pytest.raises(MemoryBudgetError, match="4 plates at once need at least"):
        share_of(300 << 20, 4)


def test_outputs_that_are_folders(root: Path, out: Path) -> None:
    options = {"join": False, "chunk_size": ROWS}
    again(root, out, options=options)
    assert listing(out) == [".prefect-cytotable", "a", "b", "c", "index.parquet"]
    row = index_of(out)["a"]
    files = list((out / "a").rglob("*.parquet"))
    assert row["rows"] == sum(pq.read_metadata(file).num_rows for file in files)
    assert row["bytes"] == sum(file.stat().st_size for file in files)
    assert again(root, out, options=options).converted == ()
    set_area(root / "b" / "b-A01-1", "4711")
    assert again(root, out, options=options).converted == ("b",)
    cells = pq.read_table(out / "b" / "cells" / "cells.parquet", partitioning=None)
    assert 4711 in cells.column("Cells_AreaShape_Area").to_pylist()


def test_databases_as_plates(tmp_path: Path, out: Path) -> None:
    root = tmp_path / "root"
    for number, name in enumerate(("p1", "p2")):
        aged(plate_of_sqlite(root / f"{name}.sqlite", seed=number))
    arguments: dict[str, Any] = {"preset": "cellprofiler_sqlite", "settle": "10min"}
    assert again(root, out, **arguments).converted == ("p1", "p2")
    executed(root / "p2.sqlite", "UPDATE Per_Cells SET Cells_AreaShape_Area = 4711 WHERE ImageNumber = 1")
    assert again(root, out, **arguments).waiting == ("p2",)
    aged(root / "p2.sqlite")
    assert again(root, out, **arguments).converted == ("p2",)
    assert 4711 in cells_of(out, "p2").column("Cells_AreaShape_Area").to_pylist()


def test_a_run_that_is_broken_off_ends_the_plates_under_way(root: Path, out: Path) -> None:
    class Interrupting(Ear):
        def say(self, text: str) -> None:
            super().say(text)
            if ": new, " in text:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(root, out, progress=Interrupting(), plates_at_once=2, workers=2)
    rows = index_of(out)
    whole = {name for name, row in rows.items() if row["status"] == "converted"}
    assert whole
    done = again(root, out)
    assert set(done.converted) == {"a", "b", "c"} - whole
    assert {row["status"] for row in index_of(out).values()} == {"converted"}


def test_a_plate_under_way_ends_at_its_next_chunk(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One plate ends with an interrupt while another one is under way, which would go on for ever."""
    begun = threading.Event()

    def converting(self: LocalPlates, arguments: dict[str, Any], plate: str, progress: runs.Stop) -> Report:
        if plate == "a":
            assert begun.wait(60)
            raise KeyboardInterrupt
        begun.set()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            progress.advance(ChunkResult("key", 0))
            time.sleep(0.02)
        raise AssertionError("it was not told to end")

    with monkeypatch.context() as patch:
        patch.setattr(LocalPlates, "convert", converting)
        with pytest.raises(KeyboardInterrupt):
            again(root, out, plates_at_once=2, workers=2)
    rows = index_of(out)
    assert {"a", "b"} <= set(rows)
    assert {row["status"] for row in rows.values()} == {"converting"}
    assert again(root, out).converted == ("a", "b", "c")


KILLED = """
import os, signal, sys
from prefect_cytotable.tasks.core import store
from prefect_cytotable.tasks.core.reprocess import index
from prefect_cytotable.flows import reprocess

saved, put = store.LocalStore.save, index.Index.put
left = int(sys.argv[3])
at_the_end = left == 100

def save(self, result):
    global left
    saved(self, result)
    if "b.parquet" in self.folder:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def puts(self, *rows):
    if at_the_end and any(row.plate == "b" and row.has_output for row in rows):
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, *rows)

store.LocalStore.save, index.Index.put = save, puts
reprocess(sys.argv[1], sys.argv[2], settle=0, options={"chunk_size": 12}, plates_at_once=1, task_runner="sequential")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal here")
@pytest.mark.parametrize(("chunks", "reused"), [(2, 2), (100, 0)], ids=["midway", "before the index knows"])
def test_a_run_that_was_killed_goes_on(root: Path, out: Path, tmp_path: Path, chunks: int, reused: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(out), str(chunks)], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    rows = index_of(out)
    assert {name: row["status"] for name, row in rows.items()} == {"a": "converted", "b": "converting"}
    assert (out / "b.parquet").exists() == (chunks == 100)
    later = again(root, out)
    assert (later.converted, later.unchanged) == (("b", "c"), ("a",))
    assert later.outcomes[1].why == "its conversion was broken off"
    row = index_of(out)["b"]
    assert row["chunks_reused"] == (reused or row["chunks"])
    again(root, tmp_path / "undisturbed")
    assert (out / "b.parquet").read_bytes() == (tmp_path / "undisturbed" / "b.parquet").read_bytes()
    assert listing(out) == [".prefect-cytotable", "a.parquet", "b.parquet", "c.parquet", "index.parquet"]
