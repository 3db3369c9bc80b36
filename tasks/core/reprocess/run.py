"""The way of a run over many plates: list, decide, convert what is new or changed, remember.

Who converts a plate is another's choice (`PlateCaller`): this process alone, or a child flow run for each.
"""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from prefect_cytotable.tasks.core.errors import (
    ArgumentError,
    CytotableError,
    DestinationBusyError,
    DestinationExistsError,
    SourceNotFoundError,
)
from prefect_cytotable.tasks.core.kept import Keeper
from prefect_cytotable.tasks.core.locks import lock
from prefect_cytotable.tasks.core.model import ChunkResult, Options, Report
from prefect_cytotable.tasks.core.places import Places, is_remote
from prefect_cytotable.tasks.core.places.files import WORK_SUFFIX
from prefect_cytotable.tasks.core.progress import Silent
from prefect_cytotable.tasks.core.report import PRODUCER
from prefect_cytotable.tasks.core.reprocess import summary
from prefect_cytotable.tasks.core.reprocess.decisions import decide, unsettled
from prefect_cytotable.tasks.core.reprocess.errors import PlatesFailedError, RunStoppedError
from prefect_cytotable.tasks.core.reprocess.index import Index, index_path, read_index
from prefect_cytotable.tasks.core.reprocess.listing import listed, look_again
from prefect_cytotable.tasks.core.reprocess.model import (
    Decision,
    IndexRow,
    Listing,
    Outcome,
    Plate,
    Reprocessed,
    Settings,
    Status,
    Verdict,
)
from prefect_cytotable.tasks.core.reprocess.settings import Recipe, output_path
from prefect_cytotable.tasks.core.request import work_folder
from prefect_cytotable.tasks.core.store import LocalStore, scratch_of

LONGEST_ERROR = 2_000
"""Characters of an error that the index keeps."""


class Stop(Silent):
    """Progress of a plate's conversion: it ends at the next chunk where the run is broken off."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """Have every conversion end soon."""
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether conversions are to end."""
        return self._asked.is_set()

    def advance(self, result: ChunkResult) -> None:
        """One chunk more is done."""
        if self.asked:
            raise RunStoppedError("The run was broken off; what is done is kept, and the next run goes on from there.")


class PlateCaller(Protocol):
    """Converts plates."""

    def convert(self, arguments: dict[str, Any], plate: str, progress: Stop) -> Report:
        """Convert one plate, with these arguments of `prefect_cytotable.flows.convert`."""
        ...

    def ends_the_run(self, error: Exception) -> bool:
        """Whether an error is not a plate's, but one after which no plate can be converted."""
        ...

    def publish(self, done: Reprocessed) -> None:
        """Show what was done where people look for it."""
        ...

    def say(self, text: str) -> None:
        """Tell the user something."""
        ...


def draft(settings: Settings, options: Options) -> Reprocessed:
    """What a run would do: the dry run. Nothing is written."""
    started = time.perf_counter()
    rows = {row.plate: row for row in read_index(settings.destination_root, Places(settings.storage))}
    listing, decisions = _decided(settings, options, rows)
    outcomes = tuple(_outcome(one) for one in decisions)
    return _result(settings, listing, outcomes, started)


def run(settings: Settings, recipe: Recipe, options: Options, caller: PlateCaller) -> Reprocessed:
    """Convert what is new or changed, under the destination's lock.

    Raises:
        PlatesFailedError: Some plates could not be converted; all others were, and everything is remembered.
        DestinationBusyError: Another run of this machine works on the destination.
        CytotableError: The run could not be made at all.
    """
    started = time.perf_counter()
    with _locked(settings):
        one = _Run(settings, recipe, options, caller)
        listing, decisions = _decided(settings, options, one.index.rows)
        done = _result(settings, listing, one.over(decisions), started, one.freed)
    caller.publish(done)
    if done.failures:
        raise PlatesFailedError(done.failures, done.attempted, done.index)
    return done


def _decided(settings: Settings, options: Options, rows: dict[str, IndexRow]) -> tuple[Listing, tuple[Decision, ...]]:
    listing = listed(settings, options)
    outputs = _outputs(settings)
    return listing, decide(listing, rows, outputs, settings, version(PRODUCER), time.time_ns())


