"""How clients come about: from options and the environment, once a process, and only where they are needed."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty import Faulty
from place_servers import AZURE_KEY, Bucket, Server

from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.places import PlaceDeniedError, Places, check_storage_options, clients

LIBRARIES = {"s3": ("boto3", "s3"), "gs": ("google.cloud.storage", "gs"), "az": ("azure.storage.blob", "azure")}

WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from prefect_cytotable.tasks.core.places import MissingExtraError, Places
try:
    Places().read(f"{sys.argv[2]}://bucket/key")
except MissingExtraError as error:
    print(isinstance(error, ImportError), error)
"""

FORKED = """
import os, signal, sys, threading
from prefect_cytotable.tasks.core.places import Places, clients
places = Places(eval(sys.argv[1]))
assert places.read(sys.argv[2]) == b"content"
mine = clients.service(sys.argv[3], places.storage)
held, go_on = threading.Event(), threading.Event()
def hold():
    with clients._CLIENTS.lock:
        held.set()
        go_on.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that waits for a lock of its parent's threads waits for ever
    ok = clients.service(sys.argv[3], places.storage) is not mine and places.read(sys.argv[2]) == b"content"
    os._exit(0 if ok else 1)
go_on.set()
thread.join()
status = os.waitpid(child, 0)[1]
assert clients.service(sys.argv[3], places.storage) is mine
assert places.read(sys.argv[2]) == b"content"
print(status)
"""

PEAK = """
import re, sys
from pathlib import Path
from prefect_cytotable.tasks.core.places import Places, base
base.BLOCK = 1 << 20
places, url, folder = Places(eval(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
places.write(url + "-small", bytes(3 << 20))
places.download(url + "-small", folder / "small")
def peak():  # of this program alone: getrusage would tell that of the process it was forked from
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
with (folder / "big").open("wb") as file:
    for number in range(24):
        file.write(bytes([number]) * (1 << 20))
places.upload(folder / "big", url, False)
places.download(url, folder / "copy")
with places.open(url) as stream, (folder / "copy").open("rb") as copy, (folder / "big").open("rb") as big:
    while piece := big.read(1 << 18):
        assert stream.read(1 << 18) == copy.read(1 << 18) == piece
    assert stream.read(1) == b""
print((peak() - before) // 1024)
"""


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_missing_library_is_told_with_the_command_that_installs_it(scheme: str) -> None:
    library, extra = LIBRARIES[scheme]
    text = python(WITHOUT, library, scheme)
    assert text.startswith("True ")
    assert f"pip install 'prefect-cytotable[{extra}]'" in text


def test_a_client_is_made_once(bucket: Bucket, places: Places) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: clients.service(bucket.scheme, places.storage), range(32)))
    assert len(found) == 1
    other = check_storage_options(bucket.server.options(port=1))
    assert clients.service(bucket.scheme, other) not in found


def test_changed_credentials_make_another_client(
    bucket: Bucket, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = clients.service(bucket.scheme, places.storage)
    names = {"s3": "AWS_PROFILE_OF_MINE", "gs": "GOOGLE_CLOUD_PROJECT", "az": "AZURE_CLIENT_ID"}
    monkeypatch.setenv(names[bucket.scheme], "other")
    assert clients.service(bucket.scheme, places.storage) is not before


@pytest.mark.parametrize("scheme", ["s3"])
def test_a_client_is_not_inherited_by_a_forked_child(bucket: Bucket, places: Places) -> None:
    bucket.put("a", b"content")
    assert python(FORKED, repr(places.storage), bucket.url("a"), bucket.scheme) == "0"


def test_sixteen_threads_share_a_client(bucket: Bucket, places: Places, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(16):
        bucket.put(str(number), str(number).encode() * 100)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: places.read(bucket.url(str(number % 16))), range(96)))
    assert found == [str(number % 16).encode() * 100 for number in range(96)]
    assert "Connection pool is full" not in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_does_not_grow_with_the_object(bucket: Bucket, places: Places, tmp_path: Path) -> None:
    grown = int(python(PEAK, repr(places.storage), bucket.url("big"), str(tmp_path)))
    assert grown < 16, f"{grown} MiB for an object of 24 MiB in blocks of 1 MiB"


