"""Takes credentials out of whatever a person may read: messages, logs, artifacts, names, pages."""

from __future__ import annotations

import re

HIDDEN = "***"

_NAMES = (
    r"sig|signature|token|secret|password|passwd|pwd|credential|credentials|api[_-]?key|access[_-]?key(?:[_-]?id)?"
    r"|account[_-]?key|access[_-]?token|refresh[_-]?token|id[_-]?token|session[_-]?token|security[_-]?token"
    r"|client[_-]?secret|secret[_-]?access[_-]?key|secret[_-]?key|shared[_-]?access[_-]?(?:key|signature)"
    r"|aws[_-]?access[_-]?key[_-]?id|google[_-]?access[_-]?id|sas(?:[_-]?token)?|auth|authorization"
)
_USER = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<user>[^\s/?#:@'\"<>|]*:(?!\d+/)[^\s'\"<>|]*|[^\s/?#'\"<>|]*)@", re.IGNORECASE
)
"""A password may hold a slash that should have been encoded; what follows a port number is a path."""

_CONTAINER = re.compile(r"(?:abfss?|wasbs?)\Z", re.IGNORECASE)
"""Schemes that name a container before the `@`, as no secret."""

_VALUE = re.compile(
    rf"(?P<name>(?<![A-Za-z0-9])(?:x-(?:amz|goog|ms)-|aws_)?(?:{_NAMES}))(?P<sign>\s*=\s*|%3D)"
    r"(?P<value>(?!\*\*\*)(?:\"[^\"]*\"|'[^']*'|[^\s&;,'\"<>|)\]}]+))",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with the user part of URLs and the values of signatures, tokens, keys and passwords hidden.

    >>> redact("https://lab:secret@example.org/plate?sv=2024&sig=aBc%3D")
    'https://***@example.org/plate?sv=2024&sig=***'
    >>> redact("s3://bucket/plate/Cells.csv, table Cells")
    's3://bucket/plate/Cells.csv, table Cells'
    """
    if "://" in text:
        text = _USER.sub(_without_user, text)
    return _VALUE.sub(rf"\g<name>\g<sign>{HIDDEN}", text) if "=" in text or "%3" in text else text


def _without_user(match: re.Match[str]) -> str:
    scheme, user = match["scheme"], match["user"]
    if _CONTAINER.match(scheme) and ":" not in user:
        return match[0]
    return f"{scheme}://{HIDDEN}@"
