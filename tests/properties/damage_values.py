"""What a value of a source stands for, and whether a value of the output is that."""

from __future__ import annotations

import math
import re

Raw = int | float | str | bytes | bool | None
Row = tuple[Raw, ...]

_MISSING = {"", "nan", "NaN", "NAN", "-nan", "-NaN", "NA", "N/A", "#N/A", "null", "NULL", "None"}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?inf(?:inity)?", re.IGNORECASE | re.ASCII)
_NAN = re.compile(r"[+-]?nan", re.IGNORECASE)

LOST = object()
"""What `agrees` gives for a value that is no number and became null: right, if a note tells it."""


def is_missing(text: str) -> bool:
    """Whether a text stands for a missing number."""
    trimmed = text.strip(" \t\n\v\f\r")
    return trimmed in _MISSING or _NAN.fullmatch(trimmed) is not None


def number_of(value: Raw) -> int | float | None:
    """A value that stands for a number."""
    if isinstance(value, bool) or value is None or isinstance(value, bytes):
        return None
    if isinstance(value, int | float):
        return None if math.isnan(value) else value
    text = value.strip(" \t\n\v\f\r")
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


def key_of(value: Raw) -> int | None:
    """A value that numbers something."""
    number = number_of(value)
    if isinstance(number, float):
        largest = 2**53 if isinstance(value, str) else 2**63
        number = int(number) if math.isfinite(number) and number.is_integer() and abs(number) < largest else None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def agrees(found: object, raw: Raw, text: bool) -> object:
    """Whether a value of the output is what its source says; `LOST` where it is null instead of what is no number."""
    if isinstance(raw, str) and text:
        return _agrees_with_text(found, raw)
    if raw is None or (isinstance(raw, float) and math.isnan(raw)):
        return found is None or (isinstance(found, float) and math.isnan(found))
    if isinstance(found, float) and not isinstance(raw, str | bytes):
        return float(raw) == found and math.copysign(1, found) == math.copysign(1, float(raw))
    if isinstance(found, str) and isinstance(raw, int | float):
        return _is_text_of(found, raw)
    if isinstance(raw, str) and not isinstance(found, str):
        if found is None:
            return LOST if not _infinite(raw) else False
        return bool(_agrees_with_text(found, raw))
    if isinstance(raw, bytes):
        return LOST if found is None else found == raw or found == raw.decode("utf-8", "replace")
    return found == raw and isinstance(found, bool) == isinstance(raw, bool)


def _is_text_of(found: str, raw: float) -> bool:
    try:
        return float(found) == float(raw)
    except ValueError:
        return False


def _infinite(raw: str) -> bool:
    return raw.strip(" ").lower() in ("inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")


def _agrees_with_text(found: object, raw: str) -> object:
    trimmed = raw.strip(" \t\n\v\f\r")
    if isinstance(found, str):
        return found == raw
    if found is None:
        if not raw or is_missing(raw):
            return True
        return False if _NUMBER.fullmatch(trimmed) else LOST
    if isinstance(found, bool):
        return trimmed.lower() == str(found).lower()
    for written in (trimmed, trimmed.replace(",", ".")):
        if _NUMBER.fullmatch(written):
            number = float(written)
            whole = isinstance(found, int) and _NUMBER.fullmatch(written) and _whole(written) == found
            return whole or (isinstance(found, float) and repr(number) == repr(found))
    return False


def _whole(written: str) -> int | None:
    try:
        return int(written)
    except ValueError:
        return int(float(written)) if float(written).is_integer() else None
