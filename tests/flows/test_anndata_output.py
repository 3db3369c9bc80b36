"""`convert` to AnnData: what Parquet holds, in X and obs; whole or not at all; read by those who will read it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from anndata_tools import FORMATS, SUFFIX, differences, listing, read, typed_plate
from ears import Ear
from plates import database_of
from small import tables as small_tables
from small import write_csv

from prefect_cytotable.flows import cli, convert, plan
from prefect_cytotable.tasks.core import anndata_layout
from prefect_cytotable.tasks.core.errors import (
    ArgumentError,
    CastError,
    DestinationExistsError,
    MissingPackageError,
)
from prefect_cytotable.tasks.core.pipeline import plan_lines
from prefect_cytotable.tasks.core.sinks import anndata_names

pytestmark = pytest.mark.usefixtures("local")

TYPED: dict[str, Any] = {"source_datatype": "parquet", "chunk_size": 11}
"""How the typed plates are converted: in many chunks that begin anywhere in a stored chunk of X."""


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets with columns of every type."""
    folder = tmp_path_factory.mktemp("typed") / "data"
    typed_plate(folder / "a", images=5, objects=7, seed=1)
    typed_plate(folder / "b", images=3, objects=6, seed=2)
    return folder


@pytest.fixture
def table(typed: Path) -> pa.Table:
    return pq.read_table(convert(typed, "expected.parquet", **TYPED))


STORED = [
    ("anndata_h5ad", {}),
    ("anndata_h5ad", {"compression": "lzf", "x_chunk_rows": 4}),
    ("anndata_h5ad", {"compression": "none", "x_chunk_rows": 1000}),
    ("anndata_zarr", {"x_chunk_rows": 3}),
    ("anndata_zarr", {"zarr_format": 3, "compression": "zstd", "x_chunk_rows": 16}),
    ("anndata_zarr", {"zarr_format": 3, "compression": "none"}),
]


@pytest.mark.parametrize(("format_", "storing"), STORED)
def test_x_and_obs_are_the_parquet_table(format_: str, storing: dict[str, Any], typed: Path, table: pa.Table) -> None:
    out = convert(typed, f"out{SUFFIX[format_]}", format_, **TYPED, **storing)
    assert out == str(Path(f"out{SUFFIX[format_]}").absolute())
    adata = read(str(out))
    assert differences(adata, table) == []
    assert adata.X.dtype == np.float64
    assert adata.obs_names.is_unique
    assert [path.name for path in Path.cwd().iterdir() if path.name.startswith(".")] == []


def test_what_is_where(typed: Path, table: pa.Table) -> None:
    adata = read(str(convert(typed, "out.h5ad", "anndata_h5ad", **TYPED)))
    assert set(adata.var_names) == {
        "Cytoplasm_Intensity_MeanIntensity_DNA",
        "Cytoplasm_Location_Center_X",
        "Cytoplasm_Location_Center_Y",
        "Cells_AreaShape_Area",
        "Cells_Neighbors_NumberOfNeighbors_5",
        "Cells_Texture_Contrast_DNA_3_00_256",
        "Nuclei_AreaShape_Area",
        "Nuclei_Location_Center_X",
    }
    assert list(adata.var_names) == [name for name in table.column_names if name in set(adata.var_names)]
    assert list(adata.obs) == [name for name in table.column_names if name not in set(adata.var_names)]
    types = {name: str(dtype) for name, dtype in adata.obs.dtypes.items()}
    assert types["Metadata_ImageNumber"] == types["Metadata_TableNumber"] == "int64"
    assert types["Image_Metadata_Cycle"] == "Int64"
    assert types["Image_Metadata_Focused"] == "bool"
    assert types["Image_Metadata_Checked"] == "boolean"
    assert types["Image_Metadata_Dose"] == "float64"
    assert types["Image_FileName_DNA"] == types["Image_Metadata_Note"] == "category"
    assert types["Cells_Label"] == "object"  # no two are the same
    centre = table.select(["Cytoplasm_Location_Center_X", "Cytoplasm_Location_Center_Y"]).to_pandas().to_numpy()
    assert np.array_equal(adata.obsm["spatial"], centre, equal_nan=True)
    contrast = adata.var.loc["Cells_Texture_Contrast_DNA_3_00_256"]
    assert contrast[["compartment", "feature_group", "channel", "scale"]].tolist() == ["Cells", "Texture", "DNA", "3"]
    assert contrast["gray_levels"] == 256
    assert pd.isna(contrast["second_channel"])
    first = table.slice(0, 1).to_pylist()[0]
    assert adata.obs_names[0] == f"plate 1_A01_2_{first['Metadata_TableNumber']}_1_1"


