"""What the stages of a concatenation pass on: options, what the inputs hold, the plan, the layout, the records."""

from __future__ import annotations

from dataclasses import dataclass

from prefect_cytotable.tasks.core.concat.asked import AXES as AXES
from prefect_cytotable.tasks.core.concat.asked import CALLABLE as CALLABLE
from prefect_cytotable.tasks.core.concat.asked import MAX_LOADED_ELEMS as MAX_LOADED_ELEMS
from prefect_cytotable.tasks.core.concat.asked import OBS as OBS
from prefect_cytotable.tasks.core.concat.asked import VAR as VAR
from prefect_cytotable.tasks.core.concat.asked import Compression as Compression
from prefect_cytotable.tasks.core.concat.asked import Join as Join
from prefect_cytotable.tasks.core.concat.asked import Kind as Kind
from prefect_cytotable.tasks.core.concat.asked import Merge as Merge
from prefect_cytotable.tasks.core.concat.asked import Options as Options
from prefect_cytotable.tasks.core.concat.asked import Scalar as Scalar
from prefect_cytotable.tasks.core.concat.asked import StoreFormat as StoreFormat


@dataclass(frozen=True)
class Column:
    """A column of a data frame, as it is stored.

    Attributes:
        encoding: anndata's name for how it is stored, such as "categorical" or "string-array".
        dtype: NumPy's name for an array of numbers; "" for anything else.
    """

    name: str
    encoding: str
    dtype: str = ""


@dataclass(frozen=True)
class Element:
    """One element of an input.

    Attributes:
        path: Within the input, such as "X" or "layers/counts".
        shape: Rows, columns; what else a dense array has.
        dtype: NumPy's name for its values; "" where they are no numbers.
        size: Bytes of it in memory.
        chunk: Bytes of the largest piece that must be decoded at once.
        chunks: Shape of a dense array's chunks; empty where it is not chunked.
        nnz: Stored values of a sparse array.
        columns: Those of a data frame.
        compression: Of its values in HDF5, "" where there is none.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str = ""
    size: int = 0
    chunk: int = 0
    chunks: tuple[int, ...] = ()
    nnz: int = 0
    columns: tuple[Column, ...] = ()
    compression: str = ""


@dataclass(frozen=True)
class Input:
    """One AnnData file, looked at.

    Attributes:
        fingerprint: Changes when the file does.
        shape: Observations, variables.
        size: Bytes on disk.
        elements: All that it holds, but for what is in `uns`.
        uns: Bytes of `uns` in memory.
        has_raw: Whether it has `raw`.
        url: Where it was fetched from; "" for a local one.
    """

    path: str
    format: StoreFormat
    fingerprint: str
    shape: tuple[int, int]
    size: int
    elements: tuple[Element, ...]
    uns: int
    has_raw: bool
    zarr_format: int = 0
    url: str = ""

    @property
    def name(self) -> str:
        """What a user calls it."""
        return self.url or self.path

    def element(self, path: str) -> Element | None:
        """The element at a path, where there is one."""
        return next((one for one in self.elements if one.path == path), None)

    def keys(self, mapping: str) -> list[str]:
        """The names of the elements in a mapping such as "layers"."""
        return [one.path.split("/")[-1] for one in self.elements if one.path.rpartition("/")[0] == mapping]


@dataclass(frozen=True)
class Part:
    """What one input gives to an array of the output.

    Attributes:
        input: Number of the input.
        element: Its element; None where the input has none, and the output is filled.
        extent: Entries along the axis of concatenation.
        indexer: Name of the file that tells for each entry of the output's other axis the input's (-1: none); ""
            where they are the same.
        width: Entries of the input along the other axis.
        dropped: Whether some of them are not in the output.
    """

    input: int
    element: Element | None
    extent: int
    indexer: str = ""
    width: int = 0
    dropped: bool = False


@dataclass(frozen=True)
class ArrayPlan:
    """A large array of the output.

    Attributes:
        path: Within the output.
        kind: Dense, CSR or CSC.
        axis: Along which the parts are put together; -1 for blocks on the diagonal.
        fill: Bytes, in hexadecimal, of the value for what no input has.
        chunks: Rows and columns of a chunk, of a dense array in zarr; the length of one, of a sparse array.
        size: Bytes in memory, at most.
        compression: "gzip" or "lzf" in h5ad, "" where its bytes lie plainly; zarr has its own.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    axis: int
    fill: str
    parts: tuple[Part, ...]
    chunks: tuple[int, ...]
    size: int
    compression: str = ""


