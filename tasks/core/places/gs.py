"""Google Cloud Storage. Imported only when such a path is used: the client library is an extra."""

from __future__ import annotations

import io
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import google.auth
import requests.exceptions
from cloudpathlib.gs.gsclient import GSClient
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.exceptions import NotFound
from google.cloud.storage import Client
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from prefect_cytotable.tasks.core.errors import ArgumentError, CytotableError, SourceChangedError
from prefect_cytotable.tasks.core.places import base
from prefect_cytotable.tasks.core.places.base import TOKEN, Entry, Head, Payload, Refusal, Sink
from prefect_cytotable.tasks.core.places.errors import DamagedTransferError
from prefect_cytotable.tasks.core.places.options import TRUE
from prefect_cytotable.tasks.core.places.urls import Location

T = TypeVar("T")

# Some versions of the library (3.17) ask for the bucket's own record with a request of their own, for traces that
# nobody collects; not everyone who may read objects may read that.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

CREDENTIALS = (
    "Credentials are looked for in the file that GOOGLE_APPLICATION_CREDENTIALS or storage_options "
    "application_credentials names, in the login of gcloud and in the machine's service account; a public bucket needs "
    "storage_options anonymous."
)

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"

TIMEOUT = (base.CONNECT_SECONDS, base.READ_SECONDS)

RETRY = DEFAULT_RETRY.with_delay(initial=0.3, maximum=2.0).with_timeout(3.0)
"""The library's own repetitions for a call that can be repeated here too."""

UPLOAD_RETRY = DEFAULT_RETRY.with_delay(initial=0.5, maximum=8.0).with_timeout(base.PATIENCE_SECONDS)
"""For each request of an upload: only the library can go on in the middle of one."""

_LOST = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    TransportError,
    HTTPError,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
_FAILURES = (
    DataCorruption,
    GoogleAPICallError,
    GoogleAuthError,
    InvalidResponse,
    RetryError,
    requests.exceptions.RequestException,
    *_LOST,
)


class Gs:
    """The service behind ``gs://``. One object may be shared by threads: so may the library's client."""

    def __init__(self, options: Mapping[str, str], cache: Path) -> None:
        self._client = self._try(Location("gs", "", ""), lambda: _client(options, cache))

    def page(self, bucket: Location, prefix: str, token: str) -> tuple[list[Entry], str]:
        """Up to 1,000 objects."""

        def ask() -> tuple[list[Entry], str]:
            listed = self._client.list_blobs(
                bucket.bucket,
                prefix=prefix or None,
                page_size=1000,
                page_token=token or None,
                fields="items(name,size,updated,generation),nextPageToken",
                timeout=TIMEOUT,
                retry=RETRY,
            )
            blobs = list(next(listed.pages, ()))
            return [_entry(bucket, one) for one in blobs], listed.next_page_token or ""

        return self._try(bucket, ask)

    def head(self, at: Location) -> Head | None:
        """What is known of an object."""
        bucket = self._client.bucket(at.bucket)
        blob = self._try(at, lambda: bucket.get_blob(at.key, timeout=TIMEOUT, retry=RETRY))
        return None if blob is None else Head(_entry(at, blob), (blob.metadata or {}).get(TOKEN, ""))

    def get(self, at: Location, start: int, stop: int | None, mark: str, sink: Sink) -> None:
        """Bytes of an object, as they are stored: what is stored compressed is not unpacked."""
        blob = self._client.bucket(at.bucket).blob(at.key)
        whole = not start and stop is None

        def ask() -> None:
            try:
                blob.download_to_file(
                    sink,
                    start=None if whole else start,
                    end=None if stop is None else stop - 1,
                    raw_download=True,
                    if_generation_match=_generation(mark),
                    timeout=TIMEOUT,
                    retry=RETRY,
                    checksum="crc32c" if whole else None,
                )
            except GoogleAPICallError as error:
                if error.code != 416:
                    raise

        self._try(at, ask)
        if mark and blob.generation is not None and str(blob.generation) != mark:
            raise SourceChangedError(f"{at.url} changed while it was being read. Run again when it is complete.")

    def put(self, at: Location, payload: Payload, overwrite: bool, token: str) -> None:
        """Make an object; the library compares its checksum and removes it where that differs."""
        blob = self._client.bucket(at.bucket).blob(at.key, chunk_size=base.BLOCK)
        blob.metadata = {TOKEN: token}

        def send() -> None:
            with _opened(payload) as stream:
                blob.upload_from_file(
                    stream,
                    size=payload.size,
                    content_type="application/octet-stream",
                    if_generation_match=None if overwrite else 0,
                    timeout=TIMEOUT,
                    retry=UPLOAD_RETRY,
                    checksum="crc32c",
                )

        base.patiently(lambda: self._try(at, send, writing=True))

    def delete(self, at: Location) -> None:
        """Remove an object."""

        def ask() -> None:
            try:
                self._client.bucket(at.bucket).delete_blob(at.key, timeout=TIMEOUT, retry=RETRY)
            except NotFound:
                return

        self._try(at, ask, writing=True)

    def _try(self, at: Location, call: Callable[[], T], writing: bool = False) -> T:
        return base.guarded(call, _FAILURES, lambda error: _problem(error, at, writing))


