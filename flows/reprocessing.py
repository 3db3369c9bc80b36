"""Who runs `reprocess`: this process alone, or Prefect. Decided without importing Prefect, as for `convert`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from prefect_cytotable.flows.convert import convert
from prefect_cytotable.flows.running import Orchestration, checked_runner, orchestration
from prefect_cytotable.tasks.core import pipeline
from prefect_cytotable.tasks.core.local import LocalCaller, Runner
from prefect_cytotable.tasks.core.model import Options, Report
from prefect_cytotable.tasks.core.progress import Progress, Silent
from prefect_cytotable.tasks.core.reprocess import run as runs
from prefect_cytotable.tasks.core.reprocess import summary
from prefect_cytotable.tasks.core.reprocess.model import Reprocessed, Settings
from prefect_cytotable.tasks.core.reprocess.settings import Recipe, make_settings, makeable
from prefect_cytotable.tasks.core.request import make_options

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner


def reprocess(arguments: dict[str, Any], task_runner: str | TaskRunner[Any], progress: Progress | None) -> Reprocessed:
    """Run `prefect_cytotable.flows.reprocess` with its arguments, locally or as a flow run."""
    heard = progress or Silent()
    runner = checked_runner(task_runner)
    settings, recipe, options = settings_of(arguments)
    if arguments["dry_run"]:
        done = runs.draft(settings, options)
        for line in summary.lines(done, dry_run=True):
            heard.say(line)
        return done
    where, connection = orchestration(runner, heard.say)
    if where is not Orchestration.NONE:
        from prefect_cytotable.flows import reprocess_flow  # Prefect takes 2 s to import: only where it runs the show

        return reprocess_flow.reprocess(arguments, runner, heard, connection)
    assert isinstance(runner, str)
    return runs.run(settings, recipe, options, LocalPlates(Runner(runner), heard))


def settings_of(arguments: dict[str, Any], shared_work: bool = False) -> tuple[Settings, Recipe, Options]:
    """The arguments of `prefect_cytotable.flows.reprocess`, checked."""
    defaults = {name: one.default for name, one in inspect.signature(convert).parameters.items()}
    given = {name: value for name, value in arguments.items() if name != "dry_run"}
    return make_settings(defaults=defaults, **given, shared_work=shared_work)


class LocalPlates:
    """Converts plates in this process."""

    def __init__(self, runner: Runner, progress: Progress) -> None:
        self._runner, self._progress = runner, progress

    def convert(self, arguments: dict[str, Any], plate: str, progress: runs.Stop) -> Report:
        """Convert one plate."""
        return pipeline.run(make_options(**makeable(arguments)), LocalCaller(self._runner, progress))

    def ends_the_run(self, error: Exception) -> bool:
        """Whether no other plate can be converted after this error."""
        return False

    def publish(self, done: Reprocessed) -> None:
        """Tell what was done."""
        for line in summary.lines(done):
            self._progress.say(line)

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._progress.say(text)
