"""Convert microscopy measurements to one single-cell table, and fetch such tables.

Importing this package imports neither Prefect, which a run without a server does not need, nor Arrow: what it offers is
imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_cytotable.flows.concat import concat
    from prefect_cytotable.flows.convert import convert, plan
    from prefect_cytotable.flows.fetch import fetch_obs
    from prefect_cytotable.flows.reprocess import reprocess

__all__ = ["concat", "convert", "fetch_obs", "plan", "reprocess"]

_HOMES = {"concat": "concat", "convert": "convert", "plan": "convert", "fetch_obs": "fetch", "reprocess": "reprocess"}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps the name `convert` for the function: Python sets a package's attribute to each module that it imports."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
