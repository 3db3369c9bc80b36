"""The way of a concatenation, from paths to a report. Who calls the stages is another's choice (`Caller`)."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.concat import remote
from prefect_cytotable.tasks.core.concat.model import (
    ConcatReport,
    Input,
    JobResult,
    Kind,
    Layout,
    Options,
    Plan,
    StoreFormat,
)
from prefect_cytotable.tasks.core.concat.prepare import finish_output, load_layout
from prefect_cytotable.tasks.core.concat.request import Merges
from prefect_cytotable.tasks.core.concat.stores import encoding, fingerprint, format_of, opened
from prefect_cytotable.tasks.core.errors import (
    AccountError,
    ArgumentError,
    CytotableError,
    DestinationExistsError,
    DiskSpaceError,
    SourceChangedError,
)
from prefect_cytotable.tasks.core.locks import lock
from prefect_cytotable.tasks.core.places import is_remote
from prefect_cytotable.tasks.core.places.cache import cache_folder
from prefect_cytotable.tasks.core.places.cache import prepare as prepare_cache
from prefect_cytotable.tasks.core.replacing import move_in, put_back
from prefect_cytotable.tasks.core.store import discard, neighbour, scratch_of

PREFIX = "concat-"
"""How the folder of a run is called, before the plan's key."""

PREVIOUS = "previous"
"""Where an output lies that is about to be replaced."""


class Caller(Protocol):
    """Calls the stages: plainly, or as tasks."""

    processes: bool
    orchestrated: bool

    def look(self, options: Options) -> tuple[Input, ...]:
        """Stage 1: what the inputs hold."""
        ...

    def plan(self, inputs: tuple[Input, ...], options: Options) -> Plan:
        """Stage 2: what the output will hold."""
        ...

    def prepare(self, plan: Plan, merges: Merges, folder: Path) -> Layout:
        """Stage 3: the output without the values of its large arrays."""
        ...

    def write(self, layout: Layout, workers: int) -> list[JobResult]:
        """Stage 4: those values, block by block."""
        ...

    def finish(self, plan: Plan, layout: Layout, results: list[JobResult]) -> int:
        """Stage 5: the output in its place; gives its bytes."""
        ...

    def publish(self, plan: Plan, report: ConcatReport) -> None:
        """Show the report where people look for it."""
        ...

    def say(self, text: str) -> None:
        """Tell the user something."""
        ...


def look_at_all(options: Options) -> tuple[Input, ...]:
    """What each input holds."""
    return tuple(remote.look_at(path, options) for path in options.in_files)


def draft(options: Options, caller: Caller) -> Plan:
    """The plan alone: no values are read and nothing is written; what is fetched for it is removed again.

    Raises:
        DestinationBusyError: A run to the same destination uses the copies of inputs in object storage.
    """
    if not any(map(is_remote, options.in_files)):
        return caller.plan(caller.look(options), options)
    here = scratch_of(options.destination, options.storage)
    made = not here.exists()
    with lock(here, options.destination):
        try:
            return caller.plan(caller.look(options), options)
        finally:
            remote.forget_copies(options)
            if made:
                _remove_if_unused(here)


def run(options: Options, merges: Merges, caller: Caller) -> ConcatReport:
    """Concatenate: the stages in turn, under the destination's lock.

    Raises:
        CytotableError: Something is not as it should be; the message says what, where, and what to do. Blocks that
            are done serve the next run.
    """
    started = time.perf_counter()
    if remote.any_remote(options):
        prepare_cache(cache_folder(options.storage))
    check_destination(options)
    folder = scratch_of(options.destination, options.storage)
    made = not folder.exists()
    with lock(folder, options.destination):
        try:
            if _restore_previous(options, folder):
                check_destination(options)
            report = _run(options, merges, caller, folder, started)
        except BaseException as error:
            if made:
                _remove_if_unused(folder)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskSpaceError(
                    f"{folder}: no space left on the disk ({error}). Make room, or choose another destination. "
                    f"The same command then goes on with the blocks that are done."
                ) from error
            raise
        finally:
            if any(map(is_remote, options.in_files)):
                remote.forget_copies(options)
        _remove_if_unused(folder)
    caller.publish(report[0], report[1])
    return report[1]


