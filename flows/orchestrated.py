"""The flow `convert`, as a server runs it; `prefect_cytotable.flows.convert` is the function to call.

Prefect ships a flow to processes and Dask by value, with copies of this module's globals: whatever it does lies in
`prefect_cytotable.flows.conductor`, which travels by reference.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, runtime
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows import calls, conductor, form
from prefect_cytotable.flows.connection import Connection
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.redact import redact
from prefect_cytotable.tasks.core.returned import Returned


def convert(
    arguments: dict[str, Any],
    task_runner: str | TaskRunner[Any],
    progress: Progress,
    connection: Connection | None = None,
) -> Returned:
    """Call the flow from a plain function call, with what a flow's parameters cannot hold passed beside them.

    Args:
        arguments: Those of `prefect_cytotable.flows.convert`, but for the next two.
        task_runner: A runner's name, an address, or a runner.
        progress: Who hears of the progress.
        connection: The server to connect to; None where Prefect is connected, or starts a server itself.
    """
    call = conductor.ConvertCall(task_runner, progress)
    return calls.run(call, convert_flow, calls.plain(arguments), connection)


def _run_name() -> str:
    """A name such as "plate1 with cellprofiler_sqlite", so that a list of runs tells which is which."""
    parameters = runtime.flow_run.parameters
    source = redact(str(parameters.get("source_path", ""))).rstrip("/").rpartition("/")[2]
    return f"{source} with {redact(str(parameters.get('preset') or 'no preset'))}"


@flow(name="convert", flow_run_name=_run_name, persist_result=False)
def convert_flow(
    source_path: form.SourcePath,
    dest_path: form.DestPath,
    preset: form.Preset = "cellprofiler_csv",
    task_runner: form.TaskRunner = "concurrent",
    workers: form.Workers = None,
    memory_budget: form.MemoryBudget = "1GiB",
    overwrite: form.Overwrite = False,
    keep_chunks: form.KeepChunks = False,
    dest_datatype: form.DestDatatype = "parquet",
    source_datatype: form.SourceDatatype = None,
    image_columns: form.ImageColumns = "metadata",
    unmatched: form.UnmatchedObjects = "drop",
    on_bad_source: form.BadSources = "skip",
    join: form.Join = True,
    concat: form.Concat = True,
    sort_output: form.SortOutput = True,
    drop_null: form.DropNull = False,
    infer_common_schema: form.CommonSchema = True,
    add_tablenumber: form.TableNumber = None,
    compartments: form.Compartments = None,
    metadata: form.Metadata = None,
    identifying_columns: form.IdentifyingColumns = None,
    relations: form.Relations = None,
    page_keys: form.PageKeys = None,
    data_type_cast_map: form.Casts = None,
    joins: form.Joins = None,
    chunk_size: form.ChunkSize = None,
    work_dir: form.WorkDir = None,
    storage_options: form.StorageOptions = None,
    profile: form.Profile = None,
    html_report: form.HtmlReport = True,
    compression: form.Compression = None,
    zarr_format: form.ZarrFormat = None,
    x_chunk_rows: form.XChunkRows = None,
) -> Returned:
    """Convert measurements to one single-cell table.

    The parameters are those of `prefect_cytotable.flows.convert`, in the order in which a form shows them.
    """
    # Named by `form`, and not by a text: what travels by value takes along only the globals that its body names, and
    # the annotations above are looked up in them.
    arguments = {name: value for name, value in locals().items() if name != form.RUNNER}
    return conductor.convert(arguments, task_runner)
