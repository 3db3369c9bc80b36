"""From the arguments that a user gives to the options of a fetch, each checked with a clear error."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

from prefect_cytotable.tasks.core.budget import max_threads, parse_bytes
from prefect_cytotable.tasks.core.errors import ArgumentError, nearest
from prefect_cytotable.tasks.core.roots import check_file, check_path
from prefect_cytotable.tasks.core.soma.filters import columns_of
from prefect_cytotable.tasks.core.soma.model import CENSUS_SCHEME, Axis, FetchOptions, TableFormat
from prefect_cytotable.tasks.core.soma.opening import CENSUS_BUCKET
from prefect_cytotable.tasks.core.store import neighbour

SUFFIXES = {
    ".feather": TableFormat.FEATHER,
    ".arrow": TableFormat.FEATHER,
    ".parquet": TableFormat.PARQUET,
    ".csv": TableFormat.CSV,
}


SMALLEST_BUFFER = 1 << 10
"""Bytes of SOMA's buffer for a column: one of a few bytes cannot even mark which values are there."""


def make_fetch_options(
    *,
    source_path: str | Path,
    dest_path: str | Path,
    dest_datatype: str | None,
    axis: str,
    measurement: str,
    organism: str,
    columns: str | Sequence[str] | None,
    tissue: str | None,
    value_filter: str | None,
    memory_budget: str | int,
    buffer_bytes: str | int | None,
    chunk_size: int | None,
    workers: int | None,
    work_dir: str | Path | None,
    overwrite: bool,
    keep_chunks: bool,
    var_joinids: bool,
) -> FetchOptions:
    """The options of a fetch. See `prefect_cytotable.flows.fetch_obs` for the arguments.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
    """
    for name, path in (("source_path", source_path), ("dest_path", dest_path)):
        if not str(path).strip():
            raise ArgumentError(f"{name} is empty.")
    for name, place in (("dest_path", str(dest_path)), ("work_dir", str(work_dir))):
        if "://" in place:
            raise ArgumentError(f"{name} is {place!r}; a fetch writes local files only.")
    for name, place_given in (("source_path", _rooted(str(source_path).strip())), ("dest_path", dest_path)):
        check_path(name, place_given)
    check_file("work_dir", work_dir)
    for name, number in (("chunk_size", chunk_size), ("workers", workers)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ArgumentError(f"{name} is {number!r}, not a positive number.")
    if axis not in list(Axis):
        raise ArgumentError(f"axis is {axis!r}. {nearest(str(axis), list(Axis))}")
    if tissue and axis != Axis.OBS:
        raise ArgumentError("tissue was given together with axis='var', whose rows are no cells. Leave one out.")
    if var_joinids and axis != Axis.OBS:
        raise ArgumentError("var_joinids was given together with axis='var', which has them already. Leave one out.")
    if value_filter:
        columns_of(value_filter)
    destination = Path(dest_path).expanduser().absolute()
    check_file("dest_path's hidden folder", neighbour(destination))
    if var_joinids:
        check_file("dest_path's file of joinids", var_destination(destination))
    return FetchOptions(
        source=_source(source_path),
        destination=str(destination),
        scratch=str(neighbour(destination)),
        var_destination=str(var_destination(destination)) if var_joinids else "",
        work_dir=str(_work_folder(work_dir, destination)),
        format=_format(dest_datatype, destination),
        axis=Axis(axis),
        measurement=measurement,
        organism=organism,
        columns=_columns(columns),
        tissue=tissue or "",
        value_filter=(value_filter or "").strip(),
        memory_budget=_size("memory_budget", memory_budget),
        buffer_bytes=0 if buffer_bytes is None else _buffer(buffer_bytes),
        chunk_ids=chunk_size or 0,
        workers=workers or max_threads(),
        overwrite=bool(overwrite),
        keep_chunks=bool(keep_chunks),
    )


def var_destination(destination: Path) -> Path:
    """The file for the joinids of var, beside the destination.

    >>> var_destination(Path("data/lung.feather")).as_posix()
    'data/lung.var.feather'
    """
    return destination.with_name(f"{destination.stem}.var{destination.suffix}")


def _source(source: str | Path) -> str:
    text = str(source).strip()
    if "://" in text:
        host = text.partition("://")[2].partition("/")[0]
        if "@" in host:
            raise ArgumentError(
                "source_path holds a user or a password. Give credentials through the environment, and the plain URI."
            )
        return text
    if text.startswith(CENSUS_SCHEME):
        if text == CENSUS_SCHEME:
            raise ArgumentError("source_path names no version of the Census. Write census:stable or census:2024-07-01.")
        return text
    return str(Path(text).expanduser().absolute())


def _rooted(source: str) -> str:
    """What stands in the allowed roots for a source: the Census lies in a bucket of its own."""
    return f"s3://{CENSUS_BUCKET}" if source.startswith(CENSUS_SCHEME) and "://" not in source else source


def _format(dest_datatype: str | None, destination: Path) -> TableFormat:
    if dest_datatype is not None:
        if dest_datatype not in list(TableFormat):
            raise ArgumentError(f"dest_datatype is {dest_datatype!r}. {nearest(dest_datatype, list(TableFormat))}")
        return TableFormat(dest_datatype)
    try:
        return SUFFIXES[destination.suffix.lower()]
    except KeyError:
        raise ArgumentError(
            f"dest_path is {destination.name!r}, whose ending tells no format. Let it end in {', '.join(SUFFIXES)}, or "
            f"give dest_datatype."
        ) from None


def _columns(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names, of which one can hold several with commas."""
    if columns is None:
        return ()
    texts = [columns] if isinstance(columns, str) else list(columns)
    if not texts or not all(isinstance(one, str) for one in texts):
        raise ArgumentError(f"columns is {columns!r}, not a list of names.")
    names = [name.strip() for text in texts for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ArgumentError(f"columns is {columns!r}, in which a name is empty or there twice.")
    return tuple(names)


def _buffer(buffer_bytes: str | int) -> int:
    size = _size("buffer_bytes", buffer_bytes)
    if size < SMALLEST_BUFFER:
        raise ArgumentError(f"buffer_bytes is {buffer_bytes!r}; SOMA reads nothing with less than {SMALLEST_BUFFER}.")
    return size


def _size(name: str, size: str | int) -> int:
    try:
        return parse_bytes(size)
    except (ArgumentError, OverflowError, TypeError) as error:
        raise ArgumentError(f"{name} is {size!r}, not a size such as '128MiB' or a number of bytes.") from error


def _work_folder(work_dir: str | Path | None, destination: Path) -> Path:
    """A folder that belongs to one destination."""
    own = neighbour(destination)
    if work_dir is None:
        return own
    mark = zlib.crc32(str(destination).encode("utf-8", "surrogateescape"))
    suffix = own.name.removeprefix(f".{destination.name}")
    return Path(work_dir).expanduser().absolute() / f"{destination.name[:100]}-{mark:08x}{suffix}"
