"""Who belongs to whom: the keys of a chunk's tables are joined in DuckDB, the columns are then taken by position.

Wide rows never go through the join. Every join is on (dataset, image number, object number).
"""

from __future__ import annotations

import atexit
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_cytotable.tasks.core.arrays import from_numpy, one_piece, to_numpy, whole_numbers
from prefect_cytotable.tasks.core.errors import DuplicateKeyError
from prefect_cytotable.tasks.core.model import IMAGE, Cause, Relation, Unmatched

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT = "256MB"
"""DuckDB's own limit for the keys of one chunk; a chunk's keys need a few MB."""


@dataclass(frozen=True)
class Step:
    """How one more compartment comes into the join.

    Attributes:
        via: A compartment that is in it already.
        up: True where `via` names the new one as its parent; False where the new one names `via`, and must do
            so at most once for each of its objects.
        column: The column with the parent's object number, of `via` or of the new compartment.
    """

    compartment: str
    via: str
    up: bool
    column: str


def steps_from(base: str, relations: tuple[Relation, ...]) -> tuple[Step, ...]:
    """The steps that bring every related compartment to `base`, nearest first, parents before children."""
    steps: list[Step] = []
    reached = [base]
    for via in reached:
        for one in relations:
            if one.child == via and one.parent not in reached:
                reached.append(one.parent)
                steps.append(Step(one.parent, via, True, one.column))
        for one in relations:
            if one.parent == via and one.child not in reached:
                reached.append(one.child)
                steps.append(Step(one.child, via, False, one.column))
    return tuple(steps)


@dataclass(frozen=True)
class KeyTable:
    """The keys of one compartment's rows in a chunk.

    Attributes:
        dataset: int32, which of the chunk's datasets a row is of.
        image: int64, null where the row has none; None where rows belong to no numbered image.
        object: int64, null where the row has none; None for the image table.
        parents: int64 arrays by column name.
        places: For each of the chunk's datasets where its table lies, as an error names it; none where errors name
            the label.
    """

    label: str
    dataset: pa.Array
    image: pa.Array | None
    object: pa.Array | None
    parents: dict[str, pa.Array]
    places: tuple[str, ...] = ()

    def arrow(self) -> pa.Table:
        """The keys as a table with the columns pos, ds, image, object, and p0, p1, ... for the parents."""
        columns = {"pos": from_numpy(np.arange(len(self.dataset), dtype=np.int64)), "ds": self.dataset}
        columns["image"] = self.image if self.image is not None else pa.nulls(len(self.dataset), pa.int64())
        if self.object is not None:
            columns["object"] = self.object
        columns |= {f"p{number}": array for number, array in enumerate(self.parents.values())}
        return pa.table(columns)

    def parent(self, column: str) -> str:
        """The name of a parent column in `arrow`."""
        return f"p{list(self.parents).index(column)}"


@dataclass(frozen=True)
class Joined:
    """Which rows make up each row of the output.

    Attributes:
        positions: int64 arrays by compartment, null where a row has no partner.
        dataset: int32, which of the chunk's datasets a row is of.
        dropped: (dataset, cause, rows).
        imageless: Rows whose image is not in the image table; they are kept.
    """

    positions: dict[str, pa.Array]
    dataset: pa.Array
    dropped: tuple[tuple[int, Cause, int], ...]
    imageless: int


