"""Folders of CSV files in every form that is read: compressed, with other delimiters, combined, with prefixed names."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import converted, edited, folder_of, rows_of, sites_of, without
from small import tables, write_csv

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core.errors import BadSourceError, LayoutError
from prefect_cytotable.tasks.core.model import ChunkResult

pytestmark = pytest.mark.usefixtures("local")

TABLES = ("Image", "Cells", "Cytoplasm", "Nuclei")


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "plate")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "result" / "out.parquet"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def provenance(path: Path) -> dict[str, Any]:
    return json.loads(pq.read_schema(path).metadata[b"prefect-cytotable"])


def notes_of(ear: Ear) -> Counter[tuple[str, str]]:
    notes: Counter[tuple[str, str]] = Counter()
    for result in ear.results:
        notes.update({(one.subject, one.finding): one.count for one in result.notes})
    return notes


def joined(plate: Path) -> list[tuple[float, ...]]:
    """Image, object and areas of each cytoplasm with its parents, as Python's csv module and dictionaries tell."""
    by_key = {
        name: {(row["ImageNumber"], row["ObjectNumber"]): row for row in read_csv(plate / f"{name}.csv")}
        for name in ("Cells", "Nuclei", "Cytoplasm")
    }
    rows = []
    for (image, number), one in by_key["Cytoplasm"].items():
        cell = by_key["Cells"].get((image, one["Parent_Cells"]))
        nucleus = by_key["Nuclei"].get((image, one["Parent_Nuclei"]))
        if cell and nucleus:
            areas = (float(row["AreaShape_Area"]) for row in (one, cell, nucleus))
            rows.append((int(image), int(number), *areas))
    return sorted(rows)


def values(table: pa.Table) -> list[tuple[float, ...]]:
    names = ("Metadata_ImageNumber", "Metadata_ObjectNumber", *(f"{one}_AreaShape_Area" for one in TABLES[2:0:-1]))
    return list(zip(*(table[name].to_pylist() for name in (*names, "Nuclei_AreaShape_Area")), strict=True))


# Compressed files


def packed(plate: Path, ending: str) -> Path:
    for path in list(plate.rglob("*.csv")):
        data = path.read_bytes()
        packer: dict[str, Callable[[bytes], bytes]] = {
            ".gz": gzip.compress,
            ".zst": lambda text: pa.compress(text, codec="zstd", asbytes=True),
        }
        path.with_name(path.name + ending).write_bytes(packer[ending](data))
        path.unlink()
    return plate


class Watching(Ear):
    """Looks into the cache folder whenever a chunk is done."""

    def __init__(self, cache: Path) -> None:
        super().__init__()
        self.cache = cache
        self.seen: set[str] = set()

    def advance(self, result: ChunkResult) -> None:
        super().advance(result)
        self.seen |= {path.name.rpartition("-")[2] for path in self.cache.glob("*.unpacked")}


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize(("runner", "chunk_size"), [("sequential", None), ("sequential", 5), ("process", 15)])
def test_compressed_files_are_what_they_unpack_to(
    tmp_path: Path, plate: Path, out: Path, ending: str, runner: str, chunk_size: int | None
) -> None:
    expected = joined(plate)
    whole = converted(plate, tmp_path / "whole.parquet")
    cache = tmp_path / "cache"
    watching = Watching(cache)
    table = converted(
        packed(plate, ending), out, task_runner=runner, workers=2, chunk_size=chunk_size,
        storage_options={"local_cache_dir": cache}, on_bad_source="error", progress=watching,
    )  # fmt: skip
    assert without(table).equals(without(whole))
    assert values(table) == expected
    if chunk_size is None:
        assert len(watching.results) == 1
        assert not cache.exists()
    else:
        assert len(watching.results) > 1
        assert {name.removesuffix(f".csv{ending}.unpacked") for name in watching.seen} >= set(TABLES)
        assert list(cache.iterdir()) == []


