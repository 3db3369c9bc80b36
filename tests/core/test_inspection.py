"""Stage 2: the union of the columns, their types, the keys, the relations and the base."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import gathered, inspect_source, options, tables, write_csv, write_sqlite, write_table

from prefect_cytotable.tasks.core.errors import ArgumentError, BadSourceError, LayoutError
from prefect_cytotable.tasks.core.inspection import inspect
from prefect_cytotable.tasks.core.model import ColumnType

PLATE = tables({1: 2, 2: 1})


def relations(found) -> set[tuple[str, str, str]]:
    return {(one.child, one.parent, one.column) for one in found.relations}


def test_columns_are_the_union_over_all_files_with_the_widest_type(tmp_path: Path) -> None:
    write_csv(tmp_path / "plate" / "a", PLATE)
    header, rows = PLATE["Cells"]
    others = {**PLATE, "Cells": ([*header[:3], "Count", "New"], [(*row[:3], 1, "x") for row in rows])}
    write_csv(tmp_path / "plate" / "b", others)
    more = {**PLATE, "Cells": ([*header, "Count"], [(*row, 1.5) for row in rows])}
    write_csv(tmp_path / "plate" / "c", more)
    cells = inspect_source(tmp_path / "plate").schema("cells")
    found = {one.name: (one.type, one.absent) for one in cells.columns}
    assert found["Count"] == (ColumnType.DOUBLE, 1)
    assert found["New"] == (ColumnType.STRING, 2)
    assert found["AreaShape_Area"] == (ColumnType.DOUBLE, 1)
    assert found["ImageNumber"] == (ColumnType.INT64, 0)
    with pytest.raises(LayoutError, match="different columns, for example"):
        inspect_source(tmp_path / "plate", infer_common_schema=False)


def test_the_base_of_the_preset_and_its_relations(tmp_path: Path) -> None:
    found = inspect_source(write_csv(tmp_path / "plate", PLATE))
    assert found.base == "cytoplasm"
    assert {("cytoplasm", "cells", "Parent_Cells"), ("cytoplasm", "nuclei", "Parent_Nuclei")} <= relations(found)


def test_cells_and_nuclei_alone_have_cells_as_base(tmp_path: Path) -> None:
    content = {name: PLATE[name] for name in ("Image", "Cells", "Nuclei")}
    found = inspect_source(write_csv(tmp_path / "plate", content))
    assert found.base == "cells"
    assert relations(found) == {("cells", "nuclei", "Parent_Nuclei")}


@pytest.mark.parametrize("name", ["Cells", "Nuclei", "Cytoplasm"])
def test_one_compartment_alone_is_the_base(tmp_path: Path, name: str) -> None:
    found = inspect_source(write_csv(tmp_path / "plate", {name: PLATE[name]}), compartments=[name.lower()])
    assert found.base == name.lower()
    assert not found.relations


def test_the_base_is_whatever_reaches_the_most(tmp_path: Path) -> None:
    content = {
        "Nuclei": (["ImageNumber", "ObjectNumber"], []),
        "Cells": (["ImageNumber", "ObjectNumber", "Parent_Nuclei"], []),
        "Spots": (["ImageNumber", "ObjectNumber", "Parent_Cells"], []),
    }
    found = inspect_source(write_csv(tmp_path / "plate", content), compartments=["nuclei", "cells", "spots"])
    assert found.base == "spots"


def test_relations_of_the_user_replace_the_others(tmp_path: Path) -> None:
    content = dict(PLATE)
    header, rows = PLATE["Cytoplasm"]
    content["Cytoplasm"] = ([*header[:2], "Cell {1}", "Kern", header[4]], rows)
    source = write_csv(tmp_path / "plate", content)
    wanted = {"Cytoplasm.Cell {1}": "Cells", "cytoplasm.Kern": "Nuclei"}
    assert relations(inspect_source(source, relations=wanted)) == {
        ("cytoplasm", "cells", "Cell {1}"),
        ("cytoplasm", "nuclei", "Kern"),
    }
    with pytest.raises(ArgumentError, match=r"Cytoplasm has no column 'Kerne'. Did you mean 'Kern'"):
        inspect_source(source, relations={"Cytoplasm.Kerne": "Nuclei", "Cytoplasm.Cell {1}": "Cells"})


def test_nothing_that_relates_two_compartments_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    content = {name: (["ImageNumber", "ObjectNumber", "A"], [(1, 1, 0.5)]) for name in ("Cells", "Nuclei")}
    source = write_csv(tmp_path / "plate", content)
    with pytest.raises(LayoutError, match=r"Nothing relates .*relations=.*join=False"):
        inspect_source(source, compartments=["cells", "nuclei"])
    assert inspect_source(source, compartments=["cells", "nuclei"], join=False).relations == ()


def test_a_source_without_its_key_is_skipped_with_the_nearest_name(tmp_path: Path) -> None:
    content = dict(PLATE)
    header, rows = PLATE["Cells"]
    content["Cells"] = (["ImageNumber", "ObjectNumbr", *header[2:]], rows)
    source = write_csv(tmp_path / "plate", content)
    found = inspect_source(source)
    (skipped,) = found.gathered.skipped
    assert "no column 'ObjectNumber' (Did you mean 'ObjectNumbr'?)" in skipped.cause
    assert skipped.rows == 3
    assert found.schema("cells") is None
    with pytest.raises(BadSourceError, match=r"Cells\.csv"):
        inspect_source(source, on_bad_source="error")


def test_names_that_would_meet_are_refused(tmp_path: Path) -> None:
    content = dict(PLATE)
    header, rows = PLATE["Cells"]
    content["Cells"] = ([*header, "Cells_AreaShape_Area"], [(*row, 1) for row in rows])
    message = r"Cells has the columns 'AreaShape_Area' and 'Cells_AreaShape_Area', which would both be called"
    with pytest.raises(LayoutError, match=message):
        inspect_source(write_csv(tmp_path / "plate", content))


def test_only_damaged_compartments_are_an_error(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "plate", {"Image": PLATE["Image"]})
    for name in ("Cells", "Nuclei", "Cytoplasm"):
        (source / f"{name}.csv").write_bytes(b"\0" * 50)
    with pytest.raises(LayoutError, match=r"no compartment's table can be read.*zero bytes"):
        inspect_source(source)


def test_keys_keep_their_type_whatever_is_found_later(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "plate", PLATE)
    chosen = options(source)
    widened = (("cells", "ImageNumber", ColumnType.DOUBLE), ("cells", "AreaShape_Area", ColumnType.STRING))
    cells = inspect(gathered(source), chosen, widened).schema("cells")
    assert cells.column("ImageNumber").type is ColumnType.INT64
    assert cells.column("AreaShape_Area").type is ColumnType.STRING


def test_object_numbers_of_either_convention_are_found(tmp_path: Path) -> None:
    content = {"Cells": (["ImageNumber", "Cells_ObjectNumber", "A"], [(1, 1, 0.5)])}
    found = inspect_source(write_csv(tmp_path / "plate", content), compartments=["cells"])
    assert found.schema("cells").object_number == "Cells_ObjectNumber"
    file = write_sqlite(tmp_path / "plate.sqlite", PLATE)
    assert inspect_source(file, preset="cellprofiler_sqlite").schema("cells").object_number == (
        "Cells_Number_Object_Number"
    )


def test_two_rows_of_header_are_no_table(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "plate", PLATE)
    write_table(source / "Cells.csv", ["Image", "Cells", "Cells"], [("ImageNumber", "ObjectNumber", "Area")])
    found = inspect_source(source)
    assert "'Cells' more than once" in found.gathered.skipped[0].cause
