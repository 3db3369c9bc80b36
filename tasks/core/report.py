"""Stage 6, report: rows in are rows out plus rows dropped by cause, for each dataset; and the provenance."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import msgspec

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.errors import AccountError
from prefect_cytotable.tasks.core.model import (
    Account,
    Cause,
    ChunkResult,
    Dataset,
    Note,
    Plan,
    Report,
    Skipped,
)
from prefect_cytotable.tasks.core.redact import redact
from prefect_cytotable.tasks.core.report_tables import columns_of

PRODUCER = "prefect-cytotable"
LISTED_SOURCES = 200
"""Datasets of which the provenance lists every source; of more it has a digest of each."""


def build(plan: Plan, results: Sequence[ChunkResult]) -> Report:
    """The report of a conversion whose chunks are all done; the output's files are still to come.

    Raises:
        AccountError: Rows are not accounted for.
    """
    accounts = _accounts(plan, results)
    for account in accounts:
        if not account.balanced:
            raise AccountError(f"{account.dataset}: rows in, out and dropped do not add up: {account}.")
    rows = sum(result.rows for result in results)
    if rows != sum(account.rows_out for account in accounts):
        raise AccountError(f"The parts hold {rows} rows, the accounts tell of others. Please report this defect.")
    tables_in: Counter[str] = Counter()
    notes: Counter[tuple[str, str]] = Counter()
    for result in results:
        tables_in.update(dict(result.tables_in))
        notes.update({(note.subject, note.finding): note.count for note in result.notes})
    inspected = plan.inspected
    absent = Counter({one.label: sum(bool(column.absent) for column in one.columns) for one in inspected.schemas})
    report = Report(
        destination=plan.options.destination,
        files=(),
        accounts=accounts,
        tables_in=tuple((schema.label, tables_in[schema.compartment]) for schema in inspected.schemas),
        skipped=inspected.gathered.skipped,
        notes=tuple(Note(subject, finding, count) for (subject, finding), count in sorted(notes.items())),
        warnings=tuple(_warnings(plan, rows)),
        columns_absent=tuple((label, count) for label, count in absent.items() if count),
        widened=inspected.widened,
        chunks=len(results),
        chunks_reused=sum(result.reused for result in results),
        seconds=0.0,
        columns=columns_of(plan),
    )
    return replace(report, provenance=provenance(plan, report))


def _accounts(plan: Plan, results: Sequence[ChunkResult]) -> tuple[Account, ...]:
    """The chunks' accounts by dataset, and the rows of base tables that could not be read at all."""
    rows_in: Counter[str] = Counter()
    rows_out: Counter[str] = Counter()
    added: Counter[str] = Counter()
    dropped: dict[str, Counter[Cause]] = defaultdict(Counter)
    for result in results:
        for one in result.accounts:
            rows_in[one.dataset] += one.rows_in
            rows_out[one.dataset] += one.rows_out
            added[one.dataset] += one.added
            dropped[one.dataset].update(dict(one.dropped))
    for skipped in plan.inspected.gathered.skipped:
        if skipped.rows and (skipped.compartment == plan.inspected.base or not plan.options.join):
            rows_in[skipped.dataset] += skipped.rows
            dropped[skipped.dataset][Cause.BAD_SOURCE] += skipped.rows
    names = [dataset.name for dataset in plan.datasets]
    return tuple(
        Account(name, rows_in[name], rows_out[name], tuple(sorted(dropped[name].items())), added[name])
        for name in names
    )


def _warnings(plan: Plan, rows: int) -> list[str]:
    inspected = plan.inspected
    warnings = [] if rows else ["the output is empty: no row was left"]
    present = {schema.compartment for schema in inspected.schemas}
    for key, label in inspected.gathered.labels:
        if key not in present:
            warnings.append(f"no dataset has a readable table of {label}")
            continue
        lacking = [one.name for one in plan.datasets if one.source(key) is None]
        if lacking:
            warnings.append(f"{len(lacking)} dataset(s) have no readable table of {label}, for example {lacking[0]}")
    if len(plan.datasets) > 1 and not plan.with_table_number:
        warnings.append("the output has no Metadata_TableNumber, so rows of different datasets can look alike")
    return warnings


