"""How the parameters of the flows look in the run form of the Prefect UI: title, what it means, example, control.

A server makes the form from a flow's signature, in its order. The Python type is what a value is checked against; the
rest is shown. A value that the form cannot rule out meets the errors of `make_options`, as anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, JsonValue, WithJsonSchema
from pydantic.fields import FieldInfo

from prefect_cytotable.flows.clusters import RUNNERS
from prefect_cytotable.tasks.core.concat.model import Compression as ConcatCompressions
from prefect_cytotable.tasks.core.concat.model import Join as ConcatJoins
from prefect_cytotable.tasks.core.concat.model import Merge
from prefect_cytotable.tasks.core.formats import COMPRESSIONS, ZARR_FORMATS
from prefect_cytotable.tasks.core.layout import ALL_MODE, FILENAMES_MODE, METADATA_MODE
from prefect_cytotable.tasks.core.model import Destination, Format, OnBadSource, Unmatched
from prefect_cytotable.tasks.core.presets import preset_names
from prefect_cytotable.tasks.core.reprocess.model import NewVersion
from prefect_cytotable.tasks.core.soma.model import Axis, TableFormat

RUNNER = "task_runner"
"""The parameter that the flow itself takes; the others go to the conversion."""

TEXT: Mapping[str, Any] = {"type": "string"}
NUMBER: Mapping[str, Any] = {"type": "integer", "minimum": 1}
NAMES: Mapping[str, Any] = {"type": "array", "items": {"type": "string"}}
PAIRS: Mapping[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
NONE: Mapping[str, Any] = {"type": "null"}


def choice(names: Iterable[str]) -> dict[str, Any]:
    """A list to choose from."""
    return {"type": "string", "enum": [str(name) for name in names]}


def either(**controls: Mapping[str, Any]) -> dict[str, Any]:
    """Several controls, of which one is chosen by its title; `_` stands for a space in it."""
    return {"anyOf": [{**control, "title": title.replace("_", " ")} for title, control in controls.items()]}


def control(schema: Mapping[str, Any]) -> WithJsonSchema:
    """The control, in the place of the one that follows from the type, which for None would be a switch between two."""
    return WithJsonSchema(dict(schema))


def shown(title: str, text: str, example: JsonValue) -> FieldInfo:
    """A title, what the parameter means, and an example of a value, which the text repeats where it is no switch.

    Prefect itself gives a field the parameter's name and the docstring's text; the extra keys come after that and win.
    """
    told = example if isinstance(example, str) else json.dumps(example)
    described = text if isinstance(example, bool) else f"{text} Example: {told}"
    field: FieldInfo = Field(json_schema_extra={"title": title, "description": described, "examples": [example]})
    return field


SIZE = either(size=TEXT, bytes=NUMBER)
ON_OFF: Mapping[str, Any] = {"type": "boolean"}

# What a form shows for None, as the first to choose from: it sends null for what was not touched.
_AUTOMATIC = {"automatic": NONE}
_NONE = {"none": NONE}
_PRESETS = {"preset's": NONE}

# --- of several flows ---------------------------------------------------------------------------------------

TaskRunner = Annotated[
    str,
    control(either(kind=choice(RUNNERS), address=TEXT)),
    shown(
        "Runner",
        "What converts chunks: threads (concurrent), one thread (sequential), processes, a Dask cluster on the "
        "worker's machine (dask) or its site (dask:slurm, dask:kubernetes ...), or the address of a Dask scheduler.",
        "concurrent",
    ),
]
Workers = Annotated[
    int | None,
    control(either(**_AUTOMATIC, number=NUMBER)),
    shown("Workers", "Chunks under way at once; automatic: one for each processor, and memory for.", 4),
]
MemoryBudget = Annotated[
    str | int, control(SIZE), shown("Memory budget", "For all processes of the run together.", "4GiB")
]
FetchBudget = Annotated[
    str | int, control(SIZE), shown("Memory budget", "For all workers together, above the interpreters.", "256MiB")
]
WorkDir = Annotated[
    str | None,
    control(either(**_AUTOMATIC, folder=TEXT)),
    shown(
        "Work folder", "Where parts lie until the output is whole; automatic: beside the destination.", "/scratch/parts"
    ),
]
Overwrite = Annotated[bool, shown("Overwrite", "Replace a destination that is there, once the new one is whole.", True)]
KeepChunks = Annotated[
    bool, shown("Keep chunks", "Keep the parts, so that a later run converts only what changed.", True)
]
Profile = Annotated[
    str | dict[str, Any] | None,
    control(either(**_NONE, folder=TEXT, options={"type": "object"})),
    shown("Memory profile", "A folder for a profile of the run's memory; needs memray on the worker.", "/data/profile"),
]
HtmlReport = Annotated[
    bool,
    shown("HTML report", "Write a report for a browser beside the output: plate maps, rows by cause, columns.", True),
]

# --- convert ------------------------------------------------------------------------------------------------

SourcePath = Annotated[
    str,
    shown(
        "Source",
        "A folder that is searched for tables, or one file, as the worker sees it: a path or a URL (s3://, gs://, az://).",
        "/data/screen/plate1.sqlite",
    ),
]
DestPath = Annotated[
    str,
    shown(
        "Destination",
        "The file to write, a path or a URL; a folder where compartments are not joined or chunks not put together.",
        "/data/tables/plate1.parquet",
    ),
]
Preset = Annotated[
    str | None,
    control(either(preset=choice(preset_names()), TOML_file=TEXT, none=NONE)),
    shown("Preset", "Which program wrote the tables; or a TOML file of the worker's; or none.", "cellprofiler_sqlite"),
]
DestDatatype = Annotated[
    str, control(choice(Destination)), shown("Format of the destination", "What is written.", "parquet")
]
Compression = Annotated[
    str | None,
    control(either(**_AUTOMATIC, name=choice(dict.fromkeys(one for names in COMPRESSIONS.values() for one in names)))),
    shown("Compression of an AnnData", "gzip, lzf or none in h5ad; lz4, zstd or none in zarr.", "gzip"),
]
ZarrFormat = Annotated[
    int | None,
    control(either(**_AUTOMATIC, format={"type": "integer", "enum": list(ZARR_FORMATS)})),
    shown("Zarr format", "Of an AnnData in zarr. Automatic: 2.", 3),
]
XChunkRows = Annotated[
    int | None,
    control(either(**_AUTOMATIC, number=NUMBER)),
    shown("Rows of a chunk of X", "Of an AnnData. Automatic: 1 MiB of them in h5ad, 4 MiB in zarr.", 1000),
]
SourceDatatype = Annotated[
    str | None,
    control(either(**_PRESETS, format=choice(Format))),
    shown("Format of the source", "Where it is not the preset's.", "sqlite"),
]
Metadata = Annotated[
    list[str] | None,
    control(either(**_PRESETS, names=NAMES)),
    shown("Image table", "Its name, where it is not the preset's.", ["image"]),
]
Compartments = Annotated[
    list[str] | None,
    control(either(**_PRESETS, names=NAMES)),
    shown("Compartments", "Instead of the preset's; each must be there.", ["cells", "nuclei", "cytoplasm"]),
]
IdentifyingColumns = Annotated[
    list[str] | None,
    control(either(**_PRESETS, names=NAMES)),
    shown("Identifying columns", "Columns that name a row, instead of the preset's.", ["ImageNumber", "ObjectNumber"]),
]
Concat = Annotated[bool, shown("One file", "Put the chunks together; else a file for each.", True)]
Join = Annotated[bool, shown("Join compartments", "One row for each cell; else a table for each compartment.", True)]
Joins = Annotated[
    str | None,
    control(either(**_PRESETS, SQL=TEXT)),
    shown(
        "SQL for the join",
        "One SELECT over the tables of a chunk, which can read nothing else.",
        "SELECT * FROM read_parquet('cells.parquet')",
    ),
]
ChunkSize = Annotated[
    int | None,
    control(either(**_AUTOMATIC, number=NUMBER)),
    shown("Rows of a chunk", "Automatic: what the memory budget allows.", 50000),
]
CommonSchema = Annotated[
    bool,
    shown("Unite different columns", "Sources with different columns become one table; else they are refused.", True),
]
DropNull = Annotated[bool, shown("Drop rows with nulls", "Rows with a missing value are left out, and counted.", False)]
Casts = Annotated[
    dict[str, str] | None,
    control(either(**_NONE, types=PAIRS)),
    shown("Types", "Arrow types for float, integer and string columns.", {"float": "float32"}),
]
TableNumber = Annotated[
    bool | None,
    control(either(**_AUTOMATIC, yes_or_no=ON_OFF)),
    shown("Metadata_TableNumber", "Tells data sets apart; automatic: where there is more than one.", True),
]
PageKeys = Annotated[
    dict[str, str] | None,
    control(either(**_PRESETS, columns=PAIRS)),
    shown("Number columns", "The column that numbers a table's objects.", {"cells": "ObjectNumber"}),
]
SortOutput = Annotated[bool, shown("Sort", "Rows in the order of data set, image and object number.", True)]
UnmatchedObjects = Annotated[
    str,
    control(choice(Unmatched)),
    shown("Objects without parents", "Left out, kept with nulls, or an error. Either way they are counted.", "drop"),
]
BadSources = Annotated[
    str,
    control(choice(OnBadSource)),
    shown("Sources that cannot be read", "Skipped, or an error. Either way they are reported.", "skip"),
]
ImageColumns = Annotated[
    str | list[str],
    control(either(columns=choice((METADATA_MODE, FILENAMES_MODE, ALL_MODE)), patterns=NAMES, pattern=TEXT)),
    shown("Columns of the image table", "A kind of columns, or patterns of their names.", "metadata"),
]
Relations = Annotated[
    dict[str, str] | None,
    control(either(**_PRESETS, relations=PAIRS)),
    shown("Relations", "Which column names which parent.", {"Cytoplasm.Parent_Cells": "Cells"}),
]
StorageOptions = Annotated[
    dict[str, str | bool] | None,
    control(either(**_NONE, options={"type": "object"})),
    shown("Storage options", "How object storage is reached; never a secret.", {"no_sign_request": True}),
]

# --- fetch --------------------------------------------------------------------------------------------------

SomaSource = Annotated[
    str,
    shown(
        "Source",
        "A path or URI of a SOMA experiment, a data frame or a Census; or census:VERSION for the public Census.",
        "census:stable",
    ),
]
FetchDestination = Annotated[
    str,
    shown("Destination", "The file to write, on a disk of the worker: .feather, .parquet, .csv.", "/data/lung.feather"),
]
FetchDatatype = Annotated[
    str | None,
    control(either(**_AUTOMATIC, format=choice(TableFormat))),
    shown("Format", "Automatic: what the destination's ending says.", "feather"),
]
AxisName = Annotated[str, control(choice(Axis)), shown("Axis", "Cells (obs) or features (var).", "obs")]
Measurement = Annotated[str, shown("Measurement", "The measurement whose var is meant.", "RNA")]
Organism = Annotated[str, shown("Organism", "The experiment in a Census.", "homo_sapiens")]
Columns = Annotated[
    str | list[str] | None,
    control(either(all=NONE, names=NAMES, text=TEXT)),
    shown("Columns", "In the order of the output.", ["cell_type", "tissue"]),
]
Tissue = Annotated[
    str | None, control(either(any=NONE, name=TEXT)), shown("Tissue", "A value of tissue_general.", "lung")
]
ValueFilter = Annotated[
    str | None,
    control(either(**_NONE, filter=TEXT)),
    shown("Filter", "Rows to keep, in SOMA's language.", "cell_type == 'B cell' and nnz > 500"),
]
BufferBytes = Annotated[
    str | int | None,
    control(either(**_AUTOMATIC, size=TEXT, bytes=NUMBER)),
    shown("Buffer of a column", "Automatic: from the budget and the columns.", "4MiB"),
]
JoinIds = Annotated[
    int | None,
    control(either(**_AUTOMATIC, number=NUMBER)),
    shown("Joinids of a chunk", "Automatic: chunks of a remote store alone.", 1000000),
]
VarJoinIds = Annotated[bool, shown("Joinids of var", "Write those too, to a file beside the destination.", False)]

# --- concat -------------------------------------------------------------------------------------------------

InFiles = Annotated[
    list[str],
    control(NAMES),
    shown("Inputs", "AnnData files (.h5ad) and stores (.zarr), paths or URLs.", ["/data/a.h5ad", "/data/b.zarr"]),
]
OutFile = Annotated[
    str, shown("Output", "The file or store to write, a path or a URL: .h5ad or .zarr.", "/data/all.h5ad")
]
LoadedElements = Annotated[
    int, control(NUMBER), shown("Elements of a block", "At most; the memory budget may make them fewer.", 10000000)
]
ConcatAxis = Annotated[
    int | str,
    control(either(number={"type": "integer", "enum": [0, 1]}, name=choice(("obs", "var")))),
    shown("Axis", "Along which inputs are put together: 0 or obs, 1 or var.", "obs"),
]
ConcatJoin = Annotated[
    str,
    control(choice(ConcatJoins)),
    shown("Join", "Names of the other axis: of all inputs, or of any.", "outer"),
]
MergeStrategy = Annotated[
    str | None,
    control(either(**_NONE, strategy=choice(Merge))),
    shown("Merge", "Elements along the other axis that are kept.", "same"),
]
UnsMerge = Annotated[
    str | None,
    control(either(**_NONE, strategy=choice(Merge))),
    shown("Merge of uns", "Entries of uns that are kept.", "unique"),
]
Label = Annotated[
    str | None,
    control(either(**_NONE, column=TEXT)),
    shown("Label", "A column that tells each row's input, by its key.", "plate"),
]
InputKeys = Annotated[
    list[bool | int | float | str] | None,
    control(either(**_AUTOMATIC, keys={"type": "array", "items": {"type": ["string", "number", "boolean"]}})),
    shown("Keys", "One for each input; automatic: 0, 1, ...", ["plate1", "plate2"]),
]
IndexUnique = Annotated[
    str | None,
    control(either(**_NONE, text=TEXT)),
    shown("Make names unique", "Text between a name and its input's key.", "-"),
]
FillValue = Annotated[
    bool | int | float | str | None,
    control(either(**_AUTOMATIC, number={"type": "number"}, text=TEXT, truth=ON_OFF)),
    shown("Fill value", "Of an outer join; automatic: 0 in sparse arrays, nan in dense ones.", 0),
]
Pairwise = Annotated[bool, shown("Pairwise", "Keep obsp (or varp), as blocks on the diagonal.", True)]
ConcatCompression = Annotated[
    str | None,
    control(either(kind=choice(ConcatCompressions), none=NONE)),
    shown(
        "Compression",
        "Of large arrays; source: as the inputs have them; lzf: h5ad alone; zstd, lz4: zarr.",
        "gzip",
    ),
]

# --- reprocess ----------------------------------------------------------------------------------------------

SourceRoot = Annotated[
    str, shown("Source root", "A folder or URL with a folder or a database for each plate.", "/data/screen")
]
DestinationRoot = Annotated[
    str, shown("Destination root", "A folder or URL for a table of each plate, and their index.", "/data/tables")
]
ConvertOptions = Annotated[
    dict[str, Any] | None,
    control(either(**_NONE, options={"type": "object"})),
    shown("Options of the conversion", "Any other arguments of convert, by name.", {"image_columns": "all"}),
]
Settle = Annotated[
    str | float,
    control(either(time=TEXT, seconds={"type": "number", "minimum": 0})),
    shown("Settle", "How long a plate must have been left alone.", "10min"),
]
PlatesAtOnce = Annotated[
    int, control(NUMBER), shown("Plates at once", "They share the memory budget and the workers.", 2)
]
Plates = Annotated[
    str | list[str] | None,
    control(either(all=NONE, patterns=NAMES)),
    shown("Plates", "Names or patterns of those that count.", ["BR*"]),
]
Exclude = Annotated[
    str | list[str] | None,
    control(either(**_NONE, patterns=NAMES)),
    shown("Exclude", "Names or patterns of what is left out.", ["test*"]),
]
PlatesWorkDir = Annotated[
    str | None,
    control(either(**_AUTOMATIC, folder=TEXT)),
    shown("Work folder", "Where parts lie; automatic: a hidden folder in the destination.", "/scratch/parts"),
]
Keep = Annotated[
    str | int, control(SIZE), shown("Keep", "Size of the finished chunks that stay for later runs.", "20GiB")
]
KeepDays = Annotated[
    float,
    control({"type": "number", "minimum": 0}),
    shown("Days to keep", "How long chunks stay that no run has used.", 30),
]
VersionChange = Annotated[
    str,
    control(choice(NewVersion)),
    shown("New version", "What it does with plates that an earlier version converted.", "keep"),
]
OverwriteUnknown = Annotated[bool, shown("Overwrite", "Replace outputs that the index does not know.", False)]
DryRun = Annotated[bool, shown("Dry run", "Tell only what would be done.", True)]
