"""Presets: the packaged ones hold, and a mistake in a user's own is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv
from prefect_cytotable.tasks.core.errors import PresetError
from prefect_cytotable.tasks.core.model import Format
from prefect_cytotable.tasks.core.presets import load_preset, preset_names, preset_text


def test_every_packaged_preset_loads() -> None:
    assert {"cellprofiler_csv", "cellprofiler_sqlite", "cellprofiler_sqlite_pycytominer"} <= set(preset_names())
    for name in preset_names():
        assert load_preset(name).name == name


@pytest.mark.parametrize(
    ("name", "format_", "object_number", "identifying"),
    [
        (
            "cellprofiler_csv",
            Format.CSV,
            "ObjectNumber",
            "ImageNumber ObjectNumber Metadata_Well Metadata_Plate Parent_Cells Parent_Nuclei",
        ),
        (
            "cellprofiler_sqlite",
            Format.SQLITE,
            "{label}_Number_Object_Number",
            "ImageNumber Metadata_Well Parent_Cells Parent_Nuclei",
        ),
        (
            "cellprofiler_sqlite_pycytominer",
            Format.SQLITE,
            "{label}_Number_Object_Number",
            "ImageNumber Metadata_Well Parent_Cells Parent_Nuclei Cytoplasm_Parent_Cells Cytoplasm_Parent_Nuclei "
            "Cells_Number_Object_Number Nuclei_Number_Object_Number",
        ),
    ],
)
def test_a_preset_says_what_the_exporter_writes(
    name: str, format_: Format, object_number: str, identifying: str
) -> None:
    preset = load_preset(name)
    assert preset.format is format_
    assert preset.object_number == object_number
    assert preset.identifying == tuple(identifying.split())
    assert preset.base == "cytoplasm"
    assert set(preset.compartments) == {"cells", "nuclei", "cytoplasm"}
    assert {(one.child, one.parent) for one in preset.relations} == {("cytoplasm", "cells"), ("cytoplasm", "nuclei")}


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(PresetError, match=r"'celprofiler_csv'.*Did you mean 'cellprofiler_csv'"):
        load_preset("celprofiler_csv")


def test_a_preset_file_that_is_not_there() -> None:
    with pytest.raises(PresetError, match=r"mine\.toml: there is no such preset file"):
        load_preset("mine.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('format = "csv"', 'format = "cvs"', "format is 'cvs'. Did you mean 'csv'"),
        ('format = "csv"', "format = 3", "format is 3, not a str"),
        ('format = "csv"', 'formats = "csv"', "field 'formats'. Did you mean 'format'"),
        ('format = "csv"', "", "lacks the field 'format'"),
        ('format = "csv"', "format = ", "not valid TOML"),
        ('base = "cytoplasm"', 'base = "cytoplasms"', "base is 'cytoplasms'. Did you mean 'cytoplasm'"),
        ('object_number = "ObjectNumber"', 'object_number = "{lable}_No"', "object_number uses {lable}. Did you mean"),
        ('object_number = "ObjectNumber"', 'object_number = "{label_No"', "object_number is '{label_No'"),
        ('object_number = "ObjectNumber"', 'object_number = ""', "object_number holds '', not a pattern"),
        ('table_names = ["{label}"]', 'table_names = ["Cells"]', "needs {label} once"),
        ('table_names = ["{label}"]', 'table_names = ["{label}{label}"]', "needs {label} once"),
        ('table_names = ["{label}"]', 'table_names = ["{label!x}"]', "table_names"),
        ('table_names = ["{label}"]', "table_names = [1]", "table_names holds 1, not a name"),
        ('metadata = ["image"]', 'metadata = [""]', "metadata holds '', not a name"),
        ('metadata = ["image"]', 'metadata = "image"', "metadata is 'image', not a list"),
        ("identifying = [", "identifying = [7, ", "identifying holds 7, not a name"),
        ('child = "cytoplasm"', 'child = "cytoplasma"', "child is 'cytoplasma'. Did you mean 'cytoplasm'"),
        ('child = "cytoplasm"', "child = 5", "child"),
        ('parent = "cells"', 'parents = "cells"', "a relation has the fields child, parent, column"),
        ('column = "Parent_{parent}"', 'column = "Parent_{parnet}"', "column uses {parnet}. Did you mean 'parent'"),
    ],
)
def test_each_mistake_names_file_field_and_nearest(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    text = preset_text("cellprofiler_csv")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(PresetError) as caught:
        load_preset(str(file))
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_a_preset_file_that_is_no_text_is_a_preset_error(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"title = '\xff'")
    with pytest.raises(PresetError, match=r"mine\.toml"):
        load_preset(str(file))


def test_a_preset_by_path_is_used(tmp_path: Path, run) -> None:
    write_csv(tables(PlateShape(wells=1, cells=5)), tmp_path / "plate")
    for name in ("Image", "Cells", "Nuclei", "Cytoplasm"):
        (tmp_path / "plate" / f"{name}.csv").rename(tmp_path / "plate" / f"Lab_{name}.csv")
    file = tmp_path / "lab.toml"
    file.write_text(preset_text("cellprofiler_csv").replace('"{label}"', '"Lab_{label}"'), encoding="utf-8")
    table = run(tmp_path / "plate", tmp_path / "out.parquet", preset=str(file))
    assert table.num_rows > 0
    assert "Cells_AreaShape_Area" in table.column_names
