"""Azure Blob Storage. Imported only when such a path is used: the client library is an extra."""

from __future__ import annotations

import base64
import importlib
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import requests
from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    HttpResponseError,
    IncompleteReadError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobBlock, BlobServiceClient, ExponentialRetry
from cloudpathlib.azure.azblobclient import AzureBlobClient
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from prefect_cytotable.tasks.core.errors import ArgumentError, CytotableError
from prefect_cytotable.tasks.core.places import base
from prefect_cytotable.tasks.core.places.base import TOKEN, Entry, Head, Payload, Refusal, Sink, bare, quoted
from prefect_cytotable.tasks.core.places.errors import PlaceDeniedError
from prefect_cytotable.tasks.core.places.options import TRUE
from prefect_cytotable.tasks.core.places.urls import Location

T = TypeVar("T")

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"

CREDENTIALS = (
    f"Credentials are looked for in {CONNECTION_STRING} and, with storage_options account_url, in the variables of an "
    "Azure identity and the machine's own (package azure-identity); a public container needs storage_options "
    "account_url and anonymous."
)

PAGE = 5000
"""Objects of a page of a listing: the most that the service sends."""

MAX_BLOCKS = 50_000
"""The most blocks that the service accepts in an object."""

_LOST = (
    DecodeError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
    HTTPError,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
_FAILURES = (AzureError, requests.RequestException, *_LOST)
_BUSY = {"ContainerBeingDeleted", "OperationTimedOut", "ServerBusy"}


class Azure:
    """The service behind ``az://container/key``. One object may be shared by threads: so may the library's clients."""

    def __init__(self, options: Mapping[str, str], cache: Path) -> None:
        self._client = self._try(Location("az", "", ""), lambda: _client(options, cache))

    def page(self, bucket: Location, prefix: str, token: str) -> tuple[list[Entry], str]:
        """Up to 5,000 objects; folders of accounts that have them are told by their metadata."""

        def ask() -> tuple[list[Entry], str]:
            container = self._client.get_container_client(bucket.bucket)
            pages = container.list_blobs(
                name_starts_with=prefix or None, include=["metadata"], results_per_page=PAGE
            ).by_page(continuation_token=token or None)
            blobs = list(next(pages, ()))
            found = [_entry(bucket, one) for one in blobs if not _is_folder(one)]
            return found, pages.continuation_token or ""

        return self._try(bucket, ask)

    def head(self, at: Location) -> Head | None:
        """What is known of an object."""

        def ask() -> Any:
            try:
                return self._blob(at).get_blob_properties()
            except ResourceNotFoundError:
                return None

        found = self._try(at, ask)
        if found is None or _is_folder(found):
            return None
        return Head(_entry(at, found), (found.metadata or {}).get(TOKEN, ""))

    def get(self, at: Location, start: int, stop: int | None, mark: str, sink: Sink) -> None:
        """Bytes of an object, as they are stored."""
        condition = {"etag": quoted(mark), "match_condition": MatchConditions.IfNotModified} if mark else {}
        wanted = (
            {"offset": start, "length": None if stop is None else stop - start} if start or stop is not None else {}
        )

        def ask() -> None:
            try:
                answer = self._blob(at).download_blob(max_concurrency=1, decompress=False, **wanted, **condition)
            except HttpResponseError as error:
                if error.status_code == 416:
                    return
                raise
            sink.mark = sink.mark or bare(answer.properties.etag)
            whole = str(answer.properties.content_range or "").rpartition("/")[2]
            sink.total = int(whole) if whole.isdigit() else sink.total
            for piece in answer.chunks():
                sink.write(piece)

        self._try(at, ask)

    def put(self, at: Location, payload: Payload, overwrite: bool, token: str) -> None:
        """Make an object: in one request, or in blocks that the last request makes an object.

        Each request carries the MD5 of its bytes, which the service compares. Blocks that no request made an object are
        seen by nobody, and the service removes them.
        """
        if payload.size > base.BLOCK:
            self._put_blocks(at, payload, overwrite, token)
            return
        data = payload.read(0, payload.size)

        def send() -> None:
            self._blob(at).upload_blob(
                data, length=payload.size, overwrite=overwrite, metadata={TOKEN: token}, validate_content=True
            )

        base.patiently(lambda: self._try(at, send, writing=True))

    def _put_blocks(self, at: Location, payload: Payload, overwrite: bool, token: str) -> None:
        step = max(base.BLOCK, -(-payload.size // MAX_BLOCKS))
        numbered = list(enumerate(base.ranges(payload.size, step)))
        names = base.in_parallel(lambda one: self._block(at, payload, token, *one), numbered, base.THREADS)
        condition = {} if overwrite else {"match_condition": MatchConditions.IfMissing}

        def commit() -> None:
            blocks = [BlobBlock(block_id=name) for name in names]
            self._blob(at).commit_block_list(blocks, metadata={TOKEN: token}, **condition)

        base.patiently(lambda: self._try(at, commit, writing=True))

    def _block(self, at: Location, payload: Payload, token: str, number: int, wanted: tuple[int, int]) -> str:
        data = payload.read(*wanted)
        name = base64.b64encode(f"{token}-{number:08d}".encode()).decode()

        def send() -> None:
            self._blob(at).stage_block(name, data, length=len(data), validate_content=True)

        base.patiently(lambda: self._try(at, send, writing=True))
        return name

    def delete(self, at: Location) -> None:
        """Remove an object."""

        def ask() -> None:
            try:
                self._blob(at).delete_blob()
            except ResourceNotFoundError:
                return

        self._try(at, ask, writing=True)

    def _blob(self, at: Location) -> Any:
        return self._client.get_blob_client(container=at.bucket, blob=at.key)

    def _try(self, at: Location, call: Callable[[], T], writing: bool = False) -> T:
        return base.guarded(call, _FAILURES, lambda error: _problem(error, at, writing))


def _client(options: Mapping[str, str], cache: Path) -> Any:
    """A client with this package's timeouts, pool and patience."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=base.POOL, pool_maxsize=base.POOL))
    settings: dict[str, Any] = {
        "transport": RequestsTransport(
            session=session, connection_timeout=base.CONNECT_SECONDS, read_timeout=base.READ_SECONDS
        ),
        "retry_policy": ExponentialRetry(
            initial_backoff=0, increment_base=0.5, random_jitter_range=0.5, retry_total=base.SDK_ATTEMPTS - 1
        ),
        "max_chunk_get_size": base.BLOCK,
    }
    url = options.get("account_url") or options.get("endpoint_url")
    text = os.environ.get(CONNECTION_STRING, "")
    try:
        if url:
            client = BlobServiceClient(url, credential=_credential(url, text, options), **settings)
        elif text:
            client = BlobServiceClient.from_connection_string(text, **settings)
        else:
            client = None
    except (ValueError, TypeError) as error:
        reason = type(error).__name__
        client = error
    if client is None:
        raise PlaceDeniedError(f"az://: no storage account is named. {CREDENTIALS}")
    if isinstance(client, Exception):
        raise ArgumentError(
            f"az://: the account's address or {CONNECTION_STRING} cannot be used ({reason}). An identity needs an "
            f"https:// address."
        )
    return AzureBlobClient(
        blob_service_client=client, file_cache_mode="persistent", local_cache_dir=cache
    ).service_client


def _credential(url: str, text: str, options: Mapping[str, str]) -> Any:
    """What opens the account of `url`: the connection string's key where that is for this account, else an identity."""
    if options.get("anonymous") == TRUE:
        return None
    pairs = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    named = {name.strip().lower(): value.strip() for name, value in pairs.items()}
    account = BlobServiceClient(url).account_name
    if account and named.get("accountname", account) == account:
        if "accountkey" in named:
            return AzureNamedKeyCredential(account, named["accountkey"])
        if "sharedaccesssignature" in named:
            return AzureSasCredential(named["sharedaccesssignature"])
    try:
        return importlib.import_module("azure.identity").DefaultAzureCredential()
    except ImportError:
        found = PlaceDeniedError(f"{url}: there is no credential for this account. {CREDENTIALS}")
    raise found


def _is_folder(blob: Any) -> bool:
    metadata = {name.lower(): value for name, value in (blob.metadata or {}).items()}
    return str(metadata.get("hdi_isfolder", "")).lower() == "true"


def _entry(at: Location, blob: Any) -> Entry:
    url = Location("az", at.bucket, blob.name).url
    return Entry(url, int(blob.size), base.nanoseconds(blob.last_modified), bare(blob.etag))


def _problem(error: Exception, at: Location, writing: bool) -> CytotableError:
    status = getattr(error, "status_code", None)
    code = getattr(error, "error_code", None)
    word = str(getattr(code, "value", code) or type(error).__name__)[:80]
    if writing and status == 409 and word == "BlobAlreadyExists":
        return base.taken(at.url)
    lost = isinstance(error, (*_LOST, requests.RequestException)) or (
        isinstance(error, HttpResponseError) and status is None and not isinstance(error, ClientAuthenticationError)
    )
    denied = isinstance(error, ClientAuthenticationError)
    return base.problem(Refusal(status, word, denied, lost or word in _BUSY), at, writing, CREDENTIALS)
