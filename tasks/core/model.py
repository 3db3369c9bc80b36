"""The values that one stage passes to the next: frozen, small, and nothing but data.

Compartments are keyed in lower case ("cells", "nuclei_cellpose3"); what the user sees is their label ("Cells").
Every type here can be written to JSON and back (`prefect_cytotable.tasks.core.store`), because a chunk task gets
a path and a number, and finds the rest in the plan's file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Fingerprint:
    """What tells a changed file from an unchanged one: bytes, time of change in ns, and a mark.

    The mark is a database's change counter, or the ETag or generation of an object in a store, whose time is then 0.
    """

    size: int
    modified: int
    mark: str = ""


TableNumber = int | str
"""What identifies a dataset in the output: a checksum, or what a cytominer-database wrote."""


@dataclass(frozen=True)
class Only:
    """Those rows of a table whose `column` holds `value`, compared as text; None: those where it is null."""

    column: str
    value: str | None


@dataclass(frozen=True)
class Source:
    """One readable table: a file, a table inside a database, or those of its rows that belong to one dataset.

    Attributes:
        path: Of a file, or the URL of an object.
        table: The table inside a database, or the compartment in a CSV file that combines several.
        only: Which of the table's rows; all of them where it is None.
    """

    compartment: str
    path: str
    format: Format
    fingerprint: Fingerprint
    table: str = ""
    only: Only | None = None

    @property
    def where(self) -> str:
        """The table as a user would name it."""
        return f"{self.path}, table {self.table}" if self.table else self.path


@dataclass(frozen=True)
class Dataset:
    """The sources that share one image table: one folder of CSV files, one database, or one TableNumber in it."""

    name: str
    sources: tuple[Source, ...]
    table_number: TableNumber | None = None

    def source(self, compartment: str) -> Source | None:
        """The source of `compartment`, where the dataset has one."""
        return next((one for one in self.sources if one.compartment == compartment), None)


@dataclass(frozen=True)
class Skipped:
    """A source that could not be used, and the rows of it that are therefore missing (None: unknown)."""

    dataset: str
    compartment: str
    where: str
    cause: str
    rows: int | None = None


@dataclass(frozen=True)
class Gathered:
    """What lies at the source path.

    Attributes:
        labels: (compartment, label) pairs in the order in which the user or the preset names them.
        ignored: How many files belong to no dataset.
    """

    root: str
    datasets: tuple[Dataset, ...]
    labels: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...] = ()
    ignored: int = 0

    def label(self, compartment: str) -> str:
        """The compartment as it stands before its columns."""
        return dict(self.labels)[compartment]


@dataclass(frozen=True)
class Column:
    """A column of a compartment over all its sources.

    Attributes:
        name: As the sources call it.
        output: As the output calls it.
        absent: How many of the compartment's sources lack it.
    """

    name: str
    type: ColumnType
    output: str
    absent: int = 0


@dataclass(frozen=True)
class Schema:
    """The union of the columns of a compartment's sources.

    Attributes:
        image_number: Name of the column that numbers images; empty where there is none.
        object_number: Name of the column that numbers objects; empty for image tables, and where there is none.
        row_bytes: Estimated bytes of one row in Arrow memory.
        text_bytes: Estimated bytes of one row in the source's own form.
        held_bytes: Estimated bytes of one row in the form that is held while it is parsed.
    """

    compartment: str
    label: str
    columns: tuple[Column, ...]
    image_number: str
    object_number: str
    row_bytes: int
    text_bytes: int
    held_bytes: int = 0

    def column(self, name: str) -> Column | None:
        """The column that the sources call `name`."""
        return next((one for one in self.columns if one.name == name), None)


@dataclass(frozen=True)
class Relation:
    """Rows of `child` name a row of `parent` by its object number in `column` (of the child's sources)."""

    child: str
    parent: str
    column: str


@dataclass(frozen=True)
class Inspected:
    """Schemas and relations of everything that was gathered.

    Attributes:
        samples: How many sources were sampled for types, of how many.
    """

    gathered: Gathered
    schemas: tuple[Schema, ...]
    relations: tuple[Relation, ...]
    base: str
    samples: tuple[int, int]
    widened: tuple[tuple[str, str, ColumnType], ...] = ()

    def schema(self, compartment: str) -> Schema | None:
        """The schema of a compartment, where any dataset has it."""
        return next((one for one in self.schemas if one.compartment == compartment), None)


@dataclass(frozen=True)
class Span:
    """A stretch of a source: bytes of a CSV file, rowids (first and last) of a SQLite table, rows of a Parquet file.

    `first_object` and `last_object` bound the object numbers inside, where the source lies in their order;
    otherwise both are 0.
    """

    start: int
    stop: int
    first_object: int = 0
    last_object: int = 0


@dataclass(frozen=True)
class Region:
    """Which rows of one source a chunk reads.

    Attributes:
        compartment: Whose source.
        spans: Where they lie; empty where the whole source is meant or the source finds them by number.
        rows: How many rows the index counted there, or None where nothing was counted.
        keyless: Rows without an image number, which no range contains; the dataset's first slice accounts for them.
    """

    compartment: str
    spans: tuple[Span, ...] = ()
    rows: int | None = None
    keyless: int = 0


@dataclass(frozen=True)
class Slice:
    """The part of one dataset that a chunk converts: all of it, a range of images, or objects of one image.

    Attributes:
        dataset: Position in the plan's datasets.
        images: First and last image number, or None for the whole dataset.
        objects: First and last object number of the base compartment, or None for all.
        regions: What to read of each compartment the dataset has.
    """

    dataset: int
    regions: tuple[Region, ...]
    images: tuple[int, int] | None = None
    objects: tuple[int, int] | None = None

    def region(self, compartment: str) -> Region | None:
        """What to read of `compartment`."""
        return next((one for one in self.regions if one.compartment == compartment), None)


@dataclass(frozen=True)
class Chunk:
    """The unit of work, retry and cache.

    Attributes:
        name: What a person reads, for example "a.sqlite, images 1-640".
        key: Hash of everything the result depends on.
        rows: Rows of the base compartment, counted or estimated.
        memory: Projected peak of the bytes that converting it needs.
    """

    number: int
    name: str
    key: str
    slices: tuple[Slice, ...]
    rows: int
    memory: int


@dataclass(frozen=True)
class OutputColumn:
    """A column of an output table and where it comes from; `type` is an Arrow type name."""

    name: str
    type: str
    compartment: str
    column: str


@dataclass(frozen=True)
class OutputTable:
    """A table of the output: the joined one, or one compartment's."""

    name: str
    columns: tuple[OutputColumn, ...]


@dataclass(frozen=True)
class KeyCheck:
    """Whether the object keys of a compartment are unique, and how that is known."""

    compartment: str
    finding: str


@dataclass(frozen=True)
class Plan:
    """Everything a conversion will do, decided before a row is read.

    Attributes:
        with_table_number: Whether the output has Metadata_TableNumber.
        rows: Rows of the base compartment; estimated unless `rows_counted`.
        memory: Projected peak of the process tree in bytes.
        disk: Projected bytes of the parts, and of the output.
    """

    options: Options
    inspected: Inspected
    tables: tuple[OutputTable, ...]
    chunks: tuple[Chunk, ...]
    with_table_number: bool
    key_checks: tuple[KeyCheck, ...]
    rows: int
    rows_counted: bool
    memory: int
    disk: int
    workers: int

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The datasets, in the order of the output's rows."""
        return self.inspected.gathered.datasets


@dataclass(frozen=True)
class Part:
    """The Parquet file that one chunk became; `table` says which of the output's tables it belongs to.

    Attributes:
        path: Of the file, or its URL, with the `mark` that the object store gave it.
        checksum: CRC-32 of its bytes.
    """

    table: str
    path: str
    rows: int
    size: int
    checksum: int
    dataset: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Account:
    """Rows of the base compartment in one dataset: in, out, and dropped by cause.

    Attributes:
        added: Rows that a joins query made beyond those it was given.
    """

    dataset: str
    rows_in: int
    rows_out: int
    dropped: tuple[tuple[Cause, int], ...] = ()
    added: int = 0

    @property
    def balanced(self) -> bool:
        """Whether rows in are rows out plus rows dropped."""
        return self.rows_in + self.added == self.rows_out + sum(rows for _, rows in self.dropped)


@dataclass(frozen=True)
class Note:
    """Something that a user should know, found while a chunk was converted, with how often it was found."""

    subject: str
    finding: str
    count: int


@dataclass(frozen=True)
class ChunkResult:
    """What one chunk became, or what has to change in the plan before it can become anything.

    Attributes:
        tables_in: (compartment, rows read) pairs.
        widened: (compartment, column, type) where the sample had promised a narrower type.
        bad: Sources that turned out to be unreadable.
        begun: When it was begun, in seconds since 1970 (UTC), and
        worker: by which process of which machine.
        tally: What its values look like, in few bytes; see `tally.py`.
    """

    key: str
    number: int
    parts: tuple[Part, ...] = ()
    accounts: tuple[Account, ...] = ()
    tables_in: tuple[tuple[str, int], ...] = ()
    notes: tuple[Note, ...] = ()
    widened: tuple[tuple[str, str, ColumnType], ...] = ()
    bad: tuple[Skipped, ...] = ()
    seconds: float = 0.0
    reused: bool = False
    begun: float = 0.0
    worker: str = ""
    tally: str = ""

    @property
    def amends(self) -> bool:
        """Whether the plan has to change."""
        return bool(self.widened or self.bad)

    @property
    def rows(self) -> int:
        """Rows of the output, or of all tables where they are not joined."""
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True)
class OutputFile:
    """A file of the output; `name` is what CytoTable calls its table ("Cells.csv"), `source` its dataset."""

    table: str
    name: str
    path: str
    rows: int
    columns: int
    size: int
    source: str = ""


