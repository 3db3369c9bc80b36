"""The flow `reprocess`, as a server runs it; `prefect_cytotable.flows.reprocess` is the function to call.

As with `convert`, whatever the flow does lies in a module that travels by reference.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow, runtime
from prefect.task_runners import TaskRunner
from pydantic import Field, JsonValue
from pydantic.fields import FieldInfo

from prefect_cytotable.flows import reprocess_conductor
from prefect_cytotable.flows.connection import Connection
from prefect_cytotable.flows.orchestrated import plain
from prefect_cytotable.flows.session import LOST, connected
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
    with connected(connection), reprocess_conductor.passing(call):
        try:
            answer: Reprocessed = reprocess_flow(**plain(arguments), task_runner=call.runner_name)
        except LOST as error:
            if call.answer is None:
                raise
            progress.say(f"The plates are done, but the server was not told that the run is completed: {error}")
            return call.answer
        return answer


def _run_name() -> str:
    """A name such as "screen to tables", so that a list of runs tells which is which."""
    parameters = runtime.flow_run.parameters
    names = [str(parameters.get(one, "")).rstrip("/").rpartition("/")[2] for one in ("source_root", "destination_root")]
    return " to ".join(names) + (" (dry run)" if parameters.get("dry_run") else "")


def _shown(title: str, description: str, example: JsonValue) -> FieldInfo:
    """What the run form shows of a parameter; Prefect makes titles of its own of what is given to `Field` itself."""
    field: FieldInfo = Field(json_schema_extra={"title": title, "description": description, "examples": [example]})
    return field


@flow(name="reprocess", flow_run_name=_run_name, persist_result=False)
def reprocess_flow(
    source_root: Annotated[
        str,
        _shown(
            "Source root",
            "Folder or URL (s3://, gs://, az://) with one folder or database for each plate.",
            "/data/screen",
        ),
    ],
    destination_root: Annotated[
        str,
        _shown("Destination root", "Folder or URL for one table a plate and the index of all plates.", "/data/tables"),
    ],
    preset: Annotated[
        str | None, _shown("Preset", "Which exporter's names and keys the plates have.", "cellprofiler_sqlite")
    ] = "cellprofiler_csv",
    options: Annotated[
        dict[str, Any] | None,
        _shown("Options of the conversion", "Any other arguments of convert, by name.", {"image_columns": "all"}),
    ] = None,
    settle: Annotated[
        str | float,
        _shown(
            "Settle",
            "How long a plate must have been left alone before it is converted: 10min, 2h, or seconds.",
            "10min",
        ),
    ] = "10min",
    plates_at_once: Annotated[int, _shown("Plates at once", "They share the memory budget and the workers.", 2)] = 2,
    plates: Annotated[
        str | list[str] | None, _shown("Plates", "Names or patterns of the plates that count; empty: all.", ["BR*"])
    ] = None,
    exclude: Annotated[
        str | list[str] | None, _shown("Exclude", "Names or patterns of what is left out.", ["test*"])
    ] = None,
    memory_budget: Annotated[
        str | int, _shown("Memory budget", "For the whole process tree, all plates together.", "4GiB")
    ] = "1GiB",
    workers: Annotated[
        int | None,
        _shown("Workers", "Chunks under way at once, all plates together; empty: one for each processor.", 4),
    ] = None,
    task_runner: Annotated[
        str,
        _shown(
            "Task runner",
            "What converts chunks: sequential, concurrent, process, dask, or a scheduler's address.",
            "process",
        ),
    ] = "concurrent",
    work_dir: Annotated[
        str | None,
        _shown("Work folder", "Where parts lie; empty: a hidden folder in the destination.", "/scratch/parts"),
    ] = None,
    keep: Annotated[
        str | int, _shown("Keep", "Size of the finished chunks that stay for later runs.", "20GiB")
    ] = "20GiB",
    keep_days: Annotated[float, _shown("Days to keep", "How long chunks stay that no run has used.", 30)] = 30,
    new_version: Annotated[
        str,
        _shown("New version", "keep leaves alone what an earlier version converted, convert converts it anew.", "keep"),
    ] = "keep",
    overwrite: Annotated[
        bool, _shown("Overwrite", "Whether outputs are replaced that the index does not know.", False)
    ] = False,
    dry_run: Annotated[bool, _shown("Dry run", "Whether to tell only what would be done.", True)] = False,
    storage_options: Annotated[
        dict[str, str | bool] | None,
        _shown("Storage options", "How object storage is reached; never a secret.", {"profile": "lab"}),
    ] = None,
) -> Reprocessed:
    """Convert the plates that are new or changed; the parameters are those of `prefect_cytotable.flows.reprocess`."""
    arguments = {name: value for name, value in locals().items() if name != "task_runner"}
    return reprocess_conductor.reprocess(arguments, task_runner)