def test_a_run_that_fails_leaves_no_unpacked_copy(tmp_path: Path, plate: Path, out: Path) -> None:
    cache = tmp_path / "cache"
    packed(plate, ".gz")

    class Failing(Watching):
        def advance(self, result: ChunkResult) -> None:
            super().advance(result)
            raise RuntimeError("no more")

    watching = Failing(cache)
    with pytest.raises(RuntimeError, match="no more"):
        converted(plate, out, chunk_size=5, storage_options={"local_cache_dir": cache}, progress=watching)
    assert watching.seen
    assert list(cache.iterdir()) == []
    assert not out.exists()


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("damage", ["cut off", "not packed"])
def test_a_compressed_file_that_is_damaged_is_skipped_and_reported(
    tmp_path: Path, out: Path, ear: Ear, damage: str, chunk_size: int | None
) -> None:
    source = tmp_path / "plates"
    for name in ("good", "bad"):
        folder_of(source / name)
    rows = rows_of(source / "good" / "Cytoplasm.csv")
    good = joined(source / "good")
    packed(source, ".gz")
    bad = source / "bad" / "Cells.csv.gz"
    bad.write_bytes(bad.read_bytes()[:-20] if damage == "cut off" else gzip.decompress(bad.read_bytes()))
    options = {"storage_options": {"local_cache_dir": tmp_path / "cache"}, "chunk_size": chunk_size}
    table = converted(source, out, progress=ear, **options)
    assert values(table) == good
    assert f"rows: {2 * rows} in, {len(good)} out, {2 * rows - len(good)} dropped" in ear.said
    assert any(line.startswith(f"skipped {bad}: it cannot be unpacked as gzip") for line in ear.said)
    with pytest.raises(BadSourceError, match="cannot be unpacked as gzip"):
        convert(source, tmp_path / "other.parquet", on_bad_source="error", **options)


def test_a_plain_and_a_compressed_file_of_one_table_are_refused(plate: Path, out: Path) -> None:
    (plate / "Cells.csv.gz").write_bytes(gzip.compress((plate / "Cells.csv").read_bytes()))
    with pytest.raises(LayoutError, match=r"Cells\.csv and Cells\.csv\.gz are both the table of 'cells'"):
        convert(plate, out)


# Delimiters, decimals and marks


def rewritten(path: Path, delimiter: str, decimal: str = ".", mark: str = "") -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    number = str.maketrans({".": decimal})

    def field(text: str) -> str:
        try:
            float(text)
        except ValueError:
            return text
        return text.translate(number)

    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(mark)
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(
            [[field(one) for one in row] for row in rows]
        )


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_plate_as_other_countries_write_it(
    tmp_path: Path, plate: Path, out: Path, ear: Ear, delimiter: str, decimal: str, chunk_size: int | None
) -> None:
    expected = joined(plate)
    whole = converted(plate, tmp_path / "whole.parquet")
    for path in plate.glob("*.csv"):
        if path.stem in TABLES:
            rewritten(path, delimiter, decimal, "\ufeff")
    table = converted(plate, out, chunk_size=chunk_size, on_bad_source="error", progress=ear)
    assert values(table) == expected
    assert without(table).equals(without(whole))
    read: Counter[str] = Counter()  # the parts of a site read its row of the image table, each for itself
    for result in ear.results:
        read.update(dict(result.tables_in))
    assert read["cytoplasm"] == rows_of(plate / "Cytoplasm.csv")
    wanted = {(name.lower(), f"row(s) whose fields are separated by {delimiter!r}") for name in TABLES}
    if decimal == ",":
        wanted |= {(name.lower(), "row(s) whose numbers have a comma before the decimals") for name in TABLES}
    assert notes_of(ear) == {(name, finding): read[name] for name, finding in wanted}


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_forms_may_differ_between_the_files_of_a_table(
    tmp_path: Path, out: Path, ear: Ear, chunk_size: int | None
) -> None:
    sites = sites_of(tmp_path / "sites")
    whole = converted(sites, tmp_path / "whole.parquet", add_tablenumber=False)
    forms = [(",", "."), (";", ","), ("\t", "."), ("|", ",")]
    for folder, (delimiter, decimal) in zip(sorted(sites.iterdir()), forms, strict=True):
        rewritten(folder / "Cells.csv", delimiter, decimal)
    table = converted(sites, out, add_tablenumber=False, chunk_size=chunk_size, on_bad_source="error", progress=ear)
    assert without(table).equals(without(whole))
    rows = [rows_of(folder / "Cells.csv") for folder in sorted(sites.iterdir())]
    assert notes_of(ear) == {
        ("cells", "row(s) whose fields are separated by ';'"): rows[1],
        ("cells", "row(s) whose fields are separated by '\\t'"): rows[2],
        ("cells", "row(s) whose fields are separated by '|'"): rows[3],
        ("cells", "row(s) whose numbers have a comma before the decimals"): rows[1] + rows[3],
    }


# Combined files: several compartments side by side, under two header rows


