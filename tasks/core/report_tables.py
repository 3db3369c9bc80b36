"""The tables of a report, as rows for a server's artifacts and for pages: bounded, and with no credentials in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from prefect_cytotable.tasks.core.model import Plan, Report, ReportColumn
from prefect_cytotable.tasks.core.redact import redact
from prefect_cytotable.tasks.core.schema import cast_type

Row = dict[str, object]

MOST_ROWS = 500
"""Rows of a table in a browser; what is beyond is counted in its description."""


def columns_of(plan: Plan) -> tuple[ReportColumn, ...]:
    """Every column of the output: where it comes from, and what happened to it."""
    inspected = plan.inspected
    known = {(schema.compartment, one.name): (schema, one) for schema in inspected.schemas for one in schema.columns}
    widened = {(compartment, column) for compartment, column, _ in inspected.widened}
    sources = Counter(source.compartment for dataset in plan.datasets for source in dataset.sources)
    found = []
    for table in plan.tables:
        for column in table.columns:
            key = (column.compartment, column.column)
            if key not in known:
                found.append(ReportColumn(column.name, "", column.column, "", column.type))
                continue
            schema, source = known[key]
            found.append(
                ReportColumn(
                    name=column.name,
                    table=schema.label,
                    source=source.name,
                    read_as=source.type.value,
                    type=column.type,
                    absent=source.absent,
                    sources=sources[schema.compartment],
                    widened=key in widened,
                    cast=column.type != cast_type(source.type, ()),
                )
            )
    return tuple(found)


def finding(column: ReportColumn) -> str:
    """What happened to a column, in words; empty where nothing did.

    >>> finding(ReportColumn("Cells_A", "Cells", "A", "double", "float", absent=2, sources=9, cast=True))
    'absent from 2 of 9 sources (null there); cast to float as asked'
    """
    texts = []
    if column.absent:
        texts.append(f"absent from {column.absent:,} of {column.sources:,} sources (null there)")
    if column.widened:
        texts.append(f"widened to {column.read_as}: the samples had shown a narrower type")
    if column.cast:
        texts.append(f"cast to {column.type} as asked")
    return "; ".join(texts)


def column_rows(report: Report, limit: int = MOST_ROWS) -> tuple[list[Row], int]:
    """The schema as rows, columns with a finding first; and how many columns are left out."""
    ordered = sorted(report.columns, key=lambda one: not one.notable)
    rows: list[Row] = [
        {
            "column": redact(one.name),
            "table": redact(one.table) or "the dataset",
            "in the sources": redact(one.source),
            "type": one.type,
            "finding": finding(one),
        }
        for one in ordered[:limit]
    ]
    return rows, max(len(ordered) - limit, 0)


def skipped_rows(report: Report, limit: int = MOST_ROWS) -> tuple[list[Row], int]:
    """The sources that were skipped and why, as rows; and how many are left out."""
    rows: list[Row] = [
        {
            "source": redact(one.where),
            "dataset": redact(one.dataset),
            "table": one.compartment,
            "cause": redact(one.cause),
            "rows": "unknown" if one.rows is None else one.rows,
        }
        for one in report.skipped[:limit]
    ]
    return rows, max(len(report.skipped) - limit, 0)


def account_rows(report: Report, limit: int = MOST_ROWS) -> tuple[list[Row], int]:
    """Rows by dataset and cause: a line for what was kept of a dataset, and one for each cause of a loss."""
    rows: list[Row] = []
    total = 0
    for row in _accounted(report):
        total += 1
        if len(rows) < limit:
            rows.append(row)
    return rows, total - len(rows)


def _accounted(report: Report) -> Iterator[Row]:
    """Datasets that lost rows first: of many, those are what is looked for."""
    for one in sorted(report.accounts, key=lambda account: not account.dropped):
        name = redact(one.dataset)
        yield {
            "dataset": name,
            "rows in": one.rows_in,
            "rows out": one.rows_out,
            "dropped": sum(rows for _, rows in one.dropped),
            "cause": "; ".join(f"{rows:,}: {cause.value}" for cause, rows in one.dropped) or "none",
        }


def markdown_table(rows: Sequence[Row]) -> list[str]:
    """Rows as the lines of a Markdown table, with what has a meaning there escaped."""
    if not rows:
        return []
    names = list(rows[0])
    lines = [_line(names), _line(["---"] * len(names))]
    return lines + [_line([_cell(row[name]) for name in names]) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: object) -> str:
    return escape_markdown(f"{value:,}" if isinstance(value, int) else str(value))


def escape_markdown(text: str) -> str:
    r"""A text as Markdown shows it letter by letter, on one line.

    >>> escape_markdown("a|b_<i>*")
    'a\\|b\\_&lt;i&gt;\\*'
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]#|~!" else letter for letter in text)
