"""A progress that remembers, for runs of every kind."""

from __future__ import annotations

from typing import Any


class Ear:
    """What was said, how many chunks (blocks, plates) were announced, and what each became."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.results: list[Any] = []
        self.chunks = self.rows = self.finished = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    def start(self, chunks: int, rows: int) -> None:
        self.chunks, self.rows = chunks, rows

    def advance(self, result: Any) -> None:
        self.results.append(result)

    def finish(self) -> None:
        self.finished += 1

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    @property
    def reused(self) -> set[str]:
        """The keys of the chunks that were not converted."""
        return {one.key for one in self.results if one.reused}
