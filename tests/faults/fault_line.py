"""A line to a server that can be slow: every answer comes a while later."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

HOST = "127.0.0.1"


class Line:
    """Forwards connections to a port of this machine; what comes back is held for `delay` seconds.

    Attributes:
        port: Where it listens.
        answers: How many pieces of answers were held.
    """

    def __init__(self, target: int, delay: float) -> None:
        self._target = target
        self._delay = delay
        self._listener = socket.create_server((HOST, 0))
        self._ends: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.answers = 0

    def __enter__(self) -> Line:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((HOST, self._target))
                self._ends += [near, far]
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                if answers:
                    self.answers += 1
                    time.sleep(self._delay)
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
