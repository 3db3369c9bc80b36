"""A zarr store on the local disk whose small files are read and written where they are asked for.

zarr's own hands each to another thread, which for the metadata and the annotations of an AnnData object takes longer
than the file itself. Nothing is written to a place that others look at, so files need no temporary neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr
from zarr.core.buffer.core import default_buffer_prototype
from zarr.storage import LocalStore


class DirectStore(LocalStore):  # type: ignore[misc]
    """A `LocalStore` for one thread at a time."""

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """The content of a file; None where there is none."""
        if byte_range is not None:
            return await super().get(key, prototype, byte_range)
        try:
            with open(f"{self.root}/{key}", "rb") as file:  # noqa: PTH123 - what this class is for
                content = file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(content)

    async def set(self, key: str, value: Any) -> None:
        """Write a file."""
        self._check_writable()
        path = self.root / key
        try:
            path.write_bytes(value.to_bytes())
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value.to_bytes())

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Write a file, unless it is there."""
        if not await self.exists(key):
            await self.set(key, value)

    async def exists(self, key: str) -> bool:
        """Whether a file is there."""
        return Path(self.root, key).is_file()


def open_store(path: Path) -> Any:
    """The root group of a store, to be read."""
    return zarr.open_group(DirectStore(path, read_only=True), mode="r")


def create_store(path: Path, zarr_format: int) -> Any:
    """The root group of a new store."""
    return zarr.open_group(DirectStore(path), mode="w", zarr_format=2 if zarr_format == 2 else 3)


def folder_of(group: Any) -> Path:
    """The folder of a group of a store that this made."""
    return Path(group.store.root, group.path)


def zarr_format_of(group: Any) -> int:
    """The version of zarr that a group has."""
    return int(group.metadata.zarr_format)
