"""Memory and threads: what a size means, how big a chunk may be, and how many may be under way at once."""

from __future__ import annotations

import os
import re

from prefect_cytotable.tasks.core.errors import ArgumentError, MemoryBudgetError

MIB = 1 << 20

BASE = 190 * MIB
"""Resident bytes of the process before the first chunk: interpreter, Arrow, DuckDB, SQLite (measured: 130-180 MiB)."""

ORCHESTRATED_BASE = 330 * MIB
"""The same with Prefect imported and a run under way."""

WORKER_BASE = {"local": 130 * MIB, "orchestrated": 260 * MIB}
"""Resident bytes of one more process of the process runner."""

DUCKDB_CACHE = 256 * MIB
"""What DuckDB may hold of a database that it reads, in each process."""

COPIES = 2.6
"""Peak bytes of converting a chunk, over the Arrow bytes of its rows: read, joined copy, encoder."""

PARSER = 16 * MIB
"""Bytes that the CSV parser holds in its own form at a time, besides the text."""

SMALLEST_CHUNK = 4 * MIB
LARGEST_CHUNK = 64 * MIB
SMALLEST_SHARE = 6 * MIB
"""Arrow bytes of a chunk's rows. Larger ones gain nothing in speed; smaller ones cost columns their length."""

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}


def parse_bytes(size: str | int | float) -> int:
    """A size in bytes.

    >>> parse_bytes("1GiB"), parse_bytes("500 MB"), parse_bytes(4096)
    (1073741824, 500000000, 4096)

    Raises:
        ArgumentError: It is no size.
    """
    if isinstance(size, int | float) and not isinstance(size, bool) and size > 0:
        return int(size)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(size).lower())
    if match is None or float(match[1]) <= 0:
        raise ArgumentError(f"memory_budget is {size!r}, not a size such as '1GiB', '500MB' or a number of bytes.")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def show_bytes(size: float) -> str:
    """A size for people.

    >>> show_bytes(3 << 20), show_bytes(900)
    ('3.0 MiB', '900 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def chunk_bytes(budget: int) -> int:
    """Arrow bytes that a chunk's rows may take: from the budget alone, so that every runner makes the same chunks."""
    return int(min(max((budget - 256 * MIB) / 12, SMALLEST_CHUNK), LARGEST_CHUNK))


def even_share(total: int, limit: int) -> int:
    """Bytes of a chunk, at most `limit`, so that `total` becomes chunks of about the same size.

    Their number is a multiple of four where the data is large enough: two or four workers then end together.
    """
    chunks = -(-total // limit)
    if total >= 4 * SMALLEST_SHARE:
        chunks = -(-max(chunks, 4) // 4) * 4
    return -(-total // max(chunks, 1)) * 51 // 50 or limit


def workers_within(budget: int, chunk_memory: int, wanted: int, processes: bool, orchestrated: bool) -> int:
    """How many chunks may be under way at once.

    Args:
        budget: Bytes for the whole process tree.
        chunk_memory: Projected peak bytes of the largest chunk.
        wanted: What the user or the machine asks for.
        processes: Whether each chunk is converted in a process of its own.
        orchestrated: Whether Prefect runs the tasks.

    Raises:
        MemoryBudgetError: Not even one fits.
    """
    base = ORCHESTRATED_BASE if orchestrated else BASE
    each = chunk_memory + (WORKER_BASE["orchestrated" if orchestrated else "local"] if processes else 0)
    fitting = (budget - base) // max(each, 1)
    if fitting < 1:
        raise MemoryBudgetError(
            f"memory_budget is {show_bytes(budget)}; the program itself and the largest chunk need "
            f"{show_bytes(base + each)}. Give at least that, or a smaller chunk_size."
        )
    return int(min(wanted, fitting))


def projected(chunk_memory: int, workers: int, processes: bool, orchestrated: bool) -> int:
    """Projected peak bytes of the process tree."""
    base = ORCHESTRATED_BASE if orchestrated else BASE
    each = WORKER_BASE["orchestrated" if orchestrated else "local"] if processes else 0
    return base + workers * (chunk_memory + each)


def max_threads() -> int:
    """The processors that this process may use, at most ``CYTOTABLE_MAX_THREADS``.

    Raises:
        ArgumentError: That variable is no positive number.
    """
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:  # pragma: no cover - only Linux knows the affinity
        available = os.cpu_count() or 1
    limit = os.environ.get("CYTOTABLE_MAX_THREADS")
    if limit is None:
        return available
    if not limit.isdigit() or int(limit) < 1:
        raise ArgumentError(f"CYTOTABLE_MAX_THREADS is {limit!r}, not a positive number.")
    return min(available, int(limit)) if available > 1 else int(limit)
