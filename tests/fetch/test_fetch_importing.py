"""Packages that wait while a library is imported: what stands for them, and what it becomes once it is used."""

from __future__ import annotations

import importlib
import importlib.metadata
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from prefect_cytotable.tasks.core.retries import PlanPlace
from prefect_cytotable.tasks.core.runner import Runner
from prefect_cytotable.tasks.core.soma import importing, local

HEAVY = """
LOADED = True
class Frame:
    def __class_getitem__(cls, item): return cls
    def __init__(self, rows=0): self.rows = rows
"""
LIBRARY = """
from typing import Union
import heavy as hv
import heavy.parts.small
from heavy import Frame
from heavy.parts import small as other
Rows = hv.Frame[int]
Either = Union[Rows, hv.parts.small.Piece]
Optional = Frame | None
def made(class_=hv.Frame): return class_(rows=3)
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Imports a library that imports a heavy package, which waits."""
    (tmp_path / "heavy" / "parts").mkdir(parents=True)
    (tmp_path / "heavy" / "__init__.py").write_text(HEAVY)
    (tmp_path / "heavy" / "parts" / "__init__.py").write_text("")
    (tmp_path / "heavy" / "parts" / "small.py").write_text("class Piece: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importing, "LIBRARY", "light_library")
    monkeypatch.setattr(importing, "DEFERRED", ("heavy",))
    monkeypatch.setattr(importing, "_wanted", False)

    def imported(code: str = "", version: str = "2.3.7") -> ModuleType:
        described = tmp_path / f"light_library-{version}.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: light_library\nVersion: {version}\n")
        (tmp_path / "light_library.py").write_text(LIBRARY + code)
        importlib.invalidate_caches()
        with importing.deferring():
            return importlib.import_module("light_library")

    finders = list(sys.meta_path)
    yield imported
    assert sys.meta_path == finders
    for name in [name for name in sys.modules if name.partition(".")[0] in ("heavy", "light_library")]:
        del sys.modules[name]


def heavy() -> list[str]:
    return sorted(name for name in sys.modules if name.partition(".")[0] == "heavy")


def test_what_is_only_named_is_not_imported(library: Callable[..., ModuleType]) -> None:
    importing.defer()
    library()
    assert heavy() == []
    import heavy as real  # type: ignore[import-not-found]

    assert real.LOADED  # nothing that waits was left for others


def test_what_is_used_becomes_real(library: Callable[..., ModuleType]) -> None:
    importing.defer()
    one = library()
    made = one.made()  # by a name that was bound while it waited, as a default
    import heavy as real

    assert type(made) is real.Frame
    assert made.rows == 3
    assert one.hv.Frame is real.Frame
    assert isinstance(made, one.Frame)
    assert not isinstance(3, one.Rows)
    assert issubclass(real.Frame, one.Frame)
    assert one.hv.parts.small.Piece is one.other.Piece is real.parts.small.Piece
    with pytest.raises(AttributeError, match="no attribute 'Frme'"):
        _ = one.hv.Frme


def test_what_the_library_uses_while_it_is_imported_is_real(library: Callable[..., ModuleType]) -> None:
    importing.defer()
    one = library("class Own(hv.Frame): pass\nROWS = Own(5).rows\n")
    import heavy as real

    assert one.ROWS == 5
    assert one.Own.__mro__[1] is real.Frame
    assert one.Frame(2).rows == 2


def test_a_library_that_fails_leaves_nothing_behind(library: Callable[..., ModuleType]) -> None:
    importing.defer()
    with pytest.raises(ZeroDivisionError):
        library("1 / 0\n")
    assert heavy() == []


@pytest.mark.parametrize("version", ["1.15.0", "2.30.0", "3.0.0"])
def test_a_version_that_was_not_tried_is_imported_as_it_is(library: Callable[..., ModuleType], version: str) -> None:
    importing.defer()
    assert library(version=version).Frame is sys.modules["heavy"].Frame


def test_processes_of_others_import_as_ever(library: Callable[..., ModuleType]) -> None:
    assert library().Frame is sys.modules["heavy"].Frame


def test_what_is_imported_already_stays(library: Callable[..., ModuleType]) -> None:
    importing.defer()
    real = importlib.import_module("heavy")
    assert library().Frame is real.Frame
    assert heavy() == ["heavy", "heavy.parts", "heavy.parts.small"]  # and so does what is below it
    assert type(real.parts.small) is ModuleType


def test_the_installed_version_was_tried() -> None:
    version = importlib.metadata.version("tiledbsoma")
    assert version.startswith(tuple(f"{one}." for one in importing.TRIED)), "try it, and add it to `TRIED`"


REAL = """
import sys
from prefect_cytotable.tasks.core.soma import opening, own
own.settle()
soma = opening.library()
assert not {"pandas", "scipy", "anndata", "shapely"} & sys.modules.keys(), sorted(sys.modules)
assert soma.IntIndexer([5, 7]).get_indexer([7]).tolist() == [1]
import pandas
from tiledbsoma import _query, _types
assert isinstance(pandas.Series([1]), _types.PDSeries)
assert _query.pd.Index is pandas.Index
import scipy.sparse
assert _query.sp.csr_matrix is scipy.sparse.csr_matrix
"""


def test_tiledbsoma_finds_pandas_and_scipy_when_it_uses_them() -> None:
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_a_worker_process_is_settled_before_it_reads(tmp_path: Path) -> None:
    found = "__import__('os').environ.get('TILEDB_SM_MEM_MALLOC_TRIM'), " + (
        "__import__('prefect_cytotable.tasks.core.soma.importing', fromlist=['_'])._wanted"
    )
    assert local.job_for(Runner.PROCESS) is local.fetch_job_in_worker
    assert local.job_for(Runner.CONCURRENT) is local.fetch_job_with_retries  # a thread of a process of the user's
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(FileNotFoundError):
            pool.submit(local.fetch_job_in_worker, PlanPlace(str(tmp_path / "no plan")), 0).result(timeout=120)
        assert pool.submit(eval, found).result(timeout=120) == ("false", True)
