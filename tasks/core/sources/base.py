"""What every format's reader offers, and the values that go in and out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import pyarrow as pa
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.model import ColumnType, Fingerprint, Source, Span


class Cut(Enum):
    """When the rows of a source are counted and located by its reader, so that chunks may be parts of it."""

    NEVER = "its rows stay together, and its header tells how many they are"
    IF_LARGE = "locating them costs a pass over the file"
    ALWAYS = "its own index tells, or nearly"


@dataclass(frozen=True)
class Sample:
    """What a look at a source tells about its columns.

    Attributes:
        types: Type of each column, None where no value was seen.
        row_bytes: Estimated bytes of a row in Arrow memory.
        text_bytes: Estimated bytes of a row in the source.
        held_bytes: Estimated bytes of a row in the form that is held while it is parsed; none for most formats.
    """

    types: dict[str, ColumnType | None]
    row_bytes: int
    text_bytes: int
    held_bytes: int = 0


@dataclass(frozen=True)
class ImageRows:
    """The rows of one image in one source: how many, and where (no span: the source finds them by number)."""

    image: int
    rows: int
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Index:
    """Rows of a source by image, in ascending order of image number.

    Where rows belong to no numbered image, an "image" is a stretch of them, counted from one.

    Attributes:
        keyless: Rows without an image number; no range of images contains them.
        unique: Whether (image, object) is known to be unique, None where that was not looked at.
        keyless_spans: Where the rows without an image number lie, in the sense of `ImageRows.spans`.
    """

    images: tuple[ImageRows, ...]
    keyless: int
    unique: bool | None
    finding: str
    keyless_spans: tuple[Span, ...] = ()

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(one.rows for one in self.images) + self.keyless


@dataclass(frozen=True)
class Keys:
    """The columns that number a source's rows; empty where there are none, as the image table has no objects."""

    image_number: str
    object_number: str

    @property
    def names(self) -> tuple[str, ...]:
        """Those that there are; a column of measures may have the empty name."""
        return tuple(name for name in (self.image_number, self.object_number) if name)


@dataclass(frozen=True)
class Request:
    """Rows and columns to read.

    Attributes:
        columns: (name, type) pairs; a column that the source lacks is left out of the answer.
        images: First and last image number, or None for all rows, those without a number included.
        objects: First and last object number, or None for all.
        spans: Where the rows lie, as the index said; empty where it did not say.
    """

    source: Source
    keys: Keys
    columns: tuple[tuple[str, ColumnType], ...]
    images: tuple[int, int] | None = None
    objects: tuple[int, int] | None = None
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Finding:
    """How many values of a column were replaced, and why; of the whole source where the column is empty."""

    column: str
    finding: str
    count: int


@dataclass(frozen=True)
class Answer:
    """The rows that were asked for, and what did not go as planned.

    Attributes:
        widened: (column, type) where the column needs a wider type than was asked for; the table is then not
            to be used.
    """

    table: pa.Table
    widened: tuple[tuple[str, ColumnType], ...] = ()
    findings: tuple[Finding, ...] = field(default=())


@dataclass(frozen=True)
class Together:
    """The rows of several sources.

    Attributes:
        order: int32, for each row the position of its request.
        counts: int, the rows of each request.
    """

    table: pa.Table
    order: NDArray[Any]
    counts: tuple[int, ...]
    widened: tuple[tuple[str, ColumnType], ...] = ()
    findings: tuple[Finding, ...] = field(default=())


class Reader(Protocol):
    """Reads one format, from wherever its `Places` reach.

    Every method raises BadSourceError where the source is not what it should be, SourceBusyError or PlaceBusyError
    where trying again may help.
    """

    cut: Cut

    def columns(self, source: Source) -> tuple[str, ...]:
        """The names of the source's columns, in its order, from its header alone."""
        ...

    def sample(self, sources: Sequence[Source], limit: int, measures: bool) -> Sample:
        """Types and widths of the columns that all `sources` have, from declared types or about `limit` bytes of rows.

        All sources have the same header; the error for a bad one may name any of them. Where the columns are
        measures of objects, a few texts among numbers make no column of texts.
        """
        ...

    def index(self, sources: Sequence[Source], keys: Keys, objects: bool) -> list[Index]:
        """Rows by image of each of `sources`, which are parts of one table, or one source.

        With `objects`, the spans of large images are split and bounded by object number.
        """
        ...

    def objects(self, source: Source, keys: Keys, image: int) -> list[int]:
        """The object numbers of one image in ascending order."""
        ...

    def count(self, source: Source) -> int | None:
        """The number of rows of a source that may be damaged, None where that cannot be told."""
        ...

    def checksum(self, source: Source) -> int:
        """A CRC-32 that tells the source's file from others, whatever it is called."""
        ...

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """The rows of several requests for the same columns of one compartment at once.

        None where they have to be read one by one; each then gets an answer or an error of its own.
        """
        ...

    def read(self, request: Request) -> Answer:
        """The rows that `request` names."""
        ...


class DatabaseReader(Reader, Protocol):
    """Reads a format whose files hold several tables."""

    def tables(self, path: str, fingerprint: Fingerprint) -> tuple[str, ...]:
        """The names of the tables in a file."""
        ...


class NumberedReader(Reader, Protocol):
    """Reads a format whose tables can hold the rows of many datasets."""

    def numbers(self, source: Source, table_number: str, image_number: str) -> tuple[str | None, ...]:
        """The distinct values of the column `table_number`, as texts, null among them; empty without that column."""
        ...
