"""Which allocator serves a fetch, and how it gives memory back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

import pyarrow as pa

LARGE = 1 << 18
"""Bytes from which an allocation is a mapping of its own, given back as soon as it is freed."""

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD

_changing = threading.Lock()
_before: list[pa.MemoryPool] = []
_users = 0


@contextlib.contextmanager
def system_memory() -> Iterator[None]:
    """Arrow's buffers from the system's allocator, unless the user chose another; the last to leave restores the pool.

    Arrow's default pool reserves 1 GiB of addresses at once, and holds on to what it frees, beside SOMA's allocations.
    """
    global _users
    if "ARROW_DEFAULT_MEMORY_POOL" in os.environ:
        yield
        return
    with _changing:
        if _users == 0:
            _before.append(pa.default_memory_pool())
            pa.set_memory_pool(pa.system_memory_pool())
        _users += 1
    try:
        yield
    finally:
        with _changing:
            _users -= 1
            if _users == 0:
                pa.set_memory_pool(_before.pop())


def give_back_soon() -> None:
    """Make this process's allocator return large blocks at once (glibc alone; 30 MiB less at the peak of a fetch).

    For a process of our own: the setting is the whole process's, and there is no way back to the default.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if set_option is not None:
            set_option(_MMAP_THRESHOLD, LARGE)
