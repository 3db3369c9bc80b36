"""The names and the order of the output's columns."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_cytotable.tasks.core.naming import Namer, column_rank, in_output_order, label_of

IDENTIFYING = frozenset(
    {"ImageNumber", "ObjectNumber", "TableNumber", "Parent_Cells", "Parent_Nuclei", "Cells_Number_Object_Number"}
)
# Words that names are made of, so that prefixes, labels and shared words meet each other often.
WORDS = st.sampled_from(
    [
        "Cells",
        "cells",
        "Nuclei",
        "Image",
        "Metadata",
        "Parent",
        "ImageNumber",
        "ObjectNumber",
        "Area",
        "Well",
        "",
        "é\n",
    ]
)
NAMES = st.lists(WORDS, min_size=1, max_size=4).map("_".join).filter(bool)


@pytest.mark.parametrize(
    ("label", "column", "output"),
    [
        ("Cells", "AreaShape_Area", "Cells_AreaShape_Area"),
        ("Cells", "Cells_AreaShape_Area", "Cells_AreaShape_Area"),
        ("Cells", "ImageNumber", "Metadata_ImageNumber"),
        ("Cells", "ObjectNumber", "Metadata_ObjectNumber"),
        ("Image", "TableNumber", "Metadata_TableNumber"),
        ("Cells", "Parent_Nuclei", "Metadata_Cells_Parent_Nuclei"),
        ("Cytoplasm", "Parent_Nuclei", "Metadata_Cytoplasm_Parent_Nuclei"),
        ("Cells", "Cells_Number_Object_Number", "Metadata_Cells_Number_Object_Number"),
        ("Image", "Metadata_Well", "Image_Metadata_Well"),
        ("Nuclei_Cellpose3", "Area", "Nuclei_Cellpose3_Area"),
    ],
)
def test_a_column_is_called_as_cytotable_calls_it(label: str, column: str, output: str) -> None:
    assert Namer(label, IDENTIFYING)(column) == output


def test_a_well_that_identifies_keeps_its_name() -> None:
    assert Namer("Image", IDENTIFYING | {"Metadata_Well"})("Metadata_Well") == "Metadata_Well"


def test_a_name_that_begins_with_the_label_stays_as_with_cytotable() -> None:
    assert Namer("Image", IDENTIFYING)("ImageSet_ImageSet") == "ImageSet_ImageSet"
    assert Namer("Cells", IDENTIFYING)("cellsize") == "Cells_cellsize"


@given(NAMES, st.frozensets(NAMES, max_size=4), st.sampled_from(["Cells", "Image", "Nuclei_Cellpose3"]))
def test_renaming_twice_is_renaming_once(column: str, identifying: frozenset[str], label: str) -> None:
    namer = Namer(label, identifying)
    once = namer(column)
    assume(column in identifying or once not in identifying)  # else the output name is the source's key as well
    assert namer(once) == once


@given(NAMES, st.frozensets(NAMES, max_size=4))
def test_no_name_loses_its_column(column: str, identifying: frozenset[str]) -> None:
    assert Namer("Cells", identifying)(column).endswith(column)


def test_columns_stand_in_the_order_of_the_design() -> None:
    expected = [
        "Metadata_TableNumber",
        "Metadata_ImageNumber",
        "Metadata_ObjectNumber",
        "Image_Metadata_Plate",
        "Metadata_Cells_Parent_Nuclei",
        "Image_Count_Cells",
        "Image_FileName_DNA",
        "Cytoplasm_A",
        "Cytoplasm_B",
        "Cells_A",
        "Nuclei_A",
        "Mitochondria_A",
        "Z",
    ]
    assert in_output_order(reversed(expected)) == expected


@given(st.lists(NAMES, unique=True))
def test_the_order_does_not_depend_on_where_a_column_stood(names: list[str]) -> None:
    assert in_output_order(names) == in_output_order(sorted(names)) == sorted(names, key=column_rank)


@pytest.mark.parametrize(
    ("key", "spelling", "label"),
    [("cells", "cells", "Cells"), ("cells", "CELLS", "Cells"), ("cells_donut_large", "Cells_Donut_Large", None)],
)
def test_the_label_keeps_a_mixed_spelling(key: str, spelling: str, label: str | None) -> None:
    assert label_of(key, spelling) == (label or spelling)
