"""The commands ``profile`` and ``memory`` of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prefect_cytotable.flows.cli_options import Adder
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.memory import compare, report
from prefect_cytotable.tasks.core.memory.compare import Figure
from prefect_cytotable.tasks.core.memory.errors import ProfileFileError
from prefect_cytotable.tasks.core.memory.model import Profile, Profiling

GREW = 1
FOLDER, TOLERANCE = "memory-profile", "10%"

UNFIT = ("profile", "memory", "server")
"""Commands that are not profiled: a server outlives the command that starts it."""


def add_commands(command: Adder, whole: argparse.ArgumentParser) -> None:
    """Add the two commands to the command line.

    Args:
        command: Adds a command: its name, its help, what it does.
        whole: The parser of the whole command line, which checks the command that is to be profiled.
    """
    one = command("profile", "Run a command and profile its memory, in all its processes.", _profile)
    one.add_argument("--out", default=FOLDER, metavar="DIR", help="the folder to write (default: %(default)s)")
    for name, text in (
        ("native", "follow stacks into compiled code; 2 to 3 times slower"),
        ("python-allocators", "record every small object of Python; slower"),
        ("arrow-allocations", "record every buffer of Arrow; has it use the system's allocator for this run"),
        ("every-allocation", "record every allocation, also of processes that are killed; large files meanwhile"),
        ("keep-raw", "keep memray's own files in the folder, for memray's own reports"),
        ("overwrite", "replace an earlier profile"),
    ):
        one.add_argument(f"--{name}", action="store_true", help=text)
    one.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND ...",
        help="what to run, as it would stand after prefect-cytotable",
    )
    one.set_defaults(whole=whole)

    one = command("memory", "Compare two profiles; exit status 1 where the peak grew too much.", _memory)
    one.add_argument("before", help="the folder of a profile, or its profile.json")
    one.add_argument("after", help="the same of a later run")
    one.add_argument(
        "--tolerance",
        default=TOLERANCE,
        metavar="PART",
        help="by what part the peak may grow, as 10%% or 0.1 (default: 10%%)",
    )
    one.add_argument(
        "--of",
        default=Figure.BOTH.value,
        choices=[figure.value for figure in Figure],
        help="which peak: allocated, resident or both (default: %(default)s)",
    )


def _profile(given: argparse.Namespace) -> int:
    from prefect_cytotable.flows.profile import run_command  # what runs needs more than what is parsed

    arguments = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not arguments:
        raise ArgumentError("There is no command to profile. Write it after --, as in: profile -- convert FROM TO.")
    if arguments[0] in UNFIT:
        raise ArgumentError(f"{arguments[0]!r} is not profiled. Profile a command that works on data, such as convert.")
    given.whole.parse_args(arguments)  # wrong arguments end here, with the status and the words of that command
    how = Profiling(
        folder=given.out,
        native=given.native,
        python_allocators=given.python_allocators,
        arrow_allocations=given.arrow_allocations,
        every_allocation=given.every_allocation,
        keep_raw=given.keep_raw,
        overwrite=given.overwrite,
    )
    return run_command(arguments, how, _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _memory(given: argparse.Namespace) -> int:
    tolerance = compare.parse_tolerance(given.tolerance)
    before, after = (_load(Path(one)) for one in (given.before, given.after))
    comparison = compare.compare(before, after, Figure(given.of), tolerance)
    print("\n".join(compare.lines(comparison)))
    return GREW if comparison.too_much else 0


def _load(path: Path) -> Profile:
    """A profile that a user names; what is none is a wrong argument."""
    try:
        return report.load(path)
    except (ProfileFileError, OSError) as error:
        raise ArgumentError(str(error)) from error
