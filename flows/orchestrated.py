"""The flow `convert`, as a server runs it; `prefect_cytotable.flows.convert` is the function to call.

Prefect ships a flow to processes and Dask by value, with copies of this module's globals: whatever it does lies in
`prefect_cytotable.flows.conductor`, which travels by reference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prefect import flow, runtime
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows import conductor
from prefect_cytotable.flows.connection import Connection
from prefect_cytotable.flows.session import LOST, connected
from prefect_cytotable.tasks.core.memory.model import Profiling
from prefect_cytotable.tasks.core.progress import Progress
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
    call = conductor.Call(task_runner, progress)
    with connected(connection), conductor.passing(call):
        try:
            answer: Returned = convert_flow(**_plain(arguments), task_runner=call.runner_name)
        except LOST as error:
            if call.answer is None:
                raise
            progress.say(f"The output is whole, but the server was not told that the run is completed: {error}")
            return call.answer
        return answer


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a server can store them."""
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Profiling):
            plain[name] = asdict(value)
        elif isinstance(value, os.PathLike):
            plain[name] = os.fspath(value)
        elif isinstance(value, Mapping):
            plain[name] = dict(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            plain[name] = list(value)
        else:
            plain[name] = value
    return plain


def _run_name() -> str:
    """A name such as "plate1 with cellprofiler_sqlite", so that a list of runs tells which is which."""
    parameters = runtime.flow_run.parameters
    source = str(parameters.get("source_path", "")).rstrip("/").rpartition("/")[2]
    return f"{source} with {parameters.get('preset') or 'no preset'}"


@flow(name="convert", flow_run_name=_run_name, persist_result=False)
def convert_flow(
    source_path: str,
    dest_path: str,
    dest_datatype: str = "parquet",
    source_datatype: str | None = None,
    metadata: list[str] | None = None,
    compartments: list[str] | None = None,
    identifying_columns: list[str] | None = None,
    concat: bool = True,
    join: bool = True,
    joins: str | None = None,
    chunk_size: int | None = None,
    infer_common_schema: bool = True,
    drop_null: bool = False,
    data_type_cast_map: dict[str, str] | None = None,
    add_tablenumber: bool | None = None,
    page_keys: dict[str, str] | None = None,
    sort_output: bool = True,
    preset: str | None = "cellprofiler_csv",
    task_runner: str = "concurrent",
    memory_budget: str | int = "1GiB",
    work_dir: str | None = None,
    overwrite: bool = False,
    unmatched: str = "drop",
    on_bad_source: str = "skip",
    image_columns: str | list[str] = "metadata",
    keep_chunks: bool = False,
    relations: dict[str, str] | None = None,
    workers: int | None = None,
    storage_options: dict[str, str | bool] | None = None,
    profile: str | dict[str, Any] | None = None,
) -> Returned:
    """Convert measurements to one single-cell table; the parameters are those of `prefect_cytotable.flows.convert`."""
    arguments = {name: value for name, value in locals().items() if name != "task_runner"}
    return conductor.convert(arguments, task_runner)
