"""What every format's reader offers, and the values that go in and out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from prefect_cytotable.tasks.core.model import ColumnType, Source, Span


@dataclass(frozen=True)
class Sample:
    """What a look at a source tells about its columns.

    Attributes:
        types: Type of each column, None where no value was seen.
        row_bytes: Estimated bytes of a row in Arrow memory.
        text_bytes: Estimated bytes of a row in the source.
    """

    types: dict[str, ColumnType | None]
    row_bytes: int
    text_bytes: int


@dataclass(frozen=True)
class ImageRows:
    """The rows of one image in one source: how many, and where (no span: the source finds them by number)."""

    image: int
    rows: int
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Index:
    """Rows of a source by image, in ascending order of image number.

    Attributes:
        keyless: Rows without an image number; no range of images contains them.
        unique: Whether (image, object) is known to be unique, None where that was not looked at.
    """

    images: tuple[ImageRows, ...]
    keyless: int
    unique: bool | None
    finding: str


@dataclass(frozen=True)
class Keys:
    """The columns that number a source's rows; `object_number` is empty for the image table."""

    image_number: str
    object_number: str


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
    """How many values of a column were replaced, and why."""

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
    """The rows of several sources, one after the other, and how many each has."""

    table: pa.Table
    rows: tuple[int, ...]


class Reader(Protocol):
    """Reads one format.

    Every method raises BadSourceError where the source is not what it should be, SourceBusyError where another
    program keeps it locked.
    """

    def columns(self, source: Source) -> tuple[str, ...]:
        """The names of the source's columns, in its order, from its header alone."""
        ...

    def sample(self, sources: Sequence[Source], limit: int, measures: bool) -> Sample:
        """Types and widths of the columns that all `sources` have, from declared types or about `limit` bytes of rows.

        All sources have the same header; the error for a bad one may name any of them. Where the columns are
        measures of objects, a few texts among numbers make no column of texts.
        """
        ...

    def index(self, source: Source, keys: Keys, objects: bool) -> Index:
        """Rows by image. With `objects`, the spans of large images are split and bounded by object number."""
        ...

    def objects(self, source: Source, keys: Keys, image: int) -> list[int]:
        """The object numbers of one image in ascending order."""
        ...

    def count(self, source: Source) -> int | None:
        """The number of rows of a source that may be damaged, None where that cannot be told."""
        ...

    def read_together(self, requests: Sequence[Request]) -> Together | None:
        """The rows of several whole sources at once, or None where they have to be read one by one."""
        ...

    def read(self, request: Request) -> Answer:
        """The rows that `request` names."""
        ...
