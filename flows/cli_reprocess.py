"""The commands ``prefect-cytotable reprocess`` and ``prefect-cytotable cache``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect_cytotable.flows.cli_options import Adder, add_quiet
from prefect_cytotable.tasks.core import kept
from prefect_cytotable.tasks.core.budget import parse_bytes, show_bytes
from prefect_cytotable.tasks.core.durations import parse_seconds, show_seconds
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.places import is_remote
from prefect_cytotable.tasks.core.places.cache import cache_folder
from prefect_cytotable.tasks.core.progress import Lines, Silent

OWN = ("preset", "task_runner", "workers", "memory_budget", "work_dir", "storage_options")
"""Arguments that `reprocess` shares with `convert`; the other ones of `convert` are its ``options``."""

MACHINE = "machine"
"""The word for the folder with copies of objects, and with the chunks for remote destinations."""

COPIES_OLDER = "1d"
"""Copies of objects have no lock: those used of late may be in use."""


def add_commands(
    command: Adder,
    add_conversion_options: Callable[[argparse.ArgumentParser], None],
    arguments: Callable[[argparse.Namespace], dict[str, Any]],
) -> None:
    """Add the two commands to the command line.

    Args:
        command: Adds a command: its name, its help, what it does.
        add_conversion_options: Adds the options of `convert` to a command.
        arguments: The arguments of `convert` that a command line gives.
    """
    one = command("reprocess", "Convert the plates below a folder that are new or changed since the last run.", _run)
    one.set_defaults(arguments=arguments)
    one.add_argument("source", help="the folder with a folder or a database for each plate; a path or a URL")
    one.add_argument("destination", help="the folder for the tables and index.parquet")
    add_conversion_options(one)
    add = one.add_argument
    add("--settle", default="10min", metavar="TIME", help="how long a plate must have been left alone (%(default)s)")
    add("--at-once", type=int, default=2, metavar="N", dest="plates_at_once", help="plates at a time (%(default)s)")
    add("--plates", nargs="+", metavar="PATTERN", help="names or patterns of the plates that count (default: all)")
    add("--exclude", nargs="+", metavar="PATTERN", help="names or patterns of what is left out")
    add("--keep", default="20GiB", metavar="SIZE", help="chunks that stay for later runs, 0 for none (%(default)s)")
    add("--keep-days", type=float, default=30.0, metavar="DAYS", help="how long unused chunks stay (30)")
    add("--new-version", default="keep", help="what an earlier version converted: keep or convert (%(default)s)")
    add("--overwrite", action="store_true", help="replace outputs that the index does not know")
    add("--dry-run", action="store_true", help="tell only what would be done")
    add_quiet(one)

    one = command("cache", "Show or clear what runs keep for later runs: finished chunks, copies of objects.", _cache)
    one.add_argument("what", choices=["show", "clear"], help="what to do with it")
    one.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help=f"where to look: destinations, work folders; {MACHINE!r} for this machine's cache folder",
    )
    add = one.add_argument
    add("--older-than", metavar="TIME", help="what no run has used for so long, as 30d (copies: 1d where not given)")
    add("--larger-than", metavar="SIZE", help="what is larger, as 500MB")
    add("--cache-dir", metavar="DIR", help=f"the folder that {MACHINE!r} means, where local_cache_dir named another")


def _run(given: argparse.Namespace) -> int:
    arguments = given.arguments(given)
    arguments.pop("keep_chunks")  # always, within --keep
    own = {name: arguments.pop(name) for name in OWN}
    progress = Silent() if given.quiet else Lines()
    names = (
        "settle",
        "plates_at_once",
        "plates",
        "exclude",
        "keep",
        "keep_days",
        "new_version",
        "overwrite",
        "dry_run",
    )
    more = {name: getattr(given, name) for name in names}
    from prefect_cytotable.flows.reprocess import reprocess  # other commands need none of it

    reprocess(given.source, given.destination, options=arguments, progress=progress, **own, **more)
    return 0


def _cache(given: argparse.Namespace) -> int:
    clearing = given.what == "clear"
    size = -1 if given.larger_than is None else _size(given.larger_than)
    age = 0.0 if given.older_than is None else parse_seconds("--older-than", given.older_than)
    roots = [_cache_folder(given) if path == MACHINE else _root(path) for path in given.paths]
    now, count, total = time.time(), 0, 0
    for one in _kept(roots, kept.Wanted(age, size), now):
        freed = kept.clear(Path(one.path)) if clearing else one.size
        count, total = count + (freed is not None), total + (freed or 0)
        print(_line(one, now, "in use, left alone" if freed is None else "cleared" if clearing else ""))
    if MACHINE in given.paths:
        unused = parse_seconds("copies", COPIES_OLDER) if clearing and given.older_than is None else age
        for one in filter(lambda one: kept.Wanted(unused, size).fits(one, now), kept.copies(_cache_folder(given))):
            count, total = count + 1, total + (kept.drop_copy(one) if clearing else one.size)
            print(_line(one, now, "cleared" if clearing else ""))
    print(f"{count} {'cleared' if clearing else 'kept'}, {show_bytes(total)}{' freed' if clearing else ''}")
    return 0


def _kept(roots: list[Path], wanted: kept.Wanted, now: float) -> Iterator[kept.Kept]:
    """The work folders that are meant, each once."""
    seen: set[Path] = set()
    for folder in (folder for root in roots for folder in kept.work_folders(root)):
        one = kept.look(folder)
        if folder.resolve() not in seen and wanted.fits(one, now):
            yield one
        seen.add(folder.resolve())


def _root(path: str) -> Path:
    if is_remote(path):
        raise ArgumentError(
            f"{path}: parts in object storage are not shown here. Remove the folders whose names end in "
            f".prefect-cytotable with the tools of that storage, or have a lifecycle rule do so."
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ArgumentError(f"{path}: there is no such folder.")
    return root


def _cache_folder(given: argparse.Namespace) -> Path:
    return Path(given.cache_dir).expanduser() if given.cache_dir else cache_folder(())


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except (ArgumentError, OverflowError) as error:
        raise ArgumentError(f"--larger-than is {text!r}, not a size such as '500MB'.") from error


def _line(one: kept.Kept, now: float, done: str) -> str:
    what = f"{one.parts} chunk(s)" if one.parts else "copy"
    state = done or ("in use" if one.in_use else "")
    used = f"used {show_seconds(max(now - one.last_used, 0))} ago"
    return f"{show_bytes(one.size):>10}  {what:>12}  {used:>16}  {one.path}{f'  ({state})' if state else ''}"
