"""What services and networks do, done by a proxy between the real client libraries and the real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import Fault, Faulty
from place_servers import MANY, MANY_OBJECTS, Bucket, Server

from prefect_cytotable.tasks.core.errors import CytotableError, DestinationExistsError
from prefect_cytotable.tasks.core.places import (
    PlaceBusyError,
    PlaceDeniedError,
    Places,
    base,
    check_storage_options,
)

BLOCK = 256 << 10

BUSY = {
    "s3": b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>",
    "gs": b'{"error": {"code": 503, "message": "Backend Error"}}',
    "az": b"<Error><Code>ServerBusy</Code><Message>The server is busy.</Message></Error>",
}
DENIED = {
    "s3": b"<Error><Code>AccessDenied</Code><Message>secret-word</Message></Error>",
    "gs": b'{"error": {"code": 403, "message": "secret-word"}}',
    "az": b"<Error><Code>AuthorizationFailure</Code><Message>secret-word</Message></Error>",
}


def pattern(size: int) -> bytes:
    """Bytes that differ from block to block."""
    return b"".join(number.to_bytes(8, "big") for number in range(size // 8 + 1))[:size]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BLOCK", BLOCK)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No calls are repeated beyond what the client libraries do."""
    monkeypatch.setattr(base, "PATIENCE_SECONDS", 0.0)


def several_requests(bucket: Bucket) -> int:
    """The size of an upload that takes more than one request. Google's library sends 8 MiB in one."""
    return (8 << 20) + BLOCK + 1 if bucket.scheme == "gs" else 3 * BLOCK


def busy(scheme: str, **changes: object) -> Fault:
    return Fault("status", status=503, body=BUSY[scheme], **changes)  # type: ignore[arg-type]


def test_reads_outlast_throttling(bucket: Bucket, through: Places, proxy: Faulty) -> None:
    bucket.put("a", b"content")
    proxy.add(busy(bucket.scheme, times=2))
    assert through.read(bucket.url("a")) == b"content"
    assert proxy.count("GET") == 3


def test_listings_outlast_throttling(bucket: Bucket, through: Places, proxy: Faulty) -> None:
    bucket.put("plate/a", b"content")
    proxy.add(busy(bucket.scheme))
    assert [entry.path for entry in through.entries(bucket.url("plate"))] == [bucket.url("plate/a")]


@pytest.mark.parametrize("kind", ["reset", "cut"])
def test_a_read_goes_on_where_its_connection_broke(bucket: Bucket, through: Places, proxy: Faulty, kind: str) -> None:
    data = pattern(4 * BLOCK)
    bucket.put("a", data)
    proxy.add(Fault(kind, path="/a", after=BLOCK + 5, times=2))
    assert through.read(bucket.url("a")) == data


