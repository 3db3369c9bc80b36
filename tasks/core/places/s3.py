"""Amazon S3, and what speaks like it. Imported only when such a path is used: the client library is an extra."""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from cloudpathlib.s3.s3client import S3Client
from urllib3.exceptions import HTTPError

from prefect_cytotable.tasks.core.errors import CytotableError
from prefect_cytotable.tasks.core.places import base
from prefect_cytotable.tasks.core.places.base import TOKEN, Entry, Head, Payload, Refusal, Sink, bare, quoted
from prefect_cytotable.tasks.core.places.errors import DamagedTransferError, PlaceError, UnsupportedError
from prefect_cytotable.tasks.core.places.options import TRUE
from prefect_cytotable.tasks.core.places.urls import Location

T = TypeVar("T")

CREDENTIALS = (
    "Credentials are looked for in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in the profile (storage_options "
    "profile, or AWS_PROFILE) and in the machine's role; a public bucket needs storage_options no_sign_request."
)

PIECE = 1 << 20
"""Bytes that are taken from a connection at a time."""

MAX_PARTS = 10_000
"""The most parts that the service accepts in an upload."""

_LOST = (
    BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
    HTTPError,
    ConnectionResetError,
    BrokenPipeError,
    TimeoutError,
    ssl.SSLError,
)
_FAILURES = (BotoCoreError, ClientError, *_LOST)
_NO_CREDENTIALS = (
    CredentialRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
_DENIED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException"}
_BUSY = {
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
}
_ELSEWHERE = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
_MD5 = re.compile(r"[0-9a-f]{32}")


class S3:
    """The service behind ``s3://``. One object may be shared by threads: so may boto3's clients."""

    def __init__(self, options: Mapping[str, str], cache: Path) -> None:
        self._client = self._try(Location("s3", "", ""), lambda: _client(options, cache))
        self._checksums: dict[str, str] = {}
        if getattr(self._client.meta.config, "request_checksum_calculation", "") == "when_supported":
            self._checksums = {"ChecksumAlgorithm": "CRC32"}

    def page(self, bucket: Location, prefix: str, token: str) -> tuple[list[Entry], str]:
        """Up to 1,000 objects."""
        more = {"ContinuationToken": token} if token else {}
        answer = self._try(
            bucket, lambda: self._client.list_objects_v2(Bucket=bucket.bucket, Prefix=prefix, MaxKeys=1000, **more)
        )
        entries = [
            Entry(
                Location("s3", bucket.bucket, one["Key"]).url,
                int(one["Size"]),
                base.nanoseconds(one["LastModified"]),
                bare(one.get("ETag")),
            )
            for one in answer.get("Contents", ())
        ]
        return entries, answer["NextContinuationToken"] if answer.get("IsTruncated") else ""

    def head(self, at: Location) -> Head | None:
        """What is known of an object."""

        def ask() -> Any:
            try:
                return self._client.head_object(Bucket=at.bucket, Key=at.key)
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise

        answer = self._try(at, ask)
        if answer is None:
            return None
        modified = base.nanoseconds(answer["LastModified"])
        entry = Entry(at.url, int(answer["ContentLength"]), modified, bare(answer.get("ETag")))
        return Head(entry, answer.get("Metadata", {}).get(TOKEN, ""))

    def get(self, at: Location, start: int, stop: int | None, mark: str, sink: Sink) -> None:
        """Bytes of an object, as they are stored."""
        wanted = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        condition = {"IfMatch": quoted(mark)} if mark else {}

        def ask() -> None:
            try:
                answer = self._client.get_object(Bucket=at.bucket, Key=at.key, **wanted, **condition)
            except ClientError as error:
                if _status(error) == 416:
                    return
                raise
            sink.mark = sink.mark or bare(answer.get("ETag"))
            sink.total = _total(answer)
            with closing(answer["Body"]) as body:
                for piece in body.iter_chunks(PIECE):
                    sink.write(piece)

        self._try(at, ask)

    def put(self, at: Location, payload: Payload, overwrite: bool, token: str) -> None:
        """Make an object: in one request, or in parts that are made an object by the last one."""
        if payload.size > base.BLOCK:
            self._put_parts(at, payload, overwrite, token)
            return
        data = payload.read(0, payload.size)

        def send(condition: Mapping[str, str]) -> Any:
            return self._client.put_object(
                Bucket=at.bucket, Key=at.key, Body=data, Metadata={TOKEN: token}, **condition, **self._checksums
            )

        answer = self._make(at, send, overwrite)
        if not _as_sent(answer, at, data):
            self.delete(at)
            raise PlaceError(f"{at.url}: the service's checksum is not that of what was sent; it was removed again.")

    def _make(self, at: Location, send: Callable[[Mapping[str, str]], T], overwrite: bool) -> T:
        """Send the request that makes an object, on the condition that there is none unless it may be replaced.

        Some services that speak like S3 know no such condition; there the look that came before has to do.
        """
        if not overwrite:
            condition = {"IfNoneMatch": "*"}
            try:
                return base.patiently(lambda: self._try(at, lambda: send(condition), writing=True))
            except UnsupportedError:
                if self.head(at) is not None:
                    raise base.taken(at.url) from None
        return base.patiently(lambda: self._try(at, lambda: send({}), writing=True))

    def _put_parts(self, at: Location, payload: Payload, overwrite: bool, token: str) -> None:
        made = base.patiently(
            lambda: self._try(
                at,
                lambda: self._client.create_multipart_upload(
                    Bucket=at.bucket, Key=at.key, Metadata={TOKEN: token}, **self._checksums
                ),
                writing=True,
            )
        )
        upload = str(made["UploadId"])
        try:
            step = max(base.BLOCK, -(-payload.size // MAX_PARTS))
            numbered = list(enumerate(base.ranges(payload.size, step), 1))
            parts = base.in_parallel(lambda one: self._part(at, payload, upload, *one), numbered, base.THREADS)

            def complete(condition: Mapping[str, str]) -> None:
                self._client.complete_multipart_upload(
                    Bucket=at.bucket, Key=at.key, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
                )

            self._make(at, complete, overwrite)
        except BaseException as error:
            self._abort(at, upload, error)
            raise

    def _part(
        self, at: Location, payload: Payload, upload: str, number: int, wanted: tuple[int, int]
    ) -> dict[str, object]:
        data = payload.read(*wanted)

        def send() -> Any:
            return self._client.upload_part(
                Bucket=at.bucket, Key=at.key, UploadId=upload, PartNumber=number, Body=data, **self._checksums
            )

        answer = base.patiently(lambda: self._try(at, send, writing=True))
        if not _as_sent(answer, at, data):
            raise DamagedTransferError(f"{at.url}: part {number} did not arrive as it was sent. Run again.")
        checksum = {"ChecksumCRC32": answer["ChecksumCRC32"]} if "ChecksumCRC32" in answer else {}
        return {"PartNumber": number, "ETag": answer["ETag"], **checksum}

    def _abort(self, at: Location, upload: str, cause: BaseException) -> None:
        """Take back the parts of an upload that failed; where that fails too, the first error tells it."""

        def take_back() -> None:
            self._client.abort_multipart_upload(Bucket=at.bucket, Key=at.key, UploadId=upload)

        try:
            base.patiently(lambda: self._try(at, take_back, writing=True))
        except CytotableError as error:
            if not isinstance(error, FileNotFoundError):
                cause.add_note(f"The parts that were uploaded could not be removed ({error}).")

    def delete(self, at: Location) -> None:
        """Remove an object."""
        self._try(at, lambda: self._client.delete_object(Bucket=at.bucket, Key=at.key), writing=True)

    def _try(self, at: Location, call: Callable[[], T], writing: bool = False) -> T:
        return base.guarded(call, _FAILURES, lambda error: _problem(error, at, writing))


def _client(options: Mapping[str, str], cache: Path) -> Any:
    core = botocore.session.Session(profile=options.get("profile"))
    core.set_default_client_config(
        Config(
            connect_timeout=base.CONNECT_SECONDS,
            read_timeout=base.READ_SECONDS,
            max_pool_connections=base.POOL,
            retries={"mode": "standard", "total_max_attempts": base.SDK_ATTEMPTS},
        )
    )
    unsigned = TRUE in (options.get("no_sign_request"), options.get("anonymous"))
    return S3Client(
        boto3_session=boto3.Session(botocore_session=core, region_name=options.get("region")),
        no_sign_request=unsigned,
        endpoint_url=options.get("endpoint_url"),
        addressing_style=options.get("addressing_style"),
        file_cache_mode="persistent",
        local_cache_dir=cache,
    ).client


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _problem(error: Exception, at: Location, writing: bool) -> CytotableError:
    name = type(error).__name__
    if isinstance(error, FlexibleChecksumError):
        return DamagedTransferError(f"{at.url}: what came does not have the object's checksum. Run again.")
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", name))[:80]
        if code in _ELSEWHERE:
            return PlaceError(f"{at.url} lies in another region ({code}). Name it with storage_options region.")
        refusal = Refusal(_status(error) or None, code, code in _DENIED, code in _BUSY)
    else:
        refusal = Refusal(None, name, isinstance(error, _NO_CREDENTIALS), isinstance(error, _LOST))
    return base.problem(refusal, at, writing, CREDENTIALS)


def _total(answer: Mapping[str, Any]) -> int:
    """The size of the whole object, of which an answer may hold a range."""
    whole = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return int(whole) if whole.isdigit() else int(answer["ContentLength"])


def _as_sent(answer: Mapping[str, Any], at: Location, data: bytes) -> bool:
    """Whether the ETag is that of `data`: an MD5, except in directory buckets and where a key encrypts the object."""
    etag = bare(answer.get("ETag"))
    comparable = answer.get("ServerSideEncryption") in (None, "AES256") and not at.bucket.endswith("--x-s3")
    if not comparable or "SSECustomerAlgorithm" in answer or not _MD5.fullmatch(etag):
        return True
    return etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
