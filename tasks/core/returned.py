"""What a conversion returns to who called it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from prefect_cytotable.tasks.core.model import Options, Report
from prefect_cytotable.tasks.core.places import is_remote

Returned = str | list[str] | dict[str, list[dict[str, Any]]]
"""What `convert` returns: a path; a list of paths; or lists of {"source_path", "table"} by table name.

In the last of these, local paths are Path objects and URLs are texts.
"""


def returned(report: Report, options: Options) -> Returned:
    """The value that CytoTable's users expect: see `prefect_cytotable.flows.convert`."""
    if options.join:
        return report.destination if options.concat else [file.path for file in report.files]
    tables: dict[str, dict[Path | str, list[Path | str]]] = defaultdict(lambda: defaultdict(list))
    for file in report.files:
        tables[file.name][_place(file.source or options.source)].append(_place(file.path))
    return {
        name: [{"source_path": source, "table": paths} for source, paths in sources.items()]
        for name, sources in tables.items()
    }


def _place(path: str) -> Path | str:
    return path if is_remote(path) else Path(path)
