"""Telling how far a concatenation is, in bytes of its arrays."""

from __future__ import annotations

import time

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.concat.model import JobResult
from prefect_cytotable.tasks.core.progress import LINE_SECONDS, REDRAW_SECONDS, Lines, Listener, Silent

ConcatProgress = Listener[JobResult]
"""Hears of a concatenation's progress: how many blocks there are with how many bytes, and which is done."""


class SilentBlocks(Silent):
    """Tells nothing."""

    def advance(self, result: JobResult) -> None:  # type: ignore[override]
        """Nothing."""


class BlockLines(Lines):
    """Writes to a stream: one line that is drawn again in a terminal, a line now and then elsewhere."""

    def advance(self, result: JobResult) -> None:  # type: ignore[override]
        """Count a block and its bytes."""
        self._done += 1
        self._rows_done += result.size
        now = time.monotonic()
        if now - self._drawn >= (REDRAW_SECONDS if self._live else LINE_SECONDS) or self._done == self._chunks:
            self._drawn = now
            self._draw()

    def text(self) -> str:
        """How far the run is: blocks, bytes, bytes a second."""
        seconds = max(time.monotonic() - self._begun, 1e-3)
        return (
            f"blocks {self._done}/{self._chunks}, {show_bytes(self._rows_done)} of {show_bytes(self._rows)}, "
            f"{show_bytes(self._rows_done / seconds)}/s"
        )
