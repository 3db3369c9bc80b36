"""What will be done: chunks, the tables of the output, and the plan."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_cytotable.tasks.core.model.asked import Options
from prefect_cytotable.tasks.core.model.found import Dataset, Inspected


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