def test_uns_tells_where_it_comes_from(typed: Path, table: pa.Table) -> None:
    told = read(str(convert(typed, "out.h5ad", "anndata_h5ad", **TYPED))).uns["prefect_cytotable"]
    assert told["data-producer"] == "prefect-cytotable"
    assert (told["rows_in"], told["rows_out"]) == (table.num_rows, table.num_rows)
    assert told["provenance"] == table.schema.metadata[b"prefect-cytotable"].decode()
    assert [row["rows out"] for row in json.loads(told["row_account"])] == [35, 18]


@pytest.mark.parametrize("format_", FORMATS)
def test_every_runner_and_every_chunking_of_x_gives_the_same(format_: str, typed: Path) -> None:
    def converted(name: str, **arguments: Any) -> dict[str, bytes]:
        return listing(Path(str(convert(typed, f"{name}{SUFFIX[format_]}", format_, **TYPED | arguments))))

    once = converted("once", task_runner="sequential", x_chunk_rows=8)
    assert converted("twice", task_runner="concurrent", workers=4, x_chunk_rows=8) == once
    if format_ == "anndata_h5ad":
        assert converted("thrice", task_runner="process", workers=2, x_chunk_rows=8) == once
    other = {**TYPED, "chunk_size": 1000}
    whole = read(str(convert(typed, f"whole{SUFFIX[format_]}", format_, **other)))
    assert whole.to_df().equals(read(f"once{SUFFIX[format_]}").to_df())
    assert whole.obs.equals(read(f"once{SUFFIX[format_]}").obs)


def test_kept_parts_serve_every_format(typed: Path, table: pa.Table) -> None:
    work = {**TYPED, "work_dir": "work", "keep_chunks": True}
    ear, again = Ear(), Ear()
    convert(typed, "same", progress=ear, **work)
    convert(typed, "same", "anndata_h5ad", progress=again, overwrite=True, **work)
    assert len(ear.results) == len(again.results) > 4
    assert all(result.reused for result in again.results)
    assert differences(anndata.read_h5ad("same"), table) == []


def test_float32_where_the_cast_map_says(typed: Path) -> None:
    casts = {"data_type_cast_map": {"float": "float32"}}
    table = pq.read_table(convert(typed, "expected.parquet", **TYPED, **casts))
    adata = read(str(convert(typed, "out.h5ad", "anndata_h5ad", **TYPED, **casts)))
    assert adata.X.dtype == np.float32
    assert adata.obs["Image_Metadata_Dose"].dtype == np.float32
    assert differences(adata, table) == []


@pytest.mark.parametrize(("casts", "limit"), [({}, 53), ({"float": "float32"}, 24)])
def test_a_number_that_x_cannot_hold_is_an_error_and_nothing_is_left(
    casts: dict[str, str], limit: int, tmp_path: Path
) -> None:
    content = small_tables({1: 3, 2: 3})
    header, rows = content["Cells"]
    content["Cells"] = (
        [*header, "Children_Spots_Count"],
        [(*row, 2**limit + number) for number, row in enumerate(rows)],
    )
    plate = write_csv(tmp_path / "plate", content)
    for out, format_ in (("out.h5ad", "anndata_h5ad"), ("out.zarr", "anndata_zarr")):
        with pytest.raises(CastError, match=rf"Cells_Children_Spots_Count.*beyond 2\*\*{limit}.*or write Parquet"):
            convert(plate, out, format_, data_type_cast_map=casts, chunk_size=3)
        assert not Path(out).exists()
        assert [path.name for path in Path(f".{out}.prefect-cytotable").rglob("*") if "tmp" in path.name] == []
    identifying = ["ImageNumber", "ObjectNumber", "Parent_Cells", "Parent_Nuclei", "Children_Spots_Count"]
    adata = read(
        str(convert(plate, "o.h5ad", "anndata_h5ad", data_type_cast_map=casts, identifying_columns=identifying))
    )
    assert adata.obs["Metadata_Cells_Children_Spots_Count"].tolist() == [2**limit + number for number in range(6)]


