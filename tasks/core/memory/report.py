"""A profile for people and for programs: lines, Markdown, tables, and ``profile.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.errors import SourceNotFoundError
from prefect_cytotable.tasks.core.memory.errors import ProfileFileError
from prefect_cytotable.tasks.core.memory.model import FORMAT, VERSION, ProcessPeak, Profile, Role, Site, TaskPeak

JSON, MARKDOWN, FLAMEGRAPH, RAW = "profile.json", "profile.md", "flamegraph.html", "raw"

SHOWN_LINES, SHOWN = 5, 20
"""Rows that the command line, and the Markdown and the artifacts, show of each table; the JSON has more."""

LARGEST = 64 << 20
"""Bytes of a file that may be a profile."""

_PROFILE = msgspec.json.Decoder(Profile)


class _Head(msgspec.Struct):
    """What is read of a file before the rest."""

    format: str = ""
    version: int = 0


_HEAD = msgspec.json.Decoder(_Head)


def encode(profile: Profile) -> bytes:
    """The text of ``profile.json``."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n"


def load(path: Path) -> Profile:
    """A profile from its folder or its file.

    Raises:
        SourceNotFoundError: There is none.
        ProfileFileError: It is another kind of file, or of a version that is not known here.
    """
    file = path / JSON if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            text = stream.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            f"{path}: there is no {JSON}. `prefect-cytotable profile --out {path} -- COMMAND` makes one."
        ) from error
    if len(text) > LARGEST:
        raise ProfileFileError(f"{file}: more than {show_bytes(LARGEST)}, so it is no profile.")
    try:
        head = _HEAD.decode(text)
        if head.format != FORMAT:
            raise ProfileFileError(f"{file}: no profile of this program. Name a folder or a {JSON} that it wrote.")
        if head.version != VERSION:
            raise ProfileFileError(
                f"{file}: a profile of version {head.version}; this program reads version {VERSION}. Make it again."
            )
        return _PROFILE.decode(text)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ProfileFileError(f"{file}: not a profile that can be read ({error}). Make it again.") from error


def size(value: int | None) -> str:
    """Bytes for people.

    >>> size(3 << 20), size(None)
    ('3.0 MiB', 'unknown')
    """
    return "unknown" if value is None else show_bytes(value)


def place(site: Site) -> str:
    """Where a site is.

    >>> place(Site("read", "pyarrow/parquet/core.py", 12, 1, 1)), place(Site("all other places", "", 0, 1, 1))
    ('read (pyarrow/parquet/core.py:12)', 'all other places')
    """
    if not site.file:
        return site.function
    return f"{site.function} ({site.file}{f':{site.line}' if site.line else ''})"


def lines(profile: Profile) -> list[str]:
    """The figures and the largest places, for a terminal or a log."""
    peaks = profile.peaks
    text = [
        f"memory profile of {profile.command}: {_ended(profile)}",
        f"  peak allocated  {size(peaks.allocated):>10}  {_allocated_note(profile)}",
        f"  peak resident   {size(peaks.resident):>10}  {_resident_note(profile)}",
        f"  allocations     {_number(peaks.allocations):>10}  alive at the peak{_total(profile)}",
        f"  {profile.explanation}",
    ]
    for site in profile.sites[:SHOWN_LINES]:
        text.append(f"  {size(site.size):>10}  {site.allocations:>9,}  {place(site)}")
    if incomplete := [one for one in profile.processes if not one.complete]:
        known = "known until then" if all(one.allocated is not None for one in incomplete) else "not all known"
        text.append(
            f"  Incomplete: {_count(len(incomplete), 'process was', 'processes were')} killed, or still at work; what "
            f"they allocated is {known}, what was resident is there."
        )
    return text


def _ended(profile: Profile) -> str:
    return f"{'done' if profile.status == 0 else f'exit status {profile.status}'}, {profile.seconds:.1f} s"


def _allocated_note(profile: Profile) -> str:
    tracked = [one for one in profile.processes if one.allocated is not None]
    if len(tracked) <= 1:
        return "memray"
    return f"memray, {len(tracked)} processes at one moment; {size(profile.peaks.allocated_sum)} is their peaks' sum"


def _resident_note(profile: Profile) -> str:
    processes = profile.peaks.processes
    return "RSS of the process" if processes == 1 else f"RSS of {processes} processes at one moment"


