"""What a flow run shows in the UI beside its states: tags, a moving progress, tables, and the report as Markdown.

The output never depends on any of it: a server that is slow or lost is told of in one line.
"""

from __future__ import annotations

import contextvars
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.runtime import flow_run
from prefect.settings import temporary_settings

from prefect_cytotable.flows.session import LOST
from prefect_cytotable.tasks.core import report as reports
from prefect_cytotable.tasks.core.model import ChunkResult, Options, Report
from prefect_cytotable.tasks.core.places.urls import name_of
from prefect_cytotable.tasks.core.progress import Progress, duration
from prefect_cytotable.tasks.core.redact import redact
from prefect_cytotable.tasks.core.report_markdown import markdown
from prefect_cytotable.tasks.core.report_tables import MOST_ROWS, column_rows, skipped_rows
from prefect_cytotable.tasks.quiet import quieten

PROGRESS, REPORT, ACCOUNT, SCHEMA, SKIPPED = (
    "conversion-progress", "conversion-report", "row-account", "schema", "skipped-sources",
)  # fmt: skip
"""Keys of the artifacts. A key's page in the UI shows what all runs have made under it."""

UPDATE_SECONDS = 2.0
"""Between two updates of the progress; one costs the server 26-89 ms (measured, Prefect 3.8.8, SQLite)."""

ANSWER_SECONDS, END_SECONDS = 8.0, 10.0
"""How long one update may take, and how long the end of the chunks waits for the last of them."""

MOST_TAG = 80
"""Characters of a tag."""

STORY = 20
"""Lines of the report in the log; the artifact and the page have all."""


def tags(options: Options) -> list[str]:
    """What a list of runs can be filtered by.

    >>> from prefect_cytotable.tasks.core.presets import load_preset
    >>> tags(Options("/data/BR00117010.sqlite", "/out", "/w", load_preset("cellprofiler_sqlite"), 1 << 30))
    ['cytotable', 'plate:BR00117010', 'preset:cellprofiler_sqlite']
    """
    name = redact(name_of(options.source))
    plate = name.rpartition(".")[0] or name
    preset = redact(name_of(options.preset.name or "none"))
    return ["cytotable", f"plate:{plate}"[:MOST_TAG], f"preset:{preset}"[:MOST_TAG]]


@dataclass(frozen=True)
class Pace:
    """How far the chunks are. Chunks that were done before count as done, and not as work that was done now.

    Attributes:
        rows: About how many there will be; `rows_done` were read.
        fresh, fresh_rows: The chunks that this run did itself, and their rows.
        seconds: Since the chunks began.
    """

    chunks: int = 0
    rows: int = 0
    done: int = 0
    rows_done: int = 0
    fresh: int = 0
    fresh_rows: int = 0
    seconds: float = 0.0

    def with_result(self, result: ChunkResult) -> Pace:
        """One chunk more."""
        rows, fresh = sum(account.rows_in for account in result.accounts), int(not result.reused)
        return replace(
            self,
            done=self.done + 1,
            rows_done=self.rows_done + rows,
            fresh=self.fresh + fresh,
            fresh_rows=self.fresh_rows + rows * fresh,
        )

    @property
    def percent(self) -> float:
        """Of the chunks."""
        return round(100 * self.done / self.chunks, 1) if self.chunks else 100.0

    def text(self) -> str:
        """Chunks, cells, cells a second, time left.

        >>> Pace(40, 84_000, 10, 21_000, 10, 21_000, 5.0).text()
        '**10 of 40 chunks**, 21,000 of about 84,000 cells, 4,200 cells/s, 15 s left'
        >>> Pace(2, 900, 2, 905, 1, 500, 0.5).text()
        '**2 of 2 chunks** (1 done before), 905 cells, 1,000 cells/s, done after 0 s'
        """
        before = f" ({self.done - self.fresh:,} done before)" if self.done > self.fresh else ""
        cells = (
            f"{self.rows_done:,} cells"
            if self.done >= self.chunks
            else (f"{self.rows_done:,} of about {max(self.rows, self.rows_done):,} cells")
        )
        parts = [f"**{self.done:,} of {self.chunks:,} chunks**{before}", cells]
        if self.fresh and self.seconds > 0:
            parts.append(f"{self.fresh_rows / self.seconds:,.0f} cells/s")
        if self.done >= self.chunks:
            parts.append(f"done after {duration(self.seconds)}")
        elif self.fresh:
            parts.append(f"{duration(self.seconds * (self.chunks - self.done) / self.fresh)} left")
        return ", ".join(parts)


@contextmanager
def watched(progress: Progress, options: Options) -> Iterator[Progress]:
    """A listener that also shows the progress in the UI of the flow run that this is called in; tags that run.

    Nothing waits for the server but the very end, and that not for long.
    """
    quieten()
    shown = Shown(progress, str(flow_run.id), options)
    try:
        yield shown
    finally:
        shown.close()


