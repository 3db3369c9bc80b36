"""The way of a fetch, from options to a file. Who calls the steps is another's choice (`FetchCaller`)."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.errors import ArgumentError, DestinationExistsError, DiskSpaceError, LayoutError
from prefect_cytotable.tasks.core.locks import in_use, lock
from prefect_cytotable.tasks.core.memory.tracking import marked
from prefect_cytotable.tasks.core.model import ChunkResult, OutputFile
from prefect_cytotable.tasks.core.retries import PlanPlace
from prefect_cytotable.tasks.core.soma.model import JOINID, Axis, Fetched, FetchOptions, FetchPlan
from prefect_cytotable.tasks.core.soma.work import save_plan
from prefect_cytotable.tasks.core.store import LocalStore


class FetchCaller(Protocol):
    """Calls the steps: plainly, or as tasks."""

    def plan(self, options: FetchOptions) -> FetchPlan:
        """Look at the table and decide."""
        ...

    def stream(self, plan: FetchPlan) -> OutputFile:
        """The whole table to a temporary file."""
        ...

    def fetch(self, plan: FetchPlan, place: PlanPlace) -> list[ChunkResult]:
        """Every chunk to a part; records in the order of the chunks."""
        ...

    def assemble(self, plan: FetchPlan, results: Sequence[ChunkResult]) -> OutputFile:
        """The parts to a temporary file."""
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
    here, store = LocalStore(options.scratch), LocalStore(options.work_dir)
    check_destination(options)
    work = nullcontext() if store.folder == here.folder else in_use(store.folder)
    with lock(Path(here.folder), options.destination), work:
        try:
            fetched = _run(options, caller, store)
        except BaseException as error:
            here.sweep()
            store.remove_if_unused()
            here.remove_if_unused()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskSpaceError(
                    f"{options.destination}: no space left on the disk ({error}). Make room, or choose another "
                    f"destination or work_dir. The same command then goes on with the parts that are done."
                ) from error
            raise
        if not options.keep_chunks:
            store.clear()
        store.remove_if_unused()
        here.remove_if_unused()
    caller.publish(fetched)
    return fetched


def _run(options: FetchOptions, caller: FetchCaller, store: LocalStore) -> Fetched:
    for folder in (store, LocalStore(options.scratch)):
        folder.sweep()
    with marked("plan"):
        plan = caller.plan(options)
        var_plan = _var_plan(options, plan, caller) if options.var_destination else None
    started = time.perf_counter()
    var_file = None
    if var_plan is not None:
        with marked("fetch var joinids"):
            var_file = caller.stream(var_plan)
    file, results = _rows(plan, caller, store)
    if var_file is not None:
        Path(var_file.path).replace(options.var_destination)
    Path(file.path).replace(options.destination)  # last: where it is, all of it is
    return Fetched(
        path=options.destination,
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
        var_path=options.var_destination,
        var_rows=0 if var_file is None else var_file.rows,
    )


def _rows(plan: FetchPlan, caller: FetchCaller, store: LocalStore) -> tuple[OutputFile, list[ChunkResult]]:
    """The file with the rows, still among the temporary ones, and the records of its chunks."""
    if not plan.chunks:
        with marked("fetch"):
            return caller.stream(plan), []
    store.prepare()
    place = save_plan(plan, store)
    try:
        results = caller.fetch(plan, place)
    finally:
        store.remove_plan(place.path)
    with marked("write"):
        return caller.assemble(plan, results), results


def _var_plan(options: FetchOptions, plan: FetchPlan, caller: FetchCaller) -> FetchPlan:
    """The plan for the joinids of var: a table of one column, for which chunks do not pay."""
    asked = replace(options, axis=Axis.VAR, columns=(JOINID,), tissue="", value_filter="", chunk_ids=0, workers=1)
    found = caller.plan(asked)
    if found.table.place.uri == plan.table.place.uri:
        raise LayoutError(
            f"{options.source} is a data frame, which has no var beside it. Give the experiment, or leave out "
            f"var_joinids."
        )
    return replace(found, chunks=())


def check_destination(options: FetchOptions) -> None:
    """Refuse a destination that cannot be written, before any work.

    Raises:
        DestinationExistsError: It is there and may not be replaced, or is a folder.
        ArgumentError: Its folder cannot be made.
    """
    destination = Path(options.destination)
    for path in (destination, *([Path(options.var_destination)] if options.var_destination else [])):
        if path.is_dir():
            raise DestinationExistsError(f"{path} is a folder. Name a file, for example {path / 'obs.feather'}.")
        if os.path.lexists(path) and not options.overwrite:
            raise DestinationExistsError(f"{path} exists. Choose another, or replace it with overwrite=True.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{destination}: its folder cannot be made ({error.strerror}).") from error


def lines(fetched: Fetched) -> list[str]:
    """The summary for a terminal or a log."""
    text = [
        f"rows: {fetched.rows:,} of {fetched.table_rows:,}, {fetched.columns:,} columns",
        f"wrote {fetched.path}: {show_bytes(fetched.size)}",
        f"read {fetched.batch_rows:,} joinids a batch, {fetched.batches} at a time, with buffers of "
        f"{show_bytes(fetched.buffer_bytes)} for each column",
    ]
    if fetched.var_path:
        text.insert(2, f"wrote {fetched.var_path}: {fetched.var_rows:,} joinids of var")
    if fetched.chunks:
        reused = f", {fetched.chunks_reused} of them done before" if fetched.chunks_reused else ""
        text.append(f"{fetched.chunks} chunk(s){reused}")
    text.append(
        f"open {fetched.open_seconds:.2f} s, query {fetched.query_seconds:.2f} s, fetch {fetched.fetch_seconds:.2f} s"
    )
    return text
