"""What Prefect tells its server in the background, task states and logs: told to the right server, or given up in time.

A task's state reaches the server as an event, which Prefect's events worker sends a little later. There is one for the
process, made with the address of the moment and kept whatever server the next run has; each event for a server that is
gone is tried for 7 to 37 s (measured, Prefect 3.8.8), one after the other, and the interpreter waits for them all
before it ends. Prefect has no call to see or to end that, so its own attributes are read here, and where they are not
there nothing is done.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from prefect.events.worker import EventsWorker
from prefect.logging import get_logger

TELL_SECONDS = 60.0
"""How long the rest of a run is told to a server that ends with it: 1,000 events take a second or two."""

LOST_SECONDS = 3.0
"""The same for a server that does not answer, or that an earlier run had: its retries are over."""


class _Sender(NamedTuple):
    """A worker that runs, as far as it can be looked into."""

    worker: Any
    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[None]


def tell_all(seconds: float = TELL_SECONDS) -> bool:
    """Send the server what was logged and what became of the tasks, and end the workers that do it.

    Later runs get new ones. What is not told in time is given up.

    Args:
        seconds: How long to wait.

    Returns:
        Whether everything was told.
    """
    senders = _senders()
    # In a thread of its own: where an event loop runs, as in a notebook, the call would only promise to wait.
    with ThreadPoolExecutor(1, "prefect-cytotable-telling") as thread:
        waited: Any = thread.submit(EventsWorker.drain_all, timeout=seconds).result()
    if not waited[1]:
        return True
    for sender in senders:
        if not sender.task.done():
            sender.loop.call_soon_threadsafe(sender.task.cancel)
    get_logger("prefect_cytotable").warning(
        "A Prefect server was not told all states of tasks: it did not take them within %g s.", seconds
    )
    return False


def leave_others(url: str) -> None:
    """End the workers that would send the events of a run at this address to another server.

    Args:
        url: The address of the run's Prefect API.
    """
    if any(_address(sender) not in (None, url.rstrip("/")) for sender in _senders()):
        tell_all(LOST_SECONDS)


def is_behind() -> bool:
    """Whether there are events that no server has been sent yet."""
    workers = [sender.worker for sender in _senders() if isinstance(sender.worker, EventsWorker)]
    return any(getattr(getattr(one, "_queue", None), "unfinished_tasks", 0) > 0 for one in workers)


def _senders() -> list[_Sender]:
    """The workers of this process, of events and of logs alike."""
    found = []
    for worker in tuple(getattr(EventsWorker, "_instances", {}).values()):
        loop, task = getattr(worker, "_loop", None), getattr(worker, "_task", None)
        if loop is not None and task is not None:
            found.append(_Sender(worker, loop, task))
    return found


def _address(sender: _Sender) -> str | None:
    """Where a worker of events sends them."""
    url = getattr(getattr(sender.worker, "_client", None), "_api_url", None)
    return url.rstrip("/") if isinstance(url, str) else None
