"""Who may import whom: flows -> tasks -> core, and core nothing of Prefect."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "prefect_cytotable"
CORE = f"{PACKAGE}.tasks.core"


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def files(folder: Path) -> list[Path]:
    found = [file for file in folder.rglob("*.py") if "__pycache__" not in file.parts]
    assert found
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("import a.b\nfrom c import d\ndef f():\n    from e.f import g as h\n    import i as j\n")
    assert set(imported(file)) == {"a.b", "c", "c.d", "e.f", "e.f.g", "i"}


@pytest.mark.parametrize("forbidden", ["prefect", "dask", "distributed", "prefect_dask"])
def test_core_never_imports_prefect(root: Path, forbidden: str) -> None:
    found = [(file, one) for file in files(root / "tasks" / "core") for one in imported(file) if within(one, forbidden)]
    assert not found


def test_core_imports_nothing_of_ours_but_core(root: Path) -> None:
    found = [
        (file.name, one)
        for file in files(root / "tasks" / "core")
        for one in imported(file)
        if within(one, PACKAGE) and not within(one, CORE)
    ]
    assert [pair for pair in found if pair[1] not in (PACKAGE, f"{PACKAGE}.tasks")] == []


def test_tasks_import_nothing_of_flows(root: Path) -> None:
    found = [(file, one) for file in files(root / "tasks") for one in imported(file) if within(one, f"{PACKAGE}.flows")]
    assert not found


def test_sources_and_sinks_never_import_each_other(root: Path) -> None:
    for here, there in (("sources", "sinks"), ("sinks", "sources")):
        folder = root / "tasks" / "core" / here
        assert not [(file, one) for file in files(folder) for one in imported(file) if within(one, f"{CORE}.{there}")]


def test_stages_reach_formats_through_the_registry_alone(root: Path) -> None:
    formats = [file.stem for file in files(root / "tasks" / "core" / "sources")]
    formats = [name for name in formats if name not in ("__init__", "base", "registry")]
    found = {
        (file.name, name)
        for file in (root / "tasks" / "core").glob("*.py")
        for one in imported(file)
        for name in formats
        if within(one, f"{CORE}.sources.{name}")
    }
    assert not found


def test_importing_the_flow_does_not_import_prefect() -> None:
    code = (
        f"import sys; from {PACKAGE}.flows import convert; from {PACKAGE}.tasks.core import local, pipeline\n"
        "print([name for name in ('prefect', 'dask', 'pandas', 'fastapi') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