@pytest.mark.parametrize("format_", FORMATS)
def test_an_output_without_rows(format_: str, tmp_path: Path) -> None:
    content = small_tables({1: 3})
    content["Nuclei"] = (content["Nuclei"][0], [])
    out = str(convert(write_csv(tmp_path / "plate", content), f"out{SUFFIX[format_]}", format_))
    adata = read(out)
    assert adata.shape == (0, 3)
    assert "Metadata_ImageNumber" in adata.obs
    assert adata.uns["prefect_cytotable"]["rows_out"] == 0


@pytest.mark.parametrize("format_", FORMATS)
def test_tables_and_chunks_are_an_anndata_each(format_: str, tmp_path: Path) -> None:
    plate, suffix = write_csv(tmp_path / "plate", small_tables({1: 4, 2: 4})), SUFFIX[format_]
    for _ in range(2):  # the second time it replaces what it wrote the first time
        tables = convert(plate, "tables", format_, join=False, overwrite=True)
        assert isinstance(tables, dict)
        assert sorted(tables) == ["Cells.csv", "Cytoplasm.csv", "Image.csv", "Nuclei.csv"]
    cells, image = (tables[name][0]["table"][0] for name in ("Cells.csv", "Image.csv"))
    assert cells == tmp_path / "tables" / "cells" / f"cells{suffix}"
    assert (read(cells).shape, read(image).shape) == ((8, 1), (2, 0))
    assert read(image).obs["Metadata_Well"].tolist() == ["A01", "A02"]
    chunks = convert(plate, "chunks", format_, concat=False, chunk_size=4)
    assert isinstance(chunks, list)
    assert [Path(path).name for path in chunks] == [f"part-00000{suffix}", f"part-00001{suffix}"]
    both = anndata.concat([read(path) for path in chunks])
    assert differences(both, pq.read_table(convert(plate, "out.parquet"))) == []


def test_names_of_cells_are_unique_whatever_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = "SELECT c.* FROM read_parquet('cells.parquet') c, (VALUES (1), (2)) AS t(n)"
    plate = write_csv(tmp_path / "plate", small_tables({1: 3, 2: 2}))
    adata = read(str(convert(plate, "out.h5ad", "anndata_h5ad", joins=twice, sort_output=True)))
    assert adata.obs_names.tolist()[:3] == ["1_1_0", "1_1_1", "1_2_2"]
    assert adata.n_obs == 10
    assert adata.obs_names.is_unique
    monkeypatch.setattr(anndata_names, "HASHES_AT_A_TIME", 3)  # several passes
    again = read(str(convert(plate, "again.h5ad", "anndata_h5ad", joins=twice, sort_output=True)))
    assert again.obs_names.tolist() == adata.obs_names.tolist()
    once = read(str(convert(plate, "once.h5ad", "anndata_h5ad")))
    assert once.obs_names.tolist() == ["P1_A01_1_1", "P1_A01_1_2", "P1_A01_1_3", "P1_A02_2_1", "P1_A02_2_2"]


def test_odd_names_of_columns(tmp_path: Path) -> None:
    content = small_tables({1: 2})
    header, rows = content["Image"]
    odd = ["Metadata_a/b", "Metadata_a_b", "Metadata_ü \"'\n"]
    content["Image"] = ([*header, *odd], [(*row, "x", "y", "z") for row in rows])
    header, rows = content["Cells"]
    content["Cells"] = ([*header, "Mean.of/it", "Mean"], [(*row, 1.5, 2.5) for row in rows])
    plate = write_csv(tmp_path / "plate", content)
    for format_ in FORMATS:
        adata = read(str(convert(plate, f"out{SUFFIX[format_]}", format_)))
        assert adata.obs[["Image_Metadata_a_b", "Image_Metadata_a_b_", "Image_Metadata_ü \"'\n"]].iloc[0].tolist() in (
            ["x", "y", "z"],
            ["y", "x", "z"],
        )
        assert adata[:, ["Cells_Mean.of/it", "Cells_Mean"]].X.tolist() == [[1.5, 2.5]] * 2


