"""The flow `concat`, as a server runs it; `prefect_cytotable.flows.concat.concat` is the function to call.

Prefect ships a flow to processes and Dask by value, with copies of this module's globals: whatever it does lies in
`prefect_cytotable.flows.concat_conductor`, which travels by reference.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows import calls, form
from prefect_cytotable.flows import concat_conductor as conductor
from prefect_cytotable.flows.connection import Connection
from prefect_cytotable.tasks.core.concat.progress import ConcatProgress
from prefect_cytotable.tasks.core.concat.request import Merges
from prefect_cytotable.tasks.core.places import check_storage_options


def concat(
    arguments: dict[str, Any],
    task_runner: str | TaskRunner[Any],
    progress: ConcatProgress,
    connection: Connection | None = None,
) -> str:
    """Call the flow from a plain function call, with what a flow's parameters cannot hold passed beside them.

    Args:
        arguments: Those of `prefect_cytotable.flows.concat.concat`, but for the next two.
        task_runner: A runner's name, an address, or a runner.
        progress: Who hears of the progress.
        connection: The server to connect to; None where Prefect is connected, or starts a server itself.
    """
    call = conductor.ConcatCall(task_runner, progress, merges=Merges(arguments["merge"], arguments["uns_merge"]))
    return calls.run(call, concat_flow, _plain(arguments), connection)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a server can store them: a mapping of inputs as two lists, which keep their order."""
    plain = dict(arguments)
    files = arguments["in_files"]
    if isinstance(files, Mapping):
        plain["keys"], files = files.keys(), files.values()
    plain["in_files"] = [os.fspath(one) for one in files]
    for name in ("merge", "uns_merge"):
        if callable(arguments[name]):
            plain[name] = calls.GIVEN
    if arguments["storage_options"] is not None:
        plain["storage_options"] = check_storage_options(arguments["storage_options"])
    fill = getattr(arguments["fill_value"], "item", lambda: arguments["fill_value"])()
    plain["fill_value"] = str(fill) if isinstance(fill, float) and not math.isfinite(fill) else fill
    return calls.plain(plain)


def _run_name() -> str:
    """A name such as "3 files to all.h5ad", so that a list of runs tells which is which."""
    parameters = runtime.flow_run.parameters
    return f"{len(parameters.get('in_files', []))} files to {Path(str(parameters.get('out_file', ''))).name}"


@flow(name="concat", flow_run_name=_run_name, persist_result=False)
def concat_flow(
    in_files: form.InFiles,
    out_file: form.OutFile,
    max_loaded_elems: form.LoadedElements = 100_000_000,
    axis: form.ConcatAxis = 0,
    join: form.ConcatJoin = "inner",
    merge: form.MergeStrategy = None,
    uns_merge: form.UnsMerge = None,
    label: form.Label = None,
    keys: form.InputKeys = None,
    index_unique: form.IndexUnique = None,
    fill_value: form.FillValue = None,
    pairwise: form.Pairwise = False,
    task_runner: form.TaskRunner = "concurrent",
    memory_budget: form.MemoryBudget = "1GiB",
    overwrite: form.Overwrite = False,
    workers: form.Workers = None,
    compression: form.ConcatCompression = "source",
    storage_options: form.StorageOptions = None,
) -> str:
    """Concatenate AnnData files; the parameters are those of `prefect_cytotable.flows.concat.concat`.

    A `fill_value` that JSON cannot hold is a text: "nan", "inf", "-inf".
    """
    arguments = {name: value for name, value in locals().items() if name != form.RUNNER}
    return conductor.concat(arguments, task_runner)
