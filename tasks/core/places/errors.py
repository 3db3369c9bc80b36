"""What can go wrong with object storage. No message here repeats a credential or the text of a service's answer."""

from __future__ import annotations

from prefect_cytotable.tasks.core.errors import CytotableError


class PlaceError(CytotableError, OSError):
    """A storage service refused a request, or did something else than was asked."""


class UnsupportedError(PlaceError):
    """A storage service does not know a kind of request."""


class PlaceBusyError(CytotableError, ConnectionError):
    """A storage service throttles, breaks connections or does not answer; the same request may succeed later."""

    retriable = True


class DamagedTransferError(PlaceBusyError):
    """The bytes that came do not have the object's checksum; they have to be fetched anew."""


class PlaceDeniedError(CytotableError, PermissionError):
    """Credentials are missing or do not permit this."""


class MissingExtraError(CytotableError, ImportError):
    """The client library of a storage service is not installed."""
