"""Allowed roots: what lies inside and outside, whatever a path looks like; links; servers; and who asks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import clear

from prefect_cytotable.flows import convert, plan, reprocess
from prefect_cytotable.flows.concat import concat
from prefect_cytotable.flows.running import checked_runner
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites, write_sqlite
from prefect_cytotable.tasks.core.errors import BadSourceError, CytotableError, SourceNotFoundError
from prefect_cytotable.tasks.core.memory.folder import space
from prefect_cytotable.tasks.core.memory.model import Profiling
from prefect_cytotable.tasks.core.presets import preset_text
from prefect_cytotable.tasks.core.roots import (
    ENDPOINTS,
    ROOTS,
    OutsideRootsError,
    Roots,
    allowed_roots,
    check_endpoint,
    check_file,
    check_path,
)

SHAPE = PlateShape(wells=1, sites=2, cells=4)


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, no roots and no settings of the person who runs the tests; relative paths lie in `tmp_path`."""
    clear(monkeypatch, "PREFECT_")
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that is allowed, with a plate in it; another plate lies outside."""
    folder = tmp_path / "inside"
    write_csv_sites(tables(SHAPE), folder / "plate")
    write_csv_sites(tables(SHAPE), tmp_path / "outside" / "plate")
    write_sqlite(tables(SHAPE), tmp_path / "outside" / "plate.sqlite")
    monkeypatch.setenv(ROOTS, str(folder))
    return folder


# --- the variable -------------------------------------------------------------------------------------------


def test_without_the_variable_nothing_is_limited() -> None:
    assert allowed_roots({}) is None
    check_path("source_path", "/etc/passwd")
    check_endpoint("endpoint_url", "https://anywhere.example.org")


def test_folders_and_url_prefixes_are_told_apart() -> None:
    found = allowed_roots({ROOTS: "/data:/scratch/:s3://lab/tables/:gs://bucket: az://container "})
    assert found == Roots(
        (Path("/data"), Path("/scratch")), (("s3", "lab", "tables"), ("gs", "bucket", ""), ("az", "container", ""))
    )


@pytest.mark.parametrize("value", ["", ":", " ", "relative", "/data:relative/x", "s3://", "s3:///key", "s3://b/../c"])
def test_a_variable_that_cannot_be_used_allows_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOTS, value)
    with pytest.raises(OutsideRootsError, match=ROOTS):
        check_path("source_path", "/data/plate.sqlite")


def test_the_error_is_one_of_ours_and_a_builtin() -> None:
    assert issubclass(OutsideRootsError, CytotableError)
    assert issubclass(OutsideRootsError, PermissionError)


# --- local paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["inside", "inside/", "./inside/plate", "inside/../inside/new/table.parquet", "{tmp}/inside//plate", "inside/."],
)
def test_what_lies_inside(inside: Path, tmp_path: Path, path: str) -> None:
    check_path("source_path", path.replace("{tmp}", str(tmp_path)))


@pytest.mark.parametrize(
    "path",
    [
        "outside/plate",
        "inside/../outside/plate",
        "inside-evil/plate",
        "insid",
        "INSIDE/plate",
        ".",
        "/",
        "/etc/passwd",
        "~/inside",
        "~root/x",
        "{tmp}/inside/../outside",
        "inside/link/plate",
        "inside/link/../../inside/plate/../../outside",
        "a\0b",
        "inside\0",
        "~nobody-of-that-name-here/x",
    ],
)
def test_what_lies_outside(inside: Path, tmp_path: Path, path: str) -> None:
    (inside / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(OutsideRootsError):
        check_path("source_path", path.replace("{tmp}", str(tmp_path)))


def test_a_root_that_is_a_link_means_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv(ROOTS, str(tmp_path / "link"))
    check_path("source_path", tmp_path / "real" / "x")
    check_path("source_path", tmp_path / "link" / "x")


def test_a_link_that_turns_in_a_circle_is_no_way_out(inside: Path) -> None:
    (inside / "a").symlink_to("b")
    (inside / "b").symlink_to("a")
    check_path("source_path", inside / "a")
    assert not (inside / "a").exists()


@given(st.lists(st.sampled_from(["..", ".", "inside", "outside", "x", ""]), max_size=8).map("/".join))
def test_a_path_is_inside_exactly_where_the_system_finds_it(text: str) -> None:
    found = Roots((Path("/inside"),)).has_file(f"/{text}")
    assert found == (os.path.normpath(f"/{text}").lstrip("/").split("/")[0] == "inside")


# --- URLs ---------------------------------------------------------------------------------------------------

LAB = Roots((), (("s3", "lab", "tables"), ("gs", "bucket", "")))


@pytest.mark.parametrize(
    "url", ["s3://lab/tables", "S3://lab/tables/a.parquet", "s3://lab/tables/", "gs://bucket", "gs://bucket/any/thing"]
)
def test_urls_inside(url: str) -> None:
    assert LAB.has_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://lab",
        "s3://lab/tables-evil/a",
        "s3://lab/tablesx",
        "s3://lab-evil/tables/a",
        "s3://LAB/tables/a",
        "s3://lab/Tables/a",
        "gs://lab/tables/a",
        "az://bucket/a",
        "gs://bucket/../other/a",
        "s3://lab/tables/../secret",
        "s3://lab/tables/./a",
        "s3://lab/x/../tables/a",
        "s3://user@lab/tables/a",
        "file:///inside/plate",
        "s3://",
    ],
)
def test_urls_outside(url: str) -> None:
    assert not LAB.has_url(url)


def test_the_message_names_the_variable_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOTS, "/data")
    with pytest.raises(OutsideRootsError) as caught:
        check_path("source_path", "s3://key:hunter2@bucket/plate?signature=hunter3")
    assert ROOTS in str(caught.value)
    assert "source_path" in str(caught.value)
    assert "hunter" not in str(caught.value)


# --- servers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "fits"),
    [
        ("https://minio.example.org:9000", True),
        ("https://MINIO.example.org:9000/", True),
        ("https://minio.example.org", False),
        ("http://minio.example.org:9000", False),
        ("https://minio.example.org.evil.org:9000", False),
        ("https://evil.org/minio.example.org:9000", False),
        ("https://open.example.org", True),
        ("http://open.example.org:8080", True),
        ("tcp://scheduler:8786", True),
        ("tcp://scheduler:1", False),
        ("tls://scheduler:8786", False),
        ("tcp://", False),
        ("https://[::1", False),
    ],
)
def test_servers(address: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINTS, "https://minio.example.org:9000, open.example.org,tcp://scheduler:8786")
    if fits:
        check_endpoint("endpoint_url", address)
    else:
        with pytest.raises(OutsideRootsError, match=ENDPOINTS):
            check_endpoint("endpoint_url", address)


def test_with_roots_and_no_servers_named_every_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOTS, "/data")
    with pytest.raises(OutsideRootsError, match=ENDPOINTS):
        check_endpoint("endpoint_url", "https://minio.example.org")
    with pytest.raises(OutsideRootsError, match="task_runner"):
        checked_runner("tcp://evil.example.org:8786")  # what a scheduler sends is unpickled
    assert checked_runner("dask:slurm") == "dask:slurm"


# --- who asks: everything that a conversion reads or writes -------------------------------------------------


def test_a_conversion_inside_is_not_disturbed(inside: Path) -> None:
    (inside / "mine.toml").write_text(preset_text("cellprofiler_csv"))
    path = convert(inside / "plate", inside / "out.parquet", preset=str(inside / "mine.toml"), work_dir=inside / "work")
    assert Path(str(path)).is_file()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source_path", "outside/plate"),
        ("source_path", "s3://bucket/plate"),
        ("dest_path", "outside/out.parquet"),
        ("dest_path", "inside/way/out.parquet"),
        ("dest_path", "inside/leads-out.parquet"),
        ("dest_path", "gs://bucket/out.parquet"),
        ("work_dir", "outside/work"),
        ("work_dir", "s3://bucket/work"),
        ("preset", "outside/mine.toml"),
        ("preset", "/etc/shadow.toml"),
        ("storage_options", {"local_cache_dir": "outside/cache"}),
        ("storage_options", {"local_cache_dir": "s3://bucket/x"}),
    ],
)
@pytest.mark.parametrize("do", [convert, plan])
def test_what_leads_out_is_refused_before_it_is_looked_at(
    inside: Path, tmp_path: Path, name: str, value: object, do: Any
) -> None:
    (inside / "way").symlink_to(tmp_path / "outside")
    (inside / "leads-out.parquet").symlink_to(tmp_path / "outside" / "new.parquet")
    (tmp_path / "outside" / "mine.toml").write_text("this is = no preset")
    before = sorted(tmp_path.rglob("*"))
    arguments = {"source_path": inside / "plate", "dest_path": inside / "out.parquet"} | {name: value}
    with pytest.raises(OutsideRootsError, match=name):
        do(**arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hidden_folder_that_leads_out_is_refused(inside: Path, tmp_path: Path) -> None:
    (inside / ".out.parquet.prefect-cytotable").symlink_to(tmp_path / "outside")
    with pytest.raises(OutsideRootsError, match="hidden folder"):
        convert(inside / "plate", inside / "out.parquet")


def test_credentials_are_sent_to_no_other_server(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOTS, f"{inside}:s3://lab")
    for options in ({"endpoint_url": "https://evil.example.org"}, {"endpoint_url": "http://169.254.169.254"}):
        with pytest.raises(OutsideRootsError, match=ENDPOINTS):
            convert("s3://lab/plate", inside / "out.parquet", storage_options=options)
    monkeypatch.setenv(ROOTS, f"{inside}:gs://lab")
    with pytest.raises(OutsideRootsError, match="application_credentials"):
        convert("gs://lab/plate", inside / "out.parquet", storage_options={"application_credentials": "/root/key.json"})


def test_a_memory_profile_outside_is_refused(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(OutsideRootsError, match="profile"), space(Profiling(str(tmp_path / "outside" / "profile"))):
        pytest.fail("it began")
    assert not (tmp_path / "outside" / "profile").exists()


# --- links in what is searched ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_out_of_the_source_is_skipped_and_reported(inside: Path, tmp_path: Path, kind: str) -> None:
    whole = plan(inside / "plate", inside / "out.parquet").inspected.gathered
    if kind == "file":
        one = sorted((inside / "plate").rglob("Cells.csv"))[0]
        one.unlink()
        one.symlink_to(tmp_path / "outside" / "plate" / one.relative_to(inside / "plate"))
    else:
        one = inside / "plate" / "more"
        one.symlink_to(tmp_path / "outside" / "plate")
    found = plan(inside / "plate", inside / "out.parquet").inspected.gathered
    assert [(bad.where, ROOTS in bad.cause) for bad in found.skipped if bad.where == str(one)] == [(str(one), True)]
    assert not any("outside" in os.path.realpath(s.path) for d in found.datasets for s in d.sources)
    assert len(found.datasets) <= len(whole.datasets)
    with pytest.raises(BadSourceError, match=ROOTS):
        plan(inside / "plate", inside / "out.parquet", on_bad_source="error")


def test_links_that_stay_inside_are_followed(inside: Path) -> None:
    shutil.move(inside / "plate", inside / "elsewhere")
    (inside / "plate").mkdir()
    (inside / "plate" / "link").symlink_to(inside / "elsewhere")
    assert not plan(inside / "plate", inside / "out.parquet").inspected.gathered.skipped


def test_a_source_that_is_all_links_out_says_so(inside: Path, tmp_path: Path) -> None:
    (inside / "links").mkdir()
    (inside / "links" / "plate").symlink_to(tmp_path / "outside" / "plate")
    with pytest.raises(SourceNotFoundError, match=ROOTS):
        convert(inside / "links", inside / "out.parquet")


def test_a_journal_that_is_a_link_out_is_not_opened_with_its_database(inside: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "outside" / "plate.sqlite", inside / "plate.sqlite")
    (inside / "plate.sqlite-wal").symlink_to(tmp_path / "outside" / "wal")
    with pytest.raises(SourceNotFoundError, match=ROOTS):
        convert(inside / "plate.sqlite", inside / "out.parquet", preset="cellprofiler_sqlite")
    assert not (tmp_path / "outside" / "wal").exists()


def test_the_users_own_file_of_sql_is_checked_as_well(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(OutsideRootsError, match="--joins"):
        check_file("--joins", tmp_path / "outside" / "query.sql")


# --- the other flows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("in_files", (["outside/a.h5ad"], "inside/o.h5ad")), ("out_file", (["inside/a.h5ad"], "outside/o.h5ad"))],
)
def test_a_concatenation_outside_is_refused(inside: Path, name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(OutsideRootsError, match=name):
        concat(*arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("source_root", ("outside", "inside/out")), ("destination_root", ("inside/plate", "outside/out"))],
)
def test_a_reprocessing_outside_is_refused(inside: Path, name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(OutsideRootsError, match=name):
        reprocess(*arguments)
