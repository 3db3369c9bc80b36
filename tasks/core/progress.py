"""Telling how far a conversion is: a moving line in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO, TypeVar

from prefect_cytotable.tasks.core.model import ChunkResult

LINE_SECONDS = 10.0
"""Seconds between two lines of a log."""

REDRAW_SECONDS = 0.1


Result = TypeVar("Result", contravariant=True)


class Listener(Protocol[Result]):
    """Hears of a run's progress, in results of its pieces."""

    def say(self, text: str) -> None:
        """A message."""
        ...

    def start(self, chunks: int, rows: int) -> None:
        """So many chunks, with about so many rows of the base compartment, or bytes of AnnData, are to be done."""
        ...

    def advance(self, result: Result) -> None:
        """One chunk more is done."""
        ...

    def finish(self) -> None:
        """All chunks are done, or the run ends early."""
        ...


Progress = Listener[ChunkResult]
"""Hears of the progress of a run whose pieces are chunks of rows."""


class Silent:
    """Tells nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def start(self, chunks: int, rows: int) -> None:
        """Nothing."""

    def advance(self, result: ChunkResult) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class Lines:
    """Writes to a stream: one line that is drawn again in a terminal, a line now and then elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._drawn = 0.0
        self._begun = time.monotonic()
        self._chunks = self._done = self._rows = self._rows_done = 0

    def say(self, text: str) -> None:
        """A line of its own."""
        self._clear()
        print(text, file=self._stream, flush=True)

    def start(self, chunks: int, rows: int) -> None:
        """Begin to count anew."""
        self._begun = time.monotonic()
        self._drawn = self._begun
        self._chunks, self._rows, self._done, self._rows_done = chunks, rows, 0, 0
        if self._live:
            self._draw()

    def advance(self, result: ChunkResult) -> None:
        """Count a chunk and the rows that it read."""
        self._done += 1
        self._rows_done += sum(account.rows_in for account in result.accounts)
        now = time.monotonic()
        if now - self._drawn >= (REDRAW_SECONDS if self._live else LINE_SECONDS) or self._done == self._chunks:
            self._drawn = now
            self._draw()

    def finish(self) -> None:
        """Leave the terminal clean."""
        self._clear()

    def text(self) -> str:
        """How far the run is: chunks, cells, cells a second, time left."""
        seconds = max(time.monotonic() - self._begun, 1e-3)
        text = (
            f"chunks {self._done}/{self._chunks}, cells {self._rows_done:,}, {self._rows_done / seconds:,.0f} cells/s"
        )
        if 0 < self._done < self._chunks:
            text += f", {duration(seconds * (self._chunks - self._done) / self._done)} left"
        return text

    def _draw(self) -> None:
        if not self._live:
            print(self.text(), file=self._stream, flush=True)
            return
        share = self._done / max(self._chunks, 1)
        bar = "#" * round(20 * share)
        self._stream.write(f"\r\x1b[K[{bar:<20}] {self.text()}")
        self._stream.flush()

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Time for people.

    >>> duration(75), duration(4000)
    ('1 min 15 s', '1 h 6 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
