"""The whole page: one file with its style and its script inside, which may load nothing from anywhere.

A Content-Security-Policy in the page names its own style and script by their hashes and forbids everything else, so
that even markup that got past `text` could not run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files

from prefect_cytotable.tasks.core.html import sections
from prefect_cytotable.tasks.core.html.wells import plates_of
from prefect_cytotable.tasks.core.html.writing import duration, text
from prefect_cytotable.tasks.core.model import ChunkResult, Plan, Report
from prefect_cytotable.tasks.core.places.urls import name_of
from prefect_cytotable.tasks.core.report import PRODUCER
from prefect_cytotable.tasks.core.tally import merge

SECTIONS = (
    ("summary", "Summary"),
    ("notes", "Notes"),
    ("wells", "Cells per well"),
    ("rows", "Rows"),
    ("tables", "Tables"),
    ("features", "Columns"),
    ("schema", "Schema"),
    ("chunks", "Chunks"),
    ("provenance", "Options and provenance"),
)


def mark(destination: str) -> str:
    """What a page begins with, by which it is known as the report of that destination.

    Only the destination's name is in it: a folder can be moved.
    """
    name = hashlib.sha256(name_of(destination).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"<!doctype html><!-- {PRODUCER} report {name} -->\n"


def render(plan: Plan, results: Sequence[ChunkResult], report: Report, now: datetime | None = None) -> str:
    """The page.

    Args:
        plan: What was planned.
        results: Of every chunk, in order.
        report: With the files that were written.
        now: When it was done; this moment by default.
    """
    now = now or datetime.now(UTC)  # first of all: the run's begin is reckoned back from it
    merged = merge(one.tally for one in results)
    plates = plates_of(merged.wells)
    source, destination = name_of(report_source(plan)), name_of(report.destination)
    done = now.strftime("%Y-%m-%d %H:%M UTC")
    body = "".join(
        (
            sections.summary(report, plates),
            sections.warnings(report),
            sections.wells(report, plan, plates),
            sections.accounts(report),
            sections.compartments(report),
            sections.features(plan, merged),
            sections.schema(report),
            sections.chunks(plan, results, now.timestamp() - report.seconds),
            sections.provenance(plan, report),
        )
    )
    links = "".join(f'<li><a href="#{key}">{text(title)}</a></li>' for key, title in SECTIONS)
    style, script = _file("page.css"), _file("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        f'{mark(report.destination)}<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><meta name="generator" content="{PRODUCER} {version(PRODUCER)}">'
        f"<title>{text(destination)}: {report.rows_out:,} cells</title><style>{style}</style></head><body>"
        '<a class="skip" href="#main">Skip to the report</a>'
        f"<header><h1>{text(destination)}</h1><p>{text(source)} with {text(plan.options.preset.name or 'no preset')}, "
        f"converted in {duration(report.seconds)}, done {text(done)}</p></header>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main id="main" tabindex="-1">{body}</main>'
        f"<footer><p>{PRODUCER} {text(version(PRODUCER))}</p></footer><script>{script}</script></body></html>\n"
    )


def report_source(plan: Plan) -> str:
    """Where the measurements lie."""
    return plan.inspected.gathered.root.rstrip("/")


def _file(name: str) -> str:
    return files("prefect_cytotable.tasks.core.html").joinpath(name).read_text(encoding="utf-8").strip()


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
