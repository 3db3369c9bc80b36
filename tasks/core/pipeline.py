"""The way of the data, from a path to a report. Who calls the stages is another's choice (`Caller`).

A local run calls them in this process, an orchestrated one as Prefect tasks; both come through here.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from prefect_cytotable.tasks.core import formats
from prefect_cytotable.tasks.core.budget import DUCKDB_CACHE, projected, show_bytes, workers_within
from prefect_cytotable.tasks.core.errors import AccountError, BadSourceError, DiskSpaceError
from prefect_cytotable.tasks.core.gather import refuse_if_wanted
from prefect_cytotable.tasks.core.inspection import unreadable
from prefect_cytotable.tasks.core.locks import in_use, lock
from prefect_cytotable.tasks.core.memory.tracking import marked
from prefect_cytotable.tasks.core.model import (
    ChunkResult,
    ColumnType,
    Destination,
    Format,
    Gathered,
    Inspected,
    Options,
    OutputFile,
    Plan,
    Report,
    Skipped,
)
from prefect_cytotable.tasks.core.output import check_destination, restore_previous
from prefect_cytotable.tasks.core.plan import check_disk
from prefect_cytotable.tasks.core.report_page import with_page
from prefect_cytotable.tasks.core.schema import widest
from prefect_cytotable.tasks.core.store import Store, scratch, store_at, store_of
from prefect_cytotable.tasks.core.work import PlanPlace


class Caller(Protocol):
    """Calls the stages: plainly, or as tasks.

    Attributes:
        sequential: Whether chunks are converted one after the other.
        processes: Whether chunks are converted outside this process.
        orchestrated: Whether Prefect runs them.
    """

    sequential: bool
    processes: bool
    orchestrated: bool

    def gather(self, options: Options) -> Gathered:
        """Stage 1."""
        ...

    def inspect(
        self,
        gathered: Gathered,
        options: Options,
        widened: tuple[tuple[str, str, ColumnType], ...],
        bad: tuple[Skipped, ...],
    ) -> Inspected:
        """Stage 2."""
        ...

    def plan(self, inspected: Inspected, options: Options) -> Plan:
        """Stage 3."""
        ...

    def convert(self, plan: Plan, place: PlanPlace) -> list[ChunkResult]:
        """Stage 4 for every chunk; results in the order of the chunks."""
        ...

    def write(self, plan: Plan, results: Sequence[ChunkResult], report: Report) -> tuple[OutputFile, ...]:
        """Stage 5."""
        ...

    def report(self, plan: Plan, results: Sequence[ChunkResult]) -> Report:
        """Stage 6: the account of the rows, before the output is written."""
        ...

    def clear_cache(self, gathered: Gathered, options: Options) -> None:
        """Remove the copies of remote sources from every machine that made some."""
        ...

    def publish(self, report: Report) -> None:
        """Show the finished report where people look for it."""
        ...

    def say(self, text: str) -> None:
        """Tell the user something."""
        ...


@dataclass(frozen=True)
class _Amendments:
    """What chunks found that the plan did not know."""

    widened: tuple[tuple[str, str, ColumnType], ...] = ()
    bad: tuple[Skipped, ...] = ()

    def with_results(self, results: Sequence[ChunkResult]) -> _Amendments:
        types = {(compartment, column): type_ for compartment, column, type_ in self.widened}
        bad = {one.where: one for one in self.bad}
        for result in results:
            for compartment, column, type_ in result.widened:
                wider = widest(types.get((compartment, column)), type_)
                assert wider is not None
                types[compartment, column] = wider
            bad |= {one.where: one for one in result.bad}
        widened = tuple((*key, type_) for key, type_ in sorted(types.items()))
        return _Amendments(widened, tuple(bad[where] for where in sorted(bad)))


def run(options: Options, caller: Caller) -> Report:
    """Convert: the stages in turn, under the destination's lock.

    Raises:
        CytotableError: Something is not as it should be; the message says what, where, and what to do. Parts that
            are done stay in the work folder and serve the next run.
    """
    started = time.perf_counter()
    here = scratch(options)
    check_destination(options)
    made = not here.exists()
    with lock(here, options.destination), _work_in_use(options):
        try:
            if restore_previous(options):
                check_destination(options)
            report = _run(options, caller, store_of(options), started)
        except BaseException as error:
            store_of(options).remove_if_unused()
            if made:
                store_at(str(here), ()).remove_if_unused()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(options, error) from error
            raise
        finally:
            pa.default_memory_pool().release_unused()
        _clean(options)
    caller.publish(report)
    return report


def _work_in_use(options: Options) -> AbstractContextManager[None]:
    """The lock of a work folder that is not the destination's own."""
    return nullcontext() if options.work_dir == str(scratch(options)) else in_use(options.work_dir)


def _full(options: Options, error: OSError) -> DiskSpaceError:
    return DiskSpaceError(
        f"{options.work_dir} or {options.destination}: no space left on the disk ({error}). Make room, or choose "
        f"another work_dir or destination. The same command then goes on with the parts that are done."
    )


def draft(options: Options, caller: Caller) -> Plan:
    """The plan alone: nothing is converted and nothing written."""
    plan, _ = _planned(caller.gather(options), options, caller, _Amendments())
    return plan


