"""Damage to NPZ archives, member by member; and what an archive says, read by NumPy alone."""

from __future__ import annotations

import io
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from damage_plate import (
    Files,
    Site,
    archive,
    features_of,
    locations_of,
    metadata_member,
    metadata_of,
    npy_bytes,
    pickled_member,
)
from damage_said import Raw, Row, Said, Source, World
from hypothesis import strategies as st
from numpy.lib import format as npy


@dataclass(frozen=True)
class NpzHarm:
    """One operation: of which kind, on which file and member, each counted around."""

    kind: str
    target: int
    member: int = 0
    at: int = 0


class Trap:
    """What a hostile pickle calls."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def _trapped(trap: str) -> bytes:
    return pickled_member(pickle.dumps({"Metadata_Plate": Trap(trap)}))


def _metadata(change: dict[str, object]) -> Callable[[Site], bytes]:
    return lambda site: metadata_member(metadata_of(site) | change)


METADATA: list[Callable[[Site], bytes]] = [
    *(
        _metadata({"Label": value})
        for value in (["too few"], list(range(99)), [1, "a", None], np.zeros((2, 2)), {1: 2})
    ),
    *(
        _metadata({"Label": value})
        for value in ("one", 3, None, float("nan"), True, 2**70, b"bytes", object, 1j, [[1]])
    ),
    *(
        _metadata({key: "x"})
        for key in ("é漢🔬", "a\nb", "Location_Center_X", "net_1", "Metadata_NPZSource", "x" * 9000)
    ),
    *(_metadata({"Metadata_Model": value}) for value in ("", " ", "Location_Center", "a/b", "n" * 5000, 7, None)),
    lambda site: metadata_member([metadata_of(site)]),
    lambda site: metadata_member(None),
    lambda site: npy_bytes(np.arange(3)),
    lambda site: pickled_member(b"cos\nsystem\n(S'true'\ntR."),
    lambda site: pickled_member(pickle.dumps(metadata_of(site))[:-9]),
    lambda site: pickled_member(b"\x80\x04]" + b"2" * 5000 + b"."),
    lambda site: pickled_member(b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"."),
    lambda site: pickled_member(b"(" * 20_000 + b"."),
]
"""Metadata that are not what DeepProfiler writes."""

HEADERS = [
    *("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 3), }", "{'descr': '<f4', 'shape': (-1, 3), }"),
    *("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }", "__import__('os').abort()", "{" * 9000, "\0", ""),
    *(
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2**70,), }",
    ),
]
"""Headers of arrays that lie."""

ARRAYS: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda array: array[:-1],
    lambda array: np.concatenate([array, array]),
    lambda array: array.T.copy(),
    lambda array: np.asfortranarray(array),
    lambda array: array.reshape(-1),
    lambda array: array[None],
    lambda array: array.astype("f8"),
    lambda array: array.astype("f2"),
    lambda array: array.astype(">f4"),
    lambda array: array.astype("i8"),
    lambda array: array.astype("c8"),
    lambda array: array.astype("U9"),
    lambda array: array > 3,
    lambda array: np.where(array > 3, np.nan, array),
    lambda array: np.where(array > 3, np.inf, array),
    lambda array: np.zeros((0, 3), "f4"),
    lambda array: np.zeros((len(array), 0), "f4"),
]
"""Other arrays in the place of one."""

MEMBERS = ("features", "locations", "metadata")
KINDS = (
    "member gone",
    "member renamed",
    "member twice",
    "other array",
    "lying header",
    "metadata",
    "cut member",
    "trap",
)


@st.composite
def npz_harms(draw: st.DrawFn) -> NpzHarm:
    """One operation."""
    places = (st.sampled_from(KINDS), st.integers(0, 3), st.integers(0, 2), st.integers(0, 500))
    return NpzHarm(*(draw(one) for one in places))


def npz_harmed(plate: tuple[Site, ...], trap: str) -> Callable[[Files, NpzHarm], Files]:
    """The function that damages archives of a plate; `trap` is a file that no archive may make."""

    def harmed(files: Files, harm: NpzHarm) -> Files:
        names = sorted(files)
        name = names[harm.target % len(names)] if names else ""
        members = _members(files.get(name))
        site = next((one for one in plate if name == f"{one.name}.npz"), None)
        if members is None or site is None:
            return files
        if harm.kind == "member twice":
            return {**files, name: _twice(members, MEMBERS[harm.member])}
        return {**files, name: archive(_harmed(members, site, harm, trap))}

    return harmed


def _harmed(members: dict[str, bytes], site: Site, harm: NpzHarm, trap: str) -> dict[str, bytes]:
    member = MEMBERS[harm.member]
    content = members.get(member, b"")
    match harm.kind:
        case "member gone":
            members.pop(member, None)
        case "member renamed":
            members.pop(member, None)
            members[("../../" + member, member.upper(), member + ".npy", "é漢", member + "\n")[harm.at % 5]] = content
        case "other array":
            array = locations_of(site) if member == "locations" else features_of(site)
            members[member] = npy_bytes(ARRAYS[harm.at % len(ARRAYS)](array))
        case "lying header":
            header = HEADERS[harm.at % len(HEADERS)].encode()
            members[member] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(36)
        case "metadata":
            members["metadata"] = METADATA[harm.at % len(METADATA)](site)
        case "cut member":
            members[member] = content[: harm.at % (len(content) + 1)]
        case "trap":
            members["metadata"] = _trapped(trap)
    return members


def _members(data: bytes | None) -> dict[str, bytes] | None:
    """The content of an archive's members by name; None where it cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data or b"")) as file:
            return {name.removesuffix(".npy"): file.read(name) for name in file.namelist()}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, struct.error):
        return None


