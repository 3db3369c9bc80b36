"""What the tests of `reprocess` share: plates in a folder, and where their tables go."""

from __future__ import annotations

from pathlib import Path

import pytest
from screens import plate_of_sites


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three plates."""
    for number, name in enumerate(("a", "b", "c")):
        plate_of_sites(tmp_path / "root" / name, seed=number)
    return tmp_path / "root"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
