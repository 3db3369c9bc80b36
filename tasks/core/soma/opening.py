"""Finds the data frame of an axis, wherever the store lies, and opens it.

The only module that imports TileDB-SOMA, and it does so inside functions: it is an optional extra and takes a second.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from prefect_cytotable.tasks.core.budget import max_threads
from prefect_cytotable.tasks.core.errors import CytotableError, LayoutError, SourceNotFoundError, nearest
from prefect_cytotable.tasks.core.roots import allowed_roots, check_file, check_path
from prefect_cytotable.tasks.core.soma.errors import (
    SomaBudgetError,
    SomaMissingError,
    SomaReadError,
    SomaUnreachableError,
)
from prefect_cytotable.tasks.core.soma.importing import deferring
from prefect_cytotable.tasks.core.soma.memory import uncollected
from prefect_cytotable.tasks.core.soma.model import CENSUS_SCHEME, Axis, FetchOptions, Place, Sizes

CENSUS_BUCKET = "cellxgene-census-public-us-west-2"
CENSUS_SETTINGS = (("vfs.s3.no_sign_request", "true"), ("vfs.s3.region", "us-west-2"))
"""The public bucket takes requests without a signature, and only in its own region."""

SMALL_BUFFER = 1 << 16
"""SOMA's buffer for what is read besides rows."""


def library() -> Any:
    """TileDB-SOMA.

    Raises:
        SomaMissingError: It is not installed.
    """
    try:
        with uncollected(), deferring():
            import tiledbsoma  # an optional extra
    except ImportError as error:
        raise SomaMissingError.package("tiledbsoma", "soma") from error
    return tiledbsoma


def find(options: FetchOptions) -> Place:
    """The data frame that the options mean.

    Raises:
        SourceNotFoundError: There is no such store.
        SomaUnreachableError: The store cannot be reached.
        LayoutError: It has no such axis, measurement or organism.
    """
    soma = library()
    if options.source.startswith(CENSUS_SCHEME):
        uri, settings = _census(options.source.removeprefix(CENSUS_SCHEME))
    else:
        uri = options.source
        settings = CENSUS_SETTINGS if urlsplit(uri).netloc == CENSUS_BUCKET else ()
        if "://" not in uri and not Path(uri).exists():
            raise SourceNotFoundError(f"{uri}: there is nothing. Give the folder or the URI of a SOMA experiment.")
    check_links(uri)
    now = time.time_ns() // 1_000_000
    with _told(uri), soma.open(uri, context=_context(settings), tiledb_timestamp=now) as root:
        return Place(_axis(root, options).uri, settings, now)


def check_links(uri: str) -> None:
    """Refuse a local store with a link that leads out of the allowed roots, where there are some.

    Raises:
        OutsideRootsError: A link does.
    """
    if "://" in uri or allowed_roots() is None:
        return
    for folder, folders, files in os.walk(uri):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                check_file("a link in source_path", path)


def check_member(uri: str) -> None:
    """Refuse a member of a collection that lies outside the allowed roots: a collection can name any address.

    Raises:
        OutsideRootsError: It does.
    """
    if not uri.startswith("file://"):
        check_path("a member of source_path", uri)
        return
    path = uri.removeprefix("file://")
    for one in {path, unquote(path)}:
        check_file("a member of source_path", one)


