"""What tells that the bytes of a file are those that they were."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 18
"""Bytes read at a time."""


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    with path.open("rb", buffering=0) as file:
        return checksum_of(file)


def checksum_of(file: BinaryIO) -> int:
    """CRC-32 of the bytes from where a file stands to its end.

    >>> from io import BytesIO
    >>> checksum_of(BytesIO(b"123456789")) == 0xCBF43926
    True
    """
    value = 0
    while block := file.read(BLOCK):
        value = zlib.crc32(block, value)
    return value
