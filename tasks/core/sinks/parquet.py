"""Parquet: the parts, and the one file that they become."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_cytotable.tasks.core.arrays import empty
from prefect_cytotable.tasks.core.checksums import checksum
from prefect_cytotable.tasks.core.model import OutputTable
from prefect_cytotable.tasks.core.schema import arrow_type
from prefect_cytotable.tasks.core.sinks import parquet_splice

COMPRESSION = "snappy"
READ_BLOCK = 1 << 18


def schema_of(table: OutputTable) -> pa.Schema:
    """The Arrow schema of an output table."""
    return pa.schema([pa.field(column.name, arrow_type(column.type)) for column in table.columns])


def write_part(table: pa.Table, path: Path) -> tuple[int, int]:
    """Write one chunk's rows; returns (bytes, CRC-32) of the file.

    Texts are encoded with a dictionary, because file names and wells repeat; numbers are not, because they do not.
    Only texts and whole numbers get statistics: readers skip by plate, well or image, not by a measurement.
    """
    _write(table, path)
    return path.stat().st_size, checksum(path)


class Ahead:
    """The output's file, into which finished parts are copied while later ones are still being converted.

    The disk is then busy from the beginning, instead of being waited for at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[Path] = []
        self.file = path.open("wb", buffering=0)

    def add(self, part: Path) -> None:
        """Copy one part more; parts come in the order of the output."""
        parquet_splice.append(part, self.file)
        self.parts.append(part)

    def discard(self) -> None:
        """Close and remove the file."""
        self.file.close()
        self.path.unlink(missing_ok=True)


def write_whole(parts: list[Path], table: OutputTable, metadata: dict[str, str], output: Path | Ahead) -> int:
    """Join parts to one file without decoding them; returns its number of rows.

    Args:
        parts: Files that `write_part` wrote with the schema of `table`, in the order of the output.
        table: Columns of the output; without a part they make a valid, empty file.
        metadata: Keys and values that go into the file's metadata.
        output: Where to write (what is there is replaced), or the file that has the first parts already.

    Raises:
        PartMismatchError: A part has other columns.
        DamagedPartError: A part cannot be read.
    """
    schema = schema_of(table).with_metadata(metadata)
    sink = pa.BufferOutputStream()
    _write(pa.Table.from_arrays([empty(field.type) for field in schema], schema=schema), sink)
    ahead = output if isinstance(output, Ahead) else Ahead(output)
    assert parts[: len(ahead.parts)] == ahead.parts
    with ahead.file as file:
        rows = parquet_splice.splice(parts, sink.getvalue().to_pybytes(), file, len(ahead.parts))
        os.fsync(file.fileno())
    return rows


def _write(table: pa.Table, where: Path | pa.NativeFile) -> None:
    texts = [field.name for field in table.schema if _is_text(field.type)]
    ranked = [field.name for field in table.schema if _is_text(field.type) or pa.types.is_integer(field.type)]
    pq.write_table(
        table,
        where,
        compression=COMPRESSION,
        use_dictionary=texts,
        write_statistics=ranked,
        row_group_size=max(table.num_rows, 1),
        write_page_index=False,
    )


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))