def _census(version: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Where a version of the Census lies, as its own package tells; "stable" and "latest" are versions too."""
    try:
        import cellxgene_census  # an optional extra
    except ImportError as error:
        raise SomaMissingError.package("cellxgene-census", "census") from error
    tried = f"cellxgene_census.open_soma(census_version={version!r})"
    try:
        with cellxgene_census.open_soma(
            census_version=version, tiledb_config={"soma.init_buffer_bytes": SMALL_BUFFER}
        ) as census:
            region = census.context.tiledb_config.get("vfs.s3.region") or dict(CENSUS_SETTINGS)["vfs.s3.region"]
            return str(census.uri), (CENSUS_SETTINGS[0], ("vfs.s3.region", str(region)))
    except ValueError as error:
        raise SourceNotFoundError(
            f"The Census has no version {version!r} ({_first_line(error)}). Tried {tried}. Versions are dates such as "
            f"2024-07-01, or 'stable' or 'latest'."
        ) from error
    except Exception as error:  # requests, botocore and TileDB each have their own
        raise SomaUnreachableError(
            f"The Census cannot be reached: {_first_line(error)}. Tried {tried}, which asks the directory of releases "
            f"over HTTPS and opens the store in the public S3 bucket {CENSUS_BUCKET} without a signature. Check the "
            f"network (HTTPS_PROXY where there is a proxy), or give the path of a copy as the source."
        ) from error


def _axis(root: Any, options: FetchOptions) -> Any:
    """The data frame of an axis below a Census, an experiment or a measurement, or the data frame itself."""
    soma = library()
    found = root
    if isinstance(found, soma.Collection) and not isinstance(found, (soma.Experiment, soma.Measurement)):
        for name, what in (("census_data", "census_data"), (options.organism, "organism")):
            found = _member(found, name, what, root.uri)
    if isinstance(found, soma.Experiment):
        if options.axis is Axis.OBS:
            found = _member(found, "obs", "axis", root.uri)
        else:
            measurements = _member(found, "ms", "collection of measurements", root.uri)
            found = _member(measurements, options.measurement, "measurement", root.uri)
    if isinstance(found, soma.Measurement):
        found = _member(found, options.axis.value, "axis", root.uri)
    check_member(found.uri)
    if not isinstance(found, soma.DataFrame):
        raise LayoutError(
            f"{root.uri} is a {type(found).__name__}, not a SOMA experiment. Give the experiment, or one of its data "
            f"frames."
        )
    return found


def _member(collection: Any, name: str, what: str, uri: str) -> Any:
    if name not in collection:
        known = list(collection.keys())
        hint = nearest(name, known) if known else "It is empty."
        raise LayoutError(f"{uri} has no {what} {name!r}. {hint}")
    member = collection[name]
    check_member(member.uri)
    return member


@contextlib.contextmanager
def frame(place: Place, sizes: Sizes | None = None) -> Iterator[Any]:
    """The data frame, open for reading as it was at the place's time.

    Args:
        place: Where it is.
        sizes: How much TileDB may take to read rows; nothing but the schema is read without.
    """
    more: dict[str, Any] = {"soma.init_buffer_bytes": SMALL_BUFFER}
    if sizes is not None:
        more = {"soma.init_buffer_bytes": sizes.buffer_bytes, "sm.mem.total_budget": sizes.tile_bytes}
        more["sm.compute_concurrency_level"] = max(max_threads() // sizes.readers, 1)
    context = _context(place.settings, more)
    with _told(place.uri):
        opened = library().DataFrame.open(place.uri, context=context, tiledb_timestamp=place.timestamp)
    with opened:
        yield opened


def _context(settings: tuple[tuple[str, str], ...], more: dict[str, Any] | None = None) -> Any:
    return library().SOMATileDBContext(
        tiledb_config={"soma.init_buffer_bytes": SMALL_BUFFER, **dict(settings), **(more or {})}
    )


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Opening a store, its failures told as ours."""
    soma = library()
    try:
        yield
    except CytotableError:
        raise
    except soma.DoesNotExistError as error:
        raise SourceNotFoundError(
            f"{uri} is no SOMA store, or there is none. Give the folder or the URI of an experiment, such as "
            f"CENSUS/census_data/homo_sapiens."
        ) from error
    except (soma.SOMAError, RuntimeError, OSError) as error:
        if "://" not in uri or uri.startswith("file://"):
            raise SomaReadError(f"{uri} cannot be opened as a SOMA store: {_first_line(error)}") from error
        raise SomaUnreachableError(
            f"{uri} cannot be reached: {_first_line(error)}. Tried to open it with TileDB, whose settings and "
            f"credentials come from the environment (AWS_*, or TILEDB_VFS_S3_REGION, "
            f"TILEDB_VFS_S3_NO_SIGN_REQUEST=true for a public bucket, TILEDB_VFS_S3_ENDPOINT_OVERRIDE). Check the "
            f"address and the network."
        ) from error


@contextlib.contextmanager
def reading(uri: str, sizes: Sizes) -> Iterator[None]:
    """Reading rows, its failures told as ours."""
    soma = library()
    try:
        yield
    except CytotableError:
        raise
    except (soma.SOMAError, RuntimeError, MemoryError) as error:
        text = _first_line(error)
        if isinstance(error, MemoryError) or any(word in text.lower() for word in ("budget", "too small")):
            raise SomaBudgetError(
                f"{uri}: TileDB cannot read with {sizes.tile_bytes:,} bytes for tiles and buffers of "
                f"{sizes.buffer_bytes:,} bytes ({text}). Give a larger memory_budget, or "
                f"buffer_bytes of at least the longest text."
            ) from error
        raise SomaReadError(f"{uri}: rows cannot be read: {text}. Run the same again; what is done is kept.") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text.rstrip(".")[:400]
