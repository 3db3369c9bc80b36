"""Stretches of time as users write them: "10min", "30d", or a number of seconds."""

from __future__ import annotations

import math
import re

from prefect_cytotable.tasks.core.errors import ArgumentError

_UNITS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
    "w": 604800,
    "week": 604800,
}


def parse_seconds(name: str, value: str | float) -> float:
    """A stretch of time in seconds.

    >>> parse_seconds("settle", "10min"), parse_seconds("settle", "1.5 h"), parse_seconds("settle", 90)
    (600.0, 5400.0, 90.0)

    Args:
        name: What an error calls the argument.
        value: Text with a unit (s, min, h, d, w), or a number of seconds; not negative.

    Raises:
        ArgumentError: It is no such thing.
    """
    seconds = math.nan
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*?)\s*", value.lower())
        unit = match[2] if match else ""
        factor = 1 if not unit else _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
        if match and factor:
            seconds = float(match[1]) * factor
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ArgumentError(f"{name} is {value!r}, not a time such as '10min', '2h', '30d' or a number of seconds.")
    return seconds


def show_seconds(seconds: float) -> str:
    """The same for people, in its largest unit.

    >>> show_seconds(45), show_seconds(600), show_seconds(90000), show_seconds(30 * 86400)
    ('45 s', '10 min', '25 h', '30 d')
    """
    for size, unit in ((172800, "d"), (7200, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'d': 86400, 'h': 3600, 'min': 60}[unit]:.0f} {unit}"
    return f"{seconds:.0f} s"