@dataclass(frozen=True)
class ReportColumn:
    """A column of the output, and what happened to it.

    Attributes:
        table: Label of the table that it comes from; empty for what comes from none.
        source: As the sources call it.
        read_as: What the sources hold; `type` is the Arrow type in the output.
        absent: How many of the table's sources lack it (it is null there), of how many `sources`.
        widened: Whether it needed a wider type than the samples showed.
        cast: Whether it was cast because the user asked for that.
    """

    name: str
    table: str
    source: str
    read_as: str
    type: str
    absent: int = 0
    sources: int = 0
    widened: bool = False
    cast: bool = False

    @property
    def notable(self) -> bool:
        """Whether there is more to tell of it than its type."""
        return bool(self.absent or self.widened or self.cast)


@dataclass(frozen=True)
class Report:
    """The outcome of a conversion.

    Attributes:
        accounts: One for each dataset, in the order of the output.
        tables_in: (compartment, rows read) pairs.
        page: Path or URL of the HTML report; empty where there is none.
    """

    destination: str
    files: tuple[OutputFile, ...]
    accounts: tuple[Account, ...]
    tables_in: tuple[tuple[str, int], ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[Note, ...]
    warnings: tuple[str, ...]
    columns_absent: tuple[tuple[str, int], ...]
    widened: tuple[tuple[str, str, ColumnType], ...]
    chunks: int
    chunks_reused: int
    seconds: float
    provenance: str = field(default="", repr=False)
    columns: tuple[ReportColumn, ...] = field(default=(), repr=False)
    page: str = ""

    @property
    def rows_in(self) -> int:
        """Rows of the base compartment in all datasets."""
        return sum(one.rows_in for one in self.accounts)

    @property
    def rows_out(self) -> int:
        """Rows of the base compartment that are in the output."""
        return sum(one.rows_out for one in self.accounts)
