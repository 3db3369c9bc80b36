"""What was done: parts, accounts and the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefect_cytotable.tasks.core.model.asked import Cause, ColumnType
from prefect_cytotable.tasks.core.model.found import Skipped


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
