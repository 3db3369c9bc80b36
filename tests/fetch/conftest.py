"""A small store that is shaped like the Census, made by the generator of the benchmarks, and no Prefect server."""

from __future__ import annotations

import importlib.util
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
