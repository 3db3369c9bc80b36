"""Runs gcp-storage-emulator until the standard input ends: ``gs_main.py PORT [BUCKET=COUNT]``.

What the service has and the emulator lacks is added: preconditions, pages of listings, an answer to ranges beyond the
end, the generation in the answer to a download, repeated pieces of an upload, and several connections at once.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.storage import Storage

LOCK = threading.RLock()
FINISHED: dict[str, tuple[str, str]] = {}


def first(request: Any, name: str) -> str | None:
    return request.query[name][0] if name in request.query else None


def generation(storage: Any, bucket: str, name: str | None) -> str:
    try:
        return str(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return "0"


def refused(request: Any, response: Any, storage: Any, name: str | None) -> bool:
    wanted = first(request, "ifGenerationMatch")
    if wanted is None or wanted == generation(storage, request.params["bucket_name"], name):
        return False
    response.status = HTTPStatus.PRECONDITION_FAILED
    response.json({"error": {"code": 412, "message": "conditionNotMet"}})
    return True


def listing(original: Any, request: Any, response: Any, storage: Any) -> None:
    try:
        files, _ = storage.get_file_list(request.params["bucket_name"], first(request, "prefix"), None, None)
    except NotFound:
        response.status = HTTPStatus.NOT_FOUND
        return
    size, start = int(first(request, "maxResults") or 1000), int(first(request, "pageToken") or 0)
    more = {"nextPageToken": str(start + size)} if start + size < len(files) else {}
    response.json({"kind": "storage#objects", "items": files[start : start + size], **more})


def media(original: Any, request: Any, response: Any, storage: Any) -> None:
    bucket, name = request.params["bucket_name"], request.params["object_id"]
    if refused(request, response, storage, name):
        return
    begin = (request.get_header("range") or "").removeprefix("bytes=").partition("-")[0]
    if begin and generation(storage, bucket, name) != "0" and int(begin) >= len(storage.get_file(bucket, name)):
        response.status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        return
    original(request, response, storage)
    response["X-Goog-Generation"] = generation(storage, bucket, name)


def get(original: Any, request: Any, response: Any, storage: Any) -> None:
    if first(request, "alt") == "media":
        media(objects.download, request, response, storage)
    else:
        original(request, response, storage)


def upload(original: Any, request: Any, response: Any, storage: Any) -> None:
    data = request.data  # read in any case: the connection is used on
    name = first(request, "name")
    if name is None and isinstance(data, dict):
        name = data.get("meta", data).get("name")
    session = first(request, "upload_id")
    if session in FINISHED:
        response.json(storage.get_file_obj(*FINISHED[session]))
        return
    if session:
        name = storage.get_resumable_file_obj(session)["name"]
        if _is_repeated(request, storage, session):
            objects._resumable_incomplete(response, storage, session)
            return
    if not refused(request, response, storage, name):
        original(request, response, storage)
        if session and response.status == HTTPStatus.OK:
            FINISHED[session] = (request.params["bucket_name"], name)


def _is_repeated(request: Any, storage: Any, session: str) -> bool:
    """Whether a piece was stored before: the answer to it was lost."""
    parsed = objects._parse_resumable_content_range(request.get_header("Content-Range", ""))
    return bool(parsed and parsed["end"] is not None and parsed["end"] < storage.get_resumable_byte_count(session))


WRAPPED = {
    objects.ls: listing,
    objects.get: get,
    objects.download: media,
    objects.insert: upload,
    objects.upload_partial: upload,
}


def locked(wrapper: Any, original: Any, request: Any, response: Any, storage: Any) -> None:
    _ = request.data  # from the network, without the lock
    with LOCK:
        wrapper(original, request, response, storage)


def plain(original: Any, request: Any, response: Any, storage: Any) -> None:
    original(request, response, storage)


def wrap() -> None:
    for _pattern, handlers in server.HANDLERS:
        for method, original in list(handlers.items()):
            handlers[method] = partial(locked, WRAPPED.get(original, plain), original)
    Storage._write_config_to_file = lambda self: None  # type: ignore[method-assign]


def fill(storage: Any, bucket: str, count: int) -> None:
    storage.create_bucket(bucket, {"name": bucket})
    for number in range(count):
        name = f"plate/site-{number // 5:05d}/{number % 5}.csv"
        record = objects._make_object_resource("", bucket, name, "text/csv", "4")
        storage.create_file(bucket, name, b"a\n1\n", record)


def end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    wrap()
    storage = Storage(use_memory_fs=True)
    for argument in sys.argv[2:]:
        name, _, number = argument.partition("=")
        fill(storage, name, int(number))
    handler = partial(server.RequestHandler, storage)
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler) as http:
        http.serve_forever()
