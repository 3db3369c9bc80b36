"""What was asked for: presets and options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

IMAGE = "image"
"""Key of the image table."""


JOINED = "joined"
"""Name of the joined table among a chunk's parts."""


class Format(StrEnum):
    """Formats of a source."""

    CSV = "csv"
    SQLITE = "sqlite"
    NPZ = "npz"
    PARQUET = "parquet"
    DUCKDB = "duckdb"


class Destination(StrEnum):
    """Formats of the output."""

    PARQUET = "parquet"
    H5AD = "anndata_h5ad"
    ZARR = "anndata_zarr"

    @property
    def suffix(self) -> str:
        """How its files end."""
        return {Destination.H5AD: ".h5ad", Destination.ZARR: ".zarr"}.get(self, ".parquet")


class ColumnType(StrEnum):
    """What a source's column holds; `widest` in schema.py says which of two holds both."""

    BOOL = "bool"
    INT64 = "int64"
    FLOAT = "float"
    DOUBLE = "double"
    STRING = "string"


class Unmatched(StrEnum):
    """What happens to a base object that lacks a parent."""

    DROP = "drop"
    KEEP = "keep"
    ERROR = "error"


class OnBadSource(StrEnum):
    """What happens when one source cannot be read."""

    SKIP = "skip"
    ERROR = "error"


class Cause(StrEnum):
    """Why a row of the base compartment is not in the output."""

    NO_IMAGE_NUMBER = "no image number"
    NO_OBJECT_NUMBER = "no object number"
    NO_IMAGE_TABLE = "its dataset has no readable image table"
    NO_TABLE = "its dataset has no readable table of a parent compartment"
    NO_PARENT = "it names no parent"
    PARENT_MISSING = "the parent it names does not exist"
    HAS_NULL = "a value is missing (drop_null)"
    QUERY = "the joins query left it out"
    BAD_SOURCE = "its own table cannot be read"


@dataclass(frozen=True)
class PresetRelation:
    """Child rows name their parent by number in `column`, a pattern over {child} and {parent} labels."""

    child: str
    parent: str
    column: str


ANY_TABLE = "*"
"""The table name, in a preset, of exporters that write one table a file, under any name."""


@dataclass(frozen=True)
class Preset:
    """Names, keys and relations of one exporter's layout. See docs/pages/presets.md for every field.

    Attributes:
        image_number: Empty where rows belong to no image that has a number.
        table_number: The column that tells apart the datasets inside one file, where a table has it.
        keep_names: Whether columns keep their names and their order.
    """

    name: str
    title: str
    format: Format
    table_names: tuple[str, ...]
    compartments: tuple[str, ...]
    metadata: tuple[str, ...]
    base: str
    image_number: str
    object_number: str
    identifying: tuple[str, ...]
    image_columns: tuple[str, ...]
    relations: tuple[PresetRelation, ...]
    table_number: str = "TableNumber"
    keep_names: bool = False

    @property
    def any_table(self) -> bool:
        """Whether every file is a table of the one compartment there is."""
        return ANY_TABLE in self.table_names


@dataclass(frozen=True)
class Options:
    """A conversion as it was asked for, checked, with every default filled in.

    Attributes:
        memory_budget: Bytes for the whole process tree.
        chunk_rows: Rows of the base compartment in a chunk, or 0 where the memory budget decides.
        table_number: True or False where the user decided, None where the number of datasets decides.
        object_numbers: (compartment, column) pairs that replace the preset's object number column.
        casts: (type group, Arrow type name) pairs, groups being "float", "integer" and "string".
        image_columns: Patterns over the output names of image columns.
        relations: The user's relations, which replace the preset's where there are any.
        required: Compartments that the user named, as keys; each must be there.
        storage: How object storage is reached, as (option, value) pairs; never a secret.
        compression: Of an AnnData: what its format calls it, or empty for the fast one.
        zarr_format: Of an AnnData in a zarr store.
        x_chunk_rows: Rows of a stored chunk of an AnnData's X, or 0 where its bytes decide.
    """

    source: str
    destination: str
    work_dir: str
    preset: Preset
    memory_budget: int
    workers: int = 1
    formats: tuple[Format, ...] = ()
    join: bool = True
    concat: bool = True
    query: str = ""
    chunk_rows: int = 0
    common_schema: bool = True
    drop_null: bool = False
    casts: tuple[tuple[str, str], ...] = ()
    table_number: bool | None = None
    object_numbers: tuple[tuple[str, str], ...] = ()
    sort_output: bool = True
    overwrite: bool = False
    keep_chunks: bool = False
    unmatched: Unmatched = Unmatched.DROP
    on_bad_source: OnBadSource = OnBadSource.SKIP
    image_columns: tuple[str, ...] = ()
    relations: tuple[PresetRelation, ...] = ()
    required: tuple[str, ...] = ()
    storage: tuple[tuple[str, str], ...] = ()
    html_report: bool = True
    datatype: Destination = Destination.PARQUET
    compression: str = ""
    zarr_format: int = 2
    x_chunk_rows: int = 0
