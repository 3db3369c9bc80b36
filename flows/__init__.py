"""Convert microscopy measurements to one single-cell table.

Importing this package does not import Prefect: a run without a server does not need it.
"""

from prefect_cytotable.flows.convert import convert, plan

__all__ = ["convert", "plan"]
