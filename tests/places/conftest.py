"""Servers that last as long as the tests of a worker, and a bucket of its own for each test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import Faulty
from place_servers import SCHEMES, Bucket, Server, running
from waiting import clear

from prefect_cytotable.tasks.core.places import Places, check_storage_options

CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_", "GCLOUD_", "STORAGE_EMULATOR_")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Each server is started by the first test that asks for it."""
    with contextlib.ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp("servers"))


class Servers:
    """The servers that run so far, by scheme."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self._running: dict[str, Server] = {}

    def __call__(self, scheme: str) -> Server:
        if scheme not in self._running:
            self._running[scheme] = self._stack.enter_context(running(scheme, self._folder))
        return self._running[scheme]


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(servers: Servers, scheme: str, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server of the scheme, and an environment in which its clients find their credentials."""
    found = servers(scheme)
    clear(monkeypatch, *CREDENTIALS)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def bucket(server: Server) -> Bucket:
    return Bucket(server)


@pytest.fixture
def places(bucket: Bucket, tmp_path: Path) -> Places:
    return Places(check_storage_options({**bucket.storage_options, "local_cache_dir": tmp_path / "cache"}))


@pytest.fixture
def proxy(server: Server) -> Iterator[Faulty]:
    """A proxy before the server."""
    with Faulty(server.port) as one:
        yield one


@pytest.fixture
def through(proxy: Faulty, server: Server, tmp_path: Path) -> Places:
    """Places whose requests go through the proxy."""
    options = {**server.options(proxy.port), "local_cache_dir": tmp_path / "cache"}
    return Places(check_storage_options(options))
