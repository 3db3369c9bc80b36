"""What is built holds everything, and works where there is no checkout."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUPTOOLS = 77
"""The first setuptools that knows the licence fields of pyproject.toml."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build needs, in a folder of its own: setuptools writes beside what it builds."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(project: Path) -> Path:
    """The wheel, built without the network where setuptools is there, else as pip would."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("`build` is not installed")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(project / "dist"), str(project)]
    if _setuptools() >= SETUPTOOLS:
        command.insert(4, "--no-isolation")
    run = subprocess.run(command, capture_output=True, text=True, timeout=500)
    if run.returncode and "--no-isolation" not in command:
        pytest.skip("no setuptools here, and none can be fetched")
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = (project / "dist").glob("*.whl")
    return path


def _setuptools() -> int:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_module_and_preset_is_there(names: set[str]) -> None:
    wanted = {
        f"prefect_cytotable/{path.relative_to(ROOT).as_posix()}"
        for folder in ("flows", "tasks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".toml", ".css", ".js") or path.name == "py.typed"
    }
    assert {
        "prefect_cytotable/flows/py.typed",
        "prefect_cytotable/tasks/py.typed",
        "prefect_cytotable/tasks/core/html/page.css",
        "prefect_cytotable/tasks/core/presets/cellprofiler_csv.toml",
        "prefect_cytotable/tasks/core/sinks/parquet.py",
        "prefect_cytotable/tasks/core/sources/sqlite.py",
    } <= wanted
    found = {name for name in names if ".dist-info/" not in name}
    assert found == wanted


def test_nothing_else_is_there(names: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in names} == {"prefect_cytotable"}
    assert "prefect_cytotable/__init__.py" not in names  # a namespace, which others may share
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_entry_points_and_metadata(wheel: Path, names: set[str]) -> None:
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    (metadata,) = (name for name in names if name.endswith("METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        points = archive.read(entry_points).decode()
        text = archive.read(metadata).decode()
    assert "[console_scripts]\nprefect-cytotable = prefect_cytotable.flows.entry:main" in points
    assert "[prefect.collections]\nprefect_cytotable = prefect_cytotable.flows" in points
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Version: {project['version']}" in text
    assert "License-Expression: BSD-3-Clause" in text
    assert "Requires-Python: >=3.11" in text
    for extra in project["optional-dependencies"]:
        assert f"Provides-Extra: {extra}" in text


def test_it_converts_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed into a folder of its own, which comes before this environment's packages."""
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target)]
    pip = subprocess.run([*command, str(wheel)], capture_output=True, text=True, timeout=300)
    assert pip.returncode == 0, pip.stderr
    script = (
        # An editable install finds its packages before the path does.
        "import sys; sys.meta_path[:] = [one for one in sys.meta_path if '__editable__' not in repr(one)]; "
        "sys.path_importer_cache.clear(); "
        "import prefect_cytotable.flows.cli as cli, prefect_cytotable.tasks.core as core; "
        "print(cli.__file__); print(core.__file__); sys.exit(cli.main(['demo']))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CYTOTABLE_"))}
    environment |= {
        "PYTHONPATH": str(target),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_CYTOTABLE_HOME": str(tmp_path / "state"),
    }
    place = tmp_path / "place"
    place.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=place, env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr
    files = [Path(line) for line in run.stdout.splitlines()[:2]]
    assert all(file.is_relative_to(target) for file in files), files
    assert (place / "prefect-cytotable-demo" / "cells.parquet").is_file()
