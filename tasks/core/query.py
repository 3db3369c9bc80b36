"""The SQL of ``joins=``: run on one dataset's tables of one chunk, with no access to anything else.

CytoTable's users write ``read_parquet('cells.parquet')``; here that names the chunk's table of cells. The query runs
in a DuckDB of its own whose access to files, network, extensions and Python's variables is switched off and locked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa

from prefect_cytotable.tasks.core.errors import JoinQueryError, nearest

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT = "512MB"
_READ_PARQUET = re.compile(r"read_parquet\s*\(\s*'((?:[^']|'')*)'\s*\)", re.IGNORECASE)
_NESTED = ("list", "array", "struct", "map", "union", "interval")
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": "1",
    "memory_limit": MEMORY_LIMIT,
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "temp_directory": "",
}


def prepared(sql: str, tables: dict[str, str]) -> str:
    """The query with every ``read_parquet('...')`` replaced by the name of a chunk's table.

    Args:
        sql: As the user wrote it.
        tables: Table name by file name without ending, in lower case ("cells", "per_cells").

    Raises:
        JoinQueryError: It names a table that does not exist, or is not one SELECT.
    """
    import duckdb  # only where a query is given: see join.py

    def table(match: re.Match[str]) -> str:
        name = match[1].replace("''", "'").rsplit("/", 1)[-1].removesuffix(".parquet").lower()
        if name not in tables:
            raise JoinQueryError(
                f"joins reads {match[1]!r}, which is no table of this conversion. {nearest(name, tables)}"
            )
        return f'"{tables[name]}"'

    text = _READ_PARQUET.sub(table, sql)
    with _connection({}) as con:
        try:
            statements = con.extract_statements(text)
        except duckdb.Error as error:
            raise JoinQueryError(f"joins is not valid SQL: {_first_line(error)}") from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise JoinQueryError("joins must be one SELECT statement.")
    return text


def run(sql: str, tables: dict[str, pa.Table]) -> pa.Table:
    """The result of a prepared query over `tables`; of columns with the same name the first is kept.

    Raises:
        JoinQueryError: DuckDB refuses the query.
    """
    import duckdb  # only where a query is given: see join.py

    with _connection(tables) as con:
        try:
            result = _with_plain_types(con.sql(sql)).to_arrow_table()
        except duckdb.Error as error:
            raise JoinQueryError(f"DuckDB cannot run joins: {_first_line(error)}") from error
    return result.combine_chunks()


def _with_plain_types(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The relation with lists, structs and their like as text."""
    nested = {name for name, type_ in zip(relation.columns, relation.types, strict=True) if type_.id in _NESTED}
    if not nested:
        return relation
    quoted = [(name, '"' + name.replace('"', '""') + '"') for name in relation.columns]
    return relation.project(", ".join(f"{one}::VARCHAR AS {one}" if name in nested else one for name, one in quoted))


def _connection(tables: dict[str, pa.Table]) -> duckdb.DuckDBPyConnection:
    import duckdb  # see above

    con = duckdb.connect(":memory:", config=_SETTINGS)
    for name, table in tables.items():
        con.register(name, table)
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")
    return con


def _first_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]
