"""The workers of a Dask cluster that runs already, profiled for the time of a run.

They were not started by this run and know nothing of its environment; their files come back over Dask's own
connections, so that no folder has to be shared.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin

from prefect_cytotable.tasks.core.memory import tracking
from prefect_cytotable.tasks.core.memory.errors import MemrayMissingError, ProfilerBusyError
from prefect_cytotable.tasks.core.memory.model import Role

if TYPE_CHECKING:
    from distributed import Client

NAME = "prefect-cytotable-memory"


class Tracked(WorkerPlugin):  # type: ignore[misc]
    """Tracks a worker from when it gets this plugin, one that joins later too."""

    def __init__(self, how: tracking.How) -> None:
        self.name = f"{NAME}-{secrets.token_hex(4)}"
        self._how = how

    def setup(self, worker: Any) -> None:
        """Begin, in a folder of the worker's own machine."""
        tracking.begin(Path(tempfile.mkdtemp(prefix=f"{NAME}-")), Role.WORKER, self._how, outside=True)

    def teardown(self, worker: Any) -> None:
        """End, where the run could not collect before: what is recorded is of no use then."""
        collect()


def collect() -> list[tuple[str, bytes]]:
    """End tracking on a worker; gives the names and contents of the files it made, and removes them."""
    current = tracking.current()
    if current is None:
        return []
    tracking.end()
    try:
        return [(path.name, path.read_bytes()) for path in sorted(current.folder.iterdir())]
    finally:
        shutil.rmtree(current.folder, ignore_errors=True)


@contextmanager
def tracked(client: Client) -> Iterator[None]:
    """The cluster's workers, tracked into this process's folder of captures.

    Raises:
        MemrayMissingError: A worker has no memray.
        ProfilerBusyError: Another run profiles them.
    """
    here = tracking.current()
    assert here is not None
    plugin = Tracked(here.how)
    try:
        client.register_plugin(plugin)
    except (MemrayMissingError, ProfilerBusyError) as error:
        client.unregister_worker_plugin(plugin.name)
        raise type(error)(f"A Dask worker cannot be profiled: {error}") from error
    try:
        yield
    finally:
        for files in client.run(collect).values():
            for name, content in files:
                (here.folder / Path(name).name).write_bytes(content)
        client.unregister_worker_plugin(plugin.name)
