"""The examples in the library's docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

PACKAGE = "prefect_cytotable.tasks.core"


def modules(root: Path) -> list[str]:
    folder = root / "tasks" / "core"
    paths = [file.relative_to(folder).with_suffix("") for file in sorted(folder.rglob("*.py"))]
    return [".".join((PACKAGE, *(part for part in path.parts if part != "__init__"))) for path in paths]


def test_every_example_gives_what_it_says(root: Path) -> None:
    results = {name: doctest.testmod(importlib.import_module(name)) for name in modules(root)}
    assert {name: one for name, one in results.items() if one.failed} == {}
    assert sum(one.attempted for one in results.values()) >= 10
