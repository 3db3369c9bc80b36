"""The values that one stage passes to the next: frozen, small, and nothing but data.

Compartments are keyed in lower case ("cells", "nuclei_cellpose3"); what the user sees is their label ("Cells").
Every type here can be written to JSON and back (`prefect_cytotable.tasks.core.store`), because a chunk task gets
a path and a number, and finds the rest in the plan's file.
"""

from __future__ import annotations

from prefect_cytotable.tasks.core.model.asked import (
    ANY_TABLE,
    IMAGE,
    JOINED,
    Cause,
    ColumnType,
    Destination,
    Format,
    OnBadSource,
    Options,
    Preset,
    PresetRelation,
    Unmatched,
)
from prefect_cytotable.tasks.core.model.done import (
    Account,
    ChunkResult,
    Note,
    OutputFile,
    Part,
    Report,
    ReportColumn,
)
from prefect_cytotable.tasks.core.model.found import (
    Column,
    Dataset,
    Fingerprint,
    Gathered,
    Inspected,
    Only,
    Relation,
    Schema,
    Skipped,
    Source,
    TableNumber,
)
from prefect_cytotable.tasks.core.model.planned import (
    Chunk,
    KeyCheck,
    OutputColumn,
    OutputTable,
    Plan,
    Region,
    Slice,
    Span,
)

__all__ = [
    "ANY_TABLE",
    "IMAGE",
    "JOINED",
    "Account",
    "Cause",
    "Chunk",
    "ChunkResult",
    "Column",
    "ColumnType",
    "Dataset",
    "Destination",
    "Fingerprint",
    "Format",
    "Gathered",
    "Inspected",
    "KeyCheck",
    "Note",
    "OnBadSource",
    "Only",
    "Options",
    "OutputColumn",
    "OutputFile",
    "OutputTable",
    "Part",
    "Plan",
    "Preset",
    "PresetRelation",
    "Region",
    "Relation",
    "Report",
    "ReportColumn",
    "Schema",
    "Skipped",
    "Slice",
    "Source",
    "Span",
    "TableNumber",
    "Unmatched",
]
