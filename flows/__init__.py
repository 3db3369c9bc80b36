"""Convert microscopy measurements to one single-cell table, and fetch such tables.

Importing this package does not import Prefect: a run without a server does not need it.
"""

from prefect_cytotable.flows.convert import convert, plan
from prefect_cytotable.flows.fetch import fetch_obs

__all__ = ["convert", "fetch_obs", "plan"]
