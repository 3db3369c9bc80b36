"""What is settled in a process that does nothing but fetch: the command's, and a worker of its pool."""

from __future__ import annotations

from prefect_cytotable.tasks.core.soma.importing import defer
from prefect_cytotable.tasks.core.soma.memory import reuse_memory


def settle() -> None:
    """Reuse memory, and import little; to be called before TileDB-SOMA is imported, and in a process of our own."""
    reuse_memory()
    defer()
