"""Writes the HTML report beside the output. The output is whole by then: nothing here can cost it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefect_cytotable.tasks.core.errors import CytotableError
from prefect_cytotable.tasks.core.html.page import mark, render
from prefect_cytotable.tasks.core.model import ChunkResult, Options, Plan, Report
from prefect_cytotable.tasks.core.places import Places, is_remote
from prefect_cytotable.tasks.core.places.files import TEMPORARY, whole
from prefect_cytotable.tasks.core.places.urls import name_of
from prefect_cytotable.tasks.core.roots import check_path
from prefect_cytotable.tasks.core.store import scratch

ENDING = ".report.html"
DATA_ENDINGS = (".parquet", ".pq", ".h5ad", ".zarr", ".arrow", ".feather")
"""Endings that the report's name leaves out: of any other name, what follows a dot may be a part of it."""


class PageTakenError(CytotableError, FileExistsError):
    """What has the report's name is not a report of this destination."""


def with_page(plan: Plan, results: Sequence[ChunkResult], report: Report) -> Report:
    """The report with its page written, or with a warning that says why there is none."""
    if not plan.options.html_report:
        return report
    try:
        return replace(report, page=write(plan, results, report))
    except Exception as error:  # whatever it is: a page that cannot be drawn must not make a finished output a failure
        cause = f"{error}" if isinstance(error, CytotableError) else f"{type(error).__name__}: {error}"
        warning = f"the HTML report was not written ({cause}); the output is whole"
        return replace(report, warnings=(*report.warnings, warning))


def write(plan: Plan, results: Sequence[ChunkResult], report: Report) -> str:
    """Write the page, whole or not at all; returns where it lies.

    Raises:
        PageTakenError: Both names that it could have belong to something else.
    """
    content = render(plan, results, report).encode("utf-8")
    place = page_place(plan.options)
    if is_remote(place):
        temporary = scratch(plan.options) / f"{TEMPORARY}{secrets.token_hex(6)}"
        try:
            temporary.write_bytes(content)
            Places(plan.options.storage).upload(temporary, place, overwrite=True)
        finally:
            temporary.unlink(missing_ok=True)
        return place
    with whole(Path(place)) as file:
        file.write_bytes(content)
    return place


def page_names(destination: str) -> tuple[str, str]:
    """The two places that a destination's report can have: with the destination's ending left out, and with it.

    >>> page_names("/data/cells.parquet")
    ('/data/cells.report.html', '/data/cells.parquet.report.html')
    >>> page_names("s3://bucket/plate.2024")
    ('s3://bucket/plate.2024.report.html', 's3://bucket/plate.2024.report.html')
    """
    place = destination.rstrip("/")
    ending = next((one for one in DATA_ENDINGS if place.lower().endswith(one) and name_of(place).lower() != one), "")
    return f"{place.removesuffix(place[len(place) - len(ending) :])}{ENDING}" if ending else f"{place}{ENDING}", (
        f"{place}{ENDING}"
    )


def page_place(options: Options) -> str:
    """Where the report goes: a name that is free, or that an earlier report of this very destination has.

    Raises:
        PageTakenError: There is no such name.
        OutsideRootsError: Beside the output no program may write on this machine.
    """
    names = page_names(options.destination)
    beginning = mark(options.destination).encode()
    for place in names:
        check_path("the report of dest_path", place)
        found = _beginning(place, len(beginning), options)
        if found is None or found == beginning:
            return place
    raise PageTakenError(f"{names[0]} exists and is no report of this output. Move it away to get one.")


def _beginning(place: str, size: int, options: Options) -> bytes | None:
    """The first bytes of what lies there; None where nothing does."""
    if is_remote(place):
        places = Places(options.storage)
        return places.read(place, 0, size) if places.entry(place) is not None else None
    path = Path(place)
    if not path.is_file() or path.is_symlink():
        return b"" if path.is_symlink() or path.exists() else None
    with path.open("rb") as file:
        return file.read(size)