@pytest.mark.parametrize("scheme", ["s3", "az"])
@pytest.mark.parametrize("anonymous", [False, True])
def test_requests_are_signed_unless_they_should_not_be(
    bucket: Bucket, server: Server, proxy: Faulty, anonymous: bool
) -> None:
    bucket.put("a", b"content")
    wanted = {"anonymous": True} if anonymous else {}
    places = Places(check_storage_options({**server.options(proxy.port), **wanted}))
    with contextlib.suppress(PlaceDeniedError, FileNotFoundError):
        places.read(bucket.url("a"))
    assert proxy.signed
    assert set(proxy.signed) == {not anonymous}


@pytest.mark.parametrize("scheme", ["s3"])
def test_a_profile_that_does_not_exist(server: Server) -> None:
    with pytest.raises(PlaceDeniedError, match="AWS_ACCESS_KEY_ID"):
        Places(check_storage_options({"profile": "no-such-profile"})).read("s3://bucket/key")


@pytest.mark.parametrize("scheme", ["s3"])
def test_no_credentials_at_all(bucket: Bucket, places: Places, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    bucket._client.put_object(Bucket=bucket.name, Key="a", Body=b"content", ACL="public-read")
    with pytest.raises(PlaceDeniedError, match=r"NoCredentialsError.*no_sign_request"):
        places.read(bucket.url("a"))
    public = Places(check_storage_options({**bucket.storage_options, "no_sign_request": True}))
    assert public.read(bucket.url("a")) == b"content"


@pytest.mark.parametrize("scheme", ["gs"])
def test_a_key_file_that_cannot_be_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    for text, reason in ((None, "No such file"), ("{}", "no key of a service account"), ("x", "no key of a service")):
        file = tmp_path / "key.json"
        if text is not None:
            file.write_text(text)
        monkeypatch.setenv("GOOGLE_TEST", str(text))
        with pytest.raises(ArgumentError, match=re.escape(reason)) as caught:
            Places(check_storage_options({"application_credentials": file})).read("gs://bucket/key")
        assert str(file) in str(caught.value)


@pytest.mark.parametrize("scheme", ["gs"])
def test_the_emulator_of_the_environment_is_used(bucket: Bucket, server: Server) -> None:
    bucket.put("a", b"content")
    assert Places().read(bucket.url("a")) == b"content"


@pytest.mark.parametrize("scheme", ["az"])
def test_the_connection_string_of_the_environment_is_used(bucket: Bucket, server: Server) -> None:
    bucket.put("a", b"content")
    assert Places().read(bucket.url("a")) == b"content"


@pytest.mark.parametrize("scheme", ["az"])
def test_an_account_that_nobody_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    with pytest.raises(PlaceDeniedError, match=r"no storage account is named.*AZURE_STORAGE_CONNECTION_STRING"):
        Places().read("az://container/key")


@pytest.mark.parametrize("scheme", ["az"])
def test_the_key_of_one_account_is_not_sent_to_another(server: Server) -> None:
    if importlib.util.find_spec("azure.identity"):
        pytest.skip("azure-identity is installed: it is asked then")
    options = check_storage_options({"account_url": "https://other.blob.core.windows.net"})
    with pytest.raises(PlaceDeniedError, match="no credential for this account"):
        Places(options).read("az://container/key")


@pytest.mark.parametrize("scheme", ["az"])
def test_a_connection_string_that_is_none_is_not_repeated(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"BlobEndpoint=http://127.0.0.1:{server.port}/a"
    for text in (f"AccountKey={AZURE_KEY}", f"AccountName=a;AccountKey={AZURE_KEY[:30]}x;{here}", AZURE_KEY):
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        with pytest.raises((ArgumentError, PlaceDeniedError)) as caught:
            Places().read("az://container/key")
        assert AZURE_KEY[:20] not in str(caught.value)
        assert caught.value.__context__ is None
