"""The formats of the output, as stage 5 needs them: begun, written, and recognised when they lie there already."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from prefect_cytotable.tasks.core import report as reports
from prefect_cytotable.tasks.core.anndata_layout import anndata_layout
from prefect_cytotable.tasks.core.budget import MIB, max_threads
from prefect_cytotable.tasks.core.errors import MissingPackageError
from prefect_cytotable.tasks.core.model import Destination, Options, OutputTable, Plan, Report
from prefect_cytotable.tasks.core.sinks.anndata import AnnDataAhead, AnnDataStyle, write_anndata
from prefect_cytotable.tasks.core.sinks.parquet import Ahead, write_whole

MARK = "data-producer"
"""The attribute of an AnnData's root that tells who made it, called as in a Parquet file's metadata."""

PACKAGES = {Destination.PARQUET: (), Destination.H5AD: ("h5py",), Destination.ZARR: ("numcodecs",)}
COMPRESSIONS = {
    Destination.PARQUET: (),
    Destination.H5AD: ("gzip", "lzf", "none"),
    Destination.ZARR: ("lz4", "zstd", "none"),
}
"""What each format can be compressed with, the default first."""

ZARR_FORMATS = (2, 3)

ELEMENTS = frozenset({"X", "layers", "obs", "obsm", "obsp", "raw", "uns", "var", "varm", "varp"})
ROOT_FILES = frozenset({".zattrs", ".zgroup", ".zmetadata", "zarr.json"})
"""What describes a zarr store; of its root it is what makes the store complete."""

ANNDATA_BASE = 16 * MIB
"""Resident bytes of the libraries that write an AnnData (measured: 7-12 MiB)."""

ENCODING = 1.2
"""Peak bytes of encoding a part for X, over the projected peak of converting its chunk: a block and its chunks."""


class Begun(Protocol):
    """An output's file or folder, to which finished parts are added while later ones are still being converted."""

    path: Path
    parts: list[Path]

    def add(self, part: Path) -> None:
        """Add one part more; parts come in the order of the output."""
        ...

    def discard(self) -> None:
        """Stop, and remove what there is."""
        ...


def check_packages(format_: Destination) -> None:
    """Refuse a format whose libraries are not installed.

    Raises:
        MissingPackageError: It names the command that installs them.
    """
    for package in PACKAGES[format_]:
        if find_spec(package) is None:
            raise MissingPackageError(
                f"{package} is not installed, which is needed to write {format_.value}. "
                f"Run: pip install 'prefect-cytotable[anndata]'"
            )


def storing(options: Options) -> str:
    """How an AnnData will be stored, for people."""
    compression = options.compression or COMPRESSIONS[options.datatype][0]
    return f"zarr format {options.zarr_format}, {compression}" if options.datatype is Destination.ZARR else compression


def threads(workers: int) -> int:
    """Parts that are encoded for X at a time, beside so many workers."""
    return min(max_threads(), workers // 2 + 1)


def encoding_memory(format_: Destination, chunk_memory: int) -> tuple[int, int]:
    """What encoding adds to the projected memory: (bytes once, bytes for each worker).

    Together they are what `threads` of the workers' number need.
    """
    if format_ is Destination.PARQUET:
        return 0, 0
    each = int(chunk_memory * ENCODING)
    return ANNDATA_BASE + each, each // 2


def begin(plan: Plan, table: OutputTable, path: Path) -> Begun:
    """A new file or folder for a table of the plan."""
    options = plan.options
    if options.datatype is Destination.PARQUET:
        return Ahead(path)
    style = AnnDataStyle(
        options.datatype, options.compression, options.zarr_format, options.x_chunk_rows, threads(plan.workers)
    )
    return AnnDataAhead(path, anndata_layout(plan, table), style)


def write(parts: Sequence[Path], table: OutputTable, report: Report, begun: Begun) -> int:
    """Write what is missing of a table; returns its number of rows."""
    if isinstance(begun, Ahead):
        return write_whole(list(parts), table, reports.metadata(report), begun)
    assert isinstance(begun, AnnDataAhead)
    described = reports.metadata(report)
    about: dict[str, str | int] = {
        MARK: described[MARK],
        f"{MARK}-version": described[f"{MARK}-version"],
        "provenance": report.provenance,
        "row_account": msgspec.json.encode(reports.table(report)).decode(),
        "rows_in": report.rows_in,
        "rows_out": report.rows_out,
    }
    return write_anndata(parts, table, about, (MARK, described[MARK]), begun)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(Path(folder, name).stat().st_size for folder, _, names in os.walk(path) for name in names)


def strangers(folder: Path) -> Iterator[Path]:
    """The files in a folder that this program did not make."""
    ours = _is_our_store(folder)
    for path in sorted(folder.iterdir()):
        if ours:
            if path.name not in ELEMENTS | ROOT_FILES:
                yield path
        elif path.is_dir():
            if not path.is_symlink():
                yield from strangers(path)
        elif not made_here(path):
            yield path


def made_here(path: Path) -> bool:
    """Whether a file is a table that this program wrote."""
    if path.is_symlink():
        return False
    if path.suffix == Destination.PARQUET.suffix:
        try:
            return reports.is_metadata(pq.read_metadata(path).metadata)
        except (pa.ArrowException, OSError):
            return False
    if path.suffix == Destination.H5AD.suffix and find_spec("h5py") is not None:
        from prefect_cytotable.tasks.core.sinks import h5ad  # h5py is an extra

        return h5ad.root_attribute(path, MARK) == reports.PRODUCER
    return False


def _is_our_store(folder: Path) -> bool:
    """Whether a folder is a zarr store that this program wrote."""
    if not any((folder / name).is_file() for name in (".zattrs", "zarr.json")):
        return False
    if find_spec("numcodecs") is None:
        return False
    from prefect_cytotable.tasks.core.sinks import zarr  # numcodecs is an extra

    return zarr.root_attribute(folder, MARK) == reports.PRODUCER


def in_upload_order(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of an output, and those that go last: what makes a zarr store in it complete."""
    first: list[Path] = []
    last: list[Path] = []
    for place, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            described = name in ROOT_FILES and (Path(place) == folder or Path(place).suffix == Destination.ZARR.suffix)
            (last if described else first).append(Path(place, name))
    return first, last