def _run(options: Options, merges: Merges, caller: Caller, folder: Path, started: float) -> tuple[Plan, ConcatReport]:
    plan = caller.plan(caller.look(options), options)
    for note in plan.notes:
        caller.say(note)
    place = folder / f"{PREFIX}{plan.key}"
    for other in folder.glob(f"{PREFIX}*"):
        if other != place:
            discard(other)
    layout = load_layout(place)
    if layout is None:
        discard(place)
        _check_disk(plan)
        try:
            layout = caller.prepare(plan, merges, place)
        except BaseException:
            discard(place)
            raise
    results = caller.write(layout, plan.workers)
    size = caller.finish(plan, layout, results)
    report = ConcatReport(
        destination=options.destination,
        shape=plan.shape,
        size=size,
        inputs=len(plan.inputs),
        jobs=len(results),
        reused=sum(result.reused for result in results),
        notes=plan.notes,
        seconds=round(time.perf_counter() - started, 2),
    )
    return plan, report


def put_in_place(plan: Plan, layout: Layout, results: Sequence[JobResult]) -> int:
    """Finish the output and give it its name; gives its bytes.

    Raises:
        SourceChangedError: An input was written to meanwhile.
        AccountError: Not every block is there.
    """
    if [result.record for result in results] != [job.record for job in layout.jobs]:
        raise AccountError("Not every block of the output was written. Please report this defect.")
    for one in plan.inputs:
        if _changed(one, plan.options):
            raise SourceChangedError(f"{one.name} was written to while it was read. Run the same again.")
    finish_output(layout)
    output = Path(layout.output)
    if layout.format is StoreFormat.H5AD:
        with output.open("rb+") as file:
            os.fsync(file.fileno())
    size = size_of(output)
    if is_remote(plan.options.destination):
        remote.upload(output, plan.options)
    else:
        destination = Path(plan.options.destination)
        move_in(output, destination, neighbour(destination) / PREVIOUS)
    discard(Path(layout.folder))
    return size


def _changed(one: Input, options: Options) -> bool:
    """Whether an input is no longer what was looked at."""
    return remote.changed(one, options) if one.url else fingerprint(one.path, one.format) != one.fingerprint


def size_of(path: Path) -> int:
    """Bytes of a file, or of all the files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum((Path(folder) / name).stat().st_size for folder, _, names in os.walk(path) for name in names)


def _restore_previous(options: Options, folder: Path) -> bool:
    """Put back the output that a run, killed at the wrong moment, had moved aside to put a new one in its place."""
    if is_remote(options.destination):
        return False
    return put_back(Path(options.destination), folder / PREVIOUS)


def check_destination(options: Options) -> None:
    """Refuse a destination that cannot be written, before any work.

    Raises:
        DestinationExistsError: It is there and may not be replaced, or is no AnnData object.
        ArgumentError: Its folder cannot be made.
    """
    if is_remote(options.destination):
        remote.check_remote_destination(options)
        return
    destination = Path(options.destination)
    if os.path.lexists(destination):
        if not options.overwrite:
            raise DestinationExistsError(f"{destination} exists. Choose another, or replace it with overwrite=True.")
        if destination.is_dir() and not _is_anndata(destination):
            raise DestinationExistsError(f"{destination} is a folder, but no AnnData object. Choose another.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{destination}: its folder cannot be made ({error.strerror}).") from error


def _is_anndata(path: Path) -> bool:
    try:
        with opened(path, format_of(path)) as root:
            return encoding(root) == "anndata"
    except (CytotableError, OSError, ValueError, KeyError):
        return False


def _check_disk(plan: Plan) -> None:
    """Refuse a disk that surely cannot hold the output: dense arrays are not compressed in h5ad."""
    if plan.options.format is not StoreFormat.H5AD:
        return
    needed = sum(array.size for array in plan.arrays if array.kind is Kind.DENSE and not array.compression)
    free = shutil.disk_usage(scratch_of(plan.options.destination, plan.options.storage)).free
    if needed > free:
        raise DiskSpaceError(
            f"{plan.options.destination}: the dense arrays take {show_bytes(needed)}, and {show_bytes(free)} are free. "
            f"Make room, choose another disk, or write zarr, which is compressed."
        )


def _remove_if_unused(folder: Path) -> None:
    """Remove the folder of a run where it holds nothing but the lock."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {"lock"}:
            (folder / "lock").unlink(missing_ok=True)
            folder.rmdir()


def report_lines(report: ConcatReport) -> list[str]:
    """A report as text."""
    reused = f", {report.reused} of them done before" if report.reused else ""
    return [
        f"wrote {report.destination}: {report.shape[0]:,} obs x {report.shape[1]:,} vars of {report.inputs} input(s), "
        f"{show_bytes(report.size)}",
        f"{report.jobs} block(s){reused}, {report.seconds:.1f} s",
    ]