def provenance(plan: Plan, report: Report) -> str:
    """Where the output comes from, as JSON: tool, preset, sources, row account. Equal input gives equal text."""
    options = plan.options
    detailed = len(plan.datasets) <= LISTED_SOURCES
    datasets = [
        _dataset(dataset, account, detailed) for dataset, account in zip(plan.datasets, report.accounts, strict=True)
    ]
    content = {
        "tool": PRODUCER,
        "version": version(PRODUCER),
        "preset": options.preset.name,
        "base": plan.inspected.base,
        "relations": plan.inspected.relations,
        "options": {
            "join": options.join,
            "joins": options.query,
            "drop_null": options.drop_null,
            "data_type_cast_map": dict(options.casts),
            "unmatched": options.unmatched,
            "image_columns": options.image_columns,
            "sort_output": options.sort_output,
        },
        "datasets": datasets,
        "skipped": [(one.dataset, one.compartment, one.cause) for one in report.skipped],
        "rows_in": report.rows_in,
        "rows_out": report.rows_out,
    }
    return msgspec.json.encode(content).decode()


def _dataset(dataset: Dataset, account: Account, detailed: bool) -> dict[str, object]:
    sources = [
        (one.compartment, one.table, one.fingerprint.size, one.fingerprint.modified, one.fingerprint.mark)
        for one in dataset.sources
    ]
    known: dict[str, object] = {
        "name": dataset.name,
        "table_number": dataset.table_number,
        "rows_in": account.rows_in,
        "rows_out": account.rows_out,
        "dropped": {cause.value: rows for cause, rows in account.dropped},
        "fingerprint": hashlib.sha256(msgspec.json.encode(sources)).hexdigest()[:32],
    }
    if detailed:
        known["sources"] = sources
    return known


def metadata(report: Report) -> dict[str, str]:
    """What goes into a Parquet file's metadata."""
    return {
        "data-producer": PRODUCER,
        "data-producer-version": version(PRODUCER),
        PRODUCER: report.provenance,
    }


def is_metadata(metadata: dict[bytes, bytes] | None) -> bool:
    """Whether a Parquet file's metadata says that this program wrote it."""
    return (metadata or {}).get(b"data-producer") == PRODUCER.encode()


def table(report: Report) -> list[dict[str, object]]:
    """The row account as the rows of a table: a line for each dataset, with its causes."""
    return [
        {
            "dataset": redact(one.dataset),
            "rows in": one.rows_in,
            "rows out": one.rows_out,
            "dropped": "; ".join(f"{rows:,}: {cause.value}" for cause, rows in one.dropped) or "none",
        }
        for one in report.accounts
    ]


def lines(report: Report) -> list[str]:
    """The report for a terminal or a log: what a scientist needs, in few lines."""
    dropped: Counter[Cause] = Counter()
    for account in report.accounts:
        dropped.update(dict(account.dropped))
    text = [f"rows: {report.rows_in:,} in, {report.rows_out:,} out, {sum(dropped.values()):,} dropped"]
    text += [f"  dropped {rows:,}: {cause.value}" for cause, rows in sorted(dropped.items())]
    added = sum(account.added for account in report.accounts)
    if added:
        text.append(f"  added {added:,} by the joins query")
    text += [f"skipped {_skipped(one)}" for one in report.skipped[:5]]
    if len(report.skipped) > 5:
        text.append(f"skipped {len(report.skipped) - 5} more source(s); the report lists them")
    text += [f"note: {warning}" for warning in report.warnings]
    text += [
        f"note: {label}: {count} column(s) are absent from some sources (null there)"
        for label, count in report.columns_absent
    ]
    text += [f"note: {_note(note)}" for note in report.notes[:8]]
    if len(report.notes) > 8:
        text.append(f"note: {len(report.notes) - 8} more; the report lists them")
    if report.widened:
        names = ", ".join(f"{column} to {type_.value}" for _, column, type_ in report.widened[:3])
        text.append(f"note: {len(report.widened)} column(s) needed a wider type than sampled ({names})")
    if report.page:
        text.append(f"wrote {report.page}: this report with more, for a browser")
    for file in report.files[:6]:
        text.append(f"wrote {file.path}: {file.rows:,} rows x {file.columns:,} columns, {show_bytes(file.size)}")
    if len(report.files) > 6:
        text.append(f"wrote {len(report.files) - 6} more file(s)")
    reused = f", {report.chunks_reused} of them done before" if report.chunks_reused else ""
    text.append(f"{report.chunks} chunk(s){reused}, {report.seconds:.1f} s")
    return [redact(line) for line in text]


def _skipped(one: Skipped) -> str:
    rows = f" ({one.rows:,} rows)" if one.rows else ""
    return f"{one.where}: {one.cause}{rows}"


def _note(note: Note) -> str:
    return f"{note.subject}: {note.count:,} {note.finding}"