def test_plates_and_places_of_in_carta(tmp_path: Path) -> None:
    header = "OBJECT ID,Row,Column,FOV,WELL LABEL,Z,T,Cells cg X wv1,Cells cg Y wv1,Cells Area wv1,Plate ID"
    rows = [f"{number},C,3,1,C - 3,1,1,{number}.5,{number}.25,9.0,Day 0" for number in (1, 2)]
    (tmp_path / "objects.csv").write_text("\n".join([header, *rows]) + "\n")
    out = convert(tmp_path / "objects.csv", "out.h5ad", "anndata_h5ad", preset="in-carta")
    adata = read(str(out))
    assert adata.obs_names.tolist() == ["Day 0_C - 3_1_1", "Day 0_C - 3_1_2"]
    assert adata.obsm["spatial"].tolist() == [[1.5, 1.25], [2.5, 2.25]]
    assert adata.var_names.tolist() == ["Cells cg X wv1", "Cells cg Y wv1", "Cells Area wv1"]


def test_a_text_that_hdf5_cannot_hold(tmp_path: Path) -> None:
    folder = typed_plate(tmp_path / "plate", images=2, objects=2)
    cells = pq.read_table(folder / "Cells.parquet")
    pq.write_table(cells.append_column("Note", pa.array(["a\0b", "", "c", None])), folder / "Cells.parquet")
    with pytest.raises(CastError, match=r"obs/Cells_Note.* holds 'a\\x00b'.*Write zarr or Parquet"):
        convert(folder, "out.h5ad", "anndata_h5ad", source_datatype="parquet")
    assert not Path("out.h5ad").exists()
    adata = read(str(convert(folder, "out.zarr", "anndata_zarr", source_datatype="parquet")))
    assert adata.obs["Cells_Note"].astype(object).tolist()[:3] == ["a\0b", "", "c"]


# --- the destination ----------------------------------------------------------------------------------------


def test_a_zarr_store_that_is_there_is_replaced_only_when_it_is_ours(typed: Path, tmp_path: Path) -> None:
    convert(typed, "out.zarr", "anndata_zarr", **TYPED)
    before = listing(Path("out.zarr"))
    with pytest.raises(DestinationExistsError, match="overwrite=True"):
        convert(typed, "out.zarr", "anndata_zarr", **TYPED)
    convert(typed, "out.zarr", "anndata_zarr", overwrite=True, zarr_format=3, **TYPED)
    assert "zarr.json" in listing(Path("out.zarr"))
    convert(typed, "out.zarr", "anndata_zarr", overwrite=True, **TYPED)
    assert listing(Path("out.zarr")) == before
    Path("out.zarr/notes.txt").write_text("mine")
    with pytest.raises(DestinationExistsError, match=r"did not make \(notes.txt\)"):
        convert(typed, "out.zarr", "anndata_zarr", overwrite=True, **TYPED)
    anndata.AnnData(np.ones((2, 2))).write_zarr("other.zarr")
    with pytest.raises(DestinationExistsError, match="did not make"):
        convert(typed, "other.zarr", "anndata_zarr", overwrite=True, **TYPED)
    anndata.read_zarr("other.zarr")


def test_a_folder_with_a_foreign_h5ad_is_left_alone(typed: Path) -> None:
    convert(typed, "tables", "anndata_h5ad", join=False, **TYPED)
    anndata.AnnData(np.ones((2, 2))).write_h5ad("tables/cells/mine.h5ad")
    with pytest.raises(DestinationExistsError, match=r"did not make \(mine.h5ad\)"):
        convert(typed, "tables", "anndata_h5ad", join=False, overwrite=True, **TYPED)
    assert Path("tables/cells/mine.h5ad").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dest_datatype": "anndata"}, "Did you mean 'anndata_"),
        ({"compression": "gzip"}, "it is for AnnData"),
        ({"dest_datatype": "anndata_h5ad", "compression": "lz4"}, "knows 'gzip', 'lzf', 'none'"),
        ({"dest_datatype": "anndata_zarr", "compression": "lzf"}, "knows 'lz4', 'zstd', 'none'"),
        ({"dest_datatype": "anndata_zarr", "zarr_format": 1}, "neither 2 nor 3"),
        ({"dest_datatype": "anndata_zarr", "zarr_format": True}, "neither 2 nor 3"),
        ({"dest_datatype": "anndata_h5ad", "zarr_format": 2}, "zarr_format was given"),
        ({"x_chunk_rows": 5}, "x_chunk_rows was given"),
        ({"dest_datatype": "anndata_h5ad", "x_chunk_rows": 0}, "x_chunk_rows is 0"),
    ],
)
def test_wrong_ways_of_storing_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        convert("nowhere", "out", **arguments)


