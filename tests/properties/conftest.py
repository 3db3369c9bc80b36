"""What the properties of conversions share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """A folder for one example, gone after it."""

    @contextmanager
    def folder() -> Iterator[Path]:
        path = tmp_path_factory.mktemp("example")
        yield path
        shutil.rmtree(path)

    return folder
