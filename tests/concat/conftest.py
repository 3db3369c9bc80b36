"""What the tests of concatenation share."""

from __future__ import annotations

import pytest
from waiting import clear


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> object:
    """No server, no profile and no settings of the person who runs the tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        clear(patch, "PREFECT_", "CYTOTABLE_")
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(home / "state"))
        patch.setenv("PREFECT_HOME", str(home / "prefect"))
        yield None