def _result(
    settings: Settings, listing: Listing, outcomes: tuple[Outcome, ...], started: float, freed: int = 0
) -> Reprocessed:
    return Reprocessed(
        destination=settings.destination_root,
        index=index_path(settings.destination_root),
        outcomes=outcomes,
        ignored=listing.ignored,
        seconds=round(time.perf_counter() - started, 2),
        freed=freed,
    )


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """One run at a time for a destination, on this machine; where it is local, on all that share its file system."""
    destination = settings.destination_root
    if is_remote(destination):
        folder = scratch_of(destination, settings.storage)
    else:
        folder = Path(destination) / WORK_SUFFIX
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArgumentError(f"{destination} cannot be made or written to ({error.strerror}).") from error
    try:
        with lock(folder, destination):
            yield
            LocalStore(str(folder)).remove_if_unused()
    except DestinationBusyError as error:
        if str(error).startswith(f"{destination}: "):
            raise DestinationBusyError(
                f"{destination}: another run converts plates to this destination. Wait for it; it does what this one "
                f"would do."
            ) from error
        raise


def _outputs(settings: Settings) -> dict[str, int | None]:
    """What lies directly in the destination: bytes by name, None for a folder."""
    root = settings.destination_root
    found: dict[str, int | None] = {}
    if is_remote(root):
        for entry in Places(settings.storage).entries(root):
            name, slash, _ = entry.path.removeprefix(f"{root.rstrip('/')}/").partition("/")
            found[name] = None if slash else entry.size
        return found
    with suppress(FileNotFoundError), os.scandir(root) as entries:
        for one in entries:
            with suppress(FileNotFoundError):
                found[one.name] = None if one.is_dir() else one.stat().st_size
    return found


def _outcome(decision: Decision) -> Outcome:
    error = decision.why if decision.verdict is Verdict.FAIL else ""
    return Outcome(decision.name, decision.verdict, decision.why, error=error)