class Shown:
    """A progress whose state a thread brings to the server now and then."""

    def __init__(self, inner: Progress, run: str, options: Options) -> None:
        self._inner, self._run = inner, run
        self._tags = tags(options)
        self._pace = Pace()
        self._begun = time.monotonic()
        self._artifact: str | None = None
        self._lost: BaseException | None = None
        self._told = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def say(self, text: str) -> None:
        """A message."""
        self._inner.say(text)

    def start(self, chunks: int, rows: int) -> None:
        """Begin to count anew, and to show it."""
        self.close()
        self._inner.start(chunks, rows)
        self._begun = time.monotonic()
        self._pace = Pace(chunks, rows)
        self._ended.clear()
        context = contextvars.copy_context()  # the thread talks to the server that this run talks to
        self._thread = threading.Thread(target=context.run, args=(self._show,), name="progress", daemon=True)
        self._thread.start()

    def advance(self, result: ChunkResult) -> None:
        """Count a chunk; the thread shows it when it is its time."""
        self._inner.advance(result)
        self._pace = self._pace.with_result(result)

    def finish(self) -> None:
        """Show how it ended."""
        self._inner.finish()
        self.close()

    def close(self) -> None:
        """End the thread, with a last update; a server that does not answer is not waited for."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._ended.set()
        thread.join(END_SECONDS)
        if (self._lost or thread.is_alive()) and not self._told:
            self._told = True
            cause = _short(self._lost) if self._lost else "it does not answer"
            self.say(f"The server was not told the progress: {cause}. The conversion does not depend on it.")

    def _show(self) -> None:
        once = {"client.max_retries": 0, "client.server_version_check_enabled": False}
        with temporary_settings(once):
            while True:
                last = self._ended.is_set()
                try:
                    with get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client:
                        self._lost = None
                        while True:
                            last = self._ended.is_set()
                            self._update(client)
                            if last:
                                return
                            self._ended.wait(UPDATE_SECONDS)
                except (*LOST, RuntimeError) as error:  # RuntimeError: Prefect's own way to say that it is not there
                    self._lost = error
                    if last:
                        return
                    self._ended.wait(UPDATE_SECONDS)

    def _update(self, client: SyncPrefectClient) -> None:
        pace = replace(self._pace, seconds=time.monotonic() - self._begun)
        if self._artifact is None:
            add_tags(client, self._run, self._tags)
            made = ArtifactCreate(
                key=PROGRESS, type="progress", description=pace.text(), data=pace.percent, flow_run_id=UUID(self._run)
            )
            answer = client.request("POST", "/artifacts/", json=made.model_dump(mode="json", exclude_unset=True))
            self._artifact = str(answer.json()["id"])
            return
        change = {"data": pace.percent, "description": pace.text()}
        client.request("PATCH", "/artifacts/{id}", path_params={"id": self._artifact}, json=change)


def add_tags(client: SyncPrefectClient, run: str, names: Sequence[str]) -> None:
    """Tag a flow run; the tags that it has (a deployment's, a caller's) stay."""
    known = client.read_flow_run(UUID(run)).tags
    wanted = [*known, *(name for name in names if name not in known)]
    if wanted != known:
        client.request("PATCH", "/flow_runs/{id}", path_params={"id": run}, json={"tags": wanted})


def publish(report: Report) -> None:
    """Make the artifacts of a finished conversion, for the flow run that this is called in.

    Raises:
        httpx.TransportError, PrefectHTTPStatusError: The server did not take them.
    """
    description = "\n".join(f"- {line.strip()}" for line in reports.lines(report))
    columns, more_columns = column_rows(report)
    skipped, more_skipped = skipped_rows(report)
    notable = sum(column.notable for column in report.columns)
    made = [
        (REPORT, "markdown", f"{report.rows_out:,} cells in {redact(report.destination)}", markdown(report)),
        (ACCOUNT, "table", description, json.dumps(reports.table(report)[:MOST_ROWS])),
        (
            SCHEMA,
            "table",
            f"{len(report.columns):,} columns; {notable:,} are absent from some sources, widened or cast, and come "
            f"first{_left(more_columns)}",
            json.dumps(columns),
        ),
    ]
    if skipped:
        text = f"{len(report.skipped):,} source(s) could not be read and were skipped{_left(more_skipped)}"
        made.append((SKIPPED, "table", text, json.dumps(skipped)))
    with get_client(sync_client=True) as client:
        for key, kind, words, data in made:
            one = ArtifactCreate(key=key, type=kind, description=words, data=data, flow_run_id=UUID(str(flow_run.id)))
            # The client's own method also sends an event, which takes a worker thread and a wait at exit.
            client.request("POST", "/artifacts/", json=one.model_dump(mode="json", exclude_unset=True))


def story(report: Report) -> list[str]:
    """The report for the log of a flow run: the lines that fit, the last two always among them."""
    lines = reports.lines(report)
    if len(lines) <= STORY:
        return lines
    left = len(lines) - STORY + 1
    return [*lines[: STORY - 3], f"{left} more line(s): the artifact {REPORT} has them", *lines[-2:]]


def _left(count: int) -> str:
    return f". {count:,} more are not shown." if count else "."


def _short(error: BaseException) -> str:
    first = str(error).splitlines()
    return redact(first[0]).rstrip(".") if first and first[0] else type(error).__name__
