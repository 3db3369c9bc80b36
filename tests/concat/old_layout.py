"""Files as older versions of anndata left them, made of those that the present one writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from anndata.io import read_elem

MARKS = ("encoding-type", "encoding-version")


def as_of_0_7(path: Path) -> Path:
    """Bring an h5ad file or a zarr store into the layout of anndata 0.7.

    Elements but data frames, sparse arrays and `raw` do not tell what they are, nor does the root; a categorical is an
    array of codes, whose labels lie in its frame's `__categories`.
    """
    if path.suffix == ".h5ad":
        with h5py.File(path, "r+") as file:
            _bring(file)
    else:
        (path / ".zmetadata").unlink(missing_ok=True)
        _bring(zarr.open_group(path, mode="r+", use_consolidated=False))
    return path


def _bring(group: Any) -> None:
    kind = group.attrs.get("encoding-type", "")
    if kind == "dataframe":
        for name in [*group.attrs["column-order"], group.attrs["_index"]]:
            if group[name].attrs["encoding-type"] == "categorical":
                _flatten(group, name)
            elif group[name].attrs["encoding-type"] == "nullable-string-array":  # texts, as pandas 3 has them
                _texts(group, name)
    keep = kind in ("dataframe", "raw", "csr_matrix", "csc_matrix")
    for name in MARKS:
        if name in group.attrs:
            if keep:
                group.attrs["encoding-version"] = "0.1.0"
            else:
                del group.attrs[name]
    for name in group:
        if not hasattr(group[name], "shape"):
            _bring(group[name])
        else:
            for mark in MARKS:
                if mark in group[name].attrs:
                    del group[name].attrs[mark]


def _texts(frame: Any, name: str) -> None:
    values = [str(one) for one in read_elem(frame[name])]
    del frame[name]
    if isinstance(frame, h5py.Group):
        frame.create_dataset(name, data=values, dtype=h5py.string_dtype())
    else:
        frame.create_array(name, data=np.array(values, np.dtypes.StringDType()))


def _flatten(frame: Any, name: str) -> None:
    codes = frame[f"{name}/codes"][...]
    labels = np.array(list(map(str, read_elem(frame[f"{name}/categories"]))), np.dtypes.StringDType())
    ordered = bool(frame[name].attrs["ordered"])
    del frame[name]
    above = frame.require_group("__categories")
    if isinstance(frame, h5py.Group):
        above.create_dataset(name, data=labels.tolist(), dtype=h5py.string_dtype())
        frame.create_dataset(name, data=codes).attrs["categories"] = above[name].ref
    else:
        above.create_array(name, data=labels)
        frame.create_array(name, data=codes).attrs["categories"] = f"__categories/{name}"
    above[name].attrs["ordered"] = ordered