def _client(options: Mapping[str, str], cache: Path) -> Any:
    endpoint = options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST", "")
    project = options.get("project")
    if options.get("anonymous") == TRUE or endpoint.startswith("http://"):
        # A server without TLS is an emulator: it needs no credentials, and real ones would cross the network bare.
        credentials = AnonymousCredentials()
    elif file := options.get("application_credentials"):
        credentials = _service_account(file)
    else:
        credentials, found = _default_credentials()
        project = project or found
    client = Client(
        project=project,
        credentials=credentials,
        client_options={"api_endpoint": endpoint.rstrip("/")} if endpoint else None,
    )
    for scheme in ("http://", "https://"):
        client._http.mount(scheme, HTTPAdapter(pool_connections=base.POOL, pool_maxsize=base.POOL))
    return GSClient(storage_client=client, file_cache_mode="persistent", local_cache_dir=cache).client


def _service_account(file: str) -> Any:
    try:
        return service_account.Credentials.from_service_account_file(file, scopes=[SCOPE])
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no key of a service account"
    raise ArgumentError(f"storage_options application_credentials: {file} cannot be used ({reason}).")


def _default_credentials() -> tuple[Any, str | None]:
    """What the machine offers; nobody's where it offers nothing, which public buckets accept."""
    try:
        found: tuple[Any, str | None] = google.auth.default(scopes=[SCOPE])
    except google.auth.exceptions.DefaultCredentialsError:
        return AnonymousCredentials(), None
    return found


def _opened(payload: Payload) -> Any:
    return io.BytesIO(payload.data) if payload.source is None else payload.source.open("rb")


def _entry(at: Location, blob: Any) -> Entry:
    url = Location("gs", at.bucket, blob.name).url
    return Entry(url, int(blob.size), base.nanoseconds(blob.updated), str(blob.generation))


def _generation(mark: str) -> int | None:
    return int(mark) if mark.isdigit() else None


def _problem(error: Exception, at: Location, writing: bool) -> CytotableError:
    if isinstance(error, RetryError):
        error = error.cause if isinstance(error.cause, Exception) else error
    name = type(error).__name__
    if isinstance(error, DataCorruption):
        return DamagedTransferError(f"{at.url}: the bytes did not arrive as they were sent. Run again.")
    status = None
    if isinstance(error, GoogleAPICallError):
        status = int(error.code) if error.code else None
    elif isinstance(error, InvalidResponse):
        status = int(error.response.status_code)
    lost = isinstance(error, (*_LOST, RetryError))
    denied = isinstance(error, GoogleAuthError) and not lost
    return base.problem(Refusal(status, name, denied, lost), at, writing, CREDENTIALS)
