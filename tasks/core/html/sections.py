"""The sections of the page, each from the report and what belongs to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.html.heatmap import heat_maps
from prefect_cytotable.tasks.core.html.timeline import Bar, timeline
from prefect_cytotable.tasks.core.html.wells import Plate
from prefect_cytotable.tasks.core.html.writing import (
    Cell,
    Html,
    bar,
    duration,
    facts,
    more,
    paragraph,
    section,
    table,
    text,
)
from prefect_cytotable.tasks.core.model import IMAGE, ChunkResult, Plan, Report
from prefect_cytotable.tasks.core.report import PRODUCER
from prefect_cytotable.tasks.core.report_markdown import dropped_by_cause, fingerprint, how_to_open
from prefect_cytotable.tasks.core.report_tables import account_rows, finding, skipped_rows
from prefect_cytotable.tasks.core.tally import Merged

FILES, DATASETS, SKIPPED, NOTES, FEATURES, COLUMNS, FINGERPRINTS = 50, 200, 200, 100, 30, 150, 100
"""Lines of each kind that the page shows."""

Row = tuple[Cell | Html, ...]


def summary(report: Report, plates: Sequence[Plate]) -> str:
    """What came out, in a few numbers, and where it lies."""
    dropped = sum(rows for _, rows in dropped_by_cause(report))
    pairs: list[tuple[str, Cell]] = [
        ("rows out", report.rows_out),
        ("rows in", report.rows_in),
        ("rows dropped", dropped),
        ("datasets", len(report.accounts)),
    ]
    if wells := sum(len(plate.cells) + sum(bool(name) for name, _ in plate.unplaced) for plate in plates):
        pairs.append(("wells with cells", wells))
    if report.files:
        pairs.append(("columns", max(file.columns for file in report.files)))
        pairs.append(("size", show_bytes(sum(file.size for file in report.files))))
    pairs.append(("time", duration(report.seconds)))
    if report.seconds:
        pairs.append(("rows a second", int(report.rows_in / report.seconds)))
    files: list[Row] = [(file.path, file.rows, file.columns, show_bytes(file.size)) for file in report.files[:FILES]]
    return section(
        "summary",
        "Summary",
        facts(pairs)
        + table("Output", ("file", "rows", "columns", "size"), files)
        + more(len(report.files) - FILES, "file(s)")
        + _opened(report),
    )


def _opened(report: Report) -> str:
    """How to open the output, folded: who knows it already need not scroll past it."""
    ways = how_to_open(report)
    if not ways:
        return ""
    title = f"How to open it: {', '.join(name for name, _ in ways)}"
    code = "".join(f"<h3>{text(name)}</h3><pre><code>{_code(lines)}</code></pre>" for name, lines in ways)
    return f"<details><summary>{text(title)}</summary>{code}</details>"


def _code(code: str) -> str:
    return "\n".join(text(line) for line in code.split("\n"))


def warnings(report: Report) -> str:
    """What a person should look at first; nothing where there is nothing."""
    rows, left = skipped_rows(report, SKIPPED)
    skipped = [_cells(one, "source", "table", "cause", "rows") for one in rows]
    notes = [*report.warnings]
    notes += [f"{one.subject}: {one.count:,} {one.finding}" for one in report.notes]
    notes += [f"{label}: {count:,} column(s) are absent from some sources" for label, count in report.columns_absent]
    if report.widened:
        notes.append(f"{len(report.widened):,} column(s) needed a wider type than sampled")
    if not skipped and not notes:
        return section("notes", "Notes", paragraph("Nothing: every source was read, no value stood out."))
    items = "".join(f"<li>{text(note)}</li>" for note in notes[:NOTES])
    return section(
        "notes",
        f"{len(report.skipped):,} source(s) skipped, {len(notes):,} note(s)",
        table("Sources skipped", ("source", "table", "cause", "rows in it"), skipped)
        + more(left, "source(s)")
        + (f"<ul>{items}</ul>" if items else "")
        + more(len(notes) - NOTES, "note(s)"),
    )


def _cells(row: Mapping[str, object], *names: str) -> Row:
    """Those values of a row, numbers as numbers."""
    return tuple(value if isinstance(value := row[name], int) else str(value) for name in names)


def accounts(report: Report) -> str:
    """Rows in = rows out + rows dropped, by cause and by dataset."""
    causes: list[Row] = [("kept", report.rows_out, bar(_share(report.rows_out, report.rows_in)))]
    causes += [(cause.value, rows, bar(_share(rows, report.rows_in))) for cause, rows in dropped_by_cause(report)]
    added = sum(one.added for one in report.accounts)
    if added:
        causes.append(("added by the joins query", added, bar(0)))
    rows, left = account_rows(report, DATASETS)
    by_dataset = [_cells(one, "dataset", "rows in", "rows out", "dropped", "cause") for one in rows]
    lossy = min(sum(bool(one.dropped) for one in report.accounts), len(by_dataset))
    whole = len(report.accounts) - lossy
    total = f"{report.rows_in:,} in{f' + {added:,} added' if added else ''} = {report.rows_out:,} out + "
    total += f"{sum(count for _, count in dropped_by_cause(report)):,} dropped"
    names = ("dataset", "rows in", "rows out", "dropped", "why")
    return section(
        "rows",
        "Rows",
        paragraph(total)
        + table("Rows by what became of them", ("what became of them", "rows", "share"), causes, sortable=False)
        + table("Datasets that lost rows", names, by_dataset[:lossy])
        + _folded("Datasets whose rows are all there", names[:3], [row[:3] for row in by_dataset[lossy:]], left)
        + (more(left, "dataset(s)") if lossy == len(by_dataset) and whole else ""),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def wells(report: Report, plan: Plan, plates: Sequence[Plate]) -> str:
    """Cells of each well."""
    if not plates:
        reason = "The tables are not joined" if not plan.options.join else "No column of the output names the well"
        return section("wells", "Cells per well", paragraph(f"{reason}, so that cells cannot be counted by well."))
    counted = sum(plate.total for plate in plates)
    words = ""
    if counted != report.rows_out:
        words = paragraph(
            f"{report.rows_out - counted:,} of {report.rows_out:,} rows are not in the maps: there are too many wells, "
            f"or chunks that an earlier version converted without counting them."
        )
    return section("wells", "Cells per well", words + heat_maps(plates))


def compartments(report: Report) -> str:
    """Rows that were read of each table."""
    labels = [label for label, _ in report.tables_in]
    images = next((rows for label, rows in report.tables_in if label.lower() == IMAGE), 0)
    most = max([rows for _, rows in report.tables_in], default=0)
    names = ["table", "rows read", "share of the largest"] + (["rows an image"] if images else [])
    rows: list[Row] = [
        (label, count, bar(_share(count, most)), *([count / images] if images else []))
        for label, count in report.tables_in
    ]
    return section("tables", "Tables", table(f"Rows read of {len(labels)} table(s)", names, rows, sortable=False))


def features(plan: Plan, merged: Merged) -> str:
    """Columns with the most nulls, and columns with one value in all rows."""
    names = {(at, column): one.name for at, made in enumerate(plan.tables) for column, one in enumerate(made.columns)}
    without = [key for key, count in merged.nulls.items() if count == merged.rows[key[0]]]
    some = [(key, count) for key, count in merged.nulls.most_common() if key not in set(without)]
    same = [(key, value) for key, value in merged.constants.items() if value is not None]
    lost = _untold(merged, "nulls")
    null_rows: list[Row] = [
        (names[key], count, 100 * count / merged.rows[key[0]], bar(count / merged.rows[key[0]]))
        for key, count in some[:FEATURES]
    ]
    same_rows: list[Row] = [(names[key], value, merged.nulls[key]) for key, value in sorted(same)[:COLUMNS]]
    empty_rows: list[Row] = [(names[key], merged.rows[key[0]]) for key in sorted(without)[:COLUMNS]]
    total = len(names)
    words = f"Of {total:,} columns {len(without):,} have no value at all, {len(some):,} lack some, and "
    words += f"{len(same):,} have the same value in every row that has one."
    if not merged.chunks:
        words = "The output has no rows."
    return section(
        "features",
        "Columns",
        paragraph(words)
        + lost
        + table("Columns with the most missing values", ("column", "missing", "percent", "share"), null_rows)
        + more(len(some) - FEATURES, "columns with missing values")
        + _untold(merged, "constants")
        + _folded("Columns with one value", ("column", "value", "missing"), same_rows, len(same) - COLUMNS)
        + _folded("Columns without any value", ("column", "rows"), empty_rows, len(without) - COLUMNS),
    )


def _untold(merged: Merged, what: str) -> str:
    """What is not known because it would have taken too much room."""
    count = merged.untold[what]
    if not count:
        return ""
    return paragraph(f"{count:,} of {merged.chunks:,} chunks could not tell their {what}: these are of the others.")


def _folded(title: str, names: Sequence[str], rows: Sequence[Row], left: int) -> str:
    if not rows:
        return ""
    count = len(rows) + max(left, 0)
    inside = table(title, names, rows) + more(left, "columns")
    return f"<details><summary>{text(title)}: {count:,}</summary>{inside}</details>"


def schema(report: Report) -> str:
    """Columns that are absent from some sources or were widened, one by one; casts by their types."""
    singular = [one for one in report.columns if one.absent or one.widened]
    casts = Counter((one.read_as, one.type) for one in report.columns if one.cast)
    words = f"{len(report.columns):,} columns; "
    words += f"{len(singular):,} of them not as every source has them." if singular else "each as every source has it."
    items = "".join(
        f"<li>{count:,} columns were cast from {text(old)} to {text(new)}, as asked.</li>"
        for (old, new), count in casts.most_common()
    )
    rows: list[Row] = [(one.name, one.table, one.type, finding(one)) for one in singular[:COLUMNS]]
    body = table("Columns absent or widened", ("column", "table", "type", "finding"), rows)
    left = more(len(singular) - COLUMNS, "columns")
    return section("schema", "Schema", paragraph(words) + (f"<ul>{items}</ul>" if items else "") + body + left)


def chunks(plan: Plan, results: Sequence[ChunkResult], since: float) -> str:
    """When each chunk was converted, where, and for how long; those of earlier runs were begun before `since`.

    A run that planned again finds its own chunks done: these are drawn too.
    """
    fresh = [one for one in results if one.begun and (not one.reused or one.begun >= since)]
    begin = min((one.begun for one in fresh), default=0.0)
    bars = [
        Bar(plan.chunks[one.number].name, round(one.begun - begin, 3), one.seconds, one.worker, one.rows)
        for one in fresh
    ]
    return section("chunks", "Chunks", timeline(bars, len(results) - len(fresh)))


def provenance(plan: Plan, report: Report) -> str:
    """What was asked for, and what the output was made from."""
    options = plan.options
    asked: list[Row] = [
        ("source", options.source),
        ("destination", options.destination),
        ("preset", options.preset.name or "none"),
        ("base table", plan.inspected.gathered.label(plan.inspected.base)),
        ("memory budget", show_bytes(options.memory_budget)),
        ("memory projected", show_bytes(plan.memory)),
        ("chunks at a time", str(plan.workers)),
        *((name, _shown(getattr(options, name))) for name in _OPTIONS),
    ]
    content: dict[str, Any] = json.loads(report.provenance)
    known: list[Row] = [
        (str(one["name"]), str(one["table_number"] or "–"), one["fingerprint"])
        for one in content["datasets"][:FINGERPRINTS]
    ]
    words = (
        f"{PRODUCER} {version(PRODUCER)}; provenance {fingerprint(report)}: equal sources, options and version give an "
    )
    words += "equal one. The whole of it lies in the metadata of the output."
    return section(
        "provenance",
        "Options and provenance",
        paragraph(words)
        + table("What was asked for", ("option", "value"), asked, sortable=False)
        + table("Datasets", ("dataset", "TableNumber", "fingerprint of its sources"), known)
        + more(len(content["datasets"]) - FINGERPRINTS, "dataset(s)"),
    )


_OPTIONS = (
    "join", "concat", "query", "chunk_rows", "common_schema", "drop_null", "casts", "table_number", "sort_output",
    "keep_chunks", "unmatched", "on_bad_source", "image_columns", "required",
)  # fmt: skip


def _shown(value: object) -> Cell:
    if isinstance(value, tuple):
        return ", ".join("=".join(one) if isinstance(one, tuple) else str(one) for one in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value in (None, "", 0) else str(value)