class _Run:
    """One run: what its threads share."""

    def __init__(self, settings: Settings, recipe: Recipe, options: Options, caller: PlateCaller) -> None:
        self._settings, self._recipe, self._options, self._caller = settings, recipe, options, caller
        self.index = Index(settings.destination_root, Places(settings.storage))
        self._stop = Stop()
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        local = not is_remote(settings.work_root)
        self._keeper = Keeper(Path(settings.work_root), settings.keep, settings.keep_seconds) if local else None

    @property
    def freed(self) -> int:
        """Bytes of kept chunks that were removed."""
        return self._keeper.freed if self._keeper else 0

    def over(self, decisions: tuple[Decision, ...]) -> tuple[Outcome, ...]:
        """What becomes of every plate."""
        settled = [one for one in decisions if one.verdict is not Verdict.CONVERT]
        self.index.put(*(row for one in settled if (row := self._settled_row(one)) is not None))
        outcomes = [_outcome(one) for one in settled]
        todo = [one for one in decisions if one.verdict is Verdict.CONVERT]
        at_once = min(self._settings.plates_at_once, self._settings.workers, len(todo))
        self._workers = max(self._settings.workers // max(at_once, 1), 1)
        if todo:
            self._caller.say(f"{len(todo)} of {len(decisions)} plate(s) to convert, {at_once} at a time")
        try:
            for outcome in self._pooled(todo, at_once) if at_once > 1 else map(self._converted, todo):
                outcomes.append(outcome)
        finally:
            self._bound("")
        return tuple(sorted(outcomes, key=lambda one: one.plate))

    def _pooled(self, todo: list[Decision], at_once: int) -> Iterator[Outcome]:
        """Several plates at a time; where the run is broken off, those under way end at their next chunk."""
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="plate")
        try:
            futures: list[Future[Outcome]] = [
                pool.submit(contextvars.copy_context().run, self._converted, one) for one in todo
            ]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            self._stop.ask()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _settled_row(self, decision: Decision) -> IndexRow | None:
        """The row of a plate that is not converted now; None where nothing is to be remembered."""
        row, plate = decision.row, decision.plate
        if plate is None:
            return self._checked(row, replace(row, status=Status.GONE)) if row else None
        known = row or IndexRow(plate.name, plate.source, Status.WAITING)
        if decision.verdict is Verdict.FAIL:
            if not plate.problem:
                return None  # the row is another plate's
            return self._checked(row, replace(known, status=Status.FAILED, error=plate.problem[:LONGEST_ERROR]))
        if decision.verdict is Verdict.WAIT:
            return self._checked(row, replace(known, status=Status.WAITING))
        path = output_path(plate.name, self._settings)
        return self._checked(row, replace(known, status=Status.CONVERTED, error="", path=path, source=plate.source))

    def _checked(self, before: IndexRow | None, after: IndexRow) -> IndexRow:
        return after if before == after else replace(after, checked_at=time.time_ns() // 1000)

    def _converted(self, decision: Decision) -> Outcome:
        """Convert one plate; its failure becomes its outcome."""
        if self._stop.asked:
            raise RunStoppedError("The run was broken off before this plate began.")
        try:
            outcome = self._convert(decision)
        except RunStoppedError:
            raise
        except Exception as error:
            if self._caller.ends_the_run(error):
                raise
            outcome = self._failed(decision, error)
        self._caller.say(summary.line(outcome))
        return outcome

    def _convert(self, decision: Decision) -> Outcome:
        assert decision.plate is not None
        settings = self._settings
        plate = look_again(decision.plate, self._options, settings.storage)
        if plate.problem:
            raise SourceNotFoundError(plate.problem)
        row = self.index.rows.get(plate.name) or IndexRow(plate.name, plate.source, Status.WAITING)
        if waits := unsettled(plate, settings.settle, time.time_ns()):
            self.index.put(self._checked(row, replace(row, status=Status.WAITING)))
            return Outcome(plate.name, Verdict.WAIT, waits)
        path = output_path(plate.name, settings)
        overwrite = settings.overwrite or bool(row.path)
        if not overwrite and self._exists(path):
            raise DestinationExistsError(
                f"{path} is there already, and the index does not know it. Move it away, or let it be replaced with "
                f"overwrite=True."
            )
        row = replace(row, status=Status.CONVERTING, source=plate.source, path=path, fingerprint="")
        self.index.put(self._checked(None, row))
        arguments = self._recipe.for_plate(plate, settings, self._workers, overwrite)
        with self._working(path):
            report = self._caller.convert(arguments, plate.name, self._stop)
        row = _row_of(report, row, plate, settings)
        self.index.put(row)
        return Outcome(
            plate.name,
            Verdict.CONVERT,
            decision.why,
            row.rows,
            report.chunks,
            report.chunks_reused,
            report.seconds,
        )

    def _exists(self, path: str) -> bool:
        if is_remote(path):
            return Places(self._settings.storage).entry(path) is not None
        return os.path.lexists(path)

    def _failed(self, decision: Decision, error: Exception) -> Outcome:
        text = str(error) if isinstance(error, CytotableError | OSError) else f"{type(error).__name__}: {error}"
        text = text[:LONGEST_ERROR] or type(error).__name__
        plate = decision.plate
        assert plate is not None
        row = self.index.rows.get(plate.name) or IndexRow(plate.name, plate.source, Status.FAILED)
        self.index.put(self._checked(row, replace(row, status=Status.FAILED, error=text)))
        return Outcome(plate.name, Verdict.FAIL, decision.why, error=text)

    @contextmanager
    def _working(self, path: str) -> Iterator[None]:
        """The plate's work folder, left alone while it is in use, and afterwards held to its bounds."""
        folder = work_folder(self._settings.work_root, path, self._settings.storage, False)
        with self._lock:
            self._under_way.add(folder)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(folder)
            self._bound(folder)

    def _bound(self, folder: str) -> None:
        if self._keeper is not None:
            with self._lock:
                if folder:
                    self._keeper.changed(folder)
                self._keeper.bound(self._under_way, time.time())


def _row_of(report: Report, row: IndexRow, plate: Plate, settings: Settings) -> IndexRow:
    """The row of a plate whose output has become whole."""
    now = time.time_ns() // 1000
    return replace(
        row,
        status=Status.CONVERTED,
        fingerprint=plate.fingerprint,
        options=settings.options,
        tool_version=version(PRODUCER),
        rows=sum(file.rows for file in report.files),
        columns=max((file.columns for file in report.files), default=0),
        rows_dropped=sum(rows for account in report.accounts for _, rows in account.dropped),
        size=sum(file.size for file in report.files),
        converted_at=now,
        seconds=report.seconds,
        chunks=report.chunks,
        chunks_reused=report.chunks_reused,
        source_files=plate.files,
        source_size=plate.size,
        checked_at=now,
        error="",
    )
