"""How a source's columns are called in the output, and in which order they stand.

The rules are CytoTable's, so that Pycytominer and everything downstream of it finds the names it knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

METADATA = "Metadata_"
TABLE_NUMBER = "Metadata_TableNumber"
FIRST = (TABLE_NUMBER, "Metadata_ImageNumber", "Metadata_ObjectNumber")
LATER = ("Image", "Cytoplasm", "Cells", "Nuclei")


@dataclass(frozen=True)
class Namer:
    """Names the columns of one table.

    Attributes:
        label: The table's name as it stands before its columns, for example ``Cells``.
        identifying: Source columns that identify a row instead of measuring it.
    """

    label: str
    identifying: frozenset[str]

    def __call__(self, column: str) -> str:
        """The output name of `column`; a name that is already an output name stays as it is.

        >>> cells = Namer("Cells", frozenset({"ImageNumber", "ObjectNumber", "Parent_Nuclei"}))
        >>> [cells(name) for name in ("AreaShape_Area", "Cells_AreaShape_Area", "ImageNumber", "Parent_Nuclei")]
        ['Cells_AreaShape_Area', 'Cells_AreaShape_Area', 'Metadata_ImageNumber', 'Metadata_Cells_Parent_Nuclei']
        """
        if column in self.identifying:
            return self._identity(column)
        if self._prefixed(column) or column in self._identities:
            return column
        return f"{self.label}_{column}"

    @cached_property
    def _identities(self) -> frozenset[str]:
        return frozenset(self._identity(name) for name in self.identifying)

    def _prefixed(self, column: str) -> bool:
        return column.startswith(self.label) or column.lower().startswith(f"{self.label}_".lower())

    def _identity(self, column: str) -> str:
        if column.startswith(METADATA):
            return column
        if self._prefixed(column):
            return METADATA + column
        if any(shared in column for shared in ("ImageNumber", "ObjectNumber", "TableNumber")):
            return METADATA + column
        return f"{METADATA}{self.label}_{column}"


def column_rank(name: str) -> tuple[int, str]:
    """Sort key of an output column: table, image and object number, then metadata, compartments, the rest.

    >>> sorted(["Nuclei_A", "Cells_B", "Image_Metadata_Well", "Metadata_ImageNumber", "X"], key=column_rank)
    ['Metadata_ImageNumber', 'Image_Metadata_Well', 'Cells_B', 'Nuclei_A', 'X']
    """
    if name in FIRST:
        return FIRST.index(name), name
    if "metadata" in name.lower():
        return len(FIRST), name
    for position, prefix in enumerate(LATER, start=len(FIRST) + 1):
        if name.lower().startswith(prefix.lower()):
            return position, name
    return len(FIRST) + len(LATER) + 1, name


def in_output_order(names: Iterable[str]) -> list[str]:
    """The names sorted as they stand in the output."""
    return sorted(names, key=column_rank)


def label_of(compartment: str, spelling: str) -> str:
    """The prefix for a compartment's columns, from its key and the source's spelling of it.

    >>> label_of("cells", "Cells"), label_of("nuclei", "NUCLEI"), label_of("nuclei_cellpose3", "Nuclei_Cellpose3")
    ('Cells', 'Nuclei', 'Nuclei_Cellpose3')
    """
    return compartment.capitalize() if spelling in (spelling.lower(), spelling.upper()) else spelling