def _total(profile: Profile) -> str:
    return "" if profile.total_allocations is None else f", {profile.total_allocations:,} in the whole run"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def markdown(profile: Profile) -> str:
    """The report: figures, places, processes and tasks."""
    peaks = profile.peaks
    text = [
        f"# Memory of {profile.command}",
        "",
        f"{_ended(profile).capitalize()}, begun {profile.started}. {profile.explanation}",
        "",
        "| figure | value | what |",
        "|---|---:|---|",
        f"| peak allocated | {size(peaks.allocated)} | {_allocated_note(profile)} |",
        f"| peak resident | {size(peaks.resident)} | {_resident_note(profile)} |",
        f"| allocations | {_number(peaks.allocations)} | alive at the peak{_total(profile)} |",
        "",
        "## Where the memory of the peak was allocated",
        "",
        *_table(site_rows(profile)[:SHOWN]),
        "",
        "## Processes",
        "",
        *_table([_process_row(one) for one in profile.processes[: 2 * SHOWN]]),
        "",
    ]
    if profile.tasks:
        text += ["## Tasks, the largest first", "", *_table(task_rows(profile)), "", _tasks_note(profile.tasks), ""]
    tools = ", ".join(f"{name} {version}" for name, version in (profile.tools or {}).items())
    return "\n".join([*text, f"Recorded: {_recorded(profile)}. {tools}."]) + "\n"


def site_rows(profile: Profile) -> list[dict[str, str]]:
    """The places, as rows of a table."""
    whole = max(sum(one.size for one in profile.sites), 1)
    return [
        {
            "size": size(one.size),
            "share": f"{100 * one.size / whole:.1f}%",
            "allocations": f"{one.allocations:,}",
            "function": one.function,
            "location": f"{one.file}:{one.line}" if one.line else one.file,
        }
        for one in profile.sites
    ]


def task_rows(profile: Profile) -> list[dict[str, str]]:
    """The tasks with the highest peaks, as rows of a table."""
    ordered = sorted(profile.tasks, key=lambda one: (-(one.allocated or 0), one.start, one.name))
    return [
        {
            "task": one.name + (" (failed)" if one.failed else ""),
            "process": str(one.pid),
            "seconds": f"{one.seconds:.2f}",
            "allocated before": size(one.before),
            "peak allocated": size(one.allocated),
            "peak resident": size(one.resident),
            "others beside it": str(one.beside),
        }
        for one in ordered[:SHOWN]
    ]


def _process_row(one: ProcessPeak) -> dict[str, str]:
    untracked = "not tracked" if one.role is Role.OTHER else "lost"
    return {
        "process": f"{one.role} {one.pid}{_where(one)}",
        "seconds": f"{one.seconds:.1f}",
        "peak allocated": size(one.allocated) if one.allocated is not None else untracked,
        "peak resident": size(one.resident) + ("" if one.resident_exact or one.resident is None else " (sampled)"),
        "Arrow's pool": "" if one.arrow is None else f"{size(one.arrow)} ({one.arrow_pool})",
    }


def _where(one: ProcessPeak) -> str:
    if one.machine:
        return f" on {one.machine}"
    return " of a running cluster" if one.outside else ""


def _tasks_note(tasks: Sequence[TaskPeak]) -> str:
    if not any(one.beside for one in tasks):
        return "Each process ran one task at a time: a task's peak is that of its process meanwhile, of samples."
    return (
        "Where others ran beside a task in the same process, its figures are those of all of them together: memory "
        "belongs to a process. One task at a time (`workers=1`, or processes) tells them apart."
    )


def _recorded(profile: Profile) -> str:
    what = ["every allocation" if profile.every_allocation else "the peak of each process"]
    what += ["native stacks"] if profile.native else []
    what += ["Python's small objects one by one"] if profile.python_allocators else []
    what += ["Arrow's buffers one by one"] if profile.arrow_allocations else []
    what += [] if profile.whole_process else ["the main process from the call on"]
    return ", ".join(what)


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Rows as a Markdown table; every name and path comes from the code that ran, so that signs are escaped."""
    if not rows:
        return ["None."]
    names = list(rows[0])
    text = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        text.append("| " + " | ".join(_escaped(row[name]) for name in names) + " |")
    return text


def _escaped(text: str) -> str:
    """A cell that no sign in it can break out of.

    >>> _escaped("<module> a|b")
    '&lt;module&gt; a&#124;b'
    """
    for sign, code in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("\n", " "), ("`", "&#96;")):
        text = text.replace(sign, code)
    return text
