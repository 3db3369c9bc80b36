"""Which Prefect server a run will use.

Every start of the command line asks :func:`configured_api_url`, so nothing here imports Prefect (1.5-2 s).
Prefect's documented order is repeated instead, and the tests hold it to what Prefect itself resolves.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from prefect_cytotable.flows.remembered import ServerError, answers, running_server, state_folder, user_home

# Prefect's profiles for a user who has no profiles file; the others in it name no server.
_BUILT_IN_PROFILES: Mapping[str, Any] = {"local": {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}}
_TEST_MODES = (
    "PREFECT_TEST_MODE",
    "PREFECT_UNIT_TEST_MODE",
    "PREFECT_TESTING_UNIT_TEST_MODE",
    "PREFECT_TESTING_TEST_MODE",
)


class Origin(StrEnum):
    """What told us the address of a Prefect API, highest precedence first."""

    ENVIRONMENT = "environment"
    DOTENV = "dotenv"
    PREFECT_TOML = "prefect.toml"
    PYPROJECT = "pyproject"
    PROFILE = "profile"
    OWN_SERVER = "own server"
    TEMPORARY = "temporary"
    """A server that was started for the run."""
    SETTINGS = "settings"
    """The settings of a Prefect that this process has imported already."""


_NAMES: Mapping[Origin, str] = {
    Origin.ENVIRONMENT: "the variable PREFECT_API_URL",
    Origin.DOTENV: "the file .env",
    Origin.PREFECT_TOML: "the file prefect.toml",
    Origin.PYPROJECT: "the file pyproject.toml",
    Origin.PROFILE: "the active Prefect profile",
    Origin.OWN_SERVER: "`prefect-cytotable server start`",
    Origin.TEMPORARY: "the run that started it",
    Origin.SETTINGS: "Prefect's settings in this process",
}
_WAYS_OUT: Mapping[Origin, str] = {
    Origin.ENVIRONMENT: "unset the variable PREFECT_API_URL",
    Origin.DOTENV: "take PREFECT_API_URL out of the file .env here",
    Origin.PREFECT_TOML: "take api.url out of prefect.toml here",
    Origin.PYPROJECT: "take tool.prefect.api.url out of pyproject.toml here",
    Origin.PROFILE: "run `prefect config unset PREFECT_API_URL`",
    Origin.OWN_SERVER: "run `prefect-cytotable server stop`",
    Origin.TEMPORARY: 'choose task_runner="concurrent" or "process"',
    Origin.SETTINGS: "call it outside the block that sets api.url, or before Prefect is imported",
}
"""How to run without the server that is named there."""


@dataclass(frozen=True)
class Connection:
    """The Prefect API that a run would talk to, and what names it."""

    url: str
    origin: Origin

    @property
    def shown(self) -> str:
        """The address as messages may show it."""
        return without_password(self.url)


def without_password(url: str) -> str:
    """An address without the user and the password that it may hold.

    >>> without_password("http://user:secret@example.org/api")
    'http://example.org/api'
    """
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


class ServerUnreachableError(ServerError, ConnectionError):
    """The Prefect server that is configured does not answer."""

    @classmethod
    def silent(cls, connection: Connection, cause: str) -> ServerUnreachableError:
        """It did not answer before the run began."""
        return cls(
            f"The Prefect server {connection.shown} does not answer: {cause.rstrip('.')}. It is named by "
            f"{_NAMES[connection.origin]}. Start it, or correct the address (it ends in /api); to run without it, "
            f"{_WAYS_OUT[connection.origin]}."
        )

    @classmethod
    def lost(cls, connection: Connection, cause: str) -> ServerUnreachableError:
        """It did not answer any more while the run was under way."""
        return cls(
            f"The Prefect server {connection.shown} was lost during the run: {cause.rstrip('.')}. See that it answers "
            f"and run the same again: the chunks that are done are kept. To run without it, "
            f"{_WAYS_OUT[connection.origin]}."
        )


def configured_api_url(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Connection | None:
    """Find the Prefect API that a run of this process would use, as Prefect 3 itself would.

    In this order: the variable PREFECT_API_URL; ``.env``, ``prefect.toml`` and ``pyproject.toml`` in the
    working directory; the active profile. Only where none of them names one: our own server, if it answers.

    Args:
        environ: the environment, that of this process by default.
        cwd: the working directory, that of this process by default.

    Returns:
        The connection, or None: Prefect would then start a temporary server. Files that cannot be read
        count as absent, because Prefect reports them better.

    >>> configured_api_url({"PREFECT_API_URL": "http://example.org/api"}).origin
    <Origin.ENVIRONMENT: 'environment'>
    """
    environ = os.environ if environ is None else environ
    for origin, url in _candidates(environ, Path.cwd() if cwd is None else cwd):
        if isinstance(url, str):
            if url:
                return Connection(url, origin)
            break  # set, but empty: hides what has a lower precedence, as in Prefect
    server = running_server(state_folder(environ))
    if server is not None and answers(server.port):
        return Connection(server.url, Origin.OWN_SERVER)
    return None


def _candidates(environ: Mapping[str, str], cwd: Path) -> Iterator[tuple[Origin, Any]]:
    """Each place that can hold the address, in order; what follows a hit is not read."""
    yield Origin.ENVIRONMENT, _ignoring_case(environ, "PREFECT_API_URL")
    dotenv = _read_dotenv(cwd / ".env")
    yield Origin.DOTENV, _ignoring_case(dotenv, "PREFECT_API_URL")
    own = _read_toml(cwd / "prefect.toml")
    yield Origin.PREFECT_TOML, _dig(own, "api", "url")
    project = _dig(_read_toml(cwd / "pyproject.toml"), "tool", "prefect")
    yield Origin.PYPROJECT, _dig(project, "api", "url")
    if any(environ.get(name) for name in _TEST_MODES):
        return
    named = (
        environ.get("PREFECT_PROFILES_PATH")
        or dotenv.get("PREFECT_PROFILES_PATH")
        or _dig(own, "profiles_path")
        or _dig(project, "profiles_path")
    )
    if isinstance(named, str):
        profiles = _read_toml(cwd / named)
    elif home := environ.get("PREFECT_HOME"):
        profiles = _read_toml(cwd / home / "profiles.toml")
    else:
        path = user_home(environ) / ".prefect" / "profiles.toml"
        profiles = _read_toml(path) if path.exists() else {"profiles": _BUILT_IN_PROFILES}
    active = environ.get("PREFECT_PROFILE") or _dig(profiles, "active")
    yield Origin.PROFILE, _dig(profiles, "profiles", active, "PREFECT_API_URL")


def _ignoring_case(variables: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in variables.items() if key.upper() == name), None)


def _dig(value: Any, *keys: Any) -> Any:
    """Follow keys through nested tables; None where one is missing or is no table."""
    for key in keys:
        if not isinstance(value, Mapping) or not isinstance(key, str):
            return None
        value = value.get(key)
    return value


def _read_toml(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        return tomllib.loads(path.read_text(encoding="utf-8"))
    return {}


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    # Here and not on top: rarely needed, and 40 ms. Prefect reads the file with the same library.
    from dotenv import dotenv_values

    with suppress(OSError, ValueError):
        return {name: value for name, value in dotenv_values(path).items() if value is not None}
    return {}
