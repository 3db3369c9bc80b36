"""Where an output says that it comes from, the account of its rows, and that equal input gives equal bytes."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import SMALL, converted, copy_of, database_of, edited, folder_of, rows_of, sites_of

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.sources import sqlite_file

pytestmark = pytest.mark.usefixtures("local")


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    return sites_of(tmp_path / "sites")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def metadata_of(path: Path | str) -> dict[str, str]:
    found = pq.read_schema(path).metadata
    return {key.decode(): value.decode() for key, value in found.items()}


def provenance_of(path: Path | str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(metadata_of(path)["prefect-cytotable"])
    return content


def test_the_metadata_names_the_tool_and_the_preset(sites: Path, out: Path) -> None:
    convert(sites, out, data_type_cast_map={"float": "float32"})
    known = metadata_of(out)
    assert known["data-producer"] == "prefect-cytotable"
    assert known["data-producer-version"] == version("prefect-cytotable")
    content = provenance_of(out)
    assert (content["tool"], content["version"]) == ("prefect-cytotable", version("prefect-cytotable"))
    assert (content["preset"], content["base"]) == ("cellprofiler_csv", "cytoplasm")
    assert content["options"]["data_type_cast_map"] == {"float": "float32"}
    assert {(one["child"], one["parent"], one["column"]) for one in content["relations"]} >= {
        ("cytoplasm", "cells", "Parent_Cells"),
        ("cytoplasm", "nuclei", "Parent_Nuclei"),
    }


def test_the_metadata_has_the_fingerprint_of_every_source(sites: Path, out: Path) -> None:
    convert(sites, out)
    content = provenance_of(out)
    assert sorted(one["name"] for one in content["datasets"]) == sorted(path.name for path in sites.iterdir())
    for one in content["datasets"]:
        sources = {compartment: (size, modified) for compartment, _, size, modified, _ in one["sources"]}
        assert set(sources) == {"image", "cells", "nuclei", "cytoplasm"}
        for path in (sites / one["name"]).iterdir():
            status = path.stat()
            assert sources[path.stem.lower()] == (status.st_size, status.st_mtime_ns)
        assert len(one["fingerprint"]) == 32
    assert len({one["fingerprint"] for one in content["datasets"]}) == 4


def test_the_fingerprint_of_sqlite_has_its_change_counter(tmp_path: Path, out: Path) -> None:
    source = database_of(tmp_path / "plate.sqlite")
    convert(source, out, preset="cellprofiler_sqlite")
    (dataset,) = provenance_of(out)["datasets"]
    marks = {mark for *_, mark in dataset["sources"]}
    assert marks == {sqlite_file.fingerprint(source).mark} == {source.read_bytes()[24:28].hex()}
    assert {table for _, table, *_ in dataset["sources"]} == {"Per_Image", "Per_Cells", "Per_Nuclei", "Per_Cytoplasm"}


def test_the_metadata_has_the_account_of_the_rows(sites: Path, out: Path) -> None:
    first, second, *_ = sorted(sites.iterdir())

    def unrelated(rows: list[list[str]]) -> list[list[str]]:
        rows[1][rows[0].index("Parent_Cells")] = "999"
        return rows

    edited(first / "Cytoplasm.csv", unrelated)
    (second / "Nuclei.csv").write_bytes(b"")
    table = converted(sites, out)
    content = provenance_of(out)
    accounts = {one["name"]: one for one in content["datasets"]}
    for folder in sites.iterdir():
        account = accounts[folder.name]
        assert account["rows_in"] == rows_of(folder / "Cytoplasm.csv")
        assert account["rows_in"] == account["rows_out"] + sum(account["dropped"].values())
    assert accounts[first.name]["dropped"] == {"the parent it names does not exist": 1}
    lost = rows_of(second / "Cytoplasm.csv")
    assert accounts[second.name]["dropped"] == {"its dataset has no readable table of a parent compartment": lost}
    assert content["rows_out"] == table.num_rows
    assert content["rows_in"] == sum(one["rows_in"] for one in accounts.values())
    assert content["skipped"] == [[second.name, "nuclei", "the file is empty"]]


def test_every_file_of_a_folder_has_the_metadata(sites: Path, tmp_path: Path) -> None:
    result: Any = convert(sites, tmp_path / "tables", join=False)
    paths = [path for entries in result.values() for entry in entries for path in entry["table"]]
    assert len(paths) == 4
    assert len({json.dumps(provenance_of(path)) for path in paths}) == 1


@pytest.mark.parametrize("kind", ["csv", "sqlite"])
def test_equal_input_gives_equal_bytes(tmp_path: Path, kind: str) -> None:
    """From another folder, in another run, on other workers; only the times of the files have to be the same."""
    contents = set()
    for name in ("one", "two"):
        if kind == "csv":
            source = folder_of(tmp_path / name / "plate", SMALL)
        else:
            source = database_of(tmp_path / name / "plate.sqlite", SMALL)
        for path in (source, *source.rglob("*")):
            os.utime(path, ns=(10**18, 10**18))
        preset = {"csv": "cellprofiler_csv", "sqlite": "cellprofiler_sqlite"}[kind]
        for number, runner in enumerate(("sequential", "concurrent")):
            destination = tmp_path / f"{name}-{number}.parquet"
            convert(source, destination, preset=preset, chunk_size=10, task_runner=runner)
            contents.add(hashlib.sha256(destination.read_bytes()).hexdigest())
    assert len(contents) == 1


def test_every_runner_gives_the_same_bytes(sites: Path, tmp_path: Path) -> None:
    contents = set()
    for runner in ("sequential", "concurrent", "process"):
        path = convert(sites, tmp_path / f"{runner}.parquet", chunk_size=10, workers=2, task_runner=runner)
        contents.add(Path(str(path)).read_bytes())
    assert len(contents) == 1


def test_other_input_gives_another_provenance(sites: Path, tmp_path: Path) -> None:
    other = copy_of(sites, tmp_path / "copy" / "sites")
    for path in other.rglob("*.csv"):
        os.utime(path, ns=(10**18, 10**18))
    before, after = (
        provenance_of(str(convert(one, tmp_path / f"{number}.parquet"))) for number, one in enumerate((sites, other))
    )
    assert [one["name"] for one in before["datasets"]] == [one["name"] for one in after["datasets"]]
    for one, two in zip(before["datasets"], after["datasets"], strict=True):
        assert one["fingerprint"] != two["fingerprint"]


def test_the_report_in_lines(sites: Path, out: Path, ear: Ear) -> None:
    first, second, *_ = sorted(sites.iterdir())
    (second / "Image.csv").write_bytes(b"")
    rows = sum(rows_of(path) for path in sites.rglob("Cytoplasm.csv"))
    lost = rows_of(second / "Cytoplasm.csv")
    table = converted(sites, out, progress=ear)
    said = ear.said[1:]
    assert ear.said[0].startswith("No Prefect server: running here.")
    assert said[0] == f"rows: {rows} in, {rows - lost} out, {lost} dropped"
    assert said[1] == f"  dropped {lost}: its dataset has no readable image table"
    assert said[2] == f"skipped {second / 'Image.csv'}: the file is empty"
    assert f"note: 1 dataset(s) have no readable table of Image, for example {second.name}" in said
    assert said[-2].startswith(f"wrote {out}: {rows - lost} rows x {table.num_columns} columns, ")
    assert said[-1].startswith("1 chunk(s), ")
    assert said[-1].endswith(" s")
    assert first.name not in ear.text


def test_a_clean_run_has_little_to_say(sites: Path, out: Path, ear: Ear) -> None:
    convert(sites, out, progress=ear)
    assert [line.split(" ")[0] for line in ear.said] == ["No", "rows:", "wrote", "wrote", "1"]


def test_images_with_other_counts_than_the_image_table_tells_are_noted(sites: Path, out: Path, ear: Ear) -> None:
    edited(sorted(sites.iterdir())[0] / "Nuclei.csv", lambda rows: rows[:-1])
    converted(sites, out, progress=ear)
    assert "note: Nuclei: 1 images with another number of objects than Count_Nuclei" in ear.text


def test_equal_content_under_another_name_is_another_dataset(tmp_path: Path, out: Path) -> None:
    one = folder_of(tmp_path / "plates" / "a")
    copy_of(one, tmp_path / "plates" / "b")
    convert(tmp_path / "plates", out)
    numbers = [dataset["table_number"] for dataset in provenance_of(out)["datasets"]]
    assert len(set(numbers)) == 2
