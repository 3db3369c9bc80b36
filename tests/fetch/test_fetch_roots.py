"""Allowed roots hold for a fetch: its source, what the source's collections name, and all that it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiledbsoma as soma

from prefect_cytotable.flows import fetch_obs
from prefect_cytotable.tasks.core.roots import ROOTS, OutsideRootsError
from prefect_cytotable.tasks.core.soma.opening import check_member, find
from prefect_cytotable.tasks.core.soma.request import make_fetch_options

pytestmark = pytest.mark.usefixtures("local")

DEFAULTS = {
    "dest_datatype": None, "axis": "obs", "measurement": "RNA", "organism": "homo_sapiens", "columns": None,
    "tissue": None, "value_filter": None, "memory_budget": "128MiB", "buffer_bytes": None, "chunk_size": None,
    "workers": None, "work_dir": None, "overwrite": False, "keep_chunks": False, "var_joinids": False,
}  # fmt: skip


@pytest.fixture
def inside(census: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that is allowed; the store lies in it."""
    folder = tmp_path / "inside"
    shutil.copytree(census, folder / "census")
    monkeypatch.setenv(ROOTS, str(folder))
    return folder


def test_a_fetch_inside_is_not_disturbed(inside: Path) -> None:
    assert Path(fetch_obs(inside / "census", inside / "lung.feather", tissue="lung").path).is_file()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source_path", "outside/census"),
        ("source_path", "s3://bucket/census"),
        ("source_path", "file:///etc"),
        ("source_path", "tiledb://namespace/array"),
        ("source_path", "census:stable"),
        ("dest_path", "outside/lung.feather"),
        ("dest_path", "inside/way/lung.feather"),
        ("work_dir", "outside/work"),
    ],
)
def test_what_leads_out_is_refused(inside: Path, tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "outside").mkdir()
    (inside / "way").symlink_to(tmp_path / "outside")
    given = {"source_path": inside / "census", "dest_path": inside / "lung.feather"} | {name: value}
    with pytest.raises(OutsideRootsError, match=name):
        make_fetch_options(**{**DEFAULTS, **given})
    assert not list((tmp_path / "outside").iterdir())


def test_the_file_of_joinids_may_not_be_a_link_out(inside: Path, tmp_path: Path) -> None:
    (inside / "lung.var.feather").symlink_to(tmp_path / "new.feather")
    given = {"source_path": inside / "census", "dest_path": inside / "lung.feather", "var_joinids": True}
    with pytest.raises(OutsideRootsError, match="joinids"):
        make_fetch_options(**{**DEFAULTS, **given})


def test_the_bucket_of_the_census_allows_its_versions(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOTS, f"{inside}:s3://cellxgene-census-public-us-west-2")
    given = {"source_path": "census:stable", "dest_path": inside / "lung.feather"}
    assert make_fetch_options(**{**DEFAULTS, **given}).source == "census:stable"


def test_a_collection_that_names_a_store_outside_is_refused(inside: Path, census: Path) -> None:
    with soma.Collection.create(str(inside / "bait")) as bait:
        data = bait.add_new_collection("census_data")
        with soma.open(str(census)) as outside:
            data.set("homo_sapiens", outside["census_data"]["homo_sapiens"], use_relative_uri=False)
    given = {"source_path": inside / "bait", "dest_path": inside / "lung.feather"}
    with pytest.raises(OutsideRootsError, match="a member of source_path"):
        find(make_fetch_options(**{**DEFAULTS, **given}))


def test_a_link_in_a_store_is_refused(inside: Path, census: Path) -> None:
    frame = inside / "census" / "census_data" / "homo_sapiens" / "obs"
    shutil.rmtree(frame)
    frame.symlink_to(census / "census_data" / "homo_sapiens" / "obs")
    given = {"source_path": inside / "census", "dest_path": inside / "lung.feather"}
    with pytest.raises(OutsideRootsError, match="a link in source_path"):
        find(make_fetch_options(**{**DEFAULTS, **given}))


def test_a_member_with_an_escaped_name_is_read_both_ways(inside: Path) -> None:
    check_member(f"file://{inside}/a%20b")
    with pytest.raises(OutsideRootsError):
        check_member(f"file://{inside}/%2e%2e/x")
