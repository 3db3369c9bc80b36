"""The flow `reprocess`, as a server runs it; `prefect_cytotable.flows.reprocess` is the function to call.

As with `convert`, whatever the flow does lies in a module that travels by reference.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow, runtime
from prefect.task_runners import TaskRunner
from pydantic import Field

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


@flow(name="reprocess", flow_run_name=_run_name, persist_result=False)
def reprocess_flow(
    source_root: Annotated[
        str,
        Field(
            title="Source root",
            description="Folder or URL (s3://, gs://, az://) with one folder or database for each plate.",
            examples=["/data/screen", "s3://screens/2026"],
        ),
    ],
    destination_root: Annotated[
        str,
        Field(
            title="Destination root",
            description="Folder or URL for one table a plate and the index of all plates.",
            examples=["/data/tables", "s3://results/2026"],
        ),
    ],
    preset: Annotated[
        str | None, Field(title="Preset", description="Which exporter's names and keys the plates have.")
    ] = "cellprofiler_csv",
    options: Annotated[
        dict[str, Any] | None,
        Field(
            title="Options of the conversion",
            description="Any other arguments of convert, by name.",
            examples=[{"image_columns": "all"}],
        ),
    ] = None,
    settle: Annotated[
        str | float,
        Field(
            title="Settle",
            description="How long a plate must have been left alone before it is converted: 10min, 2h, or seconds.",
            examples=["10min"],
        ),
    ] = "10min",
    plates_at_once: Annotated[
        int,
        Field(title="Plates at once", description="They share the memory budget and the workers.", ge=1),
    ] = 2,
    plates: Annotated[
        str | list[str] | None,
        Field(title="Plates", description="Names or patterns of the plates that count.", examples=[["BR*"]]),
    ] = None,
    exclude: Annotated[
        str | list[str] | None,
        Field(title="Exclude", description="Names or patterns of what is left out.", examples=[["test*"]]),
    ] = None,
    memory_budget: Annotated[
        str | int,
        Field(title="Memory budget", description="For the whole process tree, all plates together.", examples=["4GiB"]),
    ] = "1GiB",
    workers: Annotated[
        int | None,
        Field(title="Workers", description="Chunks under way at once, all plates together; empty: one a processor."),
    ] = None,
    task_runner: Annotated[
        str,
        Field(
            title="Task runner",
            description="What converts the chunks: sequential, concurrent, process, dask, or a scheduler's address.",
        ),
    ] = "concurrent",
    work_dir: Annotated[
        str | None,
        Field(title="Work folder", description="Where parts lie; empty: a hidden folder in the destination."),
    ] = None,
    keep: Annotated[
        str | int,
        Field(title="Keep", description="Size of the finished chunks that stay for later runs.", examples=["20GiB"]),
    ] = "20GiB",
    keep_days: Annotated[
        float, Field(title="Days to keep", description="How long chunks stay that no run has used.", ge=0)
    ] = 30,
    new_version: Annotated[
        str,
        Field(
            title="New version",
            description="keep leaves alone what an earlier version converted, convert converts it anew.",
        ),
    ] = "keep",
    overwrite: Annotated[
        bool,
        Field(title="Overwrite", description="Whether outputs are replaced that the index does not know."),
    ] = False,
    dry_run: Annotated[bool, Field(title="Dry run", description="Whether to tell only what would be done.")] = False,
    storage_options: Annotated[
        dict[str, str | bool] | None,
        Field(
            title="Storage options",
            description="How object storage is reached; never a secret.",
            examples=[{"profile": "lab"}],
        ),
    ] = None,
) -> Reprocessed:
    """Convert the plates that are new or changed; the parameters are those of `prefect_cytotable.flows.reprocess`."""
    arguments = {name: value for name, value in locals().items() if name != "task_runner"}
    return reprocess_conductor.reprocess(arguments, task_runner)
