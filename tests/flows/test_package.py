"""The package is light to import, and its names are its functions in whatever order things are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def told(program: str, **environment: str) -> str:
    """What a program prints in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ARROW_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**clean, **environment}, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["flows", "flows.entry", "tasks.core.memory.child"])
def test_what_begins_a_command_imports_no_arrow(module: str) -> None:
    found = told(
        f"import sys, prefect_cytotable.{module}\n"
        "print([name for name in ('pyarrow', 'prefect', 'numpy', 'duckdb') if name in sys.modules])"
    )
    assert found == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "import prefect_cytotable.flows",
        "import prefect_cytotable.flows.convert",
        "from prefect_cytotable.flows.convert import plan",
        "import prefect_cytotable.flows.cli",
        "from prefect_cytotable.flows import convert",
    ],
)
def test_the_name_convert_is_the_function(first: str) -> None:
    program = f"""
{first}
import sys
from prefect_cytotable.flows import convert, fetch_obs, plan
import prefect_cytotable.flows as flows
import prefect_cytotable.flows.convert as named
home = sys.modules["prefect_cytotable.flows.convert"]
assert convert is flows.convert is named is home.convert and plan is home.plan, (convert, named)
assert fetch_obs.__module__ == "prefect_cytotable.flows.fetch"
assert set(flows.__all__) <= set(dir(flows))
print("good")
"""
    assert told(program) == "good"


def test_a_name_that_is_not_there_is_told() -> None:
    from prefect_cytotable import flows

    with pytest.raises(AttributeError, match="no attribute 'konvert'"):
        flows.konvert  # noqa: B018


@pytest.mark.parametrize(
    ("command", "environment", "pool"),
    [("fetch", {}, "system"), ("presets", {}, ""), ("fetch", {"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc")],
)
def test_a_fetch_has_arrow_use_the_systems_allocator(command: str, environment: dict[str, str], pool: str) -> None:
    program = f"""
import os
from prefect_cytotable.flows.entry import main
try:
    main(["{command}", "--help"])
except SystemExit:
    pass
print("pool:", os.environ.get("ARROW_DEFAULT_MEMORY_POOL", ""))
"""
    assert told(program, **environment).splitlines()[-1].removeprefix("pool:").strip() == pool
