"""What the tests of the flows share, beyond what all tests do."""

from __future__ import annotations

import pytest
from ears import Ear


@pytest.fixture
def ear() -> Ear:
    """A progress that remembers."""
    return Ear()
