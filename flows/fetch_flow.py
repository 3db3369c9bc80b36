"""The flow `fetch-obs`, as a server runs it; `prefect_cytotable.flows.fetch_obs` is the function to call.

As with `convert`, whatever the flow does lies in a module that travels by reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows import calls, fetch_conductor, form
from prefect_cytotable.flows.connection import Connection
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.soma.model import Fetched


def fetch(
    arguments: dict[str, Any],
    task_runner: str | TaskRunner[Any],
    progress: Progress,
    connection: Connection | None = None,
) -> Fetched:
    """Call the flow from a plain function call, with what a flow's parameters cannot hold passed beside them."""
    call = fetch_conductor.FetchCall(task_runner, progress)
    return calls.run(call, fetch_flow, calls.plain(arguments), connection)


def _run_name() -> str:
    """A name such as "lung of homo_sapiens to lung.feather"."""
    parameters = runtime.flow_run.parameters
    what = parameters.get("tissue") or parameters.get("axis") or "obs"
    source = str(parameters.get("source_path", "")).rstrip("/").rpartition("/")[2]
    return f"{what} of {source} to {Path(str(parameters.get('dest_path', ''))).name}"


@flow(name="fetch-obs", flow_run_name=_run_name, persist_result=False)
def fetch_flow(
    source_path: form.SomaSource,
    dest_path: form.FetchDestination,
    tissue: form.Tissue = None,
    value_filter: form.ValueFilter = None,
    columns: form.Columns = None,
    axis: form.AxisName = "obs",
    organism: form.Organism = "homo_sapiens",
    measurement: form.Measurement = "RNA",
    var_joinids: form.VarJoinIds = False,
    dest_datatype: form.FetchDatatype = None,
    task_runner: form.TaskRunner = "concurrent",
    workers: form.Workers = None,
    memory_budget: form.FetchBudget = "128MiB",
    buffer_bytes: form.BufferBytes = None,
    chunk_size: form.JoinIds = None,
    overwrite: form.Overwrite = False,
    keep_chunks: form.KeepChunks = False,
    work_dir: form.WorkDir = None,
    profile: form.Profile = None,
) -> Fetched:
    """Fetch an axis table of a SOMA experiment.

    The parameters are those of `prefect_cytotable.flows.fetch_obs`, in the order in which a form shows them.
    """
    # Named by `form`, and not by a text: see `prefect_cytotable.flows.orchestrated.convert_flow`.
    arguments = {name: value for name, value in locals().items() if name != form.RUNNER}
    return fetch_conductor.fetch(arguments, task_runner)
