"""What is asked of a concatenation, and the words that its stages share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Scalar = bool | int | float | str

OBS, VAR = "obs", "var"
AXES = (OBS, VAR)

MAX_LOADED_ELEMS = 100_000_000
"""anndata's default."""


class StoreFormat(StrEnum):
    """How an AnnData object lies on disk."""

    H5AD = "h5ad"
    ZARR = "zarr"


class Join(StrEnum):
    """Which names of the other axis the result has: those of all inputs, or those of any."""

    INNER = "inner"
    OUTER = "outer"


class Merge(StrEnum):
    """Which elements that are not aligned to the axis of concatenation are kept, as in anndata."""

    SAME = "same"
    UNIQUE = "unique"
    FIRST = "first"
    ONLY = "only"


class Compression(StrEnum):
    """Of the large arrays in h5ad."""

    SOURCE = "source"
    GZIP = "gzip"
    LZF = "lzf"
    NONE = "none"


CALLABLE = "a function"
"""Stands in the options for a merge strategy that is a function; the function itself goes beside them."""


class Kind(StrEnum):
    """What an element is."""

    DENSE = "dense"
    CSR = "csr"
    CSC = "csc"
    FRAME = "dataframe"
    OTHER = "other"

    @property
    def sparse(self) -> bool:
        """Whether it is a compressed sparse matrix."""
        return self in (Kind.CSR, Kind.CSC)


@dataclass(frozen=True)
class Options:
    """What the user asked for, checked.

    Attributes:
        in_files: Absolute paths or URLs of object storage, in order.
        keys: One for each input.
        axis: 0 for obs, 1 for var.
        merge: A strategy's name, `CALLABLE`, or "" for none; `uns_merge` likewise.
        index_unique: Between a name and its input's key; None leaves names as they are.
        fill_value: For what an outer join adds; None as anndata: 0 for sparse arrays, NaN for dense ones.
        memory_budget: Bytes for the whole process tree.
        workers: Blocks under way at once.
        max_loaded_elems: Elements of an array that a block may have.
        compression: Of the large arrays, where the output is h5ad.
        storage: How object storage is reached, without secrets.
    """

    in_files: tuple[str, ...]
    keys: tuple[Scalar, ...]
    destination: str
    format: StoreFormat
    axis: int
    join: Join
    merge: str
    uns_merge: str
    label: str | None
    index_unique: str | None
    fill_value: Scalar | None
    pairwise: bool
    memory_budget: int
    workers: int
    max_loaded_elems: int
    overwrite: bool
    compression: Compression = Compression.SOURCE
    storage: tuple[tuple[str, str], ...] = ()

    @property
    def axis_name(self) -> str:
        """The axis along which inputs are put together: "obs" or "var"."""
        return AXES[self.axis]

    @property
    def other_name(self) -> str:
        """The axis whose names are joined."""
        return AXES[1 - self.axis]