def combine(plate: Path, names: tuple[str, ...], target: str = "object.csv", keep: bool = False) -> Path:
    """The tables `names` in one file, image by image; where one has fewer objects, its fields are empty."""
    content = {name: read_csv(plate / f"{name}.csv") for name in names}
    columns = {name: [one for one in rows[0] if one != "ImageNumber"] for name, rows in content.items()}
    rows: list[list[str]] = [
        ["Image", *(name for name in names for _ in columns[name])],
        ["ImageNumber", *(one for name in names for one in columns[name])],
    ]
    for image in dict.fromkeys(row["ImageNumber"] for table in content.values() for row in table):
        mine = [[row for row in content[name] if row["ImageNumber"] == image] for name in names]
        for number in range(max(map(len, mine))):
            row = [image]
            for name, table in zip(names, mine, strict=True):
                row += [table[number][one] if number < len(table) else "" for one in columns[name]]
            rows.append(row)
    with (plate / target).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    for name in names if not keep else ():
        (plate / f"{name}.csv").unlink()
    return plate


@pytest.mark.parametrize("chunk_size", [None, 4, 11])
@pytest.mark.parametrize("names", [("Cells", "Cytoplasm", "Nuclei"), ("Nuclei", "Cells")])
def test_a_combined_file_is_what_its_tables_are_alone(
    tmp_path: Path, plate: Path, out: Path, ear: Ear, names: tuple[str, ...], chunk_size: int | None
) -> None:
    """The demo plate has more nuclei than cells, so that the columns of cells end before those of nuclei."""
    assert rows_of(plate / "Nuclei.csv") > rows_of(plate / "Cells.csv")
    expected = joined(plate)
    whole = converted(plate, tmp_path / "whole.parquet")
    counts = {name.lower(): rows_of(plate / f"{name}.csv") for name in ("Cells", "Cytoplasm", "Nuclei")}
    table = converted(combine(plate, names), out, chunk_size=chunk_size, on_bad_source="error", progress=ear)
    assert values(table) == expected
    assert without(table).select(sorted(whole.column_names)).equals(without(whole).select(sorted(whole.column_names)))
    read: Counter[str] = Counter()
    for result in ear.results:
        read.update(dict(result.tables_in))
    assert {name: read[name] for name in counts} == counts
    assert chunk_size is None or len(ear.results) > 1


def test_a_combined_file_unjoined(tmp_path: Path, plate: Path) -> None:
    alone: Any = convert(plate, tmp_path / "alone", join=False)
    together: Any = convert(combine(plate, ("Cells", "Cytoplasm", "Nuclei")), tmp_path / "together", join=False)
    assert sorted(alone) == sorted(together)
    for name, (entry,) in alone.items():
        (other,) = together[name]
        assert without(pq.read_table(other["table"][0])).equals(without(pq.read_table(entry["table"][0])))


def test_a_table_in_a_file_of_its_own_wins_over_the_combined_one(plate: Path, out: Path) -> None:
    combine(plate, ("Cells", "Nuclei"), keep=True)
    (plate / "Cells.csv").unlink()
    edited(plate / "Nuclei.csv", lambda rows: [rows[0], *([*row[:2], "77.5", *row[3:]] for row in rows[1:])])
    column = read_csv(plate / "Nuclei.csv")[0].keys()
    name = list(column)[2]
    table = converted(plate, out, on_bad_source="error")
    assert set(table[f"Nuclei_{name}"].to_pylist()) == {77.5}
    assert len(set(table["Cells_AreaShape_Area"].to_pylist())) > 1


@pytest.mark.parametrize("damage", ["first row", "second row", "a row"])
def test_a_combined_file_that_is_broken_is_reported(tmp_path: Path, out: Path, ear: Ear, damage: str) -> None:
    folder_of(tmp_path / "both" / "good")
    plate = combine(folder_of(tmp_path / "both" / "bad"), ("Cells", "Nuclei"))
    lines = (plate / "object.csv").read_text().splitlines(keepends=True)
    at = {"first row": 0, "second row": 1, "a row": 5}[damage]
    lines[at] = lines[at].replace(",", "", 1)
    (plate / "object.csv").write_text("".join(lines))
    with pytest.raises(BadSourceError, match=r"object\.csv"):
        convert(plate, out, on_bad_source="error")
    assert not out.exists()
    table = converted(plate.parent, out, progress=ear)
    assert values(table) == joined(plate.parent / "good")
    assert any(line.startswith(f"skipped {plate / 'object.csv'}") for line in ear.said)
    rows = rows_of(plate / "Cytoplasm.csv")
    assert provenance(out)["datasets"][0]["rows_in"] == provenance(out)["datasets"][1]["rows_in"] == rows


# Names


def renamed(plate: Path, before: str, folder: Path | None = None) -> Path:
    folder = folder or plate
    folder.mkdir(parents=True, exist_ok=True)
    for path in list(plate.glob("*.csv")):
        path.rename(folder / f"{before}{path.name}")
    return folder


