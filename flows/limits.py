"""Limits that a Prefect server keeps: how many runs use one store, or one machine, at once.

They are Prefect's global concurrency limits, found by their names, and nothing where there is none of that name:

    prefect gcl create cytotable-store-BUCKET --limit 2
    prefect gcl create cytotable-machine-HOST --limit 1
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from prefect_cytotable.tasks.core.places import is_remote
from prefect_cytotable.tasks.core.places.urls import split

PREFIX = "cytotable"


def limit_names(paths: Iterable[str]) -> list[str]:
    """The limits that a run with these paths keeps: its machine's, and that of every bucket or container in them."""
    buckets = {split(path).bucket for path in paths if is_remote(path)}
    return [f"{PREFIX}-machine-{machine()}", *(f"{PREFIX}-store-{bucket}" for bucket in sorted(buckets))]


def machine() -> str:
    """This machine's name, as far as the name of a limit can hold it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "localhost"


@contextmanager
def within_limits(paths: Iterable[str], say: Callable[[str], None]) -> Iterator[None]:
    """The block, begun when every limit that the server has for these paths has room.

    A run that is killed keeps its place until the server's lease ends, five minutes later.

    Args:
        paths: Every path of the run.
        say: Hears which limits there are.
    """
    names = _existing(limit_names(paths))
    if not names:
        yield
        return
    say(f"Begins when there is room within {' and '.join(names)}")
    with concurrency(names, occupy=1, strict=False, raise_on_lease_renewal_failure=False):
        yield


def _existing(names: Iterable[str]) -> list[str]:
    """Those that the server knows: Prefect would warn of the others in every run."""
    found = []
    with get_client(sync_client=True) as client:
        for name in names:
            try:
                limit = client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                continue
            if limit.active:
                found.append(name)
    return found
