"""Which allocator serves a fetch, and how it gives memory back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator

import pyarrow as pa

HEAP, SPARE = 1 << 25, 1 << 26
"""Bytes up to which an allocation comes from the heap (glibc allows no more), and free ones that the heap keeps."""

TRIM = "TILEDB_SM_MEM_MALLOC_TRIM"
"""Whether TileDB gives all free memory back after every query; its own settings come from the environment."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's numbers for mallopt

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


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for garbage, of which an import leaves none and through all of which each search goes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def reuse_memory() -> None:
    """Make this process's allocator (glibc alone) serve the buffers of one slice with those of the one before.

    By default they go back to the system after every query, and come again page by page: a third of the CPU time of
    a fetch (measured). One heap for all threads holds the least. To be called before TileDB is imported, and in a
    process of our own: the settings are the whole process's, and there is no way back. What the user has set stays.
    """
    os.environ.setdefault(TRIM, "false")
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if set_option is None:
        return
    for option, variable, value in (
        (_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", HEAP),
        (_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", SPARE),
        (_ARENA_MAX, "MALLOC_ARENA_MAX", 1),
    ):
        if variable not in os.environ:
            set_option(option, value)
