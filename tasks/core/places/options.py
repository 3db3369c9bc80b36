"""``storage_options``: how to reach object storage, checked, and never a secret among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from prefect_cytotable.tasks.core.errors import ArgumentError, nearest
from prefect_cytotable.tasks.core.places.urls import SCHEMES, is_remote, split

StorageOptions = tuple[tuple[str, str], ...]
"""(name, value) pairs, sorted by name. Plans and records show them, so nothing in them is secret."""

LOCAL_CACHE_DIR = "local_cache_dir"

TRUE = "true"

_USES: dict[str, tuple[str, ...]] = {
    "account_url": ("az",),
    "addressing_style": ("s3",),
    "anonymous": SCHEMES,
    "application_credentials": ("gs",),
    "endpoint_url": SCHEMES,
    LOCAL_CACHE_DIR: SCHEMES,
    "no_sign_request": ("s3",),
    "profile": ("s3",),
    "project": ("gs",),
    "region": ("s3",),
}
_SYNONYMS = {"profile_name": "profile", "region_name": "region"}
_SWITCHES = ("anonymous", "no_sign_request")
ADDRESS_OPTIONS = ("account_url", "endpoint_url")
PATH_OPTIONS = ("application_credentials", LOCAL_CACHE_DIR)
_STYLES = ("auto", "path", "virtual")

_SECRET = re.compile(
    r"secret|password|passwd|token|credential|access_key|account_key|shared_key|api_?key|connection_str|^sas|_sas|"
    r"signature|session|^key$|^pwd$|client$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"[?&;](sig|signature|x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|sv|se)=|accountkey=|sharedaccesssignature=|"
    r"private_key|-----begin",
    re.IGNORECASE,
)

WHERE_SECRETS_BELONG = (
    "Parameters are shown in logs and kept in plans. Put credentials in the environment of every machine that runs "
    "chunks: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role for s3://; "
    "GOOGLE_APPLICATION_CREDENTIALS for gs://; AZURE_STORAGE_CONNECTION_STRING or the variables of an Azure identity "
    "for az://."
)


def check_storage_options(given: Mapping[str, object] | None) -> StorageOptions:
    """The options as sorted pairs of texts; switches that are off, and None, are left out.

    >>> check_storage_options({"region": "eu-west-1", "no_sign_request": True, "anonymous": False})
    (('no_sign_request', 'true'), ('region', 'eu-west-1'))

    Raises:
        ArgumentError: A name is unknown, a value unusable, or one of them a secret. No message repeats a value.
    """
    found: dict[str, str] = {}
    for name, value in (given or {}).items():
        if not isinstance(name, str):
            raise ArgumentError(f"storage_options has a name that is no text but {type(name).__name__}.")
        known = _SYNONYMS.get(name, name)
        if known not in _USES:
            raise ArgumentError(_unknown(name))
        if value is None:
            continue
        text = _switch(name, value) if known in _SWITCHES else _text(known, value)
        if not text:
            continue
        if found.setdefault(known, text) != text:
            raise ArgumentError(f"storage_options has {known} and {name}, with different values. Leave one out.")
    return tuple(sorted(found.items()))


def check_options_fit(options: StorageOptions, paths: Iterable[str]) -> None:
    """Refuse an option that none of the places in use has a use for.

    Args:
        options: What `check_storage_options` gave.
        paths: Every path of the run that may be remote: source, destination, work folder.

    Raises:
        ArgumentError: An option has no effect, or would mean two different servers.
    """
    schemes = sorted({split(path).scheme for path in paths if is_remote(path)})
    for name, _value in options:
        if name != LOCAL_CACHE_DIR and not set(schemes) & set(_USES[name]):  # local files are unpacked there, too
            places = " and ".join(f"{one}://" for one in schemes) if schemes else "local paths alone"
            uses = ", ".join(f"{one}://" for one in _USES[name])
            raise ArgumentError(f"storage_options has {name}, which is for {uses}; this run uses {places}.")
    if len(schemes) > 1 and "endpoint_url" in dict(options):
        raise ArgumentError(
            "storage_options has endpoint_url, and the run uses "
            + " and ".join(f"{one}://" for one in schemes)
            + ": it would mean both servers. Name one of them in the environment instead (AWS_ENDPOINT_URL, "
            "STORAGE_EMULATOR_HOST, AZURE_STORAGE_CONNECTION_STRING)."
        )


def used_by(scheme: str, options: StorageOptions) -> StorageOptions:
    """The options that make a difference to the client of one service.

    >>> used_by("gs", (("local_cache_dir", "/tmp/x"), ("project", "p"), ("region", "eu-west-1")))
    (('project', 'p'),)
    """
    return tuple((name, value) for name, value in options if scheme in _USES[name] and name != LOCAL_CACHE_DIR)


def _unknown(name: str) -> str:
    if _SECRET.search(name):
        return f"storage_options has {name!r}, which is or holds a secret. {WHERE_SECRETS_BELONG}"
    return f"storage_options has no {name!r}. {nearest(name, (*_USES, *_SYNONYMS))}"


def _switch(name: str, value: object) -> str:
    if isinstance(value, str) and value.strip().lower() in ("true", "false", ""):
        value = value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise ArgumentError(f"storage_options {name} is neither True nor False.")
    return TRUE if value else ""


def _text(name: str, value: object) -> str:
    if not isinstance(value, str | Path):
        raise ArgumentError(f"storage_options {name} is a {type(value).__name__}, not a text.")
    text = str(value).strip()
    if _SECRET_VALUE.search(text) or (name == "application_credentials" and text.startswith("{")):
        raise ArgumentError(f"storage_options {name} holds a secret. {WHERE_SECRETS_BELONG}")
    if any(ord(one) < 32 for one in text):
        raise ArgumentError(f"storage_options {name} has a control character in it.")
    if name in ADDRESS_OPTIONS and text:
        return _address(name, text)
    if name in PATH_OPTIONS and text:
        return str(Path(text).expanduser().absolute())
    if name == "addressing_style" and text and text not in _STYLES:
        raise ArgumentError(f"storage_options addressing_style must be one of: {', '.join(_STYLES)}.")
    return text


def _address(name: str, text: str) -> str:
    parts = urlsplit(text)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ArgumentError(
            f"storage_options {name} has a user, a query or a fragment in it. Give the server's address alone, for "
            f"example https://storage.example.org. {WHERE_SECRETS_BELONG}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentError(f"storage_options {name} is no address such as https://storage.example.org.")
    return text.rstrip("/")
