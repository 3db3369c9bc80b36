"""The deployments of this collection, in one table: for `prefect-cytotable serve`, the prefect.yaml and the tests."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect_cytotable.flows.connection import Connection, configured_api_url
from prefect_cytotable.flows.remembered import ServerError
from prefect_cytotable.flows.running import checked_runner
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.roots import ROOTS, allowed_roots

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment

API_URL = "PREFECT_API_URL"
TAG = "cytotable"


@dataclass(frozen=True)
class Deployment:
    """A flow that a server offers.

    Attributes:
        name: The deployment's; the flow has its own.
        entrypoint: Module and function, by which a worker imports the flow.
        description: What the UI shows.
        parameters: Values that stand in the form to begin with, beside the flow's defaults.
        limit: Runs of it at once, on all machines together; None for any number.
        cron: When it runs by itself, where it does.
    """

    name: str
    entrypoint: str
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    cron: str | None = None

    def flow(self) -> Flow[..., Any]:
        """The flow."""
        module, _, name = self.entrypoint.rpartition(".")
        return cast("Flow[..., Any]", getattr(importlib.import_module(module), name))


_FLOWS = "prefect_cytotable.flows"

DEPLOYMENTS = (
    Deployment(
        "convert",
        f"{_FLOWS}.orchestrated.convert_flow",
        "Measurements of CellProfiler and its kin to one single-cell table.",
    ),
    Deployment(
        "reprocess",
        f"{_FLOWS}.reprocess_flow.reprocess_flow",
        "The plates below a folder that are new or changed, to one table each; for every night.",
        limit=1,
    ),
    Deployment(
        "concat",
        f"{_FLOWS}.concat_orchestrated.concat_flow",
        "AnnData files concatenated on disk, in bounded memory.",
    ),
    Deployment(
        "fetch",
        f"{_FLOWS}.fetch_flow.fetch_flow",
        "Rows and columns of obs or var of a SOMA experiment, such as the CELLxGENE Census, to one file.",
    ),
)
"""Adding one is an entry here and one in ``deployments/prefect.yaml``; a test compares them."""


def served(runner: str | None = None) -> list[RunnerDeployment]:
    """The deployments as one process serves them.

    Args:
        runner: What converts chunks where a run does not say; None leaves it to the flows' defaults.

    Raises:
        ArgumentError: There is no such runner.
    """
    from prefect.deployments.runner import RunnerDeployment  # Prefect takes 2 s to import
    from prefect.types.entrypoint import EntrypointType

    if runner is not None:
        checked_runner(runner)
    found = []
    for one in DEPLOYMENTS:
        flow = one.flow()
        chosen = {"task_runner": runner} if runner and "task_runner" in flow.parameters.properties else {}
        found.append(
            RunnerDeployment.from_flow(
                flow,
                one.name,
                description=one.description,
                tags=[TAG],
                parameters={**one.parameters, **chosen},
                concurrency_limit=one.limit,
                cron=one.cron,
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        )
    return found


def serve(runner: str | None = None, roots: Sequence[str] = (), limit: int = 1) -> None:
    """Offer the deployments to the server, and run what it asks for, until this process is ended.

    Args:
        runner: What converts chunks where a run does not say.
        roots: Folders and URL prefixes that runs may use; none leaves it to the environment.
        limit: Runs at once on this machine.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
        ServerError: No server is configured, and none of ours runs.
    """
    if limit < 1:
        raise ArgumentError(f"limit is {limit}, not a positive number of runs.")
    limit_to(roots)
    connect()
    from prefect import serve as serve_all  # reads the environment that was just settled

    serve_all(*served(runner), limit=limit, pause_on_shutdown=False)


def limit_to(roots: Iterable[str]) -> None:
    """Allow the runs of this process these roots alone; none of them leaves the environment as it is.

    Raises:
        OutsideRootsError: One of them is no root.
    """
    named = [root if "://" in root else str(Path(root).expanduser().absolute()) for root in roots]
    if named:
        os.environ[ROOTS] = os.pathsep.join(named)
    allowed_roots()  # a variable that cannot be used is told now, not by the first run


def connect() -> Connection:
    """The server that this process and its children use from now on.

    Raises:
        ServerError: There is none.
    """
    connection = configured_api_url()
    if connection is None:
        raise ServerError(
            "there is no Prefect server to offer deployments to. Start one with `prefect-cytotable server start`, or "
            "set PREFECT_API_URL to the address of yours, which ends in /api"
        )
    os.environ[API_URL] = connection.url
    return connection
