"""Types, keys and columns for the tests of formats that have types."""

from __future__ import annotations

from prefect_cytotable.tasks.core.model import ColumnType
from prefect_cytotable.tasks.core.sources.base import Keys

NO_KEYS = Keys("", "")
BOOL, INT, FLOAT, DOUBLE, TEXT = (
    ColumnType.BOOL,
    ColumnType.INT64,
    ColumnType.FLOAT,
    ColumnType.DOUBLE,
    ColumnType.STRING,
)
PLANNED = (("ImageNumber", INT), ("ObjectNumber", INT), ("Value", DOUBLE))