def _twice(members: dict[str, bytes], member: str) -> bytes:
    """An archive with two members of one name."""
    whole = io.BytesIO(archive({"other" if name == member else name: one for name, one in members.items()}))
    with zipfile.ZipFile(whole, "a") as file:
        for _ in range(2):
            info = zipfile.ZipInfo(f"{member}.npy")
            file.NameToInfo.pop(info.filename, None)
            file.writestr(info, members.get(member, b""))
    return whole.getvalue()


def npz_world(files: Files, plate: tuple[Site, ...]) -> World:
    """What the archives say: beyond doubt where NumPy reads their numbers, and the metadata are what was written."""
    world: World = {}
    for path, data in sorted(files.items()):
        if data is not None and path.lower().endswith(".npz"):
            world[path] = {"cells": Source(path, _said(path, data, plate))}
    return world


def _said(path: str, data: bytes, plate: tuple[Site, ...]) -> Said | None:
    members = _members(data)
    if members is None or len(members) != 3 or not _is_plain_zip(data):
        return None
    site = next((one for one in plate if metadata_member(metadata_of(one)) == members.get("metadata")), None)
    features, locations = (_array(members.get(name)) for name in ("features", "locations"))
    if site is None or features is None or locations is None:
        return None
    cells = sum(site.images)
    empty = features.shape == (0, 3) and locations.shape == (0, 2) and not cells
    if not empty and (features.shape[1:] != (3,) or len(features) != cells or locations.shape != (cells, 2)):
        return None
    if features.dtype.kind not in "fiu" or locations.dtype.kind not in "fiu":
        return None
    metadata: dict[str, Any] = {**metadata_of(site)}
    columns: dict[str, list[Raw]] = {"Metadata_NPZSource": [PurePosixPath(path).name] * cells}
    for name, value in metadata.items():
        columns[name] = list(value) if isinstance(value, list) else [value] * cells
    columns["Location_Center_X"], columns["Location_Center_Y"] = (locations[:, at].tolist() for at in (0, 1))
    columns |= {f"net_{at + 1}": features[:, at].tolist() for at in range(3)}
    rows: tuple[Row, ...] = tuple(zip(*columns.values(), strict=True))
    return Said(tuple(columns), rows, texts=False)


def _is_plain_zip(data: bytes) -> bool:
    """Whether an archive begins with its first member, and its members are of the kinds that NumPy writes."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        kinds = {info.compress_type for info in file.infolist()}
        flags = any(info.flag_bits & 1 for info in file.infolist())
        return data[:4] == b"PK\x03\x04" and kinds <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} and not flags


def _array(member: bytes | None) -> np.ndarray | None:
    try:
        array = npy.read_array(io.BytesIO(member or b""), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
        return None
    return array if npy_bytes(array)[:6] == (member or b"")[:6] and array.ndim == 2 else None
