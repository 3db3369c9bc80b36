"""Stage 3: chunks cover every row once, and what cannot be done is refused before a row is read."""

from __future__ import annotations

import random
import shutil
from collections import Counter, namedtuple
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import Tables, plan_source, tables, write_csv, write_sqlite

from prefect_cytotable.flows import plan as dry_run
from prefect_cytotable.tasks.core import plan as planning
from prefect_cytotable.tasks.core.errors import (
    DiskSpaceError,
    DuplicateKeyError,
    JoinQueryError,
    LayoutError,
    MemoryBudgetError,
)
from prefect_cytotable.tasks.core.load import Findings, load
from prefect_cytotable.tasks.core.model import ColumnType, Plan
from prefect_cytotable.tasks.core.pipeline import plan_lines
from prefect_cytotable.tasks.core.plan import check_disk
from prefect_cytotable.tasks.core.sources.csv import CsvReader
from prefect_cytotable.tasks.core.sources.sqlite import SqliteReader


def without_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "cytotable"))


def base_rows(plan: Plan) -> tuple[list[tuple[int, object, object]], int]:
    """(dataset, image, object) of every row of the base that some chunk reads, and the keyless ones counted apart."""
    rows: list[tuple[int, object, object]] = []
    keyless = 0
    schema = plan.inspected.schema(plan.inspected.base)
    assert schema is not None
    names = [schema.image_number, schema.object_number]
    names += [one.column for one in plan.inspected.relations if one.child == schema.compartment]
    columns = tuple((name, ColumnType.INT64) for name in names)
    for chunk in plan.chunks:
        findings = Findings()
        loaded = load(plan, chunk, plan.inspected.base, columns, findings, chunk.slices[0].objects)
        assert not findings.amends
        positions = loaded.keys.dataset.to_pylist()
        datasets = [chunk.slices[place].dataset for place in positions]
        numbers = loaded.keys.object
        assert numbers is not None
        rows += zip(datasets, loaded.keys.image.to_pylist(), numbers.to_pylist(), strict=True)
        keyless += sum(loaded.keyless.values())
    return rows, keyless


@st.composite
def plates(draw: st.DrawFn) -> tuple[Tables, int]:
    """A plate with gaps among its images, giant ones, rows in any order, some without an image or object number."""
    images = draw(st.dictionaries(st.integers(1, 40), st.integers(0, 6), max_size=6))
    for giant in draw(st.lists(st.integers(41, 45), max_size=1)):
        images[giant] = draw(st.integers(20, 60))
    content = tables(images)
    keyless = draw(st.integers(0, 2))
    header, rows = content["Cytoplasm"]
    rows = [*rows, *((None, 900 + number, 1, 1, 0.5) for number in range(keyless))]
    if draw(st.booleans()):
        rows += [(image, None, 1, 1, 0.5) for image in list(images)[:1]]
    if draw(st.booleans()):
        random.Random(draw(st.integers(0, 99))).shuffle(rows)
    content["Cytoplasm"] = (header, rows)
    return content, keyless


@settings(max_examples=60)
@given(
    st.lists(plates(), min_size=1, max_size=3),
    st.sampled_from(["csv", "sqlite", "sqlite without an index"]),
    st.one_of(st.none(), st.integers(1, 70)),
    st.integers(300, 100_000),
)
def test_chunks_cover_every_row_of_the_base_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    content: list[tuple[Tables, int]],
    kind: str,
    chunk_size: int | None,
    limit: int,
) -> None:
    folder = tmp_path_factory.mktemp("plates")
    for number, (one, _) in enumerate(content):
        if kind == "csv":
            write_csv(folder / f"{number}", one)
        else:
            write_sqlite(folder / f"{number}.sqlite", one, index=kind == "sqlite")
    preset = "cellprofiler_csv" if kind == "csv" else "cellprofiler_sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "chunk_bytes", lambda budget: limit)
        plan = plan_source(folder, preset=preset, chunk_size=chunk_size)
    rows, keyless = base_rows(plan)
    names = [int(one.name.removesuffix(".sqlite")) for one in plan.datasets]
    expected = Counter(
        (names.index(number), row[0], row[1]) for number, (one, _) in enumerate(content) for row in one["Cytoplasm"][1]
    )
    found = Counter(rows)
    assert all(count == 1 for (_, image, number), count in found.items() if image is not None and number is not None)
    missing = expected - found
    assert not found - expected
    assert all(image is None for _, image, _ in missing)
    assert sum(missing.values()) == keyless
    assert len({chunk.key for chunk in plan.chunks}) == len(plan.chunks)
    if plan.rows_counted:
        assert plan.rows == len(rows) + keyless
    if chunk_size and kind != "csv":
        numbered = all(row[1] is not None for one, _ in content for row in one["Cytoplasm"][1])
        assert not numbered or all(chunk.rows <= chunk_size for chunk in plan.chunks)
    shutil.rmtree(folder)


