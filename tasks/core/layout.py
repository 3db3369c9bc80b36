"""The tables of the output: which columns, in which order, from where, and of which type."""

from __future__ import annotations

from fnmatch import fnmatchcase

from prefect_cytotable.tasks.core.errors import LayoutError
from prefect_cytotable.tasks.core.model import (
    JOINED,
    ColumnType,
    Inspected,
    Options,
    OutputColumn,
    OutputTable,
    Schema,
)
from prefect_cytotable.tasks.core.naming import TABLE_NUMBER, column_rank
from prefect_cytotable.tasks.core.schema import cast_type

DATASET = ""
"""What an output column names as its compartment when it belongs to the dataset, not to a table."""

METADATA_MODE = "metadata"
FILENAMES_MODE = "filenames"
ALL_MODE = "all"


def image_patterns(chosen: str | list[str] | tuple[str, ...], preset_patterns: tuple[str, ...]) -> tuple[str, ...]:
    """``image_columns=`` as patterns over output names.

    >>> image_patterns("metadata", ("Image_FileName_*",))
    ('Image_FileName_*', '*Metadata_*')
    """
    if isinstance(chosen, str):
        return {
            METADATA_MODE: (*preset_patterns, "*Metadata_*"),
            FILENAMES_MODE: preset_patterns,
            ALL_MODE: ("*",),
        }.get(chosen, (chosen,))
    return tuple(chosen)


def output_tables(inspected: Inspected, options: Options, with_table_number: bool) -> tuple[OutputTable, ...]:
    """The joined table, or one table for each compartment where they are not joined."""
    if options.join:
        return (OutputTable(JOINED, _joined_columns(inspected, options, with_table_number)),)
    return tuple(
        OutputTable(schema.compartment, _ordered(_all_columns(schema, options), inspected, options, with_table_number))
        for schema in inspected.schemas
    )


def _all_columns(schema: Schema, options: Options) -> list[OutputColumn]:
    return [
        OutputColumn(column.output, cast_type(column.type, options.casts), schema.compartment, column.name)
        for column in schema.columns
    ]


def _joined_columns(inspected: Inspected, options: Options, with_table_number: bool) -> tuple[OutputColumn, ...]:
    """Columns of the base, of the image table, of the others; a name that is there already is not repeated."""
    base = inspected.schema(inspected.base)
    assert base is not None
    images = [one for one in inspected.schemas if one.compartment in options.preset.metadata]
    others = [one for one in inspected.schemas if one is not base and one not in images]
    taken: dict[str, OutputColumn] = {}
    for schema in (base, *images, *others):
        for column in _all_columns(schema, options):
            if schema in images and not _wanted(column.name, options.image_columns):
                continue
            if schema is not base and column.column == schema.image_number:
                continue
            before = taken.get(column.name)
            if before is None:
                taken[column.name] = column
            elif not column.name.startswith("Metadata_"):
                gathered = inspected.gathered
                raise LayoutError(
                    f"{gathered.root}: {before.column!r} of {gathered.label(before.compartment)} and {column.column!r} "
                    f"of {schema.label} would both be called {column.name!r}. Leave one of the two out of "
                    f"compartments, or choose image_columns without it."
                )
    return _ordered(list(taken.values()), inspected, options, with_table_number)


def _wanted(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _ordered(
    columns: list[OutputColumn], inspected: Inspected, options: Options, with_table_number: bool
) -> tuple[OutputColumn, ...]:
    """The columns as they stand in the output; the dataset's TableNumber takes the place of a source's own."""
    if with_table_number:
        columns = [table_number(inspected), *(column for column in columns if column.name != TABLE_NUMBER)]
    if options.preset.keep_names:
        return tuple(columns)
    return tuple(sorted(columns, key=lambda column: column_rank(column.name)))


def table_number(inspected: Inspected) -> OutputColumn:
    """The column that tells the datasets apart: whole numbers, or texts where a database has texts."""
    texts = any(isinstance(one.table_number, str) for one in inspected.gathered.datasets)
    type_ = ColumnType.STRING if texts else ColumnType.INT64
    return OutputColumn(TABLE_NUMBER, type_.value, DATASET, "TableNumber")
