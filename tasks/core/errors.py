"""Every failure that a user can meet: one base class, one class a cause, each also a builtin error.

A message says what was found, where, and what to do about it. The command line prints it alone; a traceback
appears only with ``--debug``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from prefect_cytotable.tasks.core.redact import redact


class CytotableError(Exception):
    """Base of every error that this package raises on purpose."""

    retriable = False
    """Whether the same work may succeed when it is tried again."""

    def __str__(self) -> str:
        return redact(super().__str__())

    def __repr__(self) -> str:
        return redact(super().__repr__())


class ArgumentError(CytotableError, ValueError):
    """An argument has a value that cannot be used."""


class UnknownArgumentError(CytotableError, TypeError):
    """An argument has a name that does not exist."""


class SourceNotFoundError(CytotableError, FileNotFoundError):
    """There is nothing to read at the place that was named."""


class PresetError(CytotableError, ValueError):
    """A preset does not exist or its file is not what it should be."""


class LayoutError(CytotableError, ValueError):
    """The tables do not fit together: a column, a compartment or a relation is missing."""


class BadSourceError(CytotableError, ValueError):
    """One file or table cannot be read as what it should be; `cause` says why in a few words."""

    def __init__(self, source: str, cause: str, remedy: str) -> None:
        super().__init__(f"{source}: {cause}. {remedy}")
        self.source, self.cause, self.remedy = source, cause, remedy

    def __reduce__(self) -> tuple[type[BadSourceError], tuple[str, str, str]]:
        return type(self), (self.source, self.cause, self.remedy)


class SourceChangedError(CytotableError, RuntimeError):
    """A source was written to while it was being read."""


class SourceBusyError(CytotableError, OSError):
    """A source is locked by another program; the same read may succeed later."""

    retriable = True


class DuplicateKeyError(CytotableError, ValueError):
    """Two rows of a compartment have the same dataset, image number and object number."""


class UnmatchedError(CytotableError, ValueError):
    """Rows have no parent, and ``unmatched="error"`` forbids that."""


class DestinationExistsError(CytotableError, FileExistsError):
    """The destination is there already and may not be replaced."""


class DestinationBusyError(CytotableError, RuntimeError):
    """Another run writes to the same destination."""


class DiskSpaceError(CytotableError, OSError):
    """There is not enough room on a disk for the parts and the output."""


class MemoryBudgetError(CytotableError, ValueError):
    """The smallest possible chunk does not fit the memory budget."""


class JoinQueryError(CytotableError, ValueError):
    """The SQL of ``joins=`` cannot be run on the chunk's tables."""


class CastError(CytotableError, ValueError):
    """A value does not fit the type that ``data_type_cast_map`` asks for."""


class AccountError(CytotableError, AssertionError):
    """Rows in are not rows out plus rows dropped: a defect of this program, never of the data."""


class DamagedPartError(CytotableError, ValueError):
    """A finished part is no longer what was written."""


class PartMismatchError(CytotableError, ValueError):
    """Parts that should become one file have different columns."""


class MissingPackageError(CytotableError, ImportError):
    """A library that the output's format needs is not installed."""


class WorkerDiedError(CytotableError, RuntimeError):
    """Worker processes were ended from outside, more than once: most often by a system short of memory."""

    AGAIN = "A worker process died; the chunks that are not done are tried again."

    @classmethod
    def after(cls, attempts: int) -> WorkerDiedError:
        """The error after so many attempts."""
        return cls(
            f"Worker processes died {attempts} time(s), most often for want of memory. Run the same again with fewer "
            f"workers or a smaller memory_budget: the chunks that are done are kept."
        )


def nearest(word: str, choices: Iterable[str]) -> str:
    """A sentence that names the choice most like `word`, or lists the choices where none is alike.

    >>> nearest("celprofiler_csv", ["cellprofiler_csv", "in-carta"])
    "Did you mean 'cellprofiler_csv'?"
    >>> nearest("zzz", ["b", "a"])
    'Choose one of: a, b.'
    """
    known = sorted(map(str, choices))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        lower = {name.lower(): name for name in known}
        close = [lower[match] for match in difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)]
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Choose one of: {', '.join(known)}."