def test_prefixed_names(tmp_path: Path, plate: Path, out: Path) -> None:
    whole = converted(plate, tmp_path / "whole.parquet")
    renamed(plate, "MyExpt_")
    shutil.copy(plate / "MyExpt_Cells.csv", plate / "MyExpt_Filtered_Cells.csv")
    shutil.copy(plate / "MyExpt_Cells.csv", plate / "OtherCells.csv")
    edited(plate / "MyExpt_Filtered_Cells.csv", lambda rows: rows[:2])
    table = converted(plate, out, on_bad_source="error")
    assert without(table).equals(without(whole))


def test_a_prefixed_name_beside_plain_ones_is_no_table(tmp_path: Path, plate: Path, out: Path) -> None:
    whole = converted(plate, tmp_path / "whole.parquet")
    shutil.copy(plate / "Cells.csv", plate / "Filtered_Cells.csv")
    assert without(converted(plate, out, on_bad_source="error")).equals(without(whole))


@pytest.mark.parametrize("chunk_size", [None, 9])
def test_two_prefixes_in_one_folder_are_two_datasets(tmp_path: Path, out: Path, chunk_size: int | None) -> None:
    """Both count their images from 1."""
    both = tmp_path / "both"
    first, second = tables({1: 3, 2: 2}), tables({1: 4, 3: 1})
    second["Image"] = (second["Image"][0], [(row[0], "P2", *row[2:]) for row in second["Image"][1]])
    renamed(write_csv(tmp_path / "one", first), "A_", both)
    renamed(write_csv(tmp_path / "two", second), "B_1_", both)
    table = converted(both, out, chunk_size=chunk_size, on_bad_source="error")
    assert [one["name"] for one in provenance(out)["datasets"]] in (["A", "B_1"], ["B_1", "A"])
    found = {}
    for row in table.to_pylist():
        found.setdefault((row["Metadata_TableNumber"], row["Metadata_Plate"]), []).append(row["Metadata_ImageNumber"])
    assert len({number for number, _ in found}) == 2
    assert {plate: images for (_, plate), images in found.items()} == {"P1": [1, 1, 1, 2, 2], "P2": [1, 1, 1, 1, 3]}


def test_prefixed_combined_files(tmp_path: Path, plate: Path, out: Path) -> None:
    whole = converted(plate, tmp_path / "whole.parquet")
    renamed(combine(plate, ("Cells", "Cytoplasm", "Nuclei")), "MyExpt_")
    table = converted(plate, out, on_bad_source="error")
    assert without(table).select(sorted(whole.column_names)).equals(without(whole).select(sorted(whole.column_names)))


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title])
def test_names_in_any_case(tmp_path: Path, plate: Path, out: Path, change: Callable[[str], str]) -> None:
    whole = converted(plate, tmp_path / "whole.parquet")
    for path in list(plate.glob("*.csv")):
        path.rename(path.with_name(change(path.name)))
    assert without(converted(plate, out, on_bad_source="error")).equals(without(whole))


def test_tables_that_no_preset_describes_under_both_usual_names(tmp_path: Path, plate: Path, out: Path) -> None:
    """Per_Cells.csv is one table of one dataset, not also a table Cells with something before its name."""
    whole = converted(plate, tmp_path / "whole.parquet")
    renamed(plate, "Per_")
    arguments: dict[str, Any] = {"preset": None, "compartments": ["cells", "cytoplasm", "nuclei"]}
    table = converted(plate, out, **arguments)
    assert table.num_rows == whole.num_rows
    assert [one["name"] for one in provenance(out)["datasets"]] == ["plate"]


# Links


def test_linked_folders_are_read_once_and_circles_end(tmp_path: Path, out: Path, ear: Ear) -> None:
    sites = sites_of(tmp_path / "elsewhere")
    whole = converted(sites, tmp_path / "whole.parquet", add_tablenumber=False)
    source = tmp_path / "plate"
    source.mkdir()
    (source / "linked").symlink_to(sites, target_is_directory=True)
    (source / "again").symlink_to(sites, target_is_directory=True)
    (source / "circle").symlink_to(source, target_is_directory=True)
    (sites / "up").symlink_to(source, target_is_directory=True)
    (source / "itself").symlink_to(source / "itself")
    (source / "nowhere.csv").symlink_to(tmp_path / "nothing.csv")
    table = converted(source, out, add_tablenumber=False, on_bad_source="error", progress=ear)
    assert without(table).equals(without(whole))
    assert table.num_rows == sum(len(joined(folder)) for folder in sites.iterdir() if folder.name != "up")


def test_linked_files_are_files(tmp_path: Path, plate: Path, out: Path) -> None:
    whole = converted(plate, tmp_path / "whole.parquet")
    source = tmp_path / "links"
    source.mkdir()
    for path in plate.glob("*.csv"):
        (source / path.name).symlink_to(path)
    assert without(converted(source, out, on_bad_source="error")).equals(without(whole))
