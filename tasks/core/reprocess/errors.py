"""What can go wrong where many plates are converted."""

from __future__ import annotations

from prefect_cytotable.tasks.core.errors import CytotableError

LISTED = 10
"""Failed plates that the message names."""


class PlatesFailedError(CytotableError, RuntimeError):
    """Some plates could not be converted; the others are done, and the index says which is which."""

    def __init__(self, failures: tuple[tuple[str, str], ...], attempted: int, index: str) -> None:
        named = "; ".join(f"{plate}: {error}" for plate, error in failures[:LISTED])
        more = f"; and {len(failures) - LISTED} more" if len(failures) > LISTED else ""
        super().__init__(
            f"{len(failures)} of {attempted} plate(s) failed. {named}{more}. What else could be converted is; the next "
            f"run tries these again. {index} has the error of each."
        )
        self.failures, self.attempted, self.index = failures, attempted, index

    def __reduce__(self) -> tuple[type[PlatesFailedError], tuple[tuple[tuple[str, str], ...], int, str]]:
        return type(self), (self.failures, self.attempted, self.index)


class IndexFileError(CytotableError, ValueError):
    """The index of a destination cannot be read."""


class RunStoppedError(CytotableError, RuntimeError):
    """The run was broken off while this plate was converted; its finished chunks are kept."""
