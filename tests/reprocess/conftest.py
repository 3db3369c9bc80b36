"""What the tests of `reprocess` share: an environment without a server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, no profile and no settings of the person who runs the tests; relative paths lie in `tmp_path`."""
    for name in [name for name in os.environ if name.upper().startswith(("PREFECT_", "CYTOTABLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    monkeypatch.chdir(tmp_path)
