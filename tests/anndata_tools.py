"""What the tests of AnnData share: plates with columns of every kind, and whether an AnnData is what the table is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("anndata_h5ad", "anndata_zarr")
SUFFIX = {"anndata_h5ad": ".h5ad", "anndata_zarr": ".zarr"}


def read(path: str | Path) -> Any:
    """An AnnData, from a file or a folder."""
    return anndata.read_zarr(path) if Path(path).is_dir() else anndata.read_h5ad(path)


def differences(adata: Any, table: pa.Table) -> list[str]:
    """Where X and obs together are not the table; a null is as good as a NaN."""
    joined = adata.to_df().join(adata.obs)
    expected = table.to_pandas()
    if len(joined) != len(expected):
        return [f"{len(joined)} rows instead of {len(expected)}"]
    if set(joined.columns) != set(expected.columns):
        return sorted(set(joined.columns) ^ set(expected.columns))
    return [name for name in expected if _values(joined[name]) != _values(expected[name])]


def _values(column: pd.Series) -> list[object]:
    return list(column.astype(object).where(column.notna(), None))


def typed_plate(folder: Path, images: int, objects: int, seed: int = 0) -> Path:
    """A dataset as Parquet files whose columns have every type, with and without nulls."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = images * objects
    image = np.arange(1, images + 1)
    keys = {
        "ImageNumber": np.repeat(image, objects),
        "ObjectNumber": np.tile(np.arange(1, objects + 1), images),
    }
    parents = {"Parent_Cells": keys["ObjectNumber"], "Parent_Nuclei": keys["ObjectNumber"]}

    def holes(values: list[Any]) -> list[Any]:
        return [None if draw.random() < 0.2 else value for value in values]

    tables = {
        "Image": {
            "ImageNumber": image,
            "Metadata_Plate": [f"plate {seed}"] * images,
            "Metadata_Well": [f"A{number:02d}" for number in image],
            "Metadata_Site": image % 2 + 1,
            "Metadata_Focused": [bool(number % 2) for number in image],
            "Metadata_Checked": holes([bool(number % 2) for number in image]),
            "Metadata_Dose": holes([number / 3 for number in image]),
            "Metadata_Cycle": pa.array(holes([int(number) for number in image]), pa.int64()),
            "Metadata_Note": holes([f"note {number} / ü" for number in image]),
            "FileName_DNA": [f"{number}.tif" for number in image],
        },
        "Nuclei": {**keys, "AreaShape_Area": draw.random(rows), "Location_Center_X": draw.random(rows)},
        "Cells": {
            **keys,
            "Parent_Nuclei": keys["ObjectNumber"],
            "AreaShape_Area": draw.integers(0, 1000, rows),
            "Neighbors_NumberOfNeighbors_5": pa.array(holes(draw.integers(0, 9, rows).tolist()), pa.int64()),
            "Texture_Contrast_DNA_3_00_256": holes(draw.normal(size=rows).tolist()),
            "Label": [f"cell {number} of {seed}" for number in range(rows)],
        },
        "Cytoplasm": {
            **keys,
            **parents,
            "Location_Center_X": draw.random(rows),
            "Location_Center_Y": holes(draw.random(rows).tolist()),
            "Intensity_MeanIntensity_DNA": np.where(draw.random(rows) < 0.1, np.inf, draw.random(rows)),
        },
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def listing(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of every file in a folder."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
