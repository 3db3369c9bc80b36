"""A profile as artifacts of the Prefect flow run that it is of: the report as Markdown, the places as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.runtime import flow_run

from prefect_cytotable.flows.connection import ServerUnreachableError, configured_api_url
from prefect_cytotable.flows.session import LOST, connected
from prefect_cytotable.tasks.core.memory import report
from prefect_cytotable.tasks.core.memory.model import Profile

REPORT_KEY, TABLE_KEY = "memory-profile", "memory-allocations"

Say = Callable[[str], None]


def publish_here(profile: Profile, say: Say | None) -> None:
    """Make the artifacts of the flow run that this is called in; its end does not depend on it."""
    try:
        _publish(profile, [flow_run.id])
    except LOST as error:
        if say is not None:
            say(f"The server was not told the memory profile: {error}")


def publish_afterwards(profile: Profile, say: Say) -> None:
    """Make the artifacts of flow runs that have ended, on the server that they used."""
    connection = configured_api_url()
    if connection is None:
        say("  no artifact: the run's own Prefect server has ended with it")
        return
    try:
        with connected(connection):
            _publish(profile, profile.flow_runs)
    except (ServerUnreachableError, *LOST) as error:
        say(f"  the server was not told the memory profile: {error}")


def _publish(profile: Profile, flow_runs: Sequence[str]) -> None:
    description = "\n".join(f"- {line.strip()}" for line in report.lines(profile)[:4])
    with get_client(sync_client=True) as client:
        for one in flow_runs:
            for key, kind, data in (
                (REPORT_KEY, "markdown", report.markdown(profile)),
                (TABLE_KEY, "table", json.dumps(report.site_rows(profile))),
            ):
                made = ArtifactCreate(key=key, type=kind, description=description, data=data, flow_run_id=UUID(one))
                # The client's own method also sends an event, which takes a worker thread and a wait at exit.
                client.request("POST", "/artifacts/", json=made.model_dump(mode="json", exclude_unset=True))
