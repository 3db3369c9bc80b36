"""The metadata of a zarr store, read at once: what its groups and arrays are, without a call of zarr for each.

Each call of zarr takes a turn of its event loop, and describing a store of annotations asks some fifty times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = np.dtype(object)
"""Stands for every type that is no number: texts of any length, and what NumPy does not know."""


@dataclass(frozen=True)
class ZarrNode:
    """A group or an array, with those of its names that h5py and zarr have in common.

    Attributes:
        path: Within the store; "" for its root.
        array: Its metadata, where it is an array.
    """

    nodes: dict[str, ZarrNode]
    path: str
    attrs: dict[str, Any]
    array: dict[str, Any] | None
    zarr_format: int
    children: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        """`shape`, `dtype` and `chunks`, which a group has not."""
        if name not in ("shape", "dtype", "chunks") or self.array is None:
            raise AttributeError(name)
        if name == "shape":
            return tuple(map(int, self.array["shape"]))
        if name == "dtype":
            return _dtype(self.array["dtype"] if self.zarr_format == 2 else self.array["data_type"])
        return _chunks(self.array, self.zarr_format)

    def __getitem__(self, path: str) -> ZarrNode:
        """A node below this one."""
        return self.nodes[f"{self.path}/{path}".strip("/")]

    def __contains__(self, path: str) -> bool:
        """Whether there is a node below this one."""
        return f"{self.path}/{path}".strip("/") in self.nodes

    def __iter__(self) -> Iterator[str]:
        """The names of the nodes below this one."""
        return iter(self.children)


def read_nodes(root: Path, files: Iterable[str]) -> ZarrNode | None:
    """The root of a store; None where only zarr can tell what it holds.

    Args:
        root: Its folder.
        files: The names of its files.
    """
    names = set(files)
    try:
        if "zarr.json" in names:
            found = _version_3(root, names)
        elif ".zgroup" in names:
            found = _version_2(root, names)
        else:
            return None
        for path in sorted(found):
            if {".", ".."}.intersection(path.split("/")):
                return None  # zarr refuses a path that leads elsewhere
            if path:
                found[path.rpartition("/")[0]].children.append(path.rpartition("/")[2])
        for node in found.values():
            if node.array is not None:
                _ = node.shape, node.dtype, node.chunks
        return found[""]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        return None  # zarr tells what is wrong with it, if anything is


def _version_2(root: Path, names: set[str]) -> dict[str, ZarrNode]:
    """The nodes by path: those of the consolidated metadata where there are any, as zarr has it."""
    if ".zmetadata" in names:
        parts: dict[str, Any] = _json(root / ".zmetadata")["metadata"]
    else:
        parts = {name: _json(root / name) for name in names if name.rpartition("/")[2] in _OF_VERSION_2}
    nodes: dict[str, ZarrNode] = {}
    for name, found in parts.items():
        path, _, kind = name.rpartition("/")
        if kind in (".zgroup", ".zarray"):
            attributes = parts.get(f"{path}/.zattrs".lstrip("/"), {})
            nodes[path] = ZarrNode(nodes, path, attributes, found if kind == ".zarray" else None, 2)
    return nodes


_OF_VERSION_2 = frozenset({".zgroup", ".zarray", ".zattrs"})


def _version_3(root: Path, names: set[str]) -> dict[str, ZarrNode]:
    """The same for version 3."""
    top = _json(root / "zarr.json")
    if top.get("consolidated_metadata"):
        parts = {"": top, **top["consolidated_metadata"]["metadata"]}
    else:
        found = [name for name in names if name.rpartition("/")[2] == "zarr.json"]
        parts = {name.rpartition("/")[0]: _json(root / name) for name in found}
    nodes: dict[str, ZarrNode] = {}
    for path, one in parts.items():
        array = one if one["node_type"] == "array" else None
        nodes[path] = ZarrNode(nodes, path, one.get("attributes", {}), array, 3)
    return nodes


def codec_of(array: dict[str, Any], zarr_format: int) -> str:
    """What compresses an array of this metadata, as JSON; "none" for nothing, "" for more than one codec."""
    if zarr_format == 2:
        found = array["compressor"]
    elif len(array["codecs"]) <= 2 and array["codecs"][0]["name"] == "bytes":
        found = array["codecs"][1] if len(array["codecs"]) == 2 else None
    else:
        return ""
    return json.dumps(found, sort_keys=True) if found else "none"


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _dtype(told: Any) -> np.dtype[Any]:
    """NumPy's type of an array of numbers; `TEXTS` for any other."""
    if not isinstance(told, str):
        return TEXTS
    try:
        found = np.dtype(told)
    except TypeError:
        return TEXTS
    return found if found.kind in "biufc" else TEXTS


def _chunks(array: dict[str, Any], zarr_format: int) -> tuple[int, ...]:
    """What is decoded at once: a chunk, or one of those that a shard holds."""
    if zarr_format == 2:
        return tuple(map(int, array["chunks"]))
    codec = array["codecs"][0]
    if codec["name"] == "sharding_indexed":
        return tuple(map(int, codec["configuration"]["chunk_shape"]))
    return tuple(map(int, array["chunk_grid"]["configuration"]["chunk_shape"]))
