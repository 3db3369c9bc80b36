"""A small store that is shaped like the Census, made by the generator of the benchmarks, and no Prefect server."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

if importlib.util.find_spec("tiledbsoma") is None:
    collect_ignore_glob = ["test_*.py"]

CELLS, GENES = 30_000, 400


@pytest.fixture(scope="session")
def generator(root: Path) -> ModuleType:
    """The generator of the benchmarks."""
    spec = importlib.util.spec_from_file_location("soma_generate", root / "benchmarks" / "soma_generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def census(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Census of 30,000 cells; nobody writes to it."""
    path = tmp_path_factory.mktemp("soma") / "census"
    generator.generate(path, CELLS, GENES)
    return path


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, no profile and no settings of the person who runs the tests; relative paths lie in `tmp_path`."""
    for name in [name for name in os.environ if name.upper().startswith(("PREFECT_", "CYTOTABLE_", "ARROW_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    monkeypatch.chdir(tmp_path)
