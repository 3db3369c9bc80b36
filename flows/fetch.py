"""`fetch_obs`: an axis table of a SOMA experiment to one file, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_cytotable.flows import fetching
from prefect_cytotable.tasks.core.arguments import named_arguments
from prefect_cytotable.tasks.core.memory.model import Profiling
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.soma.model import Fetched

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner


@named_arguments()
def fetch_obs(
    source_path: str | Path,
    dest_path: str | Path,
    *,
    dest_datatype: str | None = None,
    axis: str = "obs",
    measurement: str = "RNA",
    organism: str = "homo_sapiens",
    columns: str | Sequence[str] | None = None,
    tissue: str | None = None,
    value_filter: str | None = None,
    memory_budget: str | int = "128MiB",
    buffer_bytes: str | int | None = None,
    chunk_size: int | None = None,
    task_runner: str | TaskRunner[Any] = "concurrent",
    workers: int | None = None,
    work_dir: str | Path | None = None,
    overwrite: bool = False,
    keep_chunks: bool = False,
    var_joinids: bool = False,
    profile: str | Path | Profiling | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch rows and columns of obs or var of a SOMA experiment, ordered by soma_joinid.

    Needs the extra ``soma``. The table is never whole in memory, and the file appears whole or not at all. With a
    Prefect server configured (or inside another flow) this is a Prefect flow run; otherwise it runs in this process.

    Args:
        source_path: A path or URI (``s3://``) of an experiment, of one of its data frames, or of a collection such as
            the Census that has experiments in ``census_data``; or ``census:VERSION`` for the public Census (extra
            ``census``), with a date, "stable" or "latest" as its version.
        dest_path: The file to write.
        dest_datatype: "feather", "parquet" or "csv"; by default what the file's ending says.
        axis: "obs" (cells) or "var" (features).
        measurement: The measurement whose var is meant.
        organism: The experiment in a Census.
        columns: Names of columns, in the order of the output; all by default.
        tissue: A value of ``tissue_general``.
        value_filter: Any filter in SOMA's language, such as ``"cell_type == 'B cell' and nnz > 500"``; with `tissue`,
            both hold.
        memory_budget: Bytes above the interpreters with their imports, for all workers together. It decides SOMA's
            buffers from the table's columns, and how many batches are under way.
        buffer_bytes: SOMA's buffer for each column (``soma.init_buffer_bytes``), instead.
        chunk_size: Joinids in a chunk, each of which becomes a task and a part that a later run can take over; by
            default chunks are made of a remote store alone.
        task_runner: As for `convert`: "sequential", "concurrent" (the default), "process", "dask", an address, or a
            Prefect TaskRunner.
        workers: Chunks under way at once; by default as many as there are processors.
        work_dir: Where parts lie until the output is whole; by default a hidden folder next to the destination.
        overwrite: Whether a destination that is there is replaced, once the new one is whole.
        keep_chunks: Whether parts stay in `work_dir`.
        var_joinids: Whether the joinids of var are written too, to a file beside the destination: lung.var.feather
            beside lung.feather.
        profile: A folder for a profile of the run's memory, or a `Profiling` with more than the folder; needs memray.
        progress: Who hears of the progress; nobody by default.

    Returns:
        The path, the shape, and what opening, query and fetching took.

    Raises:
        CytotableError: Of the class that fits; each is a builtin error too (FileNotFoundError, ValueError, ...).
    """
    arguments = {name: value for name, value in locals().items() if name not in ("progress", "task_runner")}
    return fetching.fetch(arguments, task_runner, progress)
