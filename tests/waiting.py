"""Waiting with a bound, ports and an empty environment, for tests with processes of their own; without Prefect."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HOST = "127.0.0.1"
SECONDS = 240.0
"""How long anything is waited for; each takes a few seconds on a machine that does nothing else."""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], Any], what: str = "it", pause: float = 0.1) -> Any:
    """What the condition gives, once it gives something."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(pause)
    return found


def clear(patch: pytest.MonkeyPatch, *prefixes: str) -> None:
    """Take the variables that begin so out of the environment."""
    for name in [name for name in os.environ if name.upper().startswith(prefixes)]:
        patch.delenv(name)


@contextmanager
def without_server(home: Path) -> Iterator[None]:
    """An environment in which no Prefect server is configured and no user's settings are seen."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_API_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("PREFECT_HOME", str(home / "prefect"))
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(home / "cytotable"))
        yield
