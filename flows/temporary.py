"""A Prefect server for one run, where none is configured and the runner needs one.

Prefect would start one of its own for this process, and one more in each worker of Dask, since a worker is told no
address; they would outlive a run that is killed. Ours is one for the run and its workers, and ends with the run.

Run as a program, this module is that server: it tells its port, and ends when its standard input does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect_cytotable.flows.connection import Connection, Origin
from prefect_cytotable.flows.remembered import HOST, ServerError, answers
from prefect_cytotable.flows.server import SERVER_SETTINGS

START_SECONDS = 240.0
"""How long it may take to answer; the first in a new PREFECT_HOME makes a database, which takes 10 s."""

_VARIABLES = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


@contextmanager
def temporary_server() -> Iterator[Connection]:
    """A server that lives as long as the block, or as this process if that is shorter.

    Raises:
        ServerError: It ended at once, or did not answer in time.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**SERVER_SETTINGS, **os.environ, **settings, **_VARIABLES},
        start_new_session=True,  # an interrupt in the terminal is for the run, which still tells its end
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Connection(f"http://{HOST}:{_port(process)}/api", Origin.TEMPORARY)
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen[bytes]) -> int:
    """The port of a server that was just started, once it answers there."""
    assert process.stdout is not None
    deadline = time.monotonic() + START_SECONDS
    line = process.stdout.readline()
    while process.poll() is None and line and time.monotonic() < deadline:
        if answers(int(line)):
            return int(line)
        time.sleep(0.1)
    raise ServerError(
        f"A temporary Prefect server {'ended at once' if process.poll() is not None else 'did not answer in time'}. "
        f"See that PREFECT_HOME can be written, or start one with `prefect-cytotable server start`."
    )


def _serve() -> None:
    import uvicorn

    listener = socket.create_server((HOST, 0))
    print(listener.getsockname()[1], flush=True)

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, host=HOST, log_level="error", lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    _serve()
