"""AnnData from parts: X as the parts come, the rest when all are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from prefect_cytotable.tasks.core.anndata_layout import INDEX, AnnDataLayout, numpy_type
from prefect_cytotable.tasks.core.feature_names import FeatureName
from prefect_cytotable.tasks.core.model import Destination, OutputTable
from prefect_cytotable.tasks.core.sinks.anndata_matrix import MatrixStream, floats
from prefect_cytotable.tasks.core.sinks.anndata_names import names
from prefect_cytotable.tasks.core.sinks.anndata_obs import tables, write_columns
from prefect_cytotable.tasks.core.sinks.container import Attribute, Container, Encoding, code_type, texts, write_array
from prefect_cytotable.tasks.core.sinks.parquet import schema_of

UNS = "prefect_cytotable"
"""Where uns tells of the conversion."""

SPATIAL = "spatial"
"""What squidpy and scanpy call the places of cells in obsm."""

H5AD_CHUNK = 1 << 20
"""Bytes of a chunk of X at most: HDF5 keeps a chunk of up to 1 MiB in memory, and reads a larger one for every row."""

ZARR_CHUNK = 4 << 20
"""The same in a folder or in object storage, where every chunk is a file."""

WIDE = 2_000
"""Columns of obs whose names may not fit the 64 KiB that an attribute of HDF5's oldest format has."""


@dataclass(frozen=True)
class AnnDataStyle:
    """How an AnnData is stored.

    Attributes:
        compression: Of the format's own; empty for the fast one.
        zarr_format: 2 or 3.
        chunk_rows: Rows of a chunk of X, or 0 where its bytes decide.
        threads: Parts that are encoded at a time.
    """

    format: Destination
    compression: str = ""
    zarr_format: int = 2
    chunk_rows: int = 0
    threads: int = 1


class AnnDataAhead:
    """An AnnData in the making, to which finished parts are added while later ones are still being converted."""

    def __init__(self, path: Path, layout: AnnDataLayout, style: AnnDataStyle) -> None:
        self.path, self.layout = path, layout
        self.parts: list[Path] = []
        self.container = container_of(path, style, len(layout.obs))
        dtype = numpy_type(layout)
        rows = style.chunk_rows or chunk_rows(len(layout.features) * dtype.itemsize, style.format)
        try:
            matrix = self.container.matrix(len(layout.features), dtype, rows)
            self.stream = MatrixStream(matrix, layout.features, dtype, style.threads)
        except BaseException:
            self.container.abandon()
            raise

    def add(self, part: Path) -> None:
        """Add one part more; parts come in the order of the output."""
        self.stream.add(part)
        self.parts.append(part)

    def discard(self) -> None:
        """Stop, and remove what there is."""
        self.stream.abandon()
        self.container.abandon()


def container_of(path: Path, style: AnnDataStyle, columns: int) -> Container:
    """A new file or folder for an AnnData whose obs has so many columns."""
    # Of the two formats just the one that is wanted: each brings libraries of its own.
    if style.format is Destination.H5AD:
        from prefect_cytotable.tasks.core.sinks.h5ad import GZIP, H5adFile

        return H5adFile(path, style.compression or GZIP, columns > WIDE)
    from prefect_cytotable.tasks.core.sinks.zarr import LZ4, ZarrFolder

    return ZarrFolder(path, style.compression or LZ4, style.zarr_format)


def chunk_rows(row_bytes: int, format_: Destination) -> int:
    """Rows of a chunk of X.

    >>> chunk_rows(8 * 1024, Destination.H5AD), chunk_rows(0, Destination.ZARR)
    (128, 4194304)
    """
    return max((H5AD_CHUNK if format_ is Destination.H5AD else ZARR_CHUNK) // max(row_bytes, 1), 1)


def write_anndata(
    parts: Sequence[Path],
    table: OutputTable,
    about: Mapping[str, str | int],
    mark: tuple[str, str],
    ahead: AnnDataAhead,
) -> int:
    """Write what is missing of an AnnData; returns its number of rows.

    Args:
        parts: Parquet files with the columns of `table`, in the order of the output; the first may be added already.
        table: The columns.
        about: Goes into uns.
        mark: Name and value of an attribute of the root.
        ahead: Where to.

    Raises:
        CastError: A whole number is too large for X.
    """
    try:
        assert list(parts[: len(ahead.parts)]) == ahead.parts
        for part in parts[len(ahead.parts) :]:
            ahead.add(part)
        rows = ahead.stream.finish()
        container, layout = ahead.container, ahead.layout
        _write_obs(container, parts, layout, schema_of(table), rows)
        container.group("obsm", Encoding.DICT)
        if layout.spatial:
            _write_places(container, parts, layout.spatial, rows)
        _write_var(container, layout)
        container.group("uns", Encoding.DICT)
        container.group(f"uns/{UNS}", Encoding.DICT)
        for name, value in about.items():
            container.scalar(f"uns/{UNS}/{name}", value)
        for empty in ("layers", "obsp", "varm", "varp"):
            container.group(empty, Encoding.DICT)
        container.finish(**{mark[0]: mark[1]})
    except BaseException:
        ahead.discard()
        raise
    return rows


def _write_obs(
    container: Container, parts: Sequence[Path], layout: AnnDataLayout, schema: pa.Schema, rows: int
) -> None:
    order = [name for _, name in layout.obs]
    _frame(container, "obs", order)
    index = container.growing(f"obs/{INDEX}", None, rows)
    for part in names(parts, layout.identity, rows):
        index.append(texts(part))
    index.close()
    write_columns(container, "obs", parts, layout.obs, schema, rows)


def _write_places(container: Container, parts: Sequence[Path], columns: tuple[str, ...], rows: int) -> None:
    dtype = np.dtype(np.float64)
    growing = container.growing(f"obsm/{SPATIAL}", dtype, rows, len(columns))
    for table in tables(parts, columns):
        growing.append(np.stack([floats(table[name], name, dtype) for name in columns], axis=1))
    growing.close()


def _write_var(container: Container, layout: AnnDataLayout) -> None:
    order = [field.name for field in fields(FeatureName)]
    _frame(container, "var", order)
    write_array(container, f"var/{INDEX}", texts(layout.features))
    for name in order:
        values = [getattr(one, name) for one in layout.names]
        if isinstance(getattr(FeatureName(), name), str):
            _write_labels(container, f"var/{name}", values)
        else:
            _write_numbers(container, f"var/{name}", values)


def _frame(container: Container, path: str, columns: list[str]) -> None:
    described: dict[str, Attribute] = {INDEX: INDEX, "column-order": columns}
    container.group(path, Encoding.DATAFRAME, **described)


def _write_labels(container: Container, path: str, values: list[str]) -> None:
    """Texts as a categorical; an empty one is missing."""
    labels = sorted(set(values) - {""})
    codes = {label: code for code, label in enumerate(labels)}
    container.group(path, Encoding.CATEGORICAL, ordered=False)
    write_array(container, f"{path}/categories", texts(labels))
    write_array(
        container, f"{path}/codes", np.array([codes.get(value, -1) for value in values], code_type(len(labels)))
    )


def _write_numbers(container: Container, path: str, values: list[int | None]) -> None:
    container.group(path, Encoding.NULLABLE_INTEGER)
    write_array(container, f"{path}/values", np.array([value or 0 for value in values], np.int64))
    write_array(container, f"{path}/mask", np.array([value is None for value in values], bool))
