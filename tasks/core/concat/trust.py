"""Files that were made elsewhere: nothing in them may run code, or lead to another file.

HDF5 has links and storage in other files, zarr stores can hold symbolic links and name codecs that unpickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py

from prefect_cytotable.tasks.core.errors import BadSourceError

_KNOWN = """
    blosc zlib gzip zstd lz4 lzma bz2 shuffle bitshuffle delta fixedscaleoffset astype packbits quantize crc32 crc32c
    adler32 fletcher32 pcodec zfpy vlen-utf8 vlen-bytes vlen-array bytes transpose sharding_indexed
"""
CODECS = frozenset(_KNOWN.split())
"""Codecs of zarr that only compute. One that is not here, such as pickle, may run code."""

METADATA = ("zarr.json", ".zarray", ".zmetadata")
METADATA_LIMIT = 1 << 28
"""Bytes of a metadata file; a larger one is none."""


def check_h5(file: h5py.File) -> None:
    """Refuse an HDF5 file with parts elsewhere, or with groups that hold themselves.

    Raises:
        BadSourceError: It has.
    """
    _check_group(file["/"].id, "", file.filename, frozenset())


def _check_group(group: Any, name: str, source: str, above: frozenset[Any]) -> None:
    """A group by its identifier: h5py's own objects take several times as long, and files have many parts."""
    address = h5py.h5o.get_info(group).addr
    if address in above:
        raise BadSourceError(source, f"the group {name or '/'} holds itself", "Write the file anew with anndata.")
    for child in group:
        where = f"{name}/{child.decode(errors='replace')}"
        if group.links.get_info(child).type != h5py.h5l.TYPE_HARD:
            raise BadSourceError(source, f"{where} is a link to elsewhere", "Write the file anew with anndata.")
        item = h5py.h5o.open(group, child)
        if isinstance(item, h5py.h5g.GroupID):
            _check_group(item, where, source, above | {address})
        elif isinstance(item, h5py.h5d.DatasetID):
            made = item.get_create_plist()
            if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
                raise BadSourceError(
                    source, f"the values of {where} lie in another file", "Write it anew with anndata."
                )


def zarr_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file of a zarr store with its state, in order.

    Raises:
        BadSourceError: A symbolic link leads out of the store.
    """
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(f"{root}/{below}") as found:
            entries = sorted(found, key=lambda one: one.name)
        for entry in entries:
            name = f"{below}{entry.name}"
            if entry.is_symlink():
                if not Path(entry.path).resolve().is_relative_to(root.resolve()):
                    raise BadSourceError(str(root), f"{name} is a link out of it", "Copy it as a whole.")
                yield name, os.stat(entry.path)  # noqa: PTH116 - a store has many files, and pathlib takes its time
            elif entry.is_dir():
                waiting.append(f"{name}/")
            else:
                yield name, entry.stat()


def check_zarr(root: Path, names: Iterable[str]) -> None:
    """Refuse a zarr store with arrays that need a codec that is not known.

    Args:
        root: Its folder.
        names: Of its files, as `zarr_files` gives them.

    Raises:
        BadSourceError: It has.
    """
    for name in names:
        if name.rpartition("/")[2] in METADATA:
            _check_metadata(root / name, root)


def _check_metadata(path: Path, root: Path) -> None:
    where = path.relative_to(root).as_posix()
    try:
        if path.stat().st_size > METADATA_LIMIT:
            raise ValueError("it is too large")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadSourceError(str(root), f"{where} cannot be read ({error})", "Write it anew with anndata.") from error
    for name in _codecs(found):
        if name.removeprefix("numcodecs.").removeprefix("imagecodecs_") not in CODECS:
            raise BadSourceError(str(root), f"{where} needs the codec {name!r}", "Write it anew with anndata.")


def _codecs(value: Any) -> Iterator[str]:
    """The names of the codecs anywhere in metadata of zarr v2 (compressor, filters) and v3 (codecs)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "attributes":
                continue
            if key in ("compressor", "filters", "codecs", "index_codecs") and inner:
                for one in inner if isinstance(inner, list) else [inner]:
                    if isinstance(one, dict):
                        yield str(one.get("id", one.get("name")))
                    else:
                        yield str(one)
            yield from _codecs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _codecs(inner)
