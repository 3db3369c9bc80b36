"""The values that one step of a fetch passes to the next: frozen, small, and nothing but data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CENSUS_SCHEME = "census:"
"""What a source begins with that names a version of the Census instead of a place."""

JOINID = "soma_joinid"
"""The column that numbers the rows of an axis."""

TISSUE = "tissue_general"
"""The column that ``tissue=`` filters by."""


class Axis(StrEnum):
    """The axis tables of an experiment."""

    OBS = "obs"
    VAR = "var"


class TableFormat(StrEnum):
    """What a fetch can write."""

    FEATHER = "feather"
    PARQUET = "parquet"
    CSV = "csv"


@dataclass(frozen=True)
class FetchOptions:
    """What was asked for, checked.

    Attributes:
        source: A path, a URI, or "census:VERSION".
        destination: The absolute path of the file to write.
        scratch: The folder for the destination's lock, and for outputs until they are whole; on the same disk.
        var_destination: The file for the joinids of var; empty where they are not wanted.
        columns: In the order of the output; empty for all.
        value_filter: Of the user, in SOMA's language; empty for none.
        memory_budget: Bytes above the interpreters with their imports, for all workers together.
        buffer_bytes: SOMA's buffer for each column; 0 where the schema decides.
        chunk_ids: Joinids in a chunk; 0 where the place of the store decides.
    """

    source: str
    destination: str
    scratch: str
    var_destination: str
    work_dir: str
    format: TableFormat
    axis: Axis
    measurement: str
    organism: str
    columns: tuple[str, ...]
    tissue: str
    value_filter: str
    memory_budget: int
    buffer_bytes: int
    chunk_ids: int
    workers: int
    overwrite: bool
    keep_chunks: bool


@dataclass(frozen=True)
class Place:
    """An axis table, and how to open it.

    Attributes:
        uri: Of the data frame.
        settings: (name, value) pairs for TileDB that the place needs; never credentials, which TileDB takes from the
            environment.
        timestamp: Milliseconds since 1970: what was written later is not seen.
    """

    uri: str
    settings: tuple[tuple[str, str], ...]
    timestamp: int

    @property
    def remote(self) -> bool:
        """Whether each read costs a journey."""
        return "://" in self.uri and not self.uri.startswith("file://")


@dataclass(frozen=True)
class Table:
    """An axis table as its schema tells.

    Attributes:
        columns: Of the output, in its order.
        value_filter: All that was asked for in one expression; empty for none.
        index: Position of soma_joinid among the table's index columns, -1 where it is none of them.
        first, last: The joinids that the table's rows can have; `last` is less than `first` where it is empty.
        rows: Rows of the whole table.
        row_bytes: Estimated bytes of an output row in Arrow memory.
        widest: Bytes of the widest value of fixed length.
        mark: What changes when the table does.
        notes: What a user should know before the answer is trusted.
        cuts: What one query reads each (first and last joinid), where joinids lie far apart; else empty, and slices are
            cut at multiples of their size.
    """

    place: Place
    columns: tuple[str, ...]
    value_filter: str
    index: int
    first: int
    last: int
    rows: int
    row_bytes: int
    widest: int
    mark: str
    notes: tuple[str, ...] = ()
    cuts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Sizes:
    """How memory is divided.

    Attributes:
        rows: Joinids in a slice, which is what one query reads.
        buffer_bytes: SOMA's buffer for each column.
        readers: Slices that are read at the same time.
        tile_bytes: What TileDB may load of the store for one query.
    """

    rows: int
    buffer_bytes: int
    readers: int
    tile_bytes: int


@dataclass(frozen=True)
class Range:
    """A chunk: the rows with joinids from `first` to `last`, both included."""

    number: int
    first: int
    last: int
    key: str
    name: str


@dataclass(frozen=True)
class FetchPlan:
    """All that is decided before rows are read.

    Attributes:
        chunks: Ranges that become parts; empty where the rows stream into the destination.
        workers: Chunks under way at once.
        sizes: For each worker.
        group_rows: Rows of a record batch or a row group of the output, whoever reads and however many.
        open_seconds, query_seconds: What opening and looking at the table took.
    """

    options: FetchOptions
    table: Table
    chunks: tuple[Range, ...]
    workers: int
    sizes: Sizes
    group_rows: int
    open_seconds: float
    query_seconds: float


@dataclass(frozen=True)
class Fetched:
    """What a fetch did.

    Attributes:
        path: The file that was written.
        rows, columns: Its shape.
        size: Its bytes.
        table_rows: Rows of the whole table.
        chunks: Parts that it was put together from; 0 where rows streamed into it.
        chunks_reused: How many of them an earlier run had made.
        buffer_bytes: SOMA's buffer for each column.
        batch_rows: Joinids that one query read.
        batches: Queries under way at once, of all workers.
        open_seconds: Opening the store and finding the table.
        query_seconds: Its schema, its labels, its range, and the plan.
        fetch_seconds: Reading and writing.
        var_path: The file with the joinids of var; empty where they were not asked for.
        var_rows: How many these are.
        notes: What a user should know, such as a filter's label that no row can have.
    """

    path: str
    rows: int
    columns: int
    size: int
    table_rows: int
    chunks: int
    chunks_reused: int
    buffer_bytes: int
    batch_rows: int
    batches: int
    open_seconds: float
    query_seconds: float
    fetch_seconds: float
    var_path: str
    var_rows: int
    notes: tuple[str, ...] = ()
