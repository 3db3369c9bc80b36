"""Allowed roots: where a run may read and write, whatever its parameters say.

Whoever may start a deployment chooses the paths that a worker opens with the worker's own rights. The variable
``PREFECT_CYTOTABLE_ALLOWED_ROOTS`` of the worker limits them to folders and URL prefixes; without it, nothing is
limited. It holds for everything that makes options of arguments: command line, functions, flows, child runs.

A check tells where a path leads at that moment. Who may change links inside a root while a run is under way can still
lead it out: give such roots to nobody whom the worker's files are to be kept from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from prefect_cytotable.tasks.core.errors import CytotableError

ROOTS = "PREFECT_CYTOTABLE_ALLOWED_ROOTS"
"""Folders and URL prefixes with `os.pathsep` between them, such as ``/data/screens:/scratch:s3://lab-results/tables``."""

ENDPOINTS = "PREFECT_CYTOTABLE_ALLOWED_ENDPOINTS"
"""Servers with commas between them, such as ``https://minio.example.org:9000,tcp://scheduler.example.org:8786``."""

_SEPARATOR = re.compile(rf"{re.escape(os.pathsep)}(?!//)")  # a colon is also in s3://
_PORTS = {"http": 80, "https": 443}


class OutsideRootsError(CytotableError, PermissionError):
    """A path or a server is not among those that this machine allows."""


@dataclass(frozen=True)
class Roots:
    """What is allowed.

    Attributes:
        folders: Real paths of local folders.
        prefixes: URL prefixes as (scheme, bucket or host, key).
    """

    folders: tuple[Path, ...] = ()
    prefixes: tuple[tuple[str, str, str], ...] = ()

    def has_file(self, path: str | Path) -> bool:
        """Whether a local path, with every link in it followed, lies in one of the folders."""
        real = real_path(path)
        return any(real.is_relative_to(folder) for folder in self.folders)

    def has_url(self, url: str) -> bool:
        """Whether a URL lies below one of the prefixes; whole components count, and none may be "." or ".."."""
        scheme, host, key = _parts(url)
        if {".", ".."} & set(key.split("/")):
            return False
        return any(
            (scheme, host) == one[:2] and (not one[2] or key == one[2] or key.startswith(f"{one[2]}/"))
            for one in self.prefixes
        )


def allowed_roots(environ: Mapping[str, str] | None = None) -> Roots | None:
    """The roots that the environment names; None where it does not limit anything.

    Raises:
        OutsideRootsError: The variable is there and names no root, or something that is none: then nothing is allowed.
    """
    text = (os.environ if environ is None else environ).get(ROOTS)
    return None if text is None else _parsed(text)


@cache
def _parsed(text: str) -> Roots:
    folders, prefixes = [], []
    for one in _SEPARATOR.split(text):
        root = one.strip()
        if "://" in root:
            prefix = _parts(root.rstrip("/"))
            if not all(prefix[:2]) or {".", ".."} & set(prefix[2].split("/")):
                raise _unusable(f"{root} is no URL such as s3://bucket/folder")
            prefixes.append(prefix)
        elif root:
            folder = Path(root).expanduser()
            if not folder.is_absolute():
                raise _unusable(f"{root} is not an absolute path")
            folders.append(real_path(folder))
    if not folders and not prefixes:
        raise _unusable("it names no root")
    return Roots(tuple(folders), tuple(prefixes))


def _unusable(cause: str) -> OutsideRootsError:
    return OutsideRootsError(
        f"{ROOTS} cannot be used: {cause}. Nothing is read or written until it is corrected, or taken away."
    )


def _parts(url: str) -> tuple[str, str, str]:
    scheme, _, rest = url.partition("://")
    host, _, key = rest.partition("/")
    return scheme.lower(), host, key


def real_path(path: str | Path) -> Path:
    """Where a path leads, with the user's home and every link in it followed; what is not there stays as it is.

    Raises:
        OutsideRootsError: It cannot be a path.
    """
    try:
        return Path(os.path.realpath(Path(path).expanduser()))
    except (ValueError, RuntimeError, OSError) as error:  # a null byte, an unknown user
        raise OutsideRootsError(f"{str(path)!r} cannot be a path ({error}).") from error


def check_path(name: str, path: str | Path | None) -> None:
    """Refuse a path or URL outside the allowed roots; nothing of what lies there is looked at or told.

    Args:
        name: The argument that gave it.
        path: A local path or a URL; None and an empty text are left to others.

    Raises:
        OutsideRootsError: It lies outside.
    """
    if path is None or not str(path).strip() or (roots := allowed_roots()) is None:
        return
    text = str(path).strip()
    if not (roots.has_url(text) if "://" in text else roots.has_file(path)):
        raise _outside(name, text)


def check_file(name: str, path: str | Path | None) -> None:
    """The same for what is opened as a local path, whatever it looks like.

    Raises:
        OutsideRootsError: It lies outside.
    """
    if path is None or not str(path) or (roots := allowed_roots()) is None:
        return
    if not roots.has_file(path):
        raise _outside(name, str(path))


def _outside(name: str, place: str) -> OutsideRootsError:
    shown = without_secrets(place) if "://" in place else place
    return OutsideRootsError(
        f"{name} is {shown!r}, which is not in a folder or below a URL that {ROOTS} allows on this machine. Choose a "
        f"place there, or ask whoever runs the worker to add it."
    )


def without_secrets(url: str) -> str:
    """A URL without user, password and query.

    >>> without_secrets("s3://user:secret@bucket/key?token=1")
    's3://bucket/key'
    """
    scheme, separator, rest = url.partition("?")[0].partition("://")
    host, slash, key = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{key}"


def leads_out(path: str | Path) -> bool:
    """Whether a local path inside a root leads out of all roots, by a link; never where no roots are set."""
    roots = allowed_roots()
    return roots is not None and not roots.has_file(path)


def check_endpoint(name: str, address: str | None) -> None:
    """Refuse a server to which a run would send data, or its machine's credentials, where servers or roots are limited.

    An entry without a scheme or a port stands for all of them on that host.

    Args:
        name: The argument that gave it.
        address: Such as https://minio.example.org:9000 or tcp://scheduler.example.org:8786.

    Raises:
        OutsideRootsError: It is not among the allowed ones.
    """
    listed = os.environ.get(ENDPOINTS)
    if not address or (listed is None and os.environ.get(ROOTS) is None):
        return
    wanted = _server(address)
    for entry in (listed or "").split(","):
        scheme, host, port = _server(entry.strip())
        if host and host == wanted[1] and scheme in ("", wanted[0]) and port in (None, wanted[2]):
            return
    raise OutsideRootsError(
        f"{name} names the server {wanted[1] or address!r}, which {ENDPOINTS} does not allow on this machine. Leave it "
        f"out, or ask whoever runs the worker to add it."
    )


def _server(address: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an address, each empty where it is not told; a host that is none is empty."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host = (parts.hostname or "").rstrip(".")
        return parts.scheme, host, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", "", None
