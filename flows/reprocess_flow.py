"""The flow `reprocess`, as a server runs it; `prefect_cytotable.flows.reprocess` is the function to call.

As with `convert`, whatever the flow does lies in a module that travels by reference.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, runtime
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows import calls, form, reprocess_conductor
from prefect_cytotable.flows.connection import Connection
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.reprocess.model import Reprocessed


def reprocess(
    arguments: dict[str, Any],
    task_runner: str | TaskRunner[Any],
    progress: Progress,
    connection: Connection | None = None,
) -> Reprocessed:
    """Call the flow from a plain function call, with what a flow's parameters cannot hold passed beside them."""
    call = reprocess_conductor.PlatesCall(task_runner, progress)
    return calls.run(call, reprocess_flow, calls.plain(arguments), connection, "The plates are done")


def _run_name() -> str:
    """A name such as "screen to tables", so that a list of runs tells which is which."""
    parameters = runtime.flow_run.parameters
    names = [str(parameters.get(one, "")).rstrip("/").rpartition("/")[2] for one in ("source_root", "destination_root")]
    return " to ".join(names) + (" (dry run)" if parameters.get("dry_run") else "")


@flow(name="reprocess", flow_run_name=_run_name, persist_result=False)
def reprocess_flow(
    source_root: form.SourceRoot,
    destination_root: form.DestinationRoot,
    preset: form.Preset = "cellprofiler_csv",
    options: form.ConvertOptions = None,
    settle: form.Settle = "10min",
    plates_at_once: form.PlatesAtOnce = 2,
    plates: form.Plates = None,
    exclude: form.Exclude = None,
    memory_budget: form.MemoryBudget = "1GiB",
    workers: form.Workers = None,
    task_runner: form.TaskRunner = "concurrent",
    work_dir: form.PlatesWorkDir = None,
    keep: form.Keep = "20GiB",
    keep_days: form.KeepDays = 30,
    new_version: form.VersionChange = "keep",
    overwrite: form.OverwriteUnknown = False,
    dry_run: form.DryRun = False,
    storage_options: form.StorageOptions = None,
) -> Reprocessed:
    """Convert the plates that are new or changed; the parameters are those of `prefect_cytotable.flows.reprocess`."""
    arguments = {name: value for name, value in locals().items() if name != form.RUNNER}
    return reprocess_conductor.reprocess(arguments, task_runner)
