"""What stays for later runs: bounded in size and age, seen and cleared by a command, never under a run's feet."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from ears import Ear
from screens import ROWS, again, index_of, kept_parts, listing, set_area

from prefect_cytotable.flows import convert
from prefect_cytotable.flows.cli import main
from prefect_cytotable.tasks.core import kept
from prefect_cytotable.tasks.core.locks import lock
from prefect_cytotable.tasks.core.places import cache

pytestmark = pytest.mark.usefixtures("local")


def folder(out: Path, plate: str) -> Path:
    (found,) = (out / ".prefect-cytotable").glob(f"{plate}.parquet-*")
    return found


def unused_for(out: Path, plate: str, days: float) -> None:
    """Have a plate's chunks look as if no run had used them for so long."""
    moment = time.time() - days * 86400
    os.utime(folder(out, plate) / "lock", (moment, moment))


def test_chunks_that_no_run_used_for_long_go(root: Path, out: Path) -> None:
    again(root, out)
    assert set(kept_parts(out)) == {"a", "b", "c"}
    unused_for(out, "a", 31)
    unused_for(out, "b", 29)
    done = again(root, out)
    assert set(kept_parts(out)) == {"b", "c"}
    assert done.freed > 0
    set_area(root / "b" / "b-A01-1", "5")
    again(root, out)
    row = index_of(out)["b"]
    assert row["chunks_reused"] == row["chunks"] - 1
    assert time.time() - kept.look(folder(out, "b")).last_used < 600  # it was used just now


def test_what_was_used_longest_ago_goes_first_where_it_is_too_much(root: Path, out: Path) -> None:
    again(root, out)
    sizes = {plate: kept.look(folder(out, plate)).size for plate in "abc"}
    for days, plate in enumerate("bca", start=1):
        unused_for(out, plate, days)
    again(root, out, keep=sizes["b"] + sizes["c"])
    assert set(kept_parts(out)) == {"b", "c"}
    again(root, out, keep=sizes["b"] + sizes["c"] - 1)
    assert set(kept_parts(out)) == {"b"}


def test_nothing_is_kept_where_nothing_may_be(root: Path, out: Path) -> None:
    heard = Ear()
    done = again(root, out, keep=0, progress=heard)
    assert len(done.converted) == 3
    assert listing(out) == ["a.parquet", "b.parquet", "c.parquet", "index.parquet"]
    set_area(root / "b" / "b-A01-1", "5")
    again(root, out, keep_days=0)
    assert index_of(out)["b"]["chunks_reused"] == 0
    assert listing(out) == ["a.parquet", "b.parquet", "c.parquet", "index.parquet"]


def test_chunks_in_use_stay(root: Path, out: Path) -> None:
    again(root, out)
    unused_for(out, "a", 99)
    with lock(folder(out, "a"), "another run"):
        unused_for(out, "a", 99)
        assert kept.look(folder(out, "a")).in_use
        assert kept.clear(folder(out, "a")) is None
        again(root, out)
    assert set(kept_parts(out)) == {"a", "b", "c"}
    assert not kept.look(folder(out, "a")).in_use


