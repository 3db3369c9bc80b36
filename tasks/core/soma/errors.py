"""What can go wrong with a SOMA store, each also a builtin error."""

from __future__ import annotations

from prefect_cytotable.tasks.core.errors import CytotableError


class SomaMissingError(CytotableError, ImportError):
    """A package that fetching needs is not installed."""

    @classmethod
    def package(cls, name: str, extra: str) -> SomaMissingError:
        """The error for one package, and the command that installs it."""
        return cls(
            f"{name} is not installed, which is needed to fetch tables. Run: pip install 'prefect-cytotable[{extra}]'"
        )


class SomaUnreachableError(CytotableError, ConnectionError):
    """A store cannot be reached: no network, no such bucket, or no permission."""

    retriable = True


class SomaReadError(CytotableError, OSError):
    """A store was opened, and its rows cannot be read."""

    retriable = True


class SomaBudgetError(CytotableError, MemoryError):
    """TileDB cannot read the table with the memory it was given."""
