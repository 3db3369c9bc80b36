"""Real servers for the tests, one for each kind of object storage, and their buckets without this package's help."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from waiting import free_port

HERE = Path(__file__).resolve().parent
SCHEMES = ("s3", "gs", "az")
MANY = "many"
MANY_OBJECTS = 3_200
PATIENCE = 90.0

AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = base64.b64encode(os.urandom(64)).decode()
"""Made anew for each run; azurite is told it by AZURITE_ACCOUNTS."""

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Server:
    """A server that runs: its scheme and port, and the environment in which its clients find credentials."""

    scheme: str
    port: int
    environment: dict[str, str]

    def options(self, port: int = 0) -> dict[str, object]:
        """``storage_options`` for this server, or for a proxy before it."""
        url = f"http://127.0.0.1:{port or self.port}"
        if self.scheme == "s3":
            return {"endpoint_url": url, "region": "us-east-1"}
        return {"endpoint_url": url if self.scheme == "gs" else f"{url}/{AZURE_ACCOUNT}"}


@contextlib.contextmanager
def running(scheme: str, folder: Path) -> Iterator[Server]:
    """A server of a scheme, ended with the block; the test is skipped where its program is absent."""
    port = free_port()
    command = _command(scheme, port)
    environment = {**_environment(scheme, port), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    log = folder / f"{scheme}-server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment},
            preexec_fn=_die_with_parent if _LIBC else None,
        )
        try:
            _wait(process, port, log)
            yield Server(scheme, port, environment)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)  # type: ignore[union-attr]


def _command(scheme: str, port: int) -> list[str]:
    if scheme == "s3":
        pytest.importorskip("moto", reason="moto[server] is not installed")
        return [sys.executable, str(HERE / "s3_main.py"), str(port), f"{MANY}={MANY_OBJECTS}"]
    if scheme == "gs":
        pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed")
        return [sys.executable, str(HERE / "gs_main.py"), str(port), f"{MANY}={MANY_OBJECTS}"]
    program = azurite()
    if program is None:
        pytest.skip("azurite is not installed: npm install azurite, and name it with AZURITE or put it on PATH")
    return [
        program,
        *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"),
        *("--skipApiVersionCheck", "--inMemoryPersistence", "--disableTelemetry"),
    ]


def azurite() -> str | None:
    """The program azurite-blob: beside what AZURITE names, on PATH, or among the modules of a cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    named = os.environ.get("AZURITE")
    places = [Path(named).absolute().parent] if named else []
    places += [cache / "prefect-cytotable-tests" / "node_modules" / ".bin", HERE / "node_modules" / ".bin"]
    found = [shutil.which("azurite-blob", path=str(place)) for place in places]
    if named:
        return found[0]
    return shutil.which("azurite-blob") or next((one for one in found if one), None)


def _environment(scheme: str, port: int) -> dict[str, str]:
    if scheme == "s3":
        return {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "NO_GCE_CHECK": "true"}
    endpoint = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    return {
        "AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}",
        "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};"
        f"AccountKey={AZURE_KEY};BlobEndpoint={endpoint};",
    }


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        finally:
            connection.close()
    pytest.fail(f"the server does not answer: {log.read_text(errors='replace')[-2000:]}")


class Bucket:
    """A bucket of its own for a test, reached by the service's own client and past any proxy."""

    def __init__(self, server: Server, proxy_port: int = 0) -> None:
        self.server = server
        self.scheme = server.scheme
        self.name = f"bucket-{os.getpid()}-{next(_NUMBERS)}"
        self.storage_options = server.options(proxy_port)
        self._client = _sdk(server)
        if self.scheme == "s3":
            self._client.create_bucket(Bucket=self.name)
        elif self.scheme == "gs":
            self._client.create_bucket(self.name)
        else:
            self._client.create_container(self.name)

    def url(self, key: str = "") -> str:
        return f"{self.scheme}://{self.name}/{key}" if key else f"{self.scheme}://{self.name}"

    def put(self, key: str, data: bytes) -> None:
        if self.scheme == "s3":
            self._client.put_object(Bucket=self.name, Key=key, Body=data)
        elif self.scheme == "gs":
            self._client.bucket(self.name).blob(key, chunk_size=8 << 20).upload_from_string(data)
        else:
            self._client.get_blob_client(self.name, key).upload_blob(data, overwrite=True)

    def get(self, key: str) -> bytes:
        if self.scheme == "s3":
            return bytes(self._client.get_object(Bucket=self.name, Key=key)["Body"].read())
        if self.scheme == "gs":
            return bytes(self._client.bucket(self.name).blob(key).download_as_bytes())
        return bytes(self._client.get_blob_client(self.name, key).download_blob().readall())

    def keys(self) -> list[str]:
        if self.scheme == "s3":
            return sorted(one["Key"] for one in self._client.list_objects_v2(Bucket=self.name).get("Contents", ()))
        if self.scheme == "gs":
            return sorted(one.name for one in self._client.list_blobs(self.name))
        return sorted(one.name for one in self._client.get_container_client(self.name).list_blobs())

    def open_uploads(self) -> int:
        """Uploads of S3 that are neither completed nor aborted; other services show none."""
        if self.scheme != "s3":
            return 0
        return len(self._client.list_multipart_uploads(Bucket=self.name).get("Uploads", ()))


def _sdk(server: Server) -> Any:
    """The service's own client. Imported here: each is an extra, and slow to import."""
    url = f"http://127.0.0.1:{server.port}"
    if server.scheme == "s3":
        import boto3

        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing-secret"}
        return boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
    if server.scheme == "gs":
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        return storage.Client("test", AnonymousCredentials(), client_options={"api_endpoint": url})
    from azure.storage.blob import BlobServiceClient

    return BlobServiceClient.from_connection_string(server.environment["AZURE_STORAGE_CONNECTION_STRING"])
