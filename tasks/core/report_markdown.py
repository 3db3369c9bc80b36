"""The report as Markdown, for a server's artifact: what came out, where it lies, how to open it, where it is from."""

from __future__ import annotations

import hashlib
from collections import Counter
from importlib.metadata import version

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.model import Cause, Report
from prefect_cytotable.tasks.core.places import is_remote
from prefect_cytotable.tasks.core.redact import redact
from prefect_cytotable.tasks.core.report import PRODUCER
from prefect_cytotable.tasks.core.report_tables import account_rows, escape_markdown, markdown_table, skipped_rows

FILES, DATASETS, SKIPPED, NOTES = 20, 20, 20, 20
"""Lines of each kind that the Markdown shows."""


def how_to_open(report: Report) -> list[tuple[str, str]]:
    """(program, Python that opens the output) pairs.

    Nothing for a container of Azure, which none of these programs reads by that name, and for an output in pieces of
    different tables a line that opens the first.
    """
    if not report.files:
        return []
    several = len(report.files) > 1 and len({one.table for one in report.files}) == 1
    path = redact(report.destination if several else report.files[0].path)
    if path.startswith("az://"):
        return []
    quoted = repr(path)
    if path.endswith(".h5ad"):
        return [("AnnData", f"import anndata\n\ncells = anndata.read_h5ad({quoted}, backed='r')")]
    if path.endswith(".zarr"):
        return [("AnnData", f"import anndata\n\ncells = anndata.read_zarr({quoted})")]
    arrow = f"import pyarrow.dataset as ds\n\ncells = ds.dataset({quoted})\nprint(cells.count_rows(), cells.head(5))"
    if is_remote(path):
        return [("pyarrow", arrow)]
    pattern = f"{path}/*.parquet" if several else path
    sql = f"SELECT * FROM read_parquet('{pattern.replace(chr(39), chr(39) * 2)}') LIMIT 10"
    return [
        ("pandas", f"import pandas as pd\n\ncells = pd.read_parquet({quoted})"),
        ("pyarrow", arrow),
        ("DuckDB", f"import duckdb\n\nduckdb.sql({sql!r})"),
    ]


def dropped_by_cause(report: Report) -> list[tuple[Cause, int]]:
    """Rows dropped in all datasets, by cause."""
    dropped: Counter[Cause] = Counter()
    for account in report.accounts:
        dropped.update(dict(account.dropped))
    return sorted(dropped.items())


def fingerprint(report: Report) -> str:
    """A short mark of the provenance: equal inputs, options and version give an equal one."""
    return hashlib.sha256(report.provenance.encode()).hexdigest()[:16]


def markdown(report: Report) -> str:
    """The report as Markdown."""
    dropped = dropped_by_cause(report)
    rate = report.rows_in / report.seconds if report.seconds else 0.0
    lines = [
        f"# {report.rows_out:,} cells" if report.rows_out else "# No cells: the output is empty",
        "",
        f"{report.rows_in:,} rows in, {report.rows_out:,} out, {sum(rows for _, rows in dropped):,} dropped; "
        f"{report.chunks:,} chunk(s), {report.chunks_reused:,} of them done before; {report.seconds:,.1f} s, "
        f"{rate:,.0f} cells/s.",
        *_output(report),
        *_opened(report),
        *_rows(report),
        *_told(report),
        "",
        "## Provenance",
        "",
        f"{PRODUCER} {version(PRODUCER)}, provenance `{fingerprint(report)}`. The preset, the options, and the "
        f"fingerprint and row account of each dataset lie in the output itself.",
    ]
    return "\n".join(lines)


def _output(report: Report) -> list[str]:
    lines = ["", "## Output", ""]
    for file in report.files[:FILES]:
        size = f"{file.rows:,} rows x {file.columns:,} columns, {show_bytes(file.size)}"
        lines.append(f"- {_path(file.path)}: {size}")
    if len(report.files) > FILES:
        lines.append(f"- and {len(report.files) - FILES:,} more file(s)")
    if report.page:
        lines.append(f"- {_path(report.page)}: the report with the plate's heat map, a page for any browser")
    return lines


def _path(path: str) -> str:
    """A path as code, whatever its letters are."""
    text = " ".join(redact(path).split()).replace("`", "'")
    return f"`{text}`"


def _opened(report: Report) -> list[str]:
    lines = ["", "## How to open it"] if report.files else []
    for title, code in how_to_open(report):
        lines += ["", f"{title}:", "", "```python", code.replace("```", "'''"), "```"]
    if lines and not how_to_open(report):
        lines += ["", "Download it first."]
    return lines


def _rows(report: Report) -> list[str]:
    lossy = sum(bool(one.dropped) for one in report.accounts)
    rows, _ = account_rows(report, min(lossy, DATASETS))
    lines = ["", "## Rows", "", *markdown_table(rows)] if rows else []
    left = f"{lossy - len(rows):,} more dataset(s) lost rows; " if lossy > len(rows) else ""
    return [*lines, "", f"{left}{len(report.accounts) - lossy:,} dataset(s) lost none."]


def _told(report: Report) -> list[str]:
    lines = []
    rows, more = skipped_rows(report, SKIPPED)
    if rows:
        lines += ["", "## Sources skipped", "", *markdown_table(rows)]
        lines += ["", f"{more:,} more."] if more else []
    notes = [*report.warnings, *(f"{one.subject}: {one.count:,} {one.finding}" for one in report.notes)]
    if notes:
        lines += ["", "## Notes", "", *(f"- {escape_markdown(redact(one))}" for one in notes[:NOTES])]
        lines += [f"- and {len(notes) - NOTES:,} more"] if len(notes) > NOTES else []
    return lines
