"""`convert`: CellProfiler's tables to one single-cell table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_cytotable.flows import running
from prefect_cytotable.tasks.core.memory.model import Profiling
from prefect_cytotable.tasks.core.model import Plan
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.request import named_arguments
from prefect_cytotable.tasks.core.returned import Returned

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner


@named_arguments()
def convert(
    source_path: str | Path,
    dest_path: str | Path,
    dest_datatype: str = "parquet",
    source_datatype: str | None = None,
    metadata: Sequence[str] | None = None,
    compartments: Sequence[str] | None = None,
    identifying_columns: Sequence[str] | None = None,
    concat: bool = True,
    join: bool = True,
    joins: str | None = None,
    chunk_size: int | None = None,
    infer_common_schema: bool = True,
    drop_null: bool = False,
    data_type_cast_map: Mapping[str, str] | None = None,
    add_tablenumber: bool | None = None,
    page_keys: Mapping[str, str] | None = None,
    sort_output: bool = True,
    preset: str | None = "cellprofiler_csv",
    *,
    task_runner: str | TaskRunner[Any] = "concurrent",
    memory_budget: str | int = "1GiB",
    work_dir: str | Path | None = None,
    overwrite: bool = False,
    unmatched: str = "drop",
    on_bad_source: str = "skip",
    image_columns: str | Sequence[str] = "metadata",
    keep_chunks: bool = False,
    relations: Mapping[str, str] | None = None,
    workers: int | None = None,
    storage_options: Mapping[str, object] | None = None,
    profile: str | Path | Profiling | None = None,
    html_report: bool = True,
    compression: str | None = None,
    zarr_format: int | None = None,
    x_chunk_rows: int | None = None,
    progress: Progress | None = None,
) -> Returned:
    """Convert measurements to one single-cell table, or to one table for each compartment.

    The first eighteen arguments are those of CytoTable's ``convert``. With a Prefect server configured (or inside
    another flow) this is a Prefect flow run; otherwise the same stages run in this process.

    Args:
        source_path: A folder that is searched for tables, or one file; a local path or a URL (``s3://``, ``gs://``,
            ``az://``).
        dest_path: The file to write, local or a URL; a folder with ``join=False`` or ``concat=False``.
        dest_datatype: "parquet", "anndata_h5ad" or "anndata_zarr" (a folder); the latter two need the extra "anndata".
        source_datatype: "csv", "sqlite", "npz", "parquet" or "duckdb", where it is not the preset's.
        metadata: Image tables, instead of the preset's.
        compartments: Compartments, instead of the preset's; each must be there.
        identifying_columns: Columns that identify a row, instead of the preset's.
        concat: Whether the chunks become one file.
        join: Whether the compartments are joined to one row for each cell.
        joins: SQL for the join, run for each dataset of each chunk; ``read_parquet('cells.parquet')`` is the table
            of cells. It can read nothing else.
        chunk_size: Rows of a chunk; without it the memory budget decides.
        infer_common_schema: Whether sources with different columns are united; False refuses them.
        drop_null: Whether rows with a missing value are dropped (and counted).
        data_type_cast_map: Arrow types for "float", "integer" and "string" columns, such as {"float": "float32"}.
        add_tablenumber: Whether the output has Metadata_TableNumber; None adds it where there is more than one
            dataset.
        page_keys: The column that numbers images or objects, by table, where it is not the preset's.
        sort_output: Whether rows are sorted by (TableNumber, ImageNumber, object number).
        preset: Name of a preset, path of a TOML file, or None for tables that no preset describes.
        task_runner: "sequential", "concurrent", "process", "dask", a Dask cluster of this site ("dask:slurm",
            "dask:kubernetes" ...), the address of a running Dask scheduler, or a Prefect TaskRunner.
        memory_budget: Bytes for the whole process tree, such as "1GiB".
        work_dir: Where parts lie until the output is whole, in a folder of their own for each destination; by default
            a hidden folder next to the destination, and of a remote one the cache folder of this machine, unless a
            Dask cluster at an address converts the chunks.
        overwrite: Whether a destination that is there is replaced, once the new one is whole.
        unmatched: What happens to an object without its parents: "drop", "keep" (with nulls) or "error".
        on_bad_source: What happens to a source that cannot be read: "skip" or "error". Either way it is reported.
        image_columns: Columns of the image table: "metadata" (file names and all Metadata_ columns), "filenames"
            (just CytoTable's), "all", or patterns such as ["Image_Metadata_*", "Image_Count_Cells"].
        keep_chunks: Whether parts stay in `work_dir`, so that a later run converts only what changed.
        relations: Which column names which parent, such as {"Cytoplasm.Parent_Cells": "Cells"}, instead of the
            preset's.
        workers: Chunks under way at once; by default as many as there are processors, and memory for.
        storage_options: How object storage is reached, such as {"no_sign_request": True}, {"profile": "lab"},
            {"endpoint_url": "https://minio.example.org"} or {"local_cache_dir": "/scratch"}. Never a secret: those
            come from the environment of each machine.
        profile: A folder for a profile of the run's memory, or a `Profiling` with more than the folder; needs memray.
        html_report: Whether a report for a browser is written beside the output, as ``cells.report.html`` beside
            ``cells.parquet``.
        compression: Of an AnnData: "gzip", "lzf" or "none" in HDF5, "lz4", "zstd" or "none" in zarr; by default the
            first, which is the fastest that compresses.
        zarr_format: Format of the zarr store, 2 or 3; 2 by default, which every version of anndata reads.
        x_chunk_rows: Rows of a stored chunk of an AnnData's X; by default 1 MiB of them in HDF5, 4 MiB in zarr.
        progress: Who hears of the progress; nobody by default.

    Returns:
        The path (str) of the joined table; a list of paths with ``concat=False``; with ``join=False`` a dict from
        table name ("Cells.csv", "Per_Cells.sqlite") to a list of {"source_path": Path, "table": [Path, ...]}.

    Raises:
        CytotableError: Of the class that fits; each is a builtin error too (FileNotFoundError, ValueError, ...).
    """
    arguments = {name: value for name, value in locals().items() if name not in ("progress", "task_runner")}
    return running.convert(arguments, task_runner, progress)


@named_arguments(convert)
def plan(source_path: str | Path, dest_path: str | Path = "converted.parquet", **arguments: Any) -> Plan:
    """What `convert` would do with the same arguments: the dry run. Reads headers, counts and samples only.

    Args:
        source_path: As for `convert`.
        dest_path: As for `convert`.
        **arguments: Any other argument of `convert`; a name that it does not know is an error.

    Returns:
        The plan; ``prefect_cytotable.tasks.core.pipeline.plan_lines`` shows it as text.
    """
    given = {"source_path": source_path, "dest_path": dest_path, **arguments}
    return running.plan(running.with_defaults(convert, given))