@pytest.mark.parametrize("scheme", ["s3", "gs"])  # Azure's library fetches the whole block again, of 8 MiB at most
def test_what_came_before_a_reset_is_not_fetched_again(
    bucket: Bucket, through: Places, proxy: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pattern(32 * BLOCK)
    bucket.put("a", data)
    monkeypatch.setattr(base, "BLOCK", len(data))
    proxy.add(Fault("cut", path="/a", after=24 * BLOCK))
    with through.open(bucket.url("a")) as stream:
        assert stream.read() == data
    assert proxy.sent < len(data) + BLOCK, "some of it was sent twice"


@pytest.mark.parametrize("scheme", ["s3", "gs"])  # of Azure only TLS protects what is read
def test_bytes_that_changed_on_their_way_are_fetched_again(bucket: Bucket, through: Places, proxy: Faulty) -> None:
    data = pattern(3000)
    through.write(bucket.url("a"), data)
    fault = proxy.add(Fault("corrupt", path="/a", after=1234))
    assert through.read(bucket.url("a")) == data
    assert fault.times == 0


@pytest.mark.parametrize("kind", ["reset", "cut", "hang-up"])
def test_streams_and_downloads_outlast_broken_connections(
    bucket: Bucket, through: Places, proxy: Faulty, tmp_path: Path, kind: str
) -> None:
    data = pattern(5 * BLOCK + 7)
    bucket.put("a", data)
    fault = {"method": "GET", "path": "/a", "after": BLOCK // 2}
    proxy.add(Fault(kind, **fault))  # type: ignore[arg-type]
    with through.open(bucket.url("a")) as stream:
        assert stream.read() == data
    proxy.add(Fault(kind, **fault, times=2))  # type: ignore[arg-type]
    through.download(bucket.url("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data


def test_a_missing_permission_is_told_and_not_tried_again(bucket: Bucket, through: Places, proxy: Faulty) -> None:
    bucket.put("plate/a", b"content")
    url = bucket.url("plate/a")
    proxy.add(Fault("status", method=".*", status=403, body=DENIED[bucket.scheme], times=10**6))
    calls: list[Callable[[], object]] = [
        lambda: through.read(url),
        lambda: through.entry(url),
        lambda: through.write(url, b"x"),
        lambda: through.remove(url),
    ]
    for number, call in enumerate(calls, 1):
        with pytest.raises(PlaceDeniedError) as caught:
            call()
        assert url in str(caught.value)
        assert "403" in str(caught.value)
        assert "Credentials are looked for in" in str(caught.value)
        assert "secret-word" not in str(caught.value)
        assert not caught.value.retriable
        assert isinstance(caught.value, PermissionError)
        assert len(proxy.requests) == number
    with pytest.raises(PlaceDeniedError):
        list(through.entries(bucket.url("plate")))


def test_who_may_not_list_may_still_read_what_he_names(bucket: Bucket, through: Places, proxy: Faulty) -> None:
    bucket.put("plate.sqlite", b"12345")
    listing = {"s3": "list-type", "gs": "/o[?]", "az": "comp=list"}[bucket.scheme]
    proxy.add(Fault("status", path=listing, status=403, body=DENIED[bucket.scheme], times=10**6))
    assert [entry.size for entry in through.entries(bucket.url("plate.sqlite"))] == [5]
    with pytest.raises(PlaceDeniedError):
        list(through.entries(bucket.url("plate")))


def test_a_server_that_stays_away_is_an_error_that_may_be_tried_again(
    bucket: Bucket, through: Places, proxy: Faulty, impatient: None, tmp_path: Path
) -> None:
    bucket.put("a", b"content")
    proxy.stop()
    with pytest.raises(PlaceBusyError, match=f"{bucket.url('a')}.*cannot be reached") as caught:
        through.read(bucket.url("a"))
    assert caught.value.retriable
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "the library's own error may hold signed addresses"


def test_a_server_that_comes_back_was_not_missed(
    bucket: Bucket, through: Places, proxy: Faulty, tmp_path: Path
) -> None:
    data = pattern(6 * BLOCK)
    bucket.put("a", data)
    (tmp_path / "b").write_bytes(data)
    proxy.stop()
    back = threading.Timer(1.0, proxy.listen)
    back.start()
    try:
        assert through.read(bucket.url("a")) == data
        proxy.stop()
        back.join()
        back = threading.Timer(1.0, proxy.listen)
        back.start()
        through.upload(tmp_path / "b", bucket.url("b"), overwrite=False)
    finally:
        back.join()
    assert bucket.get("b") == data


@pytest.mark.parametrize("kind", ["status", "hang-up", "swallow", "lost"])
@pytest.mark.parametrize("parts", [False, True])
def test_uploads_outlast_a_moment_of_trouble(
    bucket: Bucket, through: Places, proxy: Faulty, tmp_path: Path, kind: str, parts: bool
) -> None:
    data = pattern(several_requests(bucket) if parts else 5)
    (tmp_path / "a").write_bytes(data)
    method = "POST" if bucket.scheme == "gs" and not parts else "PUT"
    proxy.add(Fault(kind, method=method, status=503, body=BUSY[bucket.scheme], after=2))
    through.upload(tmp_path / "a", bucket.url("a"), overwrite=False)
    assert bucket.get("a") == data
    assert bucket.open_uploads() == 0
    assert proxy.count(method) > 1


@pytest.mark.parametrize("parts", [False, True])
def test_the_lost_answer_to_the_last_request_is_no_other_run(
    bucket: Bucket, through: Places, proxy: Faulty, tmp_path: Path, parts: bool
) -> None:
    """The repetition of what made the object is refused, since there is one. It is ours."""
    data = pattern(several_requests(bucket) if parts else 5)
    (tmp_path / "a").write_bytes(data)
    last = {
        ("s3", False): ("PUT", "/a$"),
        ("s3", True): ("POST", "uploadId="),
        ("gs", False): ("POST", "uploadType=multipart"),
        ("gs", True): ("PUT", "upload_id="),
        ("az", False): ("PUT", "/a$"),
        ("az", True): ("PUT", "comp=blocklist"),
    }[bucket.scheme, parts]
    fault = proxy.add(Fault("lost", method=last[0], path=last[1], skip=33 if last[1] == "upload_id=" else 0))
    entry = through.upload(tmp_path / "a", bucket.url("a"), overwrite=False)
    assert fault.times == 0
    assert entry.size == len(data)
    assert bucket.get("a") == data
    assert bucket.open_uploads() == 0
    with pytest.raises(DestinationExistsError):
        through.upload(tmp_path / "a", bucket.url("a"), overwrite=False)


@pytest.mark.parametrize("scheme", ["s3"])
@pytest.mark.parametrize("parts", [False, True])
def test_a_service_without_conditions_is_asked_without(
    bucket: Bucket, through: Places, proxy: Faulty, tmp_path: Path, parts: bool
) -> None:
    """Some that speak like S3 answer "not implemented" to a condition."""
    data = pattern(3 * BLOCK if parts else 5)
    (tmp_path / "a").write_bytes(data)
    answer = {"status": 501, "body": b"<Error><Code>NotImplemented</Code></Error>"}
    method, path = ("POST", "uploadId=") if parts else ("PUT", "/a$")
    proxy.add(Fault("status", method=method, path=path, **answer))  # type: ignore[arg-type]
    through.upload(tmp_path / "a", bucket.url("a"), overwrite=False)
    assert bucket.get("a") == data
    assert proxy.count(method, path) == 2
    with pytest.raises(DestinationExistsError):
        through.upload(tmp_path / "a", bucket.url("a"), overwrite=False)


def test_an_upload_that_dies_midway_leaves_nothing(
    bucket: Bucket, through: Places, proxy: Faulty, tmp_path: Path, impatient: None
) -> None:
    (tmp_path / "a").write_bytes(pattern(several_requests(bucket) + 5 * BLOCK))
    path = {"s3": "partNumber=", "gs": "upload_id", "az": "comp=block&"}[bucket.scheme]
    answer = {"status": 403, "body": DENIED[bucket.scheme]}
    proxy.add(Fault("status", method="PUT", path=path, skip=4, times=10**6, **answer))  # type: ignore[arg-type]
    with pytest.raises(PlaceDeniedError):
        through.upload(tmp_path / "a", bucket.url("a"), overwrite=True)
    assert proxy.count("PUT", path) > 4
    assert bucket.keys() == []
    assert bucket.open_uploads() == 0


def test_an_upload_that_is_interrupted_leaves_nothing(
    bucket: Bucket, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Exception):
        pass

    read, calls = base.Payload.read, []

    def interrupted(self: base.Payload, start: int, stop: int) -> bytes:
        calls.append(start)
        if len(calls) == 6:
            raise Interrupted
        return read(self, start, stop)

    if bucket.scheme == "gs":
        pytest.skip("the library reads the file itself")
    monkeypatch.setattr(base.Payload, "read", interrupted)
    (tmp_path / "a").write_bytes(pattern(8 * BLOCK))
    with pytest.raises(Interrupted):
        places.upload(tmp_path / "a", bucket.url("a"), overwrite=True)
    assert bucket.keys() == []
    assert bucket.open_uploads() == 0


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_thousands_of_objects_are_one_listing(server: Server, through: Places, proxy: Faulty) -> None:
    entries = list(through.entries(f"{server.scheme}://{MANY}/plate"))
    assert len(entries) == MANY_OBJECTS
    assert len({entry.path for entry in entries}) == MANY_OBJECTS
    assert all(entry.size == 4 and entry.mark and entry.modified for entry in entries)
    assert proxy.count("GET") == len(proxy.requests) == -(-MANY_OBJECTS // 1000)


@pytest.mark.parametrize("scheme", ["az"])
def test_pages_of_a_listing_are_put_together(
    bucket: Bucket, through: Places, proxy: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        bucket.put(f"plate/{number}", b"x")
    assert len(list(through.entries(bucket.url("plate")))) == len(proxy.requests) * 5 == 5
    monkeypatch.setattr("prefect_cytotable.tasks.core.places.az.PAGE", 2)
    proxy.clear()
    assert len({entry.path for entry in through.entries(bucket.url("plate"))}) == 5
    assert proxy.count("GET") == len(proxy.requests) == 3


SECRETS = {
    "s3": {"AWS_ACCESS_KEY_ID": "AKIAVERYSECRETKEY000", "AWS_SECRET_ACCESS_KEY": "very/secret+key"},
    "az": {
        "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
        "SharedAccessSignature=sv=2024-01-01&sig=verysecretsignature;BlobEndpoint={url};"
    },
}


@pytest.mark.parametrize("scheme", ["s3", "az"])
@pytest.mark.parametrize("kind", ["status", "stop"])
def test_credentials_are_in_no_error(
    bucket: Bucket, proxy: Faulty, server: Server, monkeypatch: pytest.MonkeyPatch, kind: str, impatient: None
) -> None:
    options = server.options(proxy.port)
    for name, value in SECRETS[bucket.scheme].items():
        monkeypatch.setenv(name, value.format(url=options["endpoint_url"]))
    through = Places(check_storage_options(options))
    if kind == "stop":
        proxy.stop()
    else:
        proxy.add(Fault("status", method=".*", status=403, body=DENIED[bucket.scheme], times=10**6))
    with pytest.raises(CytotableError) as caught:
        through.read(bucket.url("a"))
    error: BaseException | None = caught.value
    texts = []
    while error is not None:
        texts += [str(error), repr(error), *getattr(error, "__notes__", ())]
        error = error.__cause__ or error.__context__
    for secret in ("AKIAVERY", "very/secret", "verysecret", "sig="):
        assert not any(secret in text for text in texts)
    if kind == "status" and bucket.scheme == "az":
        assert any("sig=" in path for _, path in proxy.requests), "the signature was not used at all"
