"""A proxy that stands between a client and a server, counts what passes, and does what networks and services do."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 1 << 16
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection"}


@dataclass
class Fault:
    """What happens to the next requests that match.

    Attributes:
        kind: "status" (answered here), "hang-up" (closed before an answer), "lost" (the server does it, the answer is
            lost), "reset" (in the middle of the answer's body), "cut" (the body ends early, the connection closes in
            order), "corrupt" (a byte of the answer is another), "swallow" (in the middle of the request's body).
        times: How many requests; the ones after that pass.
        skip: How many pass before.
        after: Bytes of the body that pass.
    """

    kind: str
    method: str = "GET"
    path: str = ""
    times: int = 1
    skip: int = 0
    after: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def matches(self, method: str, path: str) -> bool:
        return re.fullmatch(self.method, method) is not None and re.search(self.path, path) is not None

    def meets(self, method: str, path: str) -> bool:
        """Whether this request is one of those; counts it."""
        if self.times <= 0 or not self.matches(method, path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Faulty:
    """A proxy on a port of its own; used as a context."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.requests: list[tuple[str, str]] = []
        self.signed: list[bool] = []
        self.sent = 0
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def __enter__(self) -> Faulty:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Begin to listen, again on the same port where it did before."""
        self._server = _Server(("127.0.0.1", self.port), _Handler, self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening, and break every connection."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self._lock:
            for one in list(self._open):
                reset(one)

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget faults and counts."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()
            self.signed.clear()

    def count(self, method: str, path: str = "") -> int:
        with self._lock:
            return sum(1 for one, where in self.requests if re.fullmatch(method, one) and re.search(path, where))

    def seen(self, method: str, path: str, signed: bool) -> Fault | None:
        """Note a request; the fault that it meets."""
        with self._lock:
            self.requests.append((method, path))
            self.signed.append(signed)
            for fault in self._faults:
                if fault.meets(method, path):
                    return fault
        return None

    @contextlib.contextmanager
    def connection(self, one: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(one)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(one)


def reset(connection: socket.socket) -> None:
    """Break a connection the hard way."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], owner: Faulty) -> None:
        self.owner = owner
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle(self) -> None:
        with self.server.owner.connection(self.connection):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _serve(self) -> None:
        fault = self.server.owner.seen(self.command, self.path, "Authorization" in self.headers)
        if fault is not None and fault.kind == "swallow":
            self.rfile.read(min(fault.after, int(self.headers.get("Content-Length", 0))))
            self._break()
            return
        body = self._body()
        if fault is not None and fault.kind == "hang-up":
            self._break()
        elif fault is not None and fault.kind == "status":
            self._answer(fault.status, list(fault.headers.items()), fault.body)
        else:
            self._pass_on(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _pass_on(self, body: bytes, fault: Fault | None) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.owner.upstream_port, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {*HOP_BY_HOP, "expect", "content-length"}:
                    upstream.putheader(name, value)
            if body or self.command in ("PUT", "POST", "PATCH"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.putheader("Connection", "close")
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        if fault is not None and fault.kind == "lost":
            self._break()
            return
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        self._answer(answer.status, headers, data, fault)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command == "HEAD" or status in (204, 304):
            data = b""
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault is not None and fault.kind == "corrupt" and data:
            data = data[: fault.after] + bytes([data[fault.after] ^ 1]) + data[fault.after + 1 :]
        if fault is not None and fault.kind in ("reset", "cut"):
            self._send(data[: fault.after])
            self.wfile.flush()
            self.close_connection = True
            if fault.kind == "reset":
                self._break()
            return
        self._send(data)

    def _send(self, data: bytes) -> None:
        self.server.owner.sent += len(data)
        self.wfile.write(data)

    def _break(self) -> None:
        self.close_connection = True
        reset(self.connection)
