"""What holds for any plate: rows, values and bytes of whole conversions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import Tables, tables, write_csv, write_sqlite

from prefect_cytotable.tasks.core import plan as planning
from prefect_cytotable.tasks.core.errors import UnmatchedError
from prefect_cytotable.tasks.core.sources import csv_index

Run = Callable[..., pa.Table]
SQLITE = {"preset": "cellprofiler_sqlite"}


PARENTS = st.one_of(st.none(), st.just(0), st.integers(1, 12))


@st.composite
def plates(draw: st.DrawFn) -> Tables:
    """A plate with damaged parents: none, zero, missing ones; and with images and objects in any order."""
    images = draw(st.dictionaries(st.integers(1, 9), st.integers(0, 6), min_size=1, max_size=4))
    content = tables(images)
    for name in ("Nuclei", "Cells"):
        header, rows = content[name]
        content[name] = (header, [row for row in rows if draw(st.integers(0, 9))])
    header, rows = content["Cytoplasm"]
    damaged = [
        (*row[:2], *(draw(PARENTS) if not draw(st.integers(0, 4)) else one for one in row[2:4]), row[4]) for row in rows
    ]
    content["Cytoplasm"] = (header, draw(st.permutations(damaged)))
    return content


def provenance(path: Path) -> dict:
    return json.loads(pq.read_schema(path).metadata[b"prefect-cytotable"])


def expected(content: Tables, how: str) -> pd.DataFrame:
    """The join as one would write it in pandas."""
    frames = {name: pd.DataFrame(rows, columns=header, dtype=object) for name, (header, rows) in content.items()}
    frames = {
        name: frame.astype({one: "Float64" for one in frame if one.startswith(("Parent", "Object", "ImageN"))})
        for name, frame in frames.items()
    }
    joined = frames["Cytoplasm"].add_prefix("Cytoplasm_")
    for name, parent in (("Cells", "Parent_Cells"), ("Nuclei", "Parent_Nuclei")):
        right = frames[name].add_prefix(f"{name}_")
        joined = joined.merge(
            right,
            how=how,
            left_on=["Cytoplasm_ImageNumber", f"Cytoplasm_{parent}"],
            right_on=[f"{name}_ImageNumber", f"{name}_ObjectNumber"],
        )
    image = frames["Image"].add_prefix("Image_")
    joined = joined.merge(image, how="left", left_on="Cytoplasm_ImageNumber", right_on="Image_ImageNumber")
    return joined.sort_values(["Cytoplasm_ImageNumber", "Cytoplasm_ObjectNumber"])


VALUES = {
    "Metadata_ImageNumber": "Cytoplasm_ImageNumber",
    "Metadata_ObjectNumber": "Cytoplasm_ObjectNumber",
    "Cytoplasm_AreaShape_Area": "Cytoplasm_AreaShape_Area",
    "Cells_AreaShape_Area": "Cells_AreaShape_Area",
    "Nuclei_AreaShape_Area": "Nuclei_AreaShape_Area",
    "Metadata_Cells_Parent_Nuclei": "Cells_Parent_Nuclei",
    "Metadata_Well": "Image_Metadata_Well",
    "Image_FileName_DNA": "Image_FileName_DNA",
}


@settings(max_examples=25)
@given(
    content=plates(), unmatched=st.sampled_from(["drop", "keep"]), chunk_size=st.one_of(st.none(), st.integers(1, 9))
)
def test_the_values_are_those_of_a_join_in_pandas(
    run: Run, place, content: Tables, unmatched: str, chunk_size: int | None
) -> None:
    with place() as folder:
        table = run(
            write_csv(folder / "plate", content), folder / "out.parquet", unmatched=unmatched, chunk_size=chunk_size
        )
    frame = expected(content, "inner" if unmatched == "drop" else "left")
    assert table.num_rows == len(frame)
    for ours, theirs in VALUES.items():
        values = [None if pd.isna(one) else one for one in frame[theirs]]
        assert table[ours].to_pylist() == values, ours


@settings(max_examples=20)
@given(content=plates(), sqlite=st.booleans(), unmatched=st.sampled_from(["drop", "keep", "error"]))
def test_rows_in_are_rows_out_and_rows_dropped(run: Run, place, content: Tables, sqlite: bool, unmatched: str) -> None:
    orphans = len(content["Cytoplasm"][1]) - len(expected(content, "inner"))
    with place() as folder:
        source = write_sqlite(folder / "a.sqlite", content) if sqlite else write_csv(folder / "plate", content)
        arguments = {**(SQLITE if sqlite else {}), "unmatched": unmatched}
        if unmatched == "error" and orphans:
            with pytest.raises(UnmatchedError, match="would be dropped because"):
                run(source, folder / "out.parquet", **arguments)
            assert not (folder / "out.parquet").exists()
            return
        table = run(source, folder / "out.parquet", **arguments)
        (account,) = provenance(folder / "out.parquet")["datasets"]
    assert account["rows_in"] == len(content["Cytoplasm"][1])
    assert account["rows_out"] == table.num_rows
    assert sum(account["dropped"].values()) == (orphans if unmatched == "drop" else 0)
    assert account["rows_in"] == account["rows_out"] + sum(account["dropped"].values())


@settings(max_examples=10)
@given(content=plates(), chunk_size=st.one_of(st.none(), st.integers(1, 9)))
def test_dropping_nulls_drops_whole_rows_and_counts_them(
    run: Run, place, content: Tables, chunk_size: int | None
) -> None:
    with place() as folder:
        arguments: dict[str, Any] = {"unmatched": "keep", "chunk_size": chunk_size}
        kept = run(write_csv(folder / "plate", content), folder / "kept.parquet", **arguments)
        table = run(folder / "plate", folder / "out.parquet", drop_null=True, **arguments)
        (account,) = provenance(folder / "out.parquet")["datasets"]
    assert table.to_pylist() == [row for row in kept.to_pylist() if None not in row.values()]
    assert account["dropped"].get("a value is missing (drop_null)", 0) == kept.num_rows - table.num_rows


@settings(max_examples=20)
@given(
    contents=st.lists(plates(), min_size=1, max_size=3),
    kind=st.sampled_from(["csv", "sqlite", "sqlite without an index"]),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=2),
    limit=st.integers(200, 5000),
    unmatched=st.sampled_from(["drop", "keep"]),
)
def test_every_chunk_size_and_memory_budget_gives_the_same_table(
    run: Run, place, contents: list[Tables], kind: str, sizes: list[int], limit: int, unmatched: str
) -> None:
    with place() as folder, pytest.MonkeyPatch.context() as patch:
        for number, content in enumerate(contents):
            if kind == "csv":
                write_csv(folder / "plate" / f"{number}", content)
            else:
                write_sqlite(folder / "plate" / f"{number}.sqlite", content, index=kind == "sqlite")
        arguments = {**({} if kind == "csv" else SQLITE), "unmatched": unmatched}
        whole = run(folder / "plate", folder / "whole.parquet", **arguments)
        patch.setattr(csv_index, "SPLIT_ROWS", 2)
        for size in sizes:
            cut = run(folder / "plate", folder / f"{size}.parquet", overwrite=True, chunk_size=size, **arguments)
            assert cut.equals(whole), size
        patch.setattr(planning, "chunk_bytes", lambda budget: limit)
        assert run(folder / "plate", folder / "small.parquet", **arguments).equals(whole)


@settings(max_examples=8)
@given(content=plates(), sqlite=st.booleans(), chunk_size=st.one_of(st.none(), st.integers(1, 9)))
def test_two_datasets_of_equal_content_keep_their_identities(
    run: Run, place, content: Tables, sqlite: bool, chunk_size: int | None
) -> None:
    arguments: dict[str, Any] = {**(SQLITE if sqlite else {}), "chunk_size": chunk_size}
    with place() as folder:
        for name in ("a", "b"):
            if sqlite:
                write_sqlite(folder / "plates" / f"{name}.sqlite", content)
            else:
                write_csv(folder / "plates" / name, content)
        one = folder / "plates" / ("a.sqlite" if sqlite else "a")
        alone = run(one, folder / "one.parquet", **arguments)
        both = run(folder / "plates", folder / "both.parquet", **arguments)
    assert both.num_rows == 2 * alone.num_rows
    numbers = both["Metadata_TableNumber"].to_pylist()
    assert len(set(numbers)) == (2 if alone.num_rows else 0)
    assert numbers == sorted(numbers)
    rest = both.drop_columns(["Metadata_TableNumber"])
    assert rest.slice(0, alone.num_rows).equals(alone)
    assert rest.slice(alone.num_rows).equals(alone)


@pytest.mark.parametrize("kind", ["csv", "sqlite"])
def test_every_runner_gives_the_same_bytes(run: Run, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "plate"
    for number in (1, 2, 3):
        content = tables({number: 4, number + 10: 7})
        if kind == "csv":
            write_csv(source / f"site-{number}", content)
        else:
            write_sqlite(source / f"{number}.sqlite", content)
    preset = {} if kind == "csv" else SQLITE
    results = {}
    for runner in ("sequential", "concurrent", "process"):
        destination = tmp_path / f"{runner}.parquet"
        run(source, destination, task_runner=runner, workers=2, chunk_size=5, **preset)
        results[runner] = destination.read_bytes()
    assert len(results["sequential"]) > 1000
    assert results["sequential"] == results["concurrent"] == results["process"]


def test_parts_one_after_the_other_are_the_whole(run: Run, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "plate", tables({1: 9, 2: 9, 5: 3}))
    whole = run(source, tmp_path / "whole.parquet", chunk_size=5)
    parts = run(source, tmp_path / "parts", chunk_size=5, concat=False)
    assert len(parts) > 2
    assert pa.concat_tables(parts[name] for name in sorted(parts)).combine_chunks().equals(whole.combine_chunks())


def test_no_pairs_at_all_give_an_empty_table_with_the_full_schema_and_a_warning(run: Run, tmp_path: Path) -> None:
    full = run(write_csv(tmp_path / "full", tables({1: 2})), tmp_path / "full.parquet")
    content = tables({1: 2})
    content["Cells"] = (content["Cells"][0], [])
    said: list[str] = []
    empty = run(write_csv(tmp_path / "empty", content), tmp_path / "empty.parquet", progress=listener(said))
    assert empty.num_rows == 0
    assert empty.column_names == full.column_names
    assert any(line.startswith("note: ") and "no row" in line for line in said), said


def listener(said: list[str]) -> Any:
    from prefect_cytotable.tasks.core.progress import Silent

    class Listener(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    return Listener()


@pytest.mark.parametrize("counts", [(3, 2), (3, 9), ("3", "?"), (3.0, 2.5), (None, None), ("inf", "nan")])
def test_counts_of_the_image_table_are_compared_whatever_they_hold(run: Run, tmp_path: Path, counts: tuple) -> None:
    content = tables({1: 3, 2: 2})
    header, rows = content["Image"]
    content["Image"] = ([*header, "Count_Cells"], [(*row, count) for row, count in zip(rows, counts, strict=True)])
    said: list[str] = []
    table = run(write_csv(tmp_path / "a", content), tmp_path / "out.parquet", progress=listener(said))
    assert table.num_rows == 5
    noted = [line for line in said if "images with another number of objects" in line]
    assert len(noted) == (1 if counts == (3, 9) else 0)


@pytest.mark.parametrize("kind", ["csv", "sqlite"])
def test_keys_that_are_no_whole_numbers_are_dropped_and_counted(run: Run, tmp_path: Path, kind: str) -> None:
    """However the plate is cut; and planning ends, though no wider type would help."""
    content = tables({1: 3, 2: 3})
    header, rows = content["Cytoplasm"]
    content["Cytoplasm"] = (header, [*rows, ("x", 1, 1, 1, 0.5), (1.5, 2, 1, 1, 0.5), (1, "y", 1, 1, 0.5)])
    source = write_csv(tmp_path / "a", content) if kind == "csv" else write_sqlite(tmp_path / "a.db", content, False)
    for name, chunk_size in (("whole", None), ("cut", 2)):
        destination = tmp_path / f"{name}.parquet"
        table = run(source, destination, chunk_size=chunk_size, **(SQLITE if kind == "sqlite" else {}))
        assert table.num_rows == 6
        (account,) = provenance(destination)["datasets"]
        assert account["dropped"] == {"no image number": 2, "no object number": 1}


def test_a_type_that_no_sample_showed_is_found_and_kept(run: Run, tmp_path: Path) -> None:
    content = tables(dict.fromkeys(range(1, 30), 2))
    for number in range(1, 30):
        one = tables({number: 2})
        header, rows = one["Cells"]
        value = 0.5 if number == 17 else 3
        one["Cells"] = ([*header, "Count"], [(*row, value) for row in rows])
        write_csv(tmp_path / "plate" / f"{number:02d}", one)
    table = run(tmp_path / "plate", tmp_path / "out.parquet")
    assert table.num_rows == sum(len(rows) for rows in [content["Cells"][1]])
    assert table.schema.field("Cells_Count").type == pa.float64()
    assert sorted(set(table["Cells_Count"].to_pylist())) == [0.5, 3.0]


@pytest.mark.parametrize("name", ["plain", "a b", 'quote\'s "x"', "é漢", "per%20cent", "new\nline", "[1]*?", "#x"])
@pytest.mark.parametrize("kind", ["csv", "sqlite"])
def test_names_of_files_and_folders_are_only_names(run: Run, tmp_path: Path, kind: str, name: str) -> None:
    content = tables({1: 2})
    folder = tmp_path / name
    for number in (1, 2):
        if kind == "csv":
            write_csv(folder / f"{name}{number}", content)
        else:
            write_sqlite(folder / f"{name}{number}.sqlite", content)
    table = run(folder, tmp_path / f"{name}.parquet", **(SQLITE if kind == "sqlite" else {}))
    assert table.num_rows == 4
