"""Which names at a root are plates, and what their fingerprints tell."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from screens import aged, executed, plate_of_sites, plate_of_sqlite, set_area

from prefect_cytotable.flows import reprocessing
from prefect_cytotable.flows.reprocess import reprocess
from prefect_cytotable.flows.running import with_defaults
from prefect_cytotable.tasks.core.errors import (
    ArgumentError,
    LayoutError,
    MemoryBudgetError,
    SourceNotFoundError,
    UnknownArgumentError,
)
from prefect_cytotable.tasks.core.reprocess.listing import listed, look_again
from prefect_cytotable.tasks.core.reprocess.model import Listing, Plate


def found(root: Path, destination: Path | None = None, **arguments: Any) -> Listing:
    given = {"source_root": root, "destination_root": destination or root.parent / "out", **arguments}
    settings, _, options = reprocessing.settings_of(plain(given))
    return listed(settings, options)


def plain(given: dict[str, Any]) -> dict[str, Any]:
    arguments = with_defaults(reprocess, given)
    return {name: value for name, value in arguments.items() if name not in ("progress", "task_runner")}


def names(listing: Listing) -> list[str]:
    return [one.name for one in listing.plates]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def test_folders_are_plates_and_what_is_hidden_temporary_or_without_tables_is_not(root: Path) -> None:
    for name in ("b", "a 'plate'\n", ".hidden", "~old", "copy.tmp", "half.partial"):
        plate_of_sites(root / name, wells=1, sites=1)
    (root / "logs").mkdir()
    (root / "logs" / "run.log").write_text("x")
    (root / "notes.txt").write_text("x")
    (root / "platemap.csv").write_text("well\nA01\n")
    (root / "broken").symlink_to(root / "nowhere")
    (root / "loop").symlink_to(root / "loop")
    listing = found(root)
    assert names(listing) == ["a 'plate'\n", "b"]
    assert listing.ignored == ("logs", "notes.txt", "platemap.csv")
    assert all(one.files == 4 for one in listing.plates)


def test_databases_and_files_of_any_table_are_plates(root: Path) -> None:
    plate_of_sqlite(root / "p1.sqlite")
    plate_of_sqlite(root / "p2.db")
    (root / "readme.csv").write_text("a\n1\n")
    assert names(found(root, preset="cellprofiler_sqlite")) == ["p1", "p2"]
    assert names(found(root, preset="in-carta")) == ["readme"]


def test_patterns_choose(root: Path) -> None:
    for name in ("BR1", "BR2", "test1"):
        plate_of_sites(root / name, wells=1, sites=1)
    assert names(found(root, plates="BR*")) == ["BR1", "BR2"]
    assert names(found(root, exclude=["*2", "test?"])) == ["BR1"]


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        (
            "two of a name",
            LayoutError,
            r"plate1 and plate1.sqlite are both plate 'plate1'|plate1.sqlite and plate1 are",
        ),
        ("loose tables", LayoutError, "Cells.csv lies in the root itself"),
        ("called index", LayoutError, "where the index of all plates lies"),
        ("no root", SourceNotFoundError, "there is no such folder"),
        ("a file as root", SourceNotFoundError, "is a file"),
        ("into the root", ArgumentError, "is the source root itself"),
        ("into a plate", ArgumentError, "inside 'plate1'"),
        ("unknown option", UnknownArgumentError, "Did you mean 'image_columns'"),
        ("own option", ArgumentError, "options has 'overwrite'"),
        ("option of no use", ArgumentError, "unmatched is 'no'"),
        ("too many at once", MemoryBudgetError, "9 plates at once need at least"),
        ("no count", ArgumentError, "plates_at_once is 0"),
        ("no size", ArgumentError, "keep is 'much'"),
        ("no policy", ArgumentError, "Did you mean 'convert'"),
        ("no days", ArgumentError, "keep_days is -1"),
    ],
)
def test_what_cannot_be_is_refused(case: str, error: type[Exception], message: str, root: Path, tmp_path: Path) -> None:
    plate_of_sites(root / "plate1", wells=1, sites=1)
    arguments: dict[str, Any] = {
        "unknown option": {"options": {"image_colums": "all"}},
        "own option": {"options": {"overwrite": True}},
        "option of no use": {"options": {"unmatched": "no"}},
        "too many at once": {"plates_at_once": 9, "memory_budget": "600MiB"},
        "no count": {"plates_at_once": 0},
        "no size": {"keep": "much"},
        "no policy": {"new_version": "convrt"},
        "no days": {"keep_days": -1},
        "two of a name": {"preset": "cellprofiler_sqlite", "options": {"source_datatype": "sqlite"}},
        "into the root": {"destination": root},
        "into a plate": {"destination": root / "plate1" / "out"},
    }.get(case, {})
    if case == "two of a name":
        plate_of_sqlite(root / "plate1.sqlite")
        plate_of_sqlite(root / "plate1" / "a.sqlite")
    if case == "loose tables":
        shutil.copy(root / "plate1" / "plate1-A01-1" / "Cells.csv", root)
    if case == "called index":
        plate_of_sites(root / "index", wells=1, sites=1)
    if case == "a file as root":
        (tmp_path / "file").write_text("x")
    source = {"no root": tmp_path / "rot", "a file as root": tmp_path / "file"}.get(case, root)
    with pytest.raises(error, match=message):
        found(source, **arguments)


def test_a_destination_directly_in_the_root_is_no_plate(root: Path) -> None:
    plate_of_sites(root / "a", wells=1, sites=1)
    plate_of_sites(root / "tables", wells=1, sites=1)
    assert names(found(root, root / "tables")) == ["a"]


def only(root: Path, **arguments: Any) -> Plate:
    (plate,) = found(root, **arguments).plates
    return plate


def test_a_fingerprint_follows_content_and_not_what_is_beside_it(root: Path) -> None:
    plate = aged(plate_of_sites(root / "a"))
    before = only(root)
    (plate / "thumbnail.png").write_bytes(b"x")
    assert only(root).fingerprint == before.fingerprint
    assert only(root).newest > before.newest  # but somebody is at work there
    site = plate / "a-A01-1"
    set_area(site, "1")
    changed = only(root)
    assert changed.fingerprint != before.fingerprint
    cells = site / "Cells.csv"
    status = cells.stat()
    cells.write_text(cells.read_text() + "\n")
    os.utime(cells, ns=(status.st_atime_ns, status.st_mtime_ns))  # the date alone tells nothing
    assert only(root).fingerprint != changed.fingerprint
    shutil.rmtree(site)
    assert only(root).fingerprint != before.fingerprint


def test_moving_a_root_changes_no_fingerprint(root: Path, tmp_path: Path) -> None:
    plate_of_sites(root / "a")
    before = only(root)
    root.rename(tmp_path / "moved")
    assert only(tmp_path / "moved").fingerprint == before.fingerprint


def test_a_database_that_changes_behind_its_date_and_its_log(root: Path) -> None:
    file = aged(plate_of_sqlite(root / "a.sqlite"))
    before = only(root, preset="cellprofiler_sqlite")
    status = file.stat()
    executed(file, "UPDATE Per_Cells SET Cells_AreaShape_Area = 1 WHERE ImageNumber = 1")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    after = only(root, preset="cellprofiler_sqlite")
    assert after.fingerprint != before.fingerprint
    assert after.newest == before.newest
    (root / "a.sqlite-journal").write_bytes(b"x")
    assert only(root, preset="cellprofiler_sqlite").newest > after.newest


def test_a_plate_that_cannot_be_read_is_no_end_of_the_others(root: Path) -> None:
    if sys.platform == "win32" or os.geteuid() == 0:
        pytest.skip("permissions do not hold this user")
    plate_of_sites(root / "a")
    plate_of_sites(root / "b")
    (root / "a").chmod(0)
    try:
        first, second = found(root).plates
    finally:
        (root / "a").chmod(0o700)
    assert "permission denied" in first.problem
    assert not second.problem


def test_a_name_that_is_not_utf8_is_told(root: Path) -> None:
    plate_of_sites(root / "a")
    try:
        (root / "a").rename(os.fsdecode(os.fsencode(root) + b"/a\xff"))
    except OSError:
        pytest.skip("this file system takes no such name")
    plate = only(root)
    assert plate.name == "a\\udcff"
    assert "not UTF-8" in plate.problem


def test_a_plate_is_looked_at_again(root: Path) -> None:
    plate_of_sites(root / "a", wells=1)
    settings, _, options = reprocessing.settings_of(plain({"source_root": root, "destination_root": root.parent / "o"}))
    (plate,) = listed(settings, options).plates
    assert look_again(plate, options, ()) == plate
    plate_of_sites(root / "a", wells=2)
    assert look_again(plate, options, ()).files > plate.files
    shutil.rmtree(root / "a")
    with pytest.raises(SourceNotFoundError, match="nothing left to read"):
        look_again(plate, options, ())
