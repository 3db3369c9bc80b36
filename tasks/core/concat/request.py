"""From the arguments that a user gives to checked options. Imports neither anndata nor pandas."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_cytotable.tasks.core.budget import max_threads, parse_bytes
from prefect_cytotable.tasks.core.concat.model import (
    AXES,
    CALLABLE,
    Compression,
    Join,
    Merge,
    Options,
    Scalar,
    StoreFormat,
)
from prefect_cytotable.tasks.core.concat.model import MAX_LOADED_ELEMS as MAX_LOADED_ELEMS
from prefect_cytotable.tasks.core.errors import ArgumentError, CytotableError, SourceNotFoundError, nearest
from prefect_cytotable.tasks.core.places import (
    check_options_fit,
    check_storage_options,
    check_url,
    is_remote,
    name_of,
)
from prefect_cytotable.tasks.core.request import check_places
from prefect_cytotable.tasks.core.roots import check_path

MergeFunction = Callable[[Collection[Mapping[str, Any]]], Mapping[str, Any]]
InFiles = Sequence[str | Path] | Mapping[str, str | Path]

_OF_ONE_FORMAT = {
    StoreFormat.H5AD: (Compression.LZF,),
    StoreFormat.ZARR: (Compression.ZSTD, Compression.LZ4),
}

SUFFIXES = {".h5ad": StoreFormat.H5AD, ".zarr": StoreFormat.ZARR}


_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Numbers that no JSON can hold, as a flow's parameters have them."""


class MissingLibraryError(CytotableError, ImportError):
    """A library is not installed that only this needs."""


@dataclass(frozen=True)
class Merges:
    """The merge strategies as anndata takes them: a name, a function, or None."""

    merge: str | MergeFunction | None = None
    uns_merge: str | MergeFunction | None = None


def make_options(
    *,
    in_files: InFiles,
    out_file: str | Path,
    max_loaded_elems: int,
    axis: int | str,
    join: str,
    merge: str | MergeFunction | None,
    uns_merge: str | MergeFunction | None,
    label: str | None,
    keys: Collection[Scalar] | None,
    index_unique: str | None,
    fill_value: Scalar | None,
    pairwise: bool,
    memory_budget: str | int,
    overwrite: bool,
    workers: int | None,
    storage_options: Mapping[str, object] | None = None,
    compression: str | None = Compression.SOURCE,
) -> tuple[Options, Merges]:
    """The options of a concatenation. See `prefect_cytotable.flows.concat` for the arguments.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
        OutsideRootsError: An input, the output or a server is not allowed on this machine.
        SourceNotFoundError: There is no such input.
    """
    destination = _path("out_file", out_file)
    files, names = _inputs(in_files, keys)
    storage = check_storage_options(storage_options)
    check_places(destination, destination, None, None, storage)  # its hidden folder, and the storage options
    suffix = Path(name_of(destination)).suffix
    if suffix not in SUFFIXES:
        raise ArgumentError(f"out_file is {str(out_file)!r}; its name must end in .h5ad or .zarr.")
    for path in files:
        if path == destination or (
            not is_remote(path) and not is_remote(destination) and Path(path).resolve() == Path(destination).resolve()
        ):
            raise ArgumentError(f"{destination} is one of the inputs. Choose another out_file.")
    check_options_fit(storage, [*files, destination])
    options = Options(
        in_files=tuple(files),
        keys=names,
        destination=destination,
        format=SUFFIXES[suffix],
        axis=_axis(axis),
        join=Join(_choice("join", join, list(Join))),
        merge=_strategy("merge", merge),
        uns_merge=_strategy("uns_merge", uns_merge),
        label=_text("label", label),
        index_unique=_text("index_unique", index_unique),
        fill_value=_fill(fill_value),
        pairwise=bool(pairwise),
        memory_budget=_budget(memory_budget),
        workers=max_threads() if workers is None else _positive("workers", workers),
        max_loaded_elems=_positive("max_loaded_elems", max_loaded_elems),
        overwrite=bool(overwrite),
        compression=_compression(compression, SUFFIXES[suffix]),
        storage=storage,
    )
    return options, Merges(merge, uns_merge)


