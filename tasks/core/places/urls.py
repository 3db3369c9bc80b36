"""What a path names: a local file, or an object in a bucket. Pure functions; nothing here asks a service."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from prefect_cytotable.tasks.core.errors import ArgumentError, nearest

SCHEMES = ("s3", "gs", "az")
"""Amazon S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage."""

_ALIASES = {
    "s3a": "s3",
    "s3n": "s3",
    "gcs": "gs",
    "azure": "az",
    "abfs": "az",
    "abfss": "az",
    "adl": "az",
    "wasb": "az",
    "wasbs": "az",
}
_HOSTS = (("amazonaws.com", "s3"), ("googleapis.com", "gs"), ("core.windows.net", "az"))
_BUCKET = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_QUERY = re.compile(r"\?[A-Za-z][\w.-]*=")
_ONE_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """An object, or with an empty key a whole bucket (on Azure: container)."""

    scheme: str
    bucket: str
    key: str

    @property
    def url(self) -> str:
        """The location as users write it."""
        return f"{self.scheme}://{self.bucket}/{self.key}" if self.key else f"{self.scheme}://{self.bucket}"


def is_remote(path: str) -> bool:
    """Whether a path has one of the schemes of object storage.

    >>> is_remote("s3://bucket/plate"), is_remote("plates/s3"), is_remote("GS://bucket")
    (True, False, True)
    """
    return path.partition("://")[0].lower() in SCHEMES and "://" in path


def split(url: str) -> Location:
    """The parts of a URL of object storage.

    >>> split("s3://bucket/plate/Cells.csv")
    Location(scheme='s3', bucket='bucket', key='plate/Cells.csv')
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return Location(scheme.lower(), bucket, key)


def join(path: str, *names: str) -> str:
    """A path below `path`, local or not.

    >>> join("s3://bucket", "plate", "Cells.csv"), join("/data/", "plate")
    ('s3://bucket/plate/Cells.csv', '/data/plate')
    """
    if not is_remote(path):
        return posixpath.join(path, *names)
    return "/".join((path.rstrip("/") if split(path).key == "" else path.removesuffix("/"), *names))


def name_of(path: str) -> str:
    """The last component of a path, local or not.

    >>> name_of("s3://bucket/plate/Cells.csv"), name_of("s3://bucket"), name_of("plate/")
    ('Cells.csv', 'bucket', 'plate')
    """
    return path.rstrip("/").rpartition("/")[2]


def parent_of(path: str) -> str:
    """The folder that a path lies in, local or not; a bucket is its own.

    >>> parent_of("s3://bucket/plate/Cells.csv"), parent_of("s3://bucket/a"), parent_of("s3://bucket")
    ('s3://bucket/plate', 's3://bucket', 's3://bucket')
    """
    if not is_remote(path):
        return posixpath.dirname(path.rstrip("/")) or ("/" if path.startswith("/") else ".")
    at = split(path)
    return Location(at.scheme, at.bucket, at.key.rstrip("/").rpartition("/")[0]).url


def check_url(url: str) -> str:
    """A path as the other functions take it: a local path unchanged, a URL with a lower-case scheme and no final slash.

    >>> check_url("S3://bucket/plate/"), check_url("gs://bucket/"), check_url("/data/plate/")
    ('s3://bucket/plate', 'gs://bucket', '/data/plate/')

    Raises:
        ArgumentError: The scheme is unknown, the bucket is missing, or the URL carries credentials. The message never
            repeats those.
    """
    if match := _ONE_SLASH.match(url):
        raise ArgumentError(
            f"{url.partition('?')[0]} has one slash too few after {match[1]}:. A URL made a Path loses it: give the "
            f"URL as text."
        )
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise ArgumentError(_unknown(scheme, rest))
    bucket, _, key = rest.partition("/")
    if "@" in bucket or (":" in bucket and not key.startswith("/")):
        raise ArgumentError(
            f"The {scheme}:// URL names a user or a port before the bucket's path. Write {scheme}://bucket/path; "
            f"credentials belong in the environment, another server in storage_options endpoint_url."
        )
    if _QUERY.search(rest):
        raise ArgumentError(
            f"The {scheme}:// URL of bucket {bucket.partition('?')[0]!r} has a query string. Signatures and tokens do "
            f"not belong in a URL: write {scheme}://bucket/path, and put credentials in the environment."
        )
    if not bucket:
        raise ArgumentError(f"{scheme}:// names no bucket. Write {scheme}://bucket/path.")
    if not _BUCKET.fullmatch(bucket.removeprefix("$") if scheme == "az" else bucket):
        raise ArgumentError(f"{bucket!r} cannot be the name of a bucket. Write {scheme}://bucket/path.")
    return Location(scheme, bucket, key.rstrip("/")).url


def _unknown(scheme: str, rest: str) -> str:
    """Why a scheme is none; of the rest only the host's ending is looked at, and nothing of it is told."""
    host = rest.partition("/")[0].partition("?")[0].rpartition("@")[2].partition(":")[0].lower()
    for ending, ours in _HOSTS:
        if scheme in ("http", "https") and host.endswith(ending):
            return f"{scheme}:// addresses are not read. Write {ours}://bucket/path."
    if scheme == "file":
        return "file:// is not needed: give the path itself."
    hint = f"Did you mean '{_ALIASES[scheme]}'?" if scheme in _ALIASES else nearest(scheme, SCHEMES)
    return f"{scheme}:// is no place that is known. {hint}"
