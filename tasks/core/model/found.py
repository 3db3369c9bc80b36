"""What was found: sources, datasets, and their schemas."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_cytotable.tasks.core.model.asked import ColumnType, Format


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
