"""The clients of the storage services: made once for each process and each set of options, when first needed."""

from __future__ import annotations

import importlib
import os
import threading

from prefect_cytotable.tasks.core.places.base import Service
from prefect_cytotable.tasks.core.places.cache import cache_folder
from prefect_cytotable.tasks.core.places.errors import MissingExtraError
from prefect_cytotable.tasks.core.places.options import StorageOptions, used_by

_PACKAGE = "prefect_cytotable.tasks.core.places"
_SERVICES = {"s3": ("s3", "S3"), "gs": ("gs", "Gs"), "az": ("az", "Azure")}
_EXTRAS = {"s3": "s3", "gs": "gs", "az": "azure"}
_NAMES = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_VARIABLES = {"s3": ("AWS_",), "gs": ("GOOGLE_", "GCLOUD_", "STORAGE_EMULATOR_", "API_ENDPOINT_"), "az": ("AZURE_",)}

_Key = tuple[str, StorageOptions, tuple[tuple[str, str], ...]]


class _Clients:
    """Those of this process. A child that was forked begins with none: connections cannot be shared with it."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.lock = threading.Lock()
        self.made: dict[_Key, Service] = {}


_CLIENTS = _Clients()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_CLIENTS.begin)


def service(scheme: str, storage: StorageOptions) -> Service:
    """The service behind a scheme.

    Raises:
        MissingExtraError: Its client library is not installed.
        PlaceDeniedError: No credentials are found, and the service needs some.
    """
    options = used_by(scheme, storage)
    variables = tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith(_VARIABLES[scheme])))
    key = (scheme, options, variables)
    with _CLIENTS.lock:  # clients may be shared by threads, but not made by several at once
        if key not in _CLIENTS.made:
            _CLIENTS.made[key] = _make(scheme, options, storage)
        return _CLIENTS.made[key]


def _make(scheme: str, options: StorageOptions, storage: StorageOptions) -> Service:
    module, name = _SERVICES[scheme]
    try:
        loaded = importlib.import_module(f"{_PACKAGE}.{module}")
    except ImportError as error:
        raise MissingExtraError(
            f"{scheme}:// paths need the client library of {_NAMES[scheme]}. Install it with: "
            f"pip install 'prefect-cytotable[{_EXTRAS[scheme]}]'"
        ) from error
    made: Service = getattr(loaded, name)(dict(options), cache_folder(storage))
    return made