def _inputs(in_files: InFiles, keys: Collection[Scalar] | None) -> tuple[list[str], tuple[Scalar, ...]]:
    """The paths, and a key for each: a mapping's own, those given, or numbers."""
    if isinstance(in_files, str | Path):
        raise ArgumentError(f"in_files is {str(in_files)!r}, a single path. Give a list or a mapping of paths.")
    if isinstance(in_files, Mapping):
        if keys is not None:
            raise ArgumentError("in_files is a mapping, whose keys are the keys; leave keys= out.")
        given: list[Scalar] = list(in_files)
        paths = list(in_files.values())
    else:
        paths = list(in_files)
        given = list(keys) if keys is not None else list(map(str, range(len(paths))))
    if not paths:
        raise ArgumentError("in_files is empty: there is nothing to concatenate.")
    if len(given) != len(paths):
        raise ArgumentError(f"keys has {len(given)} value(s) for {len(paths)} input(s). Give one for each.")
    for key in given:
        if not isinstance(key, str | int | float):
            raise ArgumentError(f"keys has {key!r}, which is neither text nor a number.")
        if given.count(key) > 1:
            raise ArgumentError(f"keys has {key!r} twice. Give each input a key of its own.")
    files = [_path("in_files", path) for path in paths]
    for path in files:
        if not is_remote(path) and not Path(path).exists():
            raise SourceNotFoundError(f"{path}: there is no such file or folder.")
    return files, tuple(given)


def _path(name: str, value: str | Path) -> str:
    """An absolute path, or a URL of object storage, in the allowed roots."""
    if not isinstance(value, str | Path):
        raise ArgumentError(f"{name} has {value!r}, which is no path. Open files and stores cannot be given.")
    if not str(value).strip():
        raise ArgumentError(f"{name} is empty.")
    text = check_url(str(value))
    check_path(name, text)
    return text if is_remote(text) else str(Path(text).expanduser().absolute())


def _axis(axis: int | str) -> int:
    for number, name in enumerate(AXES):
        if axis in (name, number) and not isinstance(axis, bool):
            return number
    raise ArgumentError(f"axis is {axis!r}. Choose 0 or 'obs', 1 or 'var'.")


def _choice(name: str, value: object, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name} is {value!r}. {nearest(str(value), choices)}")
    return value


def _strategy(name: str, value: object) -> str:
    if value is None:
        return ""
    return CALLABLE if callable(value) else _choice(name, value, list(Merge))


def _text(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ArgumentError(f"{name} is {value!r}, which is no text.")
    return value


def _fill(value: object) -> Scalar | None:
    item = getattr(value, "item", None)  # a NumPy scalar
    plain = item() if callable(item) else value
    if isinstance(plain, str):
        if plain.lower() not in _SPECIAL:
            raise ArgumentError(f"fill_value is {plain!r}, which is no number.")
        return _SPECIAL[plain.lower()]
    if plain is not None and not isinstance(plain, bool | int | float):
        raise ArgumentError(f"fill_value is {value!r}, which is no number.")
    return plain


def _compression(value: str | None, format: StoreFormat) -> Compression:
    found = Compression(_choice("compression", "none" if value is None else value, list(Compression)))
    for other, own in _OF_ONE_FORMAT.items():
        if format is not other and found in own:
            raise ArgumentError(f"compression is {found.value!r}, which is for {other.value} alone.")
    return found


def _positive(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name} is {value!r}, not a positive number.")
    return value


def _budget(size: str | int) -> int:
    try:
        return parse_bytes(size)
    except (OverflowError, TypeError) as error:
        raise ArgumentError(f"memory_budget is {size!r}, not a size such as '1GiB'.") from error
