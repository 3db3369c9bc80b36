"""Conducts a run over many plates inside a flow run: a child flow run for each plate that is converted."""

from __future__ import annotations

import threading
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.task_runners import TaskRunner

from prefect_cytotable.flows.calls import Call, answered, begin, dispensable, plain
from prefect_cytotable.flows.conductor import ConvertCall
from prefect_cytotable.flows.orchestrated import convert_flow
from prefect_cytotable.flows.reprocessing import settings_of
from prefect_cytotable.flows.runners import may_be_elsewhere
from prefect_cytotable.flows.session import LOST
from prefect_cytotable.tasks.core.errors import AccountError
from prefect_cytotable.tasks.core.model import ChunkResult, Report
from prefect_cytotable.tasks.core.progress import Progress, Silent
from prefect_cytotable.tasks.core.reprocess import run as runs
from prefect_cytotable.tasks.core.reprocess import summary
from prefect_cytotable.tasks.core.reprocess.model import Reprocessed

ARTIFACT_ROWS = 500
"""Plates that the table in the UI lists; the index has them all."""

LOGGED_PLATES = 20
"""Plates whose end is told in the log: beyond that failures alone."""


class PlatesCall(Call[Reprocessed, ChunkResult]):
    """What a plain function call and this flow tell each other."""


def reprocess(arguments: dict[str, Any], task_runner: str) -> Reprocessed:
    """The body of the flow."""
    call = begin(PlatesCall(task_runner, Silent()))
    runner = call.runner(task_runner)
    settings, recipe, options = settings_of(arguments, may_be_elsewhere(runner))
    plates = ChildFlows(runner, call.progress)
    if arguments["dry_run"]:
        call.answer = runs.draft(settings, options)
        plates.publish(call.answer, dry_run=True)
    else:
        call.answer = runs.run(settings, recipe, options, plates)
    return call.answer


class ChildFlows:
    """Converts each plate as a child flow run."""

    def __init__(self, runner: str | TaskRunner[Any], progress: Progress) -> None:
        self._runner, self._progress = runner, progress
        self._logger = get_run_logger()
        self._told = 0
        self._beginning = threading.Lock()

    def convert(self, arguments: dict[str, Any], plate: str, progress: runs.Stop) -> Report:
        """Convert one plate.

        Child runs begin one after the other: Prefect numbers them in the parent by a counter that threads share, and
        two with one number would be one and the same run.
        """
        with _Turn(self._beginning) as turn:
            runner = self._runner if isinstance(self._runner, str) else self._runner.duplicate()
            call = ConvertCall(runner, progress, begun=turn.over)
            answered(call, convert_flow, plain(arguments))
        if call.report is None:
            raise AccountError(f"The flow run of {plate} ended without a report. Please report this defect.")
        return call.report

    def ends_the_run(self, error: Exception) -> bool:
        """Whether the server was lost: every later plate would wait for it in vain."""
        return isinstance(error, LOST)

    def publish(self, done: Reprocessed, dry_run: bool = False) -> None:
        """Tell what was done in the log, and show the plates as a table artifact."""
        text = summary.lines(done, dry_run)
        for one in text:
            self._logger.info(one)
            self._progress.say(one)
        description = "\n".join(f"- {one.strip()}" for one in text)
        with dispensable("the table of plates", self._progress.say):
            create_table_artifact(table=summary.table(done, ARTIFACT_ROWS), key="plates", description=description)

    def say(self, text: str) -> None:
        """Tell the user something; the log has the first lines, and all failures."""
        self._told += 1
        if ": failed (" in text:
            self._logger.error(text)
        elif self._told <= LOGGED_PLATES:
            self._logger.info(text)
        self._progress.say(text)


class _Turn:
    """A lock that is held from the beginning of the block until `over`, or to its end."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._held = lock, False

    def __enter__(self) -> _Turn:
        self._lock.acquire()
        self._held = True
        return self

    def over(self) -> None:
        """Let the next one begin."""
        if self._held:
            self._held = False
            self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.over()
