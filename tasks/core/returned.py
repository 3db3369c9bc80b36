"""What a conversion returns to who called it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from prefect_cytotable.tasks.core.model import Options, Report

Returned = str | list[str] | dict[str, list[dict[str, Any]]]
"""What `convert` returns: a path; a list of paths; or lists of {"source_path", "table"} by table name."""


def returned(report: Report, options: Options) -> Returned:
    """The value that CytoTable's users expect: see `prefect_cytotable.flows.convert`."""
    if options.join:
        return report.destination if options.concat else [file.path for file in report.files]
    tables: dict[str, dict[Path, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in report.files:
        source = Path(file.source or options.source)
        tables[file.name][source].append(Path(file.path))
    return {
        name: [{"source_path": source, "table": paths} for source, paths in sources.items()]
        for name, sources in tables.items()
    }
