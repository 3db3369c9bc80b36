"""`concat`: AnnData files to one, on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_cytotable.flows import concat_running as running
from prefect_cytotable.tasks.core.concat.model import Scalar
from prefect_cytotable.tasks.core.concat.progress import ConcatProgress
from prefect_cytotable.tasks.core.concat.request import MAX_LOADED_ELEMS, InFiles, MergeFunction
from prefect_cytotable.tasks.core.request import named_arguments

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

    from prefect_cytotable.tasks.core.concat.model import Plan


@named_arguments()
def concat(
    in_files: InFiles,
    out_file: str | Path,
    *,
    max_loaded_elems: int = MAX_LOADED_ELEMS,
    axis: int | str = 0,
    join: str = "inner",
    merge: str | MergeFunction | None = None,
    uns_merge: str | MergeFunction | None = None,
    label: str | None = None,
    keys: Collection[Scalar] | None = None,
    index_unique: str | None = None,
    fill_value: Scalar | None = None,
    pairwise: bool = False,
    task_runner: str | TaskRunner[Any] = "concurrent",
    memory_budget: str | int = "1GiB",
    overwrite: bool = False,
    workers: int | None = None,
    compression: str | None = "source",
    storage_options: Mapping[str, object] | None = None,
    progress: ConcatProgress | None = None,
) -> str:
    """Concatenate AnnData files on disk: the result equals `anndata.concat` of the loaded objects.

    The first twelve arguments are those of ``anndata.experimental.concat_on_disk``. With a Prefect server configured
    (or inside another flow) this is a Prefect flow run; otherwise the same stages run in this process.

    Args:
        in_files: Paths of h5ad files and zarr stores, here or in object storage (``s3://``, ``gs://``, ``az://``), or a
            mapping from keys to paths.
        out_file: The file to write: its ending, .h5ad or .zarr, tells the format.
        max_loaded_elems: Elements of an array that a block may have; the memory budget may make them fewer.
        axis: 0 or "obs", 1 or "var": along which axis the inputs are put together.
        join: "inner" keeps the names of the other axis that all inputs have, "outer" those that any has.
        merge: Which elements that are not aligned to the axis are kept: "same", "unique", "first", "only", a
            function, or None for none.
        uns_merge: The same for `uns`.
        label: Column of the axis' annotation that tells each row's input, by its key.
        keys: A key for each input; "0", "1", ... by default.
        index_unique: Text between a name and its input's key, which makes names unique; None leaves names as they are.
        fill_value: What an outer join fills with: 0 in sparse arrays and NaN in dense ones by default.
        pairwise: Whether `obsp` (or `varp`) is kept, as blocks on the diagonal.
        task_runner: "sequential", "concurrent", "process", "dask", the address of a running Dask scheduler, or a
            Prefect TaskRunner.
        memory_budget: Bytes for the whole process tree, such as "1GiB".
        overwrite: Whether an AnnData file that is there is replaced, once the new one is whole.
        workers: Blocks under way at once; by default as many as there are processors, and memory for.
        compression: Of the large arrays: "gzip", None, or "source", as the inputs have them; in h5ad "lzf" too, in zarr
            "zstd" and "lz4" (Blosc).
        storage_options: How object storage is reached, such as {"no_sign_request": True} or {"profile": "lab"}. Never
            credentials: those belong in the environment.
        progress: Who hears of the progress; nobody by default.

    Returns:
        The path of the output.

    Raises:
        CytotableError: Of the class that fits; each is a builtin error too (FileNotFoundError, ValueError, ...).
    """
    arguments = {name: value for name, value in locals().items() if name not in ("progress", "task_runner")}
    return running.concat(arguments, task_runner, progress)


@named_arguments(concat)
def plan_concat(in_files: InFiles, out_file: str | Path = "concatenated.h5ad", **arguments: Any) -> Plan:
    """What `concat` would do with the same arguments: the dry run. Reads names and metadata only.

    Args:
        in_files: As for `concat`.
        out_file: As for `concat`.
        **arguments: Any other argument of `concat`; a name that it does not know is an error.

    Returns:
        The plan; ``prefect_cytotable.tasks.core.concat.plan.plan_lines`` shows it as text.
    """
    return running.plan(concat, {"in_files": in_files, "out_file": out_file, **arguments})
