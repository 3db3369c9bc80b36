"""Who belongs to whom."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import tables, write_csv, write_sqlite

from prefect_cytotable.tasks.core.errors import DuplicateKeyError, LayoutError
from prefect_cytotable.tasks.core.join import KeyTable, Step, join, key_array, steps_from
from prefect_cytotable.tasks.core.model import Cause, Relation, Unmatched

CELLS = Relation("cytoplasm", "cells", "Parent_Cells")
NUCLEI = Relation("cytoplasm", "nuclei", "Parent_Nuclei")
PLATE = tables({1: 3, 2: 2})


def keys(rows: list[tuple], *parents: str, label: str = "T") -> KeyTable:
    """(dataset, image, object, parent, ...) rows as keys."""
    columns = list(zip(*rows, strict=True)) if rows else [[]] * (3 + len(parents))
    arrays = [pa.array(column, pa.int32() if place == 0 else pa.int64()) for place, column in enumerate(columns)]
    return KeyTable(label, *arrays[:3], dict(zip(parents, arrays[3:], strict=True)))


def joined(
    tables_: dict[str, KeyTable], relations: tuple[Relation, ...], unmatched=Unmatched.DROP, sort=True, less=None
):
    return join("cytoplasm", tables_, steps_from("cytoplasm", relations), less or {}, unmatched, sort)


# The order of the steps


def test_parents_come_before_children_and_the_near_before_the_far() -> None:
    relations = (Relation("cells", "nuclei", "Parent_Nuclei"), CELLS, Relation("spots", "cells", "Parent_Cells"))
    assert steps_from("cytoplasm", relations) == (
        Step("cells", "cytoplasm", True, "Parent_Cells"),
        Step("nuclei", "cells", True, "Parent_Nuclei"),
        Step("spots", "cells", False, "Parent_Cells"),
    )


def test_a_compartment_is_reached_once() -> None:
    steps = steps_from("cytoplasm", (CELLS, NUCLEI, Relation("cells", "nuclei", "Parent_Nuclei")))
    assert [step.compartment for step in steps] == ["cells", "nuclei"]
    assert steps[1].via == "cytoplasm"


# Numbers


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1.0, 2.5, None, float("nan"), float("inf"), 1e300, -0.0]), [1, None, None, None, None, None, 0]),
        (pa.array(["1", " 2 ", "3.0", "x", "", None, "-1", "1" * 30]), [1, 2, 3, None, None, None, None, None]),
        (pa.array([1, None], pa.int32()), [1, None]),
        (pa.chunked_array([], pa.float64()), []),
        (pa.nulls(2, pa.string()), [None, None]),
    ],
)
def test_what_numbers_nothing_is_null(values, expected: list[int | None]) -> None:
    assert key_array(values).to_pylist() == expected
    assert key_array(values).type == pa.int64()


# Rows


def test_every_join_is_within_one_dataset_and_image() -> None:
    rows = [(ds, image, number) for ds in (0, 1) for image in (1, 2) for number in (1, 2)]
    result = joined(
        {"cytoplasm": keys([(*row, row[2]) for row in rows], "Parent_Cells"), "cells": keys(rows)}, (CELLS,)
    )
    assert result.positions["cytoplasm"].to_pylist() == list(range(8))
    assert result.positions["cells"].to_pylist() == list(range(8))
    assert result.dataset.to_pylist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_every_cause_is_counted_once_and_the_first_one_found() -> None:
    base = [
        (0, 1, 1, 1),
        (0, None, 2, 1),
        (0, 1, None, 1),
        (0, 1, 4, 0),
        (0, 1, 5, None),
        (0, 1, 6, 99),
        (1, 1, 1, 1),
        (2, 1, 1, 1),
    ]
    tables_ = {"cytoplasm": keys(base, "Parent_Cells"), "cells": keys([(0, 1, 1), (2, 1, 1)])}
    less = {"cells": {1}, "image": {2}}
    result = joined(tables_, (CELLS,), less=less)
    assert result.positions["cytoplasm"].to_pylist() == [0]
    assert {(ds, cause): rows for ds, cause, rows in result.dropped} == {
        (0, Cause.NO_IMAGE_NUMBER): 1,
        (0, Cause.NO_OBJECT_NUMBER): 1,
        (0, Cause.NO_PARENT): 2,
        (0, Cause.PARENT_MISSING): 1,
        (1, Cause.NO_TABLE): 1,
        (2, Cause.NO_IMAGE_TABLE): 1,
    }
    kept = joined(tables_, (CELLS,), Unmatched.KEEP, less=less)
    assert kept.positions["cytoplasm"].to_pylist() == [0, 3, 4, 5, 6, 7]
    assert kept.positions["cells"].to_pylist() == [0, None, None, None, None, 1]


def test_rows_are_sorted_or_stay_as_they_lie() -> None:
    base = [(0, 2, 1, 1), (0, 1, 2, 2), (0, 1, 1, 1), (1, 1, 1, 1)]
    cells = [(0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 1, 1)]
    tables_ = {"cytoplasm": keys(base, "Parent_Cells"), "cells": keys(cells)}
    assert joined(tables_, (CELLS,)).positions["cytoplasm"].to_pylist() == [2, 1, 0, 3]
    unsorted = joined(tables_, (CELLS,), sort=False)
    assert unsorted.positions["cytoplasm"].to_pylist() == [0, 1, 2, 3]
    assert unsorted.positions["cells"].to_pylist() == [2, 1, 0, 3]


@pytest.mark.parametrize("which", ["cytoplasm", "cells"])
def test_repeated_keys_are_refused_and_named(which: str) -> None:
    rows = {"cytoplasm": [(0, 3, 1, 1), (0, 3, 2, 2)], "cells": [(0, 3, 1), (0, 3, 2)]}
    rows[which].append(rows[which][1])
    tables_ = {
        "cytoplasm": keys(rows["cytoplasm"], "Parent_Cells", label="Cytoplasm"),
        "cells": keys(rows["cells"], label="Cells"),
    }
    with pytest.raises(DuplicateKeyError, match=r"image 3, object 2 \(2 rows\)"):
        joined(tables_, (CELLS,))


LEAST, MOST = -(2**63), 2**63 - 1


@pytest.mark.parametrize(
    "cells",
    [
        [(0, 1, 3), (0, 1, 1), (0, 1, 3)],
        [(0, 1, MOST), (0, 1, LEAST), (0, 1, MOST)],
        [(0, 2, 1), (0, 1, 1), (0, 2, 1)],
        [(1, 1, 1), (0, 1, 2), (1, 1, 1)],
        [(0, 1, 1), (0, 1, None), (0, 1, 1)],
        [(0, 1, 1), (0, None, 1), (0, 1, 1)],
    ],
)
def test_repeated_keys_are_found_wherever_they_lie(cells: list[tuple]) -> None:
    base = keys([(0, 1, 1, 1)], "Parent_Cells")
    with pytest.raises(DuplicateKeyError):
        joined({"cytoplasm": base, "cells": keys(cells)}, (CELLS,))


@pytest.mark.parametrize("cells", [[], [(0, 1, 1)], [(0, 1, LEAST), (0, 1, MOST)], [(0, 1, 2), (0, 1, 1), (0, 0, 1)]])
def test_keys_in_any_order_are_no_repetition(cells: list[tuple]) -> None:
    base = keys([(0, 1, 1, 1)], "Parent_Cells")
    assert len(joined({"cytoplasm": base, "cells": keys(cells)}, (CELLS,), Unmatched.KEEP).dataset) == 1


def test_the_same_number_in_two_datasets_or_images_is_no_repetition() -> None:
    rows = [(0, 1, 1), (0, 2, 1), (1, 1, 1)]
    result = joined({"cytoplasm": keys([(*row, 1) for row in rows], "Parent_Cells"), "cells": keys(rows)}, (CELLS,))
    assert len(result.dataset) == 3


def test_a_child_that_names_its_parent_twice_is_refused() -> None:
    spots = Relation("spots", "cytoplasm", "Parent_Cytoplasm")
    tables_ = {"cytoplasm": keys([(0, 1, 1)]), "spots": keys([(0, 1, 1, 1), (0, 1, 2, 1)], "Parent_Cytoplasm")}
    with pytest.raises(DuplicateKeyError, match="names the same parent: image 1, object 1"):
        joined(tables_, (spots,))
    tables_["spots"] = keys([(0, 1, 1, 0), (0, 1, 2, 0), (0, 1, 3, 1)], "Parent_Cytoplasm")
    assert joined(tables_, (spots,)).positions["spots"].to_pylist() == [2]


def test_several_cells_of_one_nucleus_are_no_repetition() -> None:
    relation = Relation("cytoplasm", "nuclei", "Parent_Nuclei")
    tables_ = {"cytoplasm": keys([(0, 1, 1, 7), (0, 1, 2, 7)], "Parent_Nuclei"), "nuclei": keys([(0, 1, 7)])}
    assert joined(tables_, (relation,)).positions["nuclei"].to_pylist() == [0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3), st.integers(1, 4)), unique=True),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3), st.integers(1, 4)), unique=True),
    st.data(),
)
def test_the_join_is_the_one_that_a_loop_would_make(base: list[tuple], cells: list[tuple], data: st.DataObject) -> None:
    rows = [(*one, data.draw(st.one_of(st.none(), st.integers(0, 5)))) for one in base]
    result = joined({"cytoplasm": keys(rows, "Parent_Cells"), "cells": keys(cells)}, (CELLS,))
    expected = sorted(
        (ds, image, number, cells.index((ds, image, parent)))
        for ds, image, number, parent in rows
        if (ds, image, parent) in cells
    )
    found = [
        (*rows[place][:3], cell)
        for place, cell in zip(
            result.positions["cytoplasm"].to_pylist(), result.positions["cells"].to_pylist(), strict=True
        )
    ]
    assert found == expected
    assert len(found) + sum(rows_ for *_, rows_ in result.dropped) == len(rows)


# Conversions


def test_an_export_that_was_appended_is_refused_never_multiplied(tmp_path: Path, run) -> None:
    content = dict(PLATE)
    header, rows = content["Cells"]
    content["Cells"] = (header, [*rows, *rows])
    for name, source, preset in (
        ("csv", write_csv(tmp_path / "csv", content), "cellprofiler_csv"),
        ("sqlite", write_sqlite(tmp_path / "plate.sqlite", content, index=False), "cellprofiler_sqlite"),
    ):
        for chunk_size in (None, 1):
            with pytest.raises(DuplicateKeyError, match="image 1, object 1"):
                run(source, tmp_path / f"{name}.parquet", preset=preset, chunk_size=chunk_size)
        assert not (tmp_path / f"{name}.parquet").exists()


def test_an_image_with_two_rows_is_refused(tmp_path: Path, run) -> None:
    content = dict(PLATE)
    header, rows = content["Image"]
    content["Image"] = (header, [*rows, rows[0]])
    with pytest.raises(DuplicateKeyError, match="image 1"):
        run(write_csv(tmp_path / "plate", content), tmp_path / "out.parquet")


def test_a_child_of_cells_stands_beside_the_cytoplasm(tmp_path: Path, run) -> None:
    """A reverse relation: Cells_Donut_Large names Cells, and so does Cytoplasm."""
    content = dict(PLATE)
    _, rows = content["Cells"]
    content["Cells_Donut_Large"] = (
        ["ImageNumber", "ObjectNumber", "Parent_Cells", "AreaShape_Area"],
        [(image, 100 - number, number, 9000 + image * 10 + number) for image, number, *_ in rows],
    )
    table = run(
        write_csv(tmp_path / "plate", content),
        tmp_path / "out.parquet",
        compartments=["cells", "nuclei", "cytoplasm", "cells_donut_large"],
    )
    assert table.num_rows == 5
    assert table["Cells_Donut_Large_AreaShape_Area"].to_pylist() == [9011, 9012, 9013, 9021, 9022]
    assert "Metadata_Cells_Donut_Large_Parent_Cells" in table.column_names


def test_another_name_for_nuclei(tmp_path: Path, run) -> None:
    content = dict(PLATE)
    content["Nuclei_Cellpose3"] = content.pop("Nuclei")
    for name in ("Cells", "Cytoplasm"):
        header, rows = content[name]
        content[name] = ([one.replace("Parent_Nuclei", "Parent_Nuclei_Cellpose3") for one in header], rows)
    table = run(
        write_csv(tmp_path / "plate", content),
        tmp_path / "out.parquet",
        compartments=["cells", "nuclei_cellpose3", "cytoplasm"],
    )
    assert table["Nuclei_Cellpose3_AreaShape_Area"].to_pylist() == [1.001, 1.002, 1.003, 2.001, 2.002]


def test_cells_and_nuclei_without_cytoplasm(tmp_path: Path, run) -> None:
    content = {name: PLATE[name] for name in ("Image", "Cells", "Nuclei")}
    table = run(write_csv(tmp_path / "plate", content), tmp_path / "out.parquet")
    assert table.num_rows == 5
    assert table["Nuclei_AreaShape_Area"].to_pylist() == [1.001, 1.002, 1.003, 2.001, 2.002]


@pytest.mark.parametrize("name", ["Cells", "Nuclei", "Cytoplasm"])
def test_one_compartment_alone(tmp_path: Path, run, name: str) -> None:
    content = {one: PLATE[one] for one in ("Image", name)}
    table = run(write_csv(tmp_path / "plate", content), tmp_path / "out.parquet", compartments=[name])
    assert table.num_rows == 5
    assert table["Metadata_ObjectNumber"].to_pylist() == [1, 2, 3, 1, 2]


def test_a_chain_through_a_compartment_that_the_base_does_not_name(tmp_path: Path, run) -> None:
    content = dict(PLATE)
    content["Cytoplasm"] = (
        ["ImageNumber", "ObjectNumber", "Parent_Cells"],
        [(1, 1, 3), (1, 2, 1), (2, 1, 2)],
    )
    header, rows = content["Cells"]
    content["Cells"] = (header, [(image, number, 4 - number, area) for image, number, _, area in rows])
    table = run(write_csv(tmp_path / "plate", content), tmp_path / "out.parquet")
    assert table["Cells_AreaShape_Area"].to_pylist() == [1001.003, 1001.001, 1002.002]
    assert table["Nuclei_AreaShape_Area"].to_pylist() == [1.001, 1.003, 2.002]


def test_a_conversion_with_nothing_that_relates_stops_before_it_writes(tmp_path: Path, run) -> None:
    content = {name: (["ImageNumber", "ObjectNumber", "A"], [(1, 1, 0.5)]) for name in ("Cells", "Nuclei")}
    with pytest.raises(LayoutError, match="Nothing relates"):
        run(write_csv(tmp_path / "plate", content), tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plate"]
