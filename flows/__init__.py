"""Convert microscopy measurements to one single-cell table, and fetch such tables.

Importing this package does not import Prefect: a run without a server does not need it.
"""

import os
import sys

if sys.argv[1:2] == ["fetch"] and os.path.basename(sys.argv[0]) in ("prefect-cytotable", "cli.py", "-m", ""):  # noqa: PTH119
    # For our own command alone, and before Arrow is imported, which chooses its allocator then: the default one
    # reserves 1 GiB of addresses.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

from prefect_cytotable.flows.convert import convert, plan
from prefect_cytotable.flows.fetch import fetch_obs

__all__ = ["convert", "fetch_obs", "plan"]
