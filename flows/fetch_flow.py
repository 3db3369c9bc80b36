"""The flow `fetch-obs`, as a server runs it; `prefect_cytotable.flows.fetch_obs` is the function to call.

As with `convert`, whatever the flow does lies in a module that travels by reference.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows import fetch_conductor
from prefect_cytotable.flows.connection import Connection
from prefect_cytotable.flows.session import LOST, connected
from prefect_cytotable.tasks.core.memory.model import Profiling
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
    with connected(connection), fetch_conductor.passing(call):
        try:
            answer: Fetched = fetch_flow(**_plain(arguments), task_runner=call.runner_name)
        except LOST as error:
            if call.answer is None:
                raise
            progress.say(f"The output is whole, but the server was not told that the run is completed: {error}")
            return call.answer
        return answer


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a server can store them."""
    columns, profile = arguments["columns"], arguments["profile"]
    kept = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in arguments.items()}
    if isinstance(profile, Profiling):
        kept["profile"] = asdict(profile)
    return {**kept, "columns": columns if columns is None or isinstance(columns, str) else list(columns)}


def _run_name() -> str:
    """A name such as "lung of homo_sapiens to lung.feather"."""
    parameters = runtime.flow_run.parameters
    what = parameters.get("tissue") or parameters.get("axis") or "obs"
    source = str(parameters.get("source_path", "")).rstrip("/").rpartition("/")[2]
    return f"{what} of {source} to {Path(str(parameters.get('dest_path', ''))).name}"


@flow(name="fetch-obs", flow_run_name=_run_name, persist_result=False)
def fetch_flow(
    source_path: str,
    dest_path: str,
    dest_datatype: str | None = None,
    axis: str = "obs",
    measurement: str = "RNA",
    organism: str = "homo_sapiens",
    columns: str | list[str] | None = None,
    tissue: str | None = None,
    value_filter: str | None = None,
    memory_budget: str | int = "128MiB",
    buffer_bytes: str | int | None = None,
    chunk_size: int | None = None,
    task_runner: str = "concurrent",
    workers: int | None = None,
    work_dir: str | None = None,
    overwrite: bool = False,
    keep_chunks: bool = False,
    var_joinids: bool = False,
    profile: str | dict[str, Any] | None = None,
) -> Fetched:
    """Fetch an axis table of a SOMA experiment; the parameters are those of `prefect_cytotable.flows.fetch_obs`."""
    arguments = {name: value for name, value in locals().items() if name != "task_runner"}
    return fetch_conductor.fetch(arguments, task_runner)
