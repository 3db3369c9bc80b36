"""The way of a fetch, from options to a file. Who calls the steps is another's choice (`FetchCaller`)."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.errors import ArgumentError, DestinationExistsError, DiskSpaceError
from prefect_cytotable.tasks.core.model import ChunkResult, OutputFile
from prefect_cytotable.tasks.core.soma.model import Fetched, FetchOptions, FetchPlan
from prefect_cytotable.tasks.core.soma.work import save_plan
from prefect_cytotable.tasks.core.store import Store, discard, lock, neighbour, sweep


class FetchCaller(Protocol):
    """Calls the steps: plainly, or as tasks."""

    def plan(self, options: FetchOptions) -> FetchPlan:
        """Look at the table and decide."""
        ...

    def stream(self, plan: FetchPlan) -> OutputFile:
        """The whole table to the destination."""
        ...

    def fetch(self, plan: FetchPlan, plan_path: Path) -> list[ChunkResult]:
        """Every chunk to a part; records in the order of the chunks."""
        ...

    def assemble(self, plan: FetchPlan, results: Sequence[ChunkResult]) -> OutputFile:
        """The parts to the destination."""
        ...

    def publish(self, fetched: Fetched) -> None:
        """Show the summary where people look for it."""
        ...


def run(options: FetchOptions, caller: FetchCaller) -> Fetched:
    """Fetch a table, under the destination's lock.

    Raises:
        CytotableError: Something is not as it should be; the message says what, where, and what to do. Parts that
            are done stay in the work folder and serve the next run.
    """
    destination, store = Path(options.destination), Store(Path(options.work_dir))
    check_destination(options)
    with lock(destination):
        try:
            fetched = _run(options, caller, store)
        except BaseException as error:
            _tidy(store.folder)
            _tidy(neighbour(destination))
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskSpaceError(
                    f"{destination}: no space left on the disk ({error}). Make room, or choose another destination or "
                    f"work_dir. The same command then goes on with the parts that are done."
                ) from error
            raise
        if not options.keep_chunks:
            for folder in (store.parts, store.records, store.results):
                discard(folder)
        _tidy(store.folder)
        _tidy(neighbour(destination))
    caller.publish(fetched)
    return fetched


def _run(options: FetchOptions, caller: FetchCaller, store: Store) -> Fetched:
    sweep(store.folder)
    sweep(neighbour(Path(options.destination)))
    plan = caller.plan(options)
    started = time.perf_counter()
    results: list[ChunkResult] = []
    if plan.chunks:
        store.prepare()
        path = save_plan(plan, store)
        try:
            results = caller.fetch(plan, path)
        finally:
            discard(path)
        file = caller.assemble(plan, results)
    else:
        file = caller.stream(plan)
    return Fetched(
        path=file.path,
        rows=file.rows,
        columns=file.columns,
        size=file.size,
        table_rows=plan.table.rows,
        chunks=len(results),
        chunks_reused=sum(result.reused for result in results),
        buffer_bytes=plan.sizes.buffer_bytes,
        batch_rows=plan.sizes.rows,
        batches=plan.sizes.readers * plan.workers,
        open_seconds=plan.open_seconds,
        query_seconds=plan.query_seconds,
        fetch_seconds=round(time.perf_counter() - started, 3),
    )


def check_destination(options: FetchOptions) -> None:
    """Refuse a destination that cannot be written, before any work.

    Raises:
        DestinationExistsError: It is there and may not be replaced, or is a folder.
        ArgumentError: Its folder cannot be made.
    """
    destination = Path(options.destination)
    if destination.is_dir():
        raise DestinationExistsError(
            f"{destination} is a folder. Name a file, for example {destination / 'obs.feather'}."
        )
    if os.path.lexists(destination) and not options.overwrite:
        raise DestinationExistsError(f"{destination} exists. Choose another, or replace it with overwrite=True.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{destination}: its folder cannot be made ({error.strerror}).") from error


def _tidy(folder: Path) -> None:
    """Remove a folder of a run where it holds nothing but the lock and empty folders."""
    store = Store(folder)
    for inner in (store.parts, store.records, store.results):
        with suppress(OSError):
            inner.rmdir()
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {"lock"}:
            (folder / "lock").unlink(missing_ok=True)
            folder.rmdir()


def lines(fetched: Fetched) -> list[str]:
    """The summary for a terminal or a log."""
    text = [
        f"rows: {fetched.rows:,} of {fetched.table_rows:,}, {fetched.columns:,} columns",
        f"wrote {fetched.path}: {show_bytes(fetched.size)}",
        f"read {fetched.batch_rows:,} joinids a batch, {fetched.batches} at a time, with buffers of "
        f"{show_bytes(fetched.buffer_bytes)} for each column",
    ]
    if fetched.chunks:
        reused = f", {fetched.chunks_reused} of them done before" if fetched.chunks_reused else ""
        text.append(f"{fetched.chunks} chunk(s){reused}")
    text.append(
        f"open {fetched.open_seconds:.2f} s, query {fetched.query_seconds:.2f} s, fetch {fetched.fetch_seconds:.2f} s"
    )
    return text
