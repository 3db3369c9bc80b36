"""`reprocess`: what is new or changed among many plates, converted; for every night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_cytotable.flows import reprocessing
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.reprocess.model import Reprocessed
from prefect_cytotable.tasks.core.request import named_arguments

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner


@named_arguments()
def reprocess(
    source_root: str | Path,
    destination_root: str | Path,
    *,
    preset: str | None = "cellprofiler_csv",
    options: Mapping[str, Any] | None = None,
    settle: str | float = "10min",
    plates_at_once: int = 2,
    plates: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    memory_budget: str | int = "1GiB",
    workers: int | None = None,
    task_runner: str | TaskRunner[Any] = "concurrent",
    work_dir: str | Path | None = None,
    keep: str | int = "20GiB",
    keep_days: float = 30,
    new_version: str = "keep",
    overwrite: bool = False,
    dry_run: bool = False,
    storage_options: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Reprocessed:
    """Convert the plates below a root that are new or changed since the last run, and leave the rest alone.

    A plate is a folder or a database directly in the root; its output is ``DESTINATION/PLATE.parquet``, and
    ``DESTINATION/index.parquet`` has a row for each plate. With a Prefect server configured this is a flow run, with a
    child flow run for each plate that is converted.

    Args:
        source_root: The folder with a folder or a file for each plate; local, or a URL (``s3://``, ``gs://``, ``az://``).
        destination_root: The folder for the outputs and the index.
        preset: As for `convert`.
        options: Any other arguments of `convert`, such as ``{"image_columns": "all"}``.
        settle: How long a plate must have been left alone: "10min", "2h", or seconds. One that was changed since waits
            for the next run, as does one with a file from the future.
        plates_at_once: Plates under way at once. They share the memory budget and the workers.
        plates: Names or patterns ("BR*") of the plates that count; all by default.
        exclude: Names or patterns of what is left out.
        memory_budget: Bytes for the whole process tree, all plates together.
        workers: Chunks under way at once, all plates together; by default as many as there are processors.
        task_runner: As for `convert`.
        work_dir: Where parts lie, in a folder for each plate; by default ``.prefect-cytotable`` in the destination, and
            of a remote one the cache folder of this machine.
        keep: Bytes of finished chunks that stay for later runs, of the plates that were converted last; 0 keeps none.
        keep_days: How long chunks stay that no run has used.
        new_version: "keep" leaves alone what an earlier version of this program converted, "convert" converts it anew.
        overwrite: Whether outputs are replaced that the index does not know.
        dry_run: Whether to tell only what would be done.
        storage_options: As for `convert`.
        progress: Who hears of the progress; nobody by default.

    Returns:
        What became of each plate.

    Raises:
        PlatesFailedError: Some plates failed; the others are done, and the next run tries these again.
        CytotableError: Of the class that fits, where the run could not be made at all.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("progress", "task_runner")}
    return reprocessing.reprocess(arguments, task_runner, progress)
