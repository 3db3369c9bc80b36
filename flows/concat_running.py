"""Who runs a concatenation: this process alone, or Prefect. Decided without importing Prefect or anndata."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect_cytotable.flows.running import (
    Orchestration,
    checked_runner,
    orchestration,
    with_defaults,
)
from prefect_cytotable.tasks.core.concat.progress import ConcatProgress, SilentBlocks
from prefect_cytotable.tasks.core.concat.request import MissingLibraryError, make_options
from prefect_cytotable.tasks.core.local import Runner

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

    from prefect_cytotable.tasks.core.concat.model import Plan


def concat(arguments: dict[str, Any], task_runner: str | TaskRunner[Any], progress: ConcatProgress | None) -> str:
    """Run `prefect_cytotable.flows.concat.concat` with its arguments, locally or as a flow run."""
    heard = progress or SilentBlocks()
    runner = checked_runner(task_runner)
    options, merges = make_options(**arguments)
    _require_anndata()
    where, connection = orchestration(runner, heard.say)
    if where is not Orchestration.NONE:
        from prefect_cytotable.flows import concat_orchestrated  # Prefect takes 2 s to import

        return concat_orchestrated.concat(arguments, runner, heard, connection)
    assert isinstance(runner, str)
    from prefect_cytotable.tasks.core.concat import local, pipeline  # anndata is an extra, and takes 1 s to import

    return pipeline.run(options, merges, local.LocalCaller(Runner(runner), heard)).destination


def plan(function: Callable[..., object], given: dict[str, Any]) -> Plan:
    """The plan for arguments of `prefect_cytotable.flows.concat.concat`."""
    arguments = with_defaults(function, given)
    runner = checked_runner(arguments.pop("task_runner"))
    arguments.pop("progress")
    options, _ = make_options(**arguments)
    _require_anndata()
    from prefect_cytotable.tasks.core.concat import local, pipeline  # anndata is an extra

    kind = Runner(runner) if isinstance(runner, str) and runner in list(Runner) else Runner.PROCESS
    return pipeline.draft(options, local.LocalCaller(kind, SilentBlocks()))


def _require_anndata() -> None:
    try:
        import anndata  # noqa: F401 - whether it is there, before anything is done
        import h5py  # noqa: F401
        import zarr  # noqa: F401
    except ImportError as error:
        raise MissingLibraryError(
            f"{error.name} is not installed. Run: pip install 'prefect-cytotable[anndata]'"
        ) from error
