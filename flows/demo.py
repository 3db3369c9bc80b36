"""``prefect-cytotable demo``: a small synthetic plate, converted, with a look at the result."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_cytotable.flows.convert import convert
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites
from prefect_cytotable.tasks.core.progress import Lines

SHOWN = (
    "Metadata_ImageNumber",
    "Metadata_ObjectNumber",
    "Metadata_Plate",
    "Metadata_Well",
    "Cells_AreaShape_Area",
    "Nuclei_AreaShape_Area",
)
ROWS = 5


def run_demo(folder: Path) -> Path:
    """Make the plate in `folder`, convert it, print the head of the table; returns the table's path."""
    source, destination = folder / "plate", folder / "cells.parquet"
    write_csv_sites(tables(PlateShape()), source)
    convert(source, destination, overwrite=True, progress=Lines())
    head = next(pq.ParquetFile(destination).iter_batches(batch_size=ROWS, columns=list(SHOWN)))
    print("\n".join(_shown(pa.table(head.select(SHOWN).to_pydict()))))
    print(f"\nThe plate: {source}\nThe table: {destination}")
    print(f'Read it:   python -c "import pandas; print(pandas.read_parquet({str(destination)!r}))"')
    return destination


def _shown(table: pa.Table) -> list[str]:
    """A small table as aligned text."""
    rows = [list(table.column_names)]
    for row in table.to_pylist():
        rows.append([f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
