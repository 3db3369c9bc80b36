"""From arguments to options: a wrong name or value is an error that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import options

from prefect_cytotable.tasks.core.errors import ArgumentError, CytotableError, UnknownArgumentError
from prefect_cytotable.tasks.core.model import Format, PresetRelation, Unmatched
from prefect_cytotable.tasks.core.request import named_arguments

SOURCE = Path("/nowhere/plate")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dest_datatype", "parqet", "dest_datatype is 'parqet'. Did you mean 'parquet'"),
        ("dest_datatype", None, "dest_datatype is None"),
        ("source_datatype", "sqlit", "Did you mean 'sqlite'"),
        ("metadata", ["", "image"], "metadata"),
        ("metadata", [3], "metadata"),
        ("metadata", ["cells"], "'cells' is named in metadata and in compartments"),
        ("compartments", [], "compartments"),
        ("compartments", "", "compartments"),
        ("compartments", [None], "compartments"),
        ("identifying_columns", [1], "identifying_columns"),
        ("chunk_size", 0, "chunk_size is 0"),
        ("chunk_size", -5, "chunk_size is -5"),
        ("chunk_size", 1.5, "chunk_size is 1.5"),
        ("chunk_size", "100", "chunk_size is '100'"),
        ("chunk_size", True, "chunk_size is True"),
        ("data_type_cast_map", {"floot": "float32"}, "Did you mean 'float'"),
        ("page_keys", {"cels": "ObjectNumber"}, "page_keys names 'cels'. Did you mean 'cells'"),
        ("preset", "cellprofiler_cvs", "Did you mean 'cellprofiler_csv'"),
        ("preset", None, "compartments must be named"),
        ("memory_budget", "lots", "memory_budget is 'lots'"),
        ("memory_budget", -1, "memory_budget is -1"),
        ("memory_budget", float("inf"), "memory_budget is inf"),
        ("memory_budget", float("nan"), "memory_budget is nan"),
        ("unmatched", "dorp", "Did you mean 'drop'"),
        ("on_bad_source", "skipp", "Did you mean 'skip'"),
        ("on_bad_source", 5, "on_bad_source is 5"),
        ("image_columns", "", "image_columns is empty"),
        ("image_columns", "filename", "Did you mean 'filenames'"),
        ("image_columns", [1], "image_columns"),
        ("workers", 0, "workers is 0"),
        ("workers", "2", "workers is '2'"),
        ("relations", {"Parent_Cells": "Cells"}, "write 'Child.Column'"),
        ("relations", {"Cytoplasm.": "Cells"}, "write 'Child.Column'"),
        ("relations", {"Cytoplasma.Parent_Cells": "Cells"}, "Did you mean 'cytoplasm'"),
        ("relations", {"Cytoplasm.Parent_Cells": "Cels"}, "Did you mean 'cells'"),
        ("dest_path", "", "dest_path is empty"),
        ("source_path", "  ", "source_path is empty"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_argument_and_value(name: str, value: Any, message: str) -> None:
    with pytest.raises(CytotableError) as caught:
        options(SOURCE, **{name: value})
    assert isinstance(caught.value, ValueError)
    assert message in str(caught.value)


def test_joins_without_join_is_refused() -> None:
    with pytest.raises(ArgumentError, match="join=False"):
        options(SOURCE, joins="SELECT 1", join=False)


def test_what_is_given_replaces_the_preset() -> None:
    chosen = options(
        SOURCE,
        compartments=["Cells", "cells", "Spots"],
        relations={"Spots.Parent {x}": "Cells"},
        page_keys={"image": "ImageId", "cells": "CellId", "join": "x"},
        source_datatype=".SQLite",
        unmatched="keep",
        joins=None,
    )
    assert chosen.preset.compartments == ("cells", "spots")
    assert chosen.preset.base == ""
    assert chosen.relations == (PresetRelation("spots", "cells", "Parent {{x}}"),)
    assert chosen.preset.image_number == "ImageId"
    assert chosen.object_numbers == (("cells", "CellId"),)
    assert chosen.formats == (Format.SQLITE,)
    assert chosen.unmatched is Unmatched.KEEP


def test_one_compartment_may_be_named_as_a_text() -> None:
    chosen = options(SOURCE, compartments="cells")
    assert chosen.preset.compartments == ("cells",)
    assert chosen.required == ("cells",)


def test_work_folders_of_two_destinations_are_two(tmp_path: Path) -> None:
    """Each run deletes what lies in its own folder; nothing of another run, nothing of the user."""
    one = options(SOURCE, work_dir=tmp_path, dest_path="/a/out.parquet").work_dir
    other = options(SOURCE, work_dir=tmp_path, dest_path="/b/out.parquet").work_dir
    assert len({one, other, str(tmp_path)}) == 3
    assert Path(one).parent == tmp_path


def test_a_misspelt_argument_names_the_nearest() -> None:
    @named_arguments()
    def convert(source_path: str, chunk_size: int = 1, **_: object) -> int:
        return chunk_size

    assert convert("x", chunk_size=3) == 3
    with pytest.raises(
        UnknownArgumentError, match=r"convert\(\) has no argument 'chunksize'. Did you mean 'chunk_size'"
    ):
        convert("x", chunksize=3)
    with pytest.raises(UnknownArgumentError, match="task_runner="):
        convert("x", parsl_config=None)
    with pytest.raises(TypeError):
        convert("x", chunksize=3)