def test_the_same_input_and_options_give_the_same_chunks_and_others_other_keys(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path / "plate.sqlite", tables({1: 5, 2: 5}))
    arguments = {"preset": "cellprofiler_sqlite", "chunk_size": 5}

    def keys(**more: object) -> set[str]:
        return {chunk.key for chunk in plan_source(source, **{**arguments, **more}).chunks}

    first = keys()
    assert len(first) == 2
    assert keys() == first
    assert keys(workers=2, overwrite=True, dest_path=tmp_path / "elsewhere.parquet") == first
    for other in (
        {"unmatched": "keep"},
        {"sort_output": False},
        {"drop_null": True},
        {"data_type_cast_map": {"float": "float32"}},
        {"image_columns": ["Image_Metadata_Well"]},
        {"add_tablenumber": True},
    ):
        assert not keys(**other) & first
    write_sqlite(tmp_path / "again" / "plate.sqlite", tables({1: 5, 2: 5}))
    source = tmp_path / "again" / "plate.sqlite"
    assert not keys() & first


def never(*_: object, **__: object) -> None:
    raise AssertionError("a row was read")


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in (CsvReader, SqliteReader):
        monkeypatch.setattr(reader, "read", never)


@pytest.mark.usefixtures("nothing_is_read")
def test_a_plan_reads_no_row_and_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_server(monkeypatch, tmp_path)
    for number in (1, 2):
        write_csv(tmp_path / "plate" / f"site-{number}", tables({number: 3}))
    plan = dry_run(tmp_path / "plate", tmp_path / "out.parquet")
    text = "\n".join(plan_lines(plan))
    for part in (
        "2 dataset(s)",
        "base         Cytoplasm",
        "Parent_Cells -> Cells",
        "site-1, TableNumber",
        "budget 1.0",
    ):
        assert part in text
    assert not (tmp_path / "out.parquet").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plate"]


def refused(case: str, tmp_path: Path) -> tuple[Path, dict[str, object], type[Exception], str]:
    content = tables({1: 4, 2: 2})
    if case == "duplicate keys":
        header, rows = content["Cells"]
        source = write_sqlite(tmp_path / "a.sqlite", {**content, "Cells": (header, [*rows, rows[0]])}, index=False)
        return source, {"preset": "cellprofiler_sqlite"}, DuplicateKeyError, "image 1, object 1"
    if case == "no relation":
        header, rows = content["Cells"]
        content["Spots"] = (["ImageNumber", "ObjectNumber"], [(1, 1)])
        names = ["cells", "nuclei", "cytoplasm", "spots"]
        return write_csv(tmp_path / "a", content), {"compartments": names}, LayoutError, "Nothing relates Spots"
    source = write_csv(tmp_path / "a", content)
    if case == "too little memory":
        return source, {"memory_budget": "150MB"}, MemoryBudgetError, "memory_budget is 143.1 MiB"
    if case == "a query that does not fit":
        return source, {"joins": "SELECT nothing FROM read_parquet('cells.parquet')"}, JoinQueryError, "nothing"
    if case == "a query of another file":
        sql = "SELECT * FROM read_parquet('cels.parquet')"
        return source, {"joins": sql}, JoinQueryError, "Did you mean 'cells'"
    return source, {"joins": "DROP TABLE cells"}, JoinQueryError, "one SELECT"


@pytest.mark.usefixtures("nothing_is_read")
@pytest.mark.parametrize(
    "case",
    [
        "duplicate keys",
        "no relation",
        "too little memory",
        "a query that does not fit",
        "a query of another file",
        "a query that changes things",
    ],
)
def test_what_cannot_be_done_is_refused_before_a_row_is_read(case: str, tmp_path: Path, run) -> None:
    source, arguments, error, message = refused(case, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error) as caught:
        run(source, tmp_path / "out.parquet", **arguments)
    assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("nothing_is_read")
def test_too_little_disk_is_refused_before_a_row_is_read(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_csv(tmp_path / "plate", tables({1: 400}))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 100))
    with pytest.raises(DiskSpaceError, match=r"100 B free, but parts and output need at least .*work_dir"):
        run(source, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_two_disks_are_looked_at_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_csv(tmp_path / "plate", tables({1: 400}))
    plan = plan_source(source, work_dir=tmp_path / "not" / "yet" / "there")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, plan.disk))
    check_disk(plan, tmp_path / "scratch")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, plan.disk // 2 - 1))
    with pytest.raises(DiskSpaceError):
        check_disk(plan, tmp_path / "scratch")


def test_a_large_file_that_is_cut_off_is_skipped_as_a_small_one_is(tmp_path: Path, run) -> None:
    """Only the index of a file that is cut into chunks sees its end before it is read."""
    rows: dict[str, int] = {}
    for name, chunk_size in (("small", None), ("large", 2)):
        folder = tmp_path / name
        for number in (1, 2):
            write_csv(folder / f"site-{number}", tables({number: 9}))
        cytoplasm = folder / "site-2" / "Cytoplasm.csv"
        cytoplasm.write_bytes(cytoplasm.read_bytes()[:-5])
        rows[name] = run(folder, tmp_path / f"{name}.parquet", chunk_size=chunk_size).num_rows
        plan = plan_source(tmp_path / "small")
        assert len(plan.datasets) == 2
    assert rows == {"small": 9, "large": 9}


def test_the_table_of_a_chunk_has_the_types_of_the_plan(tmp_path: Path) -> None:
    plan = plan_source(write_csv(tmp_path / "plate", tables({1: 2})))
    (table,) = plan.tables
    types = {column.name: column.type for column in table.columns}
    assert types["Metadata_ImageNumber"] == "int64"
    assert types["Cells_AreaShape_Area"] == "double"
    assert types["Image_FileName_DNA"] == "string"
    assert types["Metadata_Well"] == "string"
    assert all(pa.type_for_alias(one) for one in types.values())
