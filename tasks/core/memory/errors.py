"""What can go wrong when a run is profiled, or two profiles are compared."""

from __future__ import annotations

from prefect_cytotable.tasks.core.errors import ArgumentError, CytotableError


class MemrayMissingError(CytotableError, ImportError):
    """The profiler is not installed, or does not exist for this system."""


class ProfilerBusyError(CytotableError, RuntimeError):
    """This process is being profiled already; memray can do that once at a time."""


class ProfileFailedError(CytotableError, RuntimeError):
    """The run ended, but its profile could not be made or written."""


class ProfileFileError(CytotableError, ValueError):
    """A file is no profile of this program, or of a version that it does not know."""


class NotComparableError(ArgumentError):
    """Two profiles do not tell of the same thing, or one of them does not tell all of it."""
