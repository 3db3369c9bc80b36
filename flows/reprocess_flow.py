"""The flow `reprocess`, as a server runs it; `prefect_cytotable.flows.reprocess` is the function to call.

As with `convert`, whatever the flow does lies in a module that travels by reference.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow, runtime
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows import form, reprocess_conductor
from prefect_cytotable.flows.connection import Connection
from prefect_cytotable.flows.form import NAMES, NONE, NUMBER, SIZE, TEXT, choice, control, either, shown
from prefect_cytotable.flows.orchestrated import plain
from prefect_cytotable.flows.runners import may_be_elsewhere
from prefect_cytotable.flows.session import LOST, connected
from prefect_cytotable.tasks.core.progress import Progress
from prefect_cytotable.tasks.core.reprocess.model import NewVersion, Reprocessed


def reprocess(
    arguments: dict[str, Any],
    task_runner: str | TaskRunner[Any],
    progress: Progress,
    connection: Connection | None = None,
) -> Reprocessed:
    """Call the flow from a plain function call, with what a flow's parameters cannot hold passed beside them."""
    call = reprocess_conductor.PlatesCall(task_runner, progress)
    with connected(connection, may_be_elsewhere(task_runner)), reprocess_conductor.passing(call):
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
        str, shown("Source root", "A folder or URL with a folder or a database for each plate.", "/data/screen")
    ],
    destination_root: Annotated[
        str, shown("Destination root", "A folder or URL for a table of each plate, and their index.", "/data/tables")
    ],
    preset: form.Preset = "cellprofiler_csv",
    options: Annotated[
        dict[str, Any] | None,
        control(either(none=NONE, options={"type": "object"})),
        shown("Options of the conversion", "Any other arguments of convert, by name.", {"image_columns": "all"}),
    ] = None,
    settle: Annotated[
        str | float,
        control(either(time=TEXT, seconds={"type": "number", "minimum": 0})),
        shown("Settle", "How long a plate must have been left alone.", "10min"),
    ] = "10min",
    plates_at_once: Annotated[
        int, control(NUMBER), shown("Plates at once", "They share the memory budget and the workers.", 2)
    ] = 2,
    plates: Annotated[
        str | list[str] | None,
        control(either(all=NONE, patterns=NAMES)),
        shown("Plates", "Names or patterns of those that count.", ["BR*"]),
    ] = None,
    exclude: Annotated[
        str | list[str] | None,
        control(either(none=NONE, patterns=NAMES)),
        shown("Exclude", "Names or patterns of what is left out.", ["test*"]),
    ] = None,
    memory_budget: form.MemoryBudget = "1GiB",
    workers: form.Workers = None,
    task_runner: form.TaskRunner = "concurrent",
    work_dir: Annotated[
        str | None,
        control(either(automatic=NONE, folder=TEXT)),
        shown("Work folder", "Where parts lie; automatic: a hidden folder in the destination.", "/scratch/parts"),
    ] = None,
    keep: Annotated[
        str | int, control(SIZE), shown("Keep", "Size of the finished chunks that stay for later runs.", "20GiB")
    ] = "20GiB",
    keep_days: Annotated[
        float,
        control({"type": "number", "minimum": 0}),
        shown("Days to keep", "How long chunks stay that no run has used.", 30),
    ] = 30,
    new_version: Annotated[
        str,
        control(choice(NewVersion)),
        shown("New version", "What it does with plates that an earlier version converted.", "keep"),
    ] = "keep",
    overwrite: Annotated[bool, shown("Overwrite", "Replace outputs that the index does not know.", False)] = False,
    dry_run: Annotated[bool, shown("Dry run", "Tell only what would be done.", True)] = False,
    storage_options: form.StorageOptions = None,
) -> Reprocessed:
    """Convert the plates that are new or changed; the parameters are those of `prefect_cytotable.flows.reprocess`."""
    arguments = {name: value for name, value in locals().items() if name != "task_runner"}
    return reprocess_conductor.reprocess(arguments, task_runner)
