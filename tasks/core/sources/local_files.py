"""What the readers of files that lie on a disk of this machine have in common; remote ones are copied there first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from prefect_cytotable.tasks.core.checksums import checksum_of
from prefect_cytotable.tasks.core.model import ColumnType, Source
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.schema import merge
from prefect_cytotable.tasks.core.sources.base import Cut, Sample


@dataclass(frozen=True)
class LocalFiles:
    """The base of such a reader."""

    places: Places
    cut = Cut.ALWAYS

    def checksum(self, source: Source) -> int:
        """CRC-32 of the file's bytes."""
        with self._file(source).open("rb") as file:
            return checksum_of(file)

    def _file(self, source: Source) -> Path:
        return self.places.local(source.path, source.fingerprint.size, source.fingerprint.mark)


def merged(samples: Sequence[Sample]) -> Sample:
    """What the samples of several tables tell together: types that hold all their values, and the largest sizes."""
    nothing: dict[str, ColumnType | None] = {}
    types = reduce(merge, (one.types for one in samples), nothing)
    return Sample(types, max(one.row_bytes for one in samples), max(one.text_bytes for one in samples))
