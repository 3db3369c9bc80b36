"""Stage 1: what is found, as which dataset, and with which number."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from small import gathered, tables, write_csv, write_sqlite, write_table

from prefect_cytotable.tasks.core.errors import BadSourceError, LayoutError, SourceNotFoundError
from prefect_cytotable.tasks.core.places.files import WORK_SUFFIX

PLATE = tables({1: 2, 2: 1})


def test_folders_of_csv_files_are_datasets(tmp_path: Path) -> None:
    write_csv(tmp_path / "plate" / "b", PLATE)
    write_csv(tmp_path / "plate" / "a" / "deep", PLATE)
    (tmp_path / "plate" / "Experiment.csv").write_text("Key,Value\n")
    (tmp_path / "plate" / "a" / "notes.txt").write_text("x")
    found = gathered(tmp_path / "plate")
    assert {one.name for one in found.datasets} == {"a/deep", "b"}
    assert all({s.compartment for s in one.sources} == {"image", "cells", "nuclei", "cytoplasm"}
               for one in found.datasets)  # fmt: skip
    assert found.ignored == 2
    assert found.label("cells") == "Cells"


def test_the_number_is_the_checksum_of_the_image_file(tmp_path: Path) -> None:
    for name, images in (("a", {1: 2}), ("b", {1: 2, 2: 2})):
        write_csv(tmp_path / "plate" / name, tables(images))
    found = {one.name: one.table_number for one in gathered(tmp_path / "plate").datasets}
    assert found == {name: zlib.crc32((tmp_path / "plate" / name / "Image.csv").read_bytes()) for name in ("a", "b")}


def test_the_number_of_a_database_is_its_checksum(tmp_path: Path) -> None:
    file = write_sqlite(tmp_path / "plate.sqlite", PLATE)
    (only,) = gathered(file, preset="cellprofiler_sqlite", add_tablenumber=True).datasets
    assert only.table_number == zlib.crc32(file.read_bytes())
    (only,) = gathered(file, preset="cellprofiler_sqlite").datasets
    assert only.table_number is None


def test_equal_datasets_get_numbers_of_their_own_that_do_not_depend_on_the_machine(tmp_path: Path) -> None:
    numbers = []
    for place in ("here", "elsewhere"):
        for name in ("a", "b", "c"):
            write_csv(tmp_path / place / name, PLATE)
        numbers.append({one.name: one.table_number for one in gathered(tmp_path / place).datasets})
    assert numbers[0] == numbers[1]
    assert len(set(numbers[0].values())) == 3
    assert zlib.crc32((tmp_path / "here" / "a" / "Image.csv").read_bytes()) in numbers[0].values()


def test_datasets_are_in_the_order_of_the_output(tmp_path: Path) -> None:
    for number in range(1, 6):
        write_csv(tmp_path / "plate" / f"site-{number}", tables({number: 1}))
    sorted_ = [one.table_number for one in gathered(tmp_path / "plate").datasets]
    assert sorted_ == sorted(sorted_)
    plain = [one.name for one in gathered(tmp_path / "plate", sort_output=False).datasets]
    assert plain == sorted(plain)


def test_symlinks_are_followed_once(tmp_path: Path) -> None:
    write_csv(tmp_path / "real", PLATE)
    plate = tmp_path / "plate"
    plate.mkdir()
    (plate / "linked").symlink_to(tmp_path / "real", target_is_directory=True)
    (plate / "cycle").symlink_to(plate, target_is_directory=True)
    (tmp_path / "real" / "up").symlink_to(plate, target_is_directory=True)
    (plate / "dangling.csv").symlink_to(tmp_path / "nothing.csv")
    assert [one.name for one in gathered(plate).datasets] == ["linked"]


def test_what_macos_leaves_beside_each_file_is_ignored(tmp_path: Path) -> None:
    write_csv(tmp_path / "csv", PLATE)
    (tmp_path / "csv" / "._Cells.csv").write_bytes(b"\0\5\x16\7")
    assert not gathered(tmp_path / "csv", on_bad_source="error").skipped
    write_sqlite(tmp_path / "sqlite" / "plate.sqlite", PLATE)
    (tmp_path / "sqlite" / "._plate.sqlite").write_bytes(b"\0\5\x16\7")
    found = gathered(tmp_path / "sqlite", preset="cellprofiler_sqlite", on_bad_source="error")
    assert [one.name for one in found.datasets] == ["plate.sqlite"]
    assert not found.skipped


def test_folders_in_which_runs_keep_their_parts_are_not_searched(tmp_path: Path) -> None:
    write_csv(tmp_path / "plate" / "a", PLATE)
    write_csv(tmp_path / "plate" / f".out.parquet{WORK_SUFFIX}" / "parts", PLATE)
    assert [one.name for one in gathered(tmp_path / "plate").datasets] == ["a"]


def test_two_files_for_one_compartment_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "plate", PLATE)
    write_table(tmp_path / "plate" / "cells.csv", *PLATE["Cells"])
    with pytest.raises(LayoutError, match=r"Cells\.csv and cells\.csv are both the table of 'cells'"):
        gathered(tmp_path / "plate")


def test_a_file_whose_name_only_contains_a_compartment_is_none(tmp_path: Path) -> None:
    write_csv(tmp_path / "plate", PLATE)
    write_table(tmp_path / "plate" / "MyCells.csv", *PLATE["Cells"])
    write_table(tmp_path / "plate" / "Cells_old.csv", *PLATE["Cells"])
    (only,) = gathered(tmp_path / "plate").datasets
    assert Path(only.source("cells").path).name == "Cells.csv"


def test_nothing_there_names_the_nearest(tmp_path: Path) -> None:
    write_csv(tmp_path / "plate", PLATE)
    with pytest.raises(SourceNotFoundError, match=r"plaet.*Did you mean 'plate'"):
        gathered(tmp_path / "plaet")


def test_an_empty_folder_and_one_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFoundError, match="is empty"):
        gathered(tmp_path / "empty")
    write_sqlite(tmp_path / "other" / "plate.sqlite", PLATE)
    with pytest.raises(SourceNotFoundError, match=r"SQLITE files: choose a preset"):
        gathered(tmp_path / "other")
    write_table(tmp_path / "strange" / "PH3.csv", ["a"], [(1,)])
    with pytest.raises(SourceNotFoundError, match="none of them with a table called Image, Cells, Nuclei, Cytoplasm"):
        gathered(tmp_path / "strange")


def test_a_compartment_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    write_csv(tmp_path / "plate", PLATE)
    with pytest.raises(LayoutError, match=r"'cels'.*Did you mean 'Cells'"):
        gathered(tmp_path / "plate", compartments=["cels", "nuclei"])


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_database_that_is_none_is_skipped_or_an_error(tmp_path: Path, content: bytes) -> None:
    write_sqlite(tmp_path / "plates" / "good.sqlite", PLATE)
    (tmp_path / "plates" / "bad.sqlite").write_bytes(content)
    found = gathered(tmp_path / "plates", preset="cellprofiler_sqlite")
    assert [one.name for one in found.datasets] == ["good.sqlite"]
    assert [Path(one.where).name for one in found.skipped] == ["bad.sqlite"]
    with pytest.raises(BadSourceError, match=r"bad\.sqlite"):
        gathered(tmp_path / "plates", preset="cellprofiler_sqlite", on_bad_source="error")


def test_both_names_of_tables_are_known_and_per_comes_first(tmp_path: Path) -> None:
    file = write_sqlite(tmp_path / "plate.sqlite", PLATE)
    import sqlite3

    with sqlite3.connect(file) as connection:
        connection.execute('CREATE TABLE "Cells" (x)')
        connection.execute('ALTER TABLE "Per_Nuclei" RENAME TO "Nuclei"')
    connection.close()
    (only,) = gathered(file, preset="cellprofiler_sqlite").datasets
    assert {one.compartment: one.table for one in only.sources} == {
        "image": "Per_Image",
        "cells": "Per_Cells",
        "cytoplasm": "Per_Cytoplasm",
        "nuclei": "Nuclei",
    }


def test_one_file_is_a_dataset(tmp_path: Path) -> None:
    write_csv(tmp_path / "plate", PLATE)
    found = gathered(tmp_path / "plate" / "Cells.csv")
    assert [[one.compartment for one in dataset.sources] for dataset in found.datasets] == [["cells"]]