@pytest.mark.parametrize(("format_", "package"), [("anndata_h5ad", "h5py"), ("anndata_zarr", "numcodecs")])
def test_without_the_extra_it_says_what_to_install(format_: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"{package}.*pip install 'prefect-cytotable\[anndata\]'"):
        convert("nowhere", "out", format_)


def test_each_format_imports_what_it_needs_and_no_more(tmp_path: Path) -> None:
    plate = write_csv(tmp_path / "plate", small_tables({1: 3, 2: 3}))
    code = (
        "import sys; from prefect_cytotable.flows import convert\n"
        f"convert({str(plate)!r}, sys.argv[1], sys.argv[2])\n"
        "print(*sorted({'anndata', 'h5py', 'numcodecs', 'pandas', 'zarr'} & set(sys.modules)))"
    )
    for out, format_, expected in (
        ("o.parquet", "parquet", ""),
        ("o.h5ad", "anndata_h5ad", "h5py"),
        ("o.zarr", "anndata_zarr", "numcodecs"),
    ):
        command = [sys.executable, "-c", code, str(tmp_path / out), format_]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=dict(os.environ))
        assert ran.stdout.strip() == expected


def test_the_command_line_knows_the_format_by_the_ending(typed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, more, kind in (
        ("a.h5ad", ["--compression", "lzf"], "h5"),
        ("a.zarr", ["--zarr-format", "3", "--x-chunk-rows", "5"], "zarr"),
        ("b", ["--format", "anndata_h5ad"], "h5"),
        ("c", [], "parquet"),
    ):
        assert cli.main(["convert", str(typed), out, "--source-datatype", "parquet", "--quiet", *more]) == 0
        if kind == "h5":
            assert h5py.File(out)["X"].compression == ("lzf" if more[1] == "lzf" else "gzip")
        elif kind == "zarr":
            found = zarr.open(out, mode="r")
            assert (found.metadata.zarr_format, found["X"].chunks[0]) == (3, 5)
        else:
            assert pq.read_metadata(out).num_rows == 53
    assert cli.main(["plan", str(typed), "x.zarr", "--source-datatype", "parquet"]) == 0
    assert "format       anndata_zarr, zarr format 2, lz4" in capsys.readouterr().out


def test_the_plan_counts_the_memory_of_encoding(tmp_path: Path) -> None:
    database = database_of(tmp_path / "plate.sqlite")
    arguments = {"preset": "cellprofiler_sqlite", "workers": 2}
    plain = plan(database, "o.parquet", **arguments)
    encoding = plan(database, "o.h5ad", dest_datatype="anndata_h5ad", **arguments)
    assert encoding.memory > plain.memory
    assert [one.key for one in encoding.chunks] == [one.key for one in plain.chunks]
    assert "format       anndata_h5ad, gzip" in plan_lines(encoding)
    assert anndata_layout.anndata_layout(encoding, encoding.tables[0]).dtype == "float64"


# --- those who read -----------------------------------------------------------------------------------------


def test_backed_and_scanpy(typed: Path, table: pa.Table) -> None:
    convert(typed, "out.h5ad", "anndata_h5ad", **TYPED)
    backed = anndata.read_h5ad("out.h5ad", backed="r")
    assert np.array_equal(backed[10:20].to_memory().X, read("out.h5ad").X[10:20], equal_nan=True)
    backed.file.close()
    scanpy = pytest.importorskip("scanpy")
    adata = scanpy.read_h5ad("out.h5ad")
    adata.X = np.nan_to_num(adata.X, posinf=0)
    scanpy.pp.calculate_qc_metrics(adata, percent_top=None, inplace=True)
    assert adata.obs["n_genes_by_counts"].gt(0).all()


@pytest.mark.skipif(importlib.util.find_spec("xarray") is None, reason="anndata reads data frames lazily with xarray")
@pytest.mark.parametrize("format_", FORMATS)
def test_lazily(format_: str, typed: Path) -> None:
    out = str(convert(typed, f"out{SUFFIX[format_]}", format_, **TYPED))
    store = h5py.File(out) if format_ == "anndata_h5ad" else zarr.open(out, mode="r")
    lazy = anndata.experimental.read_lazy(store)
    assert lazy[5:9].to_memory().to_df().equals(read(out)[5:9].to_df())
