"""What is in a checkout is in the wheel too."""

from __future__ import annotations

import importlib
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

TOP = {"prefect_cytotable.flows": "flows", "prefect_cytotable.tasks": "tasks"}


@pytest.fixture(scope="module")
def settings(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def folders(root: Path) -> dict[str, Path]:
    """Every folder with Python in it, by its package's name."""
    found = {}
    for package, folder in TOP.items():
        for file in sorted((root / folder).rglob("*.py")):
            inside = file.parent.relative_to(root / folder).parts
            found[".".join((package, *inside))] = file.parent
    return found


def test_the_packages_are_the_folders(root: Path, settings: dict) -> None:
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(folders(root))
    assert settings["tool"]["setuptools"]["package-dir"] == TOP


def test_every_package_has_an_init_and_imports(root: Path) -> None:
    for package, folder in folders(root).items():
        assert (folder / "__init__.py").is_file(), package
        path = importlib.import_module(package).__file__
        assert path is not None
        assert path.endswith("/__init__.py"), package


def test_prefect_cytotable_itself_is_a_namespace() -> None:
    assert importlib.import_module("prefect_cytotable").__file__ is None


def test_both_packages_are_typed(root: Path, settings: dict) -> None:
    for package, folder in TOP.items():
        assert (root / folder / "py.typed").is_file()
        assert "py.typed" in settings["tool"]["setuptools"]["package-data"][package]


def test_every_file_that_is_no_python_is_package_data(root: Path, settings: dict) -> None:
    data = settings["tool"]["setuptools"]["package-data"]
    lost = []
    for package, folder in folders(root).items():
        for file in folder.iterdir():
            if file.is_dir() or file.suffix in (".py", ".pyc") or file.name.startswith("."):
                continue
            if not any(fnmatch(file.name, pattern) for pattern in data.get(package, [])):
                lost.append(file)
    assert not lost


def test_every_preset_is_package_data(root: Path, settings: dict) -> None:
    presets = list((root / "tasks" / "core" / "presets").glob("*.toml"))
    assert presets
    patterns = settings["tool"]["setuptools"]["package-data"]["prefect_cytotable.tasks.core.presets"]
    assert all(any(fnmatch(file.name, pattern) for pattern in patterns) for file in presets)


def test_the_entry_points_can_be_imported(settings: dict) -> None:
    project = settings["project"]
    targets = [*project["scripts"].values(), *project["entry-points"]["prefect.collections"].values()]
    for target in targets:
        module, _, name = target.partition(":")
        loaded = importlib.import_module(module)
        assert not name or callable(getattr(loaded, name))