def key_array(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Object or image numbers as int64; fractions and other values that number nothing become null."""
    array = one_piece(values)
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64())
    if pa.types.is_boolean(array.type):
        return pa.nulls(len(array), pa.int64())
    if pa.types.is_string(array.type):
        number = pc.match_substring_regex(array, r"^\s*\d{1,18}(\.0*)?\s*$")
        array = pc.if_else(number, pc.utf8_trim_whitespace(array), pa.scalar(None, pa.string())).cast(pa.float64())
    return whole_numbers(array)


def connection() -> duckdb.DuckDBPyConnection:
    """A DuckDB connection of its own, for one thread and one chunk; what is registered with it no other one sees."""
    return _database().cursor()


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """The one in-memory database of this process, whose opening takes longer than a chunk's joins."""
    import duckdb  # 0.1 s, which the first chunk's thread spends while another one reads

    atexit.register(_database.cache_clear)
    return duckdb.connect(
        ":memory:",
        config={
            "threads": "1",
            "memory_limit": MEMORY_LIMIT,
            "python_enable_replacements": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        },
    )


def join(
    base: str,
    tables: dict[str, KeyTable],
    steps: tuple[Step, ...],
    tableless: dict[str, set[int]],
    unmatched: Unmatched,
    sort: bool,
) -> Joined:
    """Join the keys of a chunk.

    Args:
        base: The compartment that gives the output its rows.
        tables: Keys by compartment, the image table among them where there is one.
        steps: How the compartments hang together.
        tableless: By compartment (or image), the chunk's datasets that have no readable table of it.
        unmatched: Whether base rows without a parent stay.
        sort: Whether rows are ordered by (dataset, image, object), or stay as they were read.

    Raises:
        DuplicateKeyError: Two rows of a compartment have the same key.
    """
    with connection() as con:
        for position, table in enumerate(tables.values()):
            con.register(f"t{position}", table.arrow())
        alias = {name: f"t{position}" for position, name in enumerate(tables)}
        keys = _unique_keys(base, tables, steps)
        if any(_may_repeat(tables[name], key) for name, key in keys.items()):
            _refuse_duplicates(con, keys, tables, alias)
        order = "ds, image_number, object_number, base" if sort else "base"
        query = _query(base, tables, steps, alias, tableless, unmatched)
        rows = con.sql(f"SELECT *, cause = '' AS kept FROM ({query}) ORDER BY {order}").to_arrow_table()
    kept, dropped = _split(rows)
    positions = {base: _column(kept, "base")}
    positions |= {step.compartment: _column(kept, f"s{number}") for number, step in enumerate(steps)}
    imageless = 0
    if IMAGE in tables:
        positions[IMAGE] = _column(kept, "image_pos")
        imageless = positions[IMAGE].null_count
    return Joined(positions, _column(kept, "ds"), dropped, imageless)


def _split(rows: pa.Table) -> tuple[pa.Table, tuple[tuple[int, Cause, int], ...]]:
    """The rows that are kept, and how many of each dataset are dropped for which cause."""
    kept = rows.column("kept")  # told by DuckDB: comparing with a text here would have pyarrow import pandas
    if pc.all(kept, min_count=0).as_py():
        return rows, ()
    counts = rows.filter(pc.invert(kept)).group_by(["ds", "cause"]).aggregate([([], "count_all")])
    columns = [counts.column(name).to_pylist() for name in ("ds", "cause", "count_all")]
    return rows.filter(kept), tuple(
        (ds, Cause(cause), count) for ds, cause, count in sorted(zip(*columns, strict=True))
    )


def _column(table: pa.Table, name: str) -> pa.Array:
    return one_piece(table.column(name))


def _unique_keys(base: str, tables: dict[str, KeyTable], steps: tuple[Step, ...]) -> dict[str, str]:
    """The column of `KeyTable.arrow` that numbers the rows of an image, by compartment; "0" where there is but one."""
    keys = {base: "object"} | {
        step.compartment: "object" if step.up else tables[step.compartment].parent(step.column) for step in steps
    }
    return keys | ({IMAGE: "0"} if IMAGE in tables else {})


def _may_repeat(table: KeyTable, key: str) -> bool:
    """Whether two rows may have the same key; False only where each is greater than the one before it.

    That is how exports lie, and looking takes a hundredth of what a query takes.
    """
    columns = [table.dataset, table.image]
    if key != "0":
        columns.append(table.object if key == "object" else list(table.parents.values())[int(key[1:])])
    if any(column is None or column.null_count for column in columns):
        return True
    above = np.zeros(max(len(table.dataset) - 1, 0), dtype=bool)
    for column in reversed(columns):
        values = to_numpy(column)
        above = (values[1:] > values[:-1]) | ((values[1:] == values[:-1]) & above)
    return not above.all()


def _refuse_duplicates(
    con: duckdb.DuckDBPyConnection, keys: dict[str, str], tables: dict[str, KeyTable], alias: dict[str, str]
) -> None:
    repeated: list[str] = []
    for name, key in keys.items():
        number = f"{key} IS NOT NULL AND {key} > 0" if key.startswith("p") else f"{key} IS NOT NULL"
        repeated.append(
            f"SELECT {len(repeated)} AS t, ds, image, {key} AS number, count(*) AS rows FROM {alias[name]} "
            f"WHERE image IS NOT NULL AND {number} GROUP BY ds, image, number HAVING count(*) > 1"
        )
    found = con.sql(f"{' UNION ALL '.join(repeated)} ORDER BY t, ds, image, number LIMIT 3").fetchall()
    if found:
        table, dataset = found[0][:2]
        name, key = list(keys.items())[table]
        where = tables[name].places[dataset] if tables[name].places else tables[name].label
        raise DuplicateKeyError(_duplicates(where, key, [row[2:] for row in found if row[:2] == (table, dataset)]))


def _duplicates(where: str, key: str, rows: list[tuple[int, int, int]]) -> str:
    if key == "0":
        listed = "; ".join(f"image {image} ({count} rows)" for image, _, count in rows)
        return f"{where}: the image table has more than one row for an image: {listed}. Export it again."
    listed = "; ".join(f"image {image}, object {number} ({count} rows)" for image, number, count in rows)
    if key == "object":
        return (
            f"{where}: more than one row has the same image and object number: {listed}. The join would multiply "
            f"rows. Was the export appended to an older one? Export it into an empty place."
        )
    return (
        f"{where}: more than one of its objects names the same parent: {listed}. The join would multiply rows. "
        f"Leave it out of compartments and convert it on its own, with join=False."
    )


def _query(
    base: str,
    tables: dict[str, KeyTable],
    steps: tuple[Step, ...],
    alias: dict[str, str],
    tableless: dict[str, set[int]],
    unmatched: Unmatched,
) -> str:
    """One row for each base row: positions of its partners, and why it is dropped ('' where it is not)."""
    selected = ["b.ds", "b.image AS image_number", "b.object AS object_number", "b.pos AS base"]
    joins, causes = [], []
    causes.append(_when("b.image IS NULL", Cause.NO_IMAGE_NUMBER))
    causes.append(_when("b.object IS NULL", Cause.NO_OBJECT_NUMBER))
    lacking = sorted(tableless.get(IMAGE, ()))
    if lacking and unmatched is not Unmatched.KEEP:
        causes.append(_when(f"b.ds IN ({_list(lacking)})", Cause.NO_IMAGE_TABLE))
    names = {base: "b"} | {step.compartment: f"j{number}" for number, step in enumerate(steps)}
    for number, step in enumerate(steps):
        via, new = names[step.via], names[step.compartment]
        selected.append(f"{new}.pos AS s{number}")
        if step.up:
            named = f"{via}.{tables[step.via].parent(step.column)}"
            match = f"{new}.object = {named}"
        else:
            named = f"{via}.object"
            match = f"{new}.{tables[step.compartment].parent(step.column)} = {named}"
        joins.append(
            f"LEFT JOIN {alias[step.compartment]} {new} ON {new}.ds = b.ds AND {new}.image = b.image AND {match}"
        )
        if unmatched is not Unmatched.KEEP:
            if lacking := sorted(tableless.get(step.compartment, ())):
                causes.append(_when(f"b.ds IN ({_list(lacking)})", Cause.NO_TABLE))
            causes.append(_when(f"{new}.pos IS NULL AND coalesce({named}, 0) <= 0", Cause.NO_PARENT))
            causes.append(_when(f"{new}.pos IS NULL", Cause.PARENT_MISSING))
    if IMAGE in tables:
        selected.append("i.pos AS image_pos")
        joins.append(f"LEFT JOIN {alias[IMAGE]} i ON i.ds = b.ds AND i.image = b.image")
    case = f"CASE {' '.join(causes)} ELSE '' END AS cause"
    return f"SELECT {', '.join(selected)}, {case} FROM {alias[base]} b {' '.join(joins)}"


def _when(condition: str, cause: Cause) -> str:
    return f"WHEN {condition} THEN '{cause.value}'"


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