@dataclass(frozen=True)
class FramePlan:
    """A data frame of the output that is put together along the axis of concatenation, column by column."""

    path: str
    columns: tuple[str, ...]
    elements: tuple[Element | None, ...]
    join: Join
    label: str | None = None


@dataclass(frozen=True)
class OtherPlan:
    """An element that anndata puts together in memory, such as an awkward array: `path` in every input that has it."""

    path: str
    size: int


@dataclass(frozen=True)
class JoinedNames:
    """How the names of the other axis fit together: of the whole object ("") or of `raw`.

    Attributes:
        names: How many the output has.
        differing: Numbers of the inputs whose names differ from those, in order or at all.
        common: How many names all inputs have.
        union: How many names any input has.
    """

    node: str
    names: int
    differing: tuple[int, ...]
    common: int
    union: int


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        key: Of what the result depends on: program, inputs, options.
        extent: Entries of the output along the axis of concatenation, for the whole object.
        notes: What a user should know: what is left out, what is filled.
        annotations: Projected peak bytes of the annotations, which are put together first.
        block: Projected peak bytes of one block under way.
        memory: Projected peak bytes of the process tree.
        disk: Bytes that the output and its temporary files may take, at most.
        block_bytes: Bytes of an array that a block takes at a time.
    """

    key: str
    options: Options
    inputs: tuple[Input, ...]
    joined: tuple[JoinedNames, ...]
    extent: int
    arrays: tuple[ArrayPlan, ...]
    frames: tuple[FramePlan, ...]
    others: tuple[OtherPlan, ...]
    notes: tuple[str, ...]
    annotations: int
    block: int
    workers: int
    memory: int
    disk: int
    block_bytes: int
    zarr_format: int

    @property
    def shape(self) -> tuple[int, int]:
        """Observations and variables of the output."""
        other = self.joined[0].names
        return (self.extent, other) if self.options.axis == 0 else (other, self.extent)


@dataclass(frozen=True)
class Source:
    """Where a part of an array is read, ready for the blocks.

    Attributes:
        file: The input, or the folder of a sparse array that was turned round before.
        format: "raw" for such a folder.
        element: Path within the file; "" where there is nothing to read.
        start: First entry of the output along the axis of concatenation; `stop` is the one after the last.
        minor: What is added to the input's minor index.
        indexer: File of the other axis' indexer; "" where it is the identity.
    """

    file: str
    format: str
    element: str
    shape: tuple[int, ...]
    start: int
    stop: int
    minor: int
    indexer: str


@dataclass(frozen=True)
class ArrayLayout:
    """An array of the output that is there, to be filled by blocks.

    Attributes:
        stacked: Of a sparse array, whether each of its major slices comes from one input.
        indptr: File of a sparse array's row (or column) starts.
        nnz: Stored values.
        offsets: By name of the dataset ("" for a dense array), where its bytes begin in an h5ad file.
        chunks: Shape of a chunk.
        compression: Of those in an h5ad file; "" where its bytes lie in a row.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    index_dtype: str
    axis: int
    fill: str
    sources: tuple[Source, ...]
    chunk: int
    stacked: bool
    indptr: str
    nnz: int
    offsets: tuple[tuple[str, int], ...]
    chunks: tuple[int, ...] = ()
    compression: str = ""


@dataclass(frozen=True)
class Job:
    """A range of an array to be written: rows of a dense one, stored values of a sparse one."""

    number: int
    array: int
    start: int
    stop: int
    size: int
    name: str

    @property
    def record(self) -> str:
        """The name of its record."""
        return f"{self.array:04d}-{self.start}-{self.stop}"


@dataclass(frozen=True)
class Layout:
    """The output as it is prepared: everything but the values of the large arrays.

    Attributes:
        key: The plan's.
        folder: Where maps and records lie.
        output: The file or folder that becomes the destination.
    """

    key: str
    folder: str
    output: str
    format: StoreFormat
    arrays: tuple[ArrayLayout, ...]
    jobs: tuple[Job, ...]
    block_bytes: int


@dataclass(frozen=True)
class JobResult:
    """A range that is written, with the checksum of what lies on disk."""

    number: int
    record: str
    size: int
    checksum: int
    reused: bool = False


@dataclass(frozen=True)
class ConcatReport:
    """What a concatenation did.

    Attributes:
        shape: Observations and variables.
        size: Bytes of the output on disk.
        jobs: Blocks; `reused` of them were done before.
    """

    destination: str
    shape: tuple[int, int]
    size: int
    inputs: int
    jobs: int
    reused: int
    notes: tuple[str, ...]
    seconds: float