def _planned(gathered: Gathered, options: Options, caller: Caller, amendments: _Amendments) -> tuple[Plan, _Amendments]:
    """The plan without the sources that cannot be read, those among them that only an index shows to be bad."""
    while True:
        with marked("inspect"):
            inspected = caller.inspect(gathered, options, amendments.widened, amendments.bad)
        try:
            with marked("plan"):
                return _fitted(caller.plan(inspected, options), caller), amendments
        except BadSourceError as error:
            bad = unreadable(inspected.gathered, error, options)
            if bad is None:
                raise
            refuse_if_wanted(bad, options)
            amendments = replace(amendments, bad=(*amendments.bad, bad))


def _run(options: Options, caller: Caller, store: Store, started: float) -> Report:
    with marked("gather"):
        gathered = caller.gather(options)
    try:
        return _converted(gathered, options, caller, store, started)
    finally:
        caller.clear_cache(gathered, options)


def _converted(gathered: Gathered, options: Options, caller: Caller, store: Store, started: float) -> Report:
    amendments = _Amendments()
    store.sweep()
    store_at(str(scratch(options)), ()).sweep()
    while True:
        plan, amendments = _planned(gathered, options, caller, amendments)
        check_disk(plan, scratch(options))
        store.prepare()
        path = store.save_plan(plan)
        try:
            results = caller.convert(plan, PlanPlace(path, options.storage))
        finally:
            store.remove_plan(path)
        if not any(result.amends for result in results):
            break
        for result in results:
            for bad in result.bad:
                refuse_if_wanted(bad, options)
        before, amendments = amendments, amendments.with_results(results)
        if amendments == before:
            raise AccountError(f"Planning again would change nothing: {amendments}. Please report this defect.")
        caller.say(_amended(amendments))
    with marked("report"):
        report = caller.report(plan, results)
    with marked("write"):
        files = caller.write(plan, results, report)
    if options.keep_chunks:
        store.drop_others({chunk.key for chunk in plan.chunks})
    report = replace(report, files=files, seconds=round(time.perf_counter() - started, 2))
    with marked("page"):
        return with_page(plan, results, report)


def _fitted(plan: Plan, caller: Caller) -> Plan:
    """The plan with as many workers as its memory allows."""
    budget = plan.options.memory_budget
    wanted = 1 if caller.sequential else min(plan.options.workers, max(len(plan.chunks), 1))
    databases = any(source.format is Format.DUCKDB for dataset in plan.datasets for source in dataset.sources)
    cache = DUCKDB_CACHE if databases else 0
    chunk = plan.memory + (cache if caller.processes else 0)
    once, each = formats.encoding_memory(plan.options.datatype, plan.memory)
    shared = once + (0 if caller.processes else cache)
    chunk += each
    workers = workers_within(budget - shared, chunk, wanted, caller.processes, caller.orchestrated)
    memory = projected(chunk, workers, caller.processes, caller.orchestrated) + shared
    return replace(plan, workers=workers, memory=memory)


def _amended(amendments: _Amendments) -> str:
    causes = []
    if amendments.widened:
        causes.append(f"{len(amendments.widened)} column(s) need a wider type than the samples showed")
    if amendments.bad:
        causes.append(f"{len(amendments.bad)} source(s) cannot be read")
    return f"Planning again: {' and '.join(causes)}."


def _clean(options: Options) -> None:
    """Remove what only this run needed; kept parts stay."""
    if not options.keep_chunks:
        store_of(options).clear()
        store_of(options).remove_if_unused()
    store_at(str(scratch(options)), ()).remove_if_unused()


def plan_lines(plan: Plan) -> list[str]:
    """A plan as text: what would be done, where, and what it would cost."""
    inspected, gathered = plan.inspected, plan.inspected.gathered
    about = "" if plan.rows_counted else "about "
    files = sum(len(one.sources) for one in gathered.datasets)
    text = [
        f"source       {gathered.root}: {len(gathered.datasets)} dataset(s), {files} table(s), "
        f"{gathered.ignored} other file(s) ignored",
        f"preset       {plan.options.preset.name or 'none'}",
        f"base         {gathered.label(inspected.base)}: {about}{plan.rows:,} rows",
    ]
    for schema in inspected.schemas:
        lacking = sum(one.source(schema.compartment) is None for one in gathered.datasets)
        text.append(
            f"table        {schema.label}: {len(schema.columns):,} columns"
            + (f", keys {schema.image_number} + {schema.object_number}" if schema.object_number else "")
            + (f", missing in {lacking} dataset(s)" if lacking else "")
        )
    for relation in inspected.relations:
        text.append(
            f"relation     {gathered.label(relation.child)}.{relation.column} -> {gathered.label(relation.parent)}"
        )
    for check in plan.key_checks:
        text.append(f"keys         {gathered.label(check.compartment)}: {check.finding}")
    for table in plan.tables:
        text.append(f"output       {table.name}: {len(table.columns):,} columns")
    if plan.options.datatype is not Destination.PARQUET:
        text.append(f"format       {plan.options.datatype.value}, {formats.storing(plan.options)}")
    for dataset in gathered.datasets[:20]:
        number = "" if dataset.table_number is None else f", TableNumber {dataset.table_number}"
        text.append(f"dataset      {dataset.name}{number}")
    if len(gathered.datasets) > 20:
        text.append(f"dataset      ... and {len(gathered.datasets) - 20} more")
    for skipped in gathered.skipped[:20]:
        text.append(f"skipped      {skipped.where}: {skipped.cause}")
    text += [
        f"chunks       {len(plan.chunks)}, {plan.workers} at a time",
        f"memory       {show_bytes(plan.memory)} projected, budget {show_bytes(plan.options.memory_budget)}",
        f"disk         up to {show_bytes(plan.disk)} of parts in {plan.options.work_dir}, as much for the output",
        f"destination  {plan.options.destination}",
    ]
    return text
