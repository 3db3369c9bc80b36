"""Damage that once ended in something else than a right table or a named error, kept as examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_damage_archives
import test_damage_csv
import test_damage_databases
import test_damage_typed
from damage_npz import NpzHarm, npz_harmed, npz_world
from damage_plate import Files, Layout, Site
from damage_run import Example, files_of, judged
from damage_said import World
from damage_sql import SqlHarm
from damage_text import Harm
from damage_typed import TypedHarm, parquet_harmed, parquet_world

ONE = (Site(1, "s1", (4, 2)),)
TWO = (*ONE, Site(2, "s2", (6,)))
THREE = (*TWO, Site(3, "s3", (3, 5)))
CSV, COMBINED = Layout("folders"), Layout("combined")
EXPORT, CYTOMINER = Layout("export", ".sqlite", index=False), Layout("cytominer", ".sqlite", index=False)
NPZ, PARQUET = Layout("npz", ".npz"), Layout("parquet", ".parquet")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder in which an example is made."""
    return tmp_path


OUTCOMES = {
    "an image table twice": "DuplicateKeyError",
    "compartments that nothing relates": "LayoutError",
}
"""How an example ends that does not end in a table."""

TEXTS = {
    "a key in hexadecimal digits": Example(TWO, CSV, (Harm("key", 1, 0, 1, "0x1"),)),
    "values in hexadecimal digits": Example(ONE, CSV, (Harm("whole column", 2, 0, 1, "0x10"),)),
    "a key with underscores, in a file that is cut": Example(ONE, CSV, (Harm("key", 1, 3, 0, "2_0"),), 1),
    "keys beyond what a double counts": Example(
        ONE, CSV, (Harm("key", 1, 3, 0, "9007199254740993"), Harm("key", 1, 0, 1, "1.0")), 1
    ),
    "parents that are all false": Example(ONE, CSV, (Harm("whole column", 1, 0, 2, "false"),)),
    "an image table twice": Example(TWO, CSV, (Harm("line twice", 2, 1, 2),)),
    "compartments that nothing relates": Example(ONE, CSV, (Harm("drop a column", 1, 2), Harm("drop a column", 0, 2))),
    "Zstandard cut off": Example(TWO, Layout("folders", ".csv.zst"), (Harm("stored truncate", 5, 90),)),
    "Zstandard altered": Example(TWO, Layout("folders", ".csv.zst"), (Harm("stored zero", 0, 60, 40),)),
    "the header again in a combined file": Example(ONE, COMBINED, (Harm("header again", 1, 4),)),
    "no number in a combined file's key": Example(ONE, COMBINED, (Harm("value", 1, 3, 1, "x"),), 2),
    "a line break in a name, and semicolons": Example(
        ONE, Layout("folders", delimiter=";", quoting=1), (Harm("put in", 0, 50, 4),), strict=True
    ),
    "an empty name": Example(ONE, CSV, (Harm("rename a column", 2, 2, text=""),)),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts(place: Path, case: str) -> None:
    assert test_damage_csv.check(TEXTS[case], place) == OUTCOMES.get(case, "table")


DATABASES = {
    "texts as keys": Example(TWO, EXPORT, (SqlHarm("column of values", 0, 0, 0, 0, "0x10"),)),
    "nulls as keys": Example(TWO, EXPORT, (SqlHarm("column of values", 1, 1, 0, 0, None),)),
    "a key beyond 64 bits": Example(TWO, EXPORT, (SqlHarm("column of values", 0, 0, 0, 0, 1e300),), 2),
}
SEVERAL = {
    "bytes": SqlHarm("table number", 0, 0, 0, 5, b"\xff\xfe"),
    "a fraction": SqlHarm("table number", 0, 1, 0, 5, 0.1 + 0.2),
    "infinity": SqlHarm("table number", 0, 2, 0, 5, 9e999),
    "a very long text": SqlHarm("table number", 0, 3, 0, 5, "huge 1"),
    "an empty text": SqlHarm("table number", 0, 3, 0, 12, ""),
    "null": SqlHarm("table number", 0, 1, 0, 12, None),
}


@pytest.mark.parametrize("case", DATABASES)
def test_databases(place: Path, case: str) -> None:
    shape = test_damage_databases.EXPORT
    outcome = test_damage_databases.check(DATABASES[case], place, shape, "cellprofiler_sqlite", ("per_", ""))
    assert outcome == "table"


@pytest.mark.parametrize("case", SEVERAL)
def test_table_numbers(place: Path, case: str) -> None:
    example = Example(THREE, CYTOMINER, (SEVERAL[case],))
    shape, preset = test_damage_databases.CYTOMINER, test_damage_databases.PRESET
    outcome = test_damage_databases.check(example, place, shape, preset, ("", "per_"))
    assert outcome == "table"


ARCHIVES = {
    "one of several is empty": Example(THREE, NPZ, (Harm("empty", 1),)),
    "one of several is cut off": Example(THREE, NPZ, (Harm("stored truncate", 1, 300),)),
    "a header that is code": Example(TWO, NPZ, (NpzHarm("lying header", 0, 2, 3),), again=True),
    "a header of open brackets": Example(TWO, NPZ, (NpzHarm("lying header", 0, 0, 4),)),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(place: Path, case: str) -> None:
    example = ARCHIVES[case]

    def world(files: Files, _: Path) -> World:
        return npz_world(files, example.plate)

    files = files_of(example, npz_harmed(example.plate, str(place / "trap")))
    assert judged(example, files, place, test_damage_archives.SHAPE, world, preset="deepprofiler") == "table"


def test_an_empty_name_in_a_parquet_file(place: Path) -> None:
    example = Example(ONE, PARQUET, (TypedHarm("rename a column", 2, 4, text=""),))

    def world(files: Files, root: Path) -> World:
        return parquet_world(files, root.name)

    files = files_of(example, parquet_harmed)
    assert judged(example, files, place, test_damage_typed.SEPARATE, world, source_datatype="parquet") == "table"
