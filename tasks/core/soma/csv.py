"""CSV, as texts."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc

from prefect_cytotable.tasks.core.soma.labels import Labels

CSV_ROWS = 1 << 14
"""Rows turned to text at a time: texts take several times what labels do."""


class CsvSink:
    """A header and lines; nulls are empty, texts quoted."""

    def __init__(self, path: Path, schema: pa.Schema, labels: dict[str, Labels]) -> None:
        self._labels = labels
        self._schema = pa.schema(
            [field.with_type(field.type.value_type) if field.name in labels else field for field in schema]
        )
        self.rows = 0
        self._file = path.open("xb")
        self._writer = pc.CSVWriter(self._file, self._schema)

    def write(self, group: pa.RecordBatch) -> None:
        """Write lines."""
        for start in range(0, group.num_rows, CSV_ROWS):
            piece = group.slice(start, CSV_ROWS)
            columns = [
                self._labels[name].dictionary().take(column) if name in self._labels else column
                for name, column in zip(group.schema.names, piece.columns, strict=True)
            ]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self.rows += group.num_rows

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()