def test_a_work_folder_of_ones_own_is_shared_with_others(root: Path, out: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    convert(root / "a", tmp_path / "mine.parquet", work_dir=work, keep_chunks=True, chunk_size=ROWS)
    (mine,) = work.iterdir()
    before = kept.look(mine)
    again(root, out, work_dir=work, keep=1)
    assert not (out / ".prefect-cytotable").exists()
    assert kept.look(mine) == before
    again(root, tmp_path / "other", work_dir=work)
    assert len(list(kept.work_folders(work))) == 4


# --- the command --------------------------------------------------------------------------------------------


def called(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["cache", *map(str, arguments)])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_the_command_shows_and_clears(
    root: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again(root, out)
    convert(root / "a", tmp_path / "deep" / "er" / "mine.parquet", keep_chunks=True, chunk_size=ROWS)
    neighbour = tmp_path / "deep" / "er" / ".mine.parquet.prefect-cytotable"
    unused_for(out, "a", 40)
    tree = sorted(tmp_path.rglob("*"))
    status, shown, _ = called(capsys, "show", tmp_path)
    assert status == 0
    assert sorted(tmp_path.rglob("*")) == tree
    lines = shown.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("4 kept, ")
    assert re.search(rf"chunk\(s\) +used 40 d ago +{re.escape(str(folder(out, 'a')))}$", shown, re.MULTILINE)
    assert str(neighbour) in shown
    assert called(capsys, "show", "--older-than", "30d", out)[1].splitlines()[-1].startswith("1 kept")
    assert called(capsys, "show", "--larger-than", "1TB", out)[1] == "0 kept, 0 B\n"

    status, shown, _ = called(capsys, "clear", "--older-than", "30d", out)
    assert (status, set(kept_parts(out))) == (0, {"b", "c"})
    assert "(cleared)" in shown
    assert shown.splitlines()[-1].startswith("1 cleared, ")
    with lock(folder(out, "b"), "a run"):
        status, shown, _ = called(capsys, "clear", out, tmp_path / "deep", out)
        assert "(in use, left alone)" in shown
        assert shown.splitlines()[-1].startswith("2 cleared, ")
    assert set(kept_parts(out)) == {"b"}
    assert not neighbour.exists()
    assert (tmp_path / "deep" / "er" / "mine.parquet").exists()
    assert again(root, out).converted == ()


def test_an_output_that_a_killed_run_had_moved_aside_is_not_cleared(root: Path, tmp_path: Path) -> None:
    destination = tmp_path / "tables"
    convert(root / "a", destination, join=False, keep_chunks=True)
    neighbour = tmp_path / ".tables.prefect-cytotable"
    destination.rename(neighbour / "previous")
    freed = kept.clear(neighbour)
    assert freed
    assert (neighbour / "previous").is_dir()
    assert not (neighbour / "parts").exists()


def test_copies_of_objects_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = tmp_path / "cache"
    machine.mkdir()
    names = [cache.copy_name(f"s3://bucket/{name}.sqlite", "mark", ()) for name in ("old", "new")]
    for name, days in zip(names, (3, 0), strict=True):
        (machine / name).write_bytes(b"x" * 1000)
        moment = time.time() - days * 86400
        os.utime(machine / name, (moment, moment))
    others = ["notes.txt", f"{names[0]}.part", f"{'0' * 32}.lock"]
    for name in others:
        (machine / name).write_text("x")
    status, shown, _ = called(capsys, "show", "machine", "--cache-dir", machine)
    assert (status, shown.splitlines()[-1]) == (0, "2 kept, 2.0 KiB")
    assert (
        called(capsys, "clear", "machine", "--cache-dir", machine)[1].splitlines()[-1].startswith("1 cleared, 1000 B")
    )
    assert sorted(path.name for path in machine.iterdir()) == sorted([names[1], *others])
    called(capsys, "clear", "machine", "--cache-dir", machine, "--older-than", "0s")
    assert sorted(path.name for path in machine.iterdir()) == sorted(others)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert called(capsys, "show", "machine")[1] == "0 kept, 0 B\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "nowhere: there is no such folder"),
        (["clear", "s3://bucket/work"], "parts in object storage are not shown here"),
        (["clear", ".", "--larger-than", "much"], "--larger-than is 'much'"),
        (["clear", ".", "--older-than", "long"], "--older-than is 'long'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, told = called(capsys, *arguments)
    assert status == 2
    assert message in told


def test_the_command_reprocess(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reprocess", str(root), str(out), "--settle", "0", "--chunk-size", str(ROWS), "--image-columns", "all"]
    assert main([*command, "--dry-run"]) == 0
    assert "3 to convert" in capsys.readouterr().err
    assert main([*command, "--at-once", "1", "--exclude", "c"]) == 0
    assert "2 converted, 0 unchanged" in capsys.readouterr().err
    shutil.rmtree(root / "b" / "b-A01-1")
    (root / "b" / "b-A01-2" / "Cells.csv").write_text("")
    assert main([*command, "--on-bad-source", "error", "--quiet"]) == 1
    told = capsys.readouterr().err
    assert re.search(r"error: 1 of 3 plate\(s\) failed. b: .*Cells.csv: the file is empty", told)
    assert index_of(out)["a"]["status"] == "converted"
    assert main(["reprocess", str(root / "nowhere"), str(out)]) == 2
    assert main([*command, "--settle", "soon"]) == 2
