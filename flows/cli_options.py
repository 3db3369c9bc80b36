"""What commands have in common: options that mean the same in each, and how a value NAME=VALUE is read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from prefect_cytotable.tasks.core.errors import ArgumentError

Adder = Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]
"""Adds a command: its name, its help, what it does."""


def add_runner(parser: argparse.ArgumentParser, choices: str, pieces: str = "chunks") -> None:
    """Add ``--runner`` and ``--workers``.

    Args:
        parser: A command's.
        choices: What the runner can be.
        pieces: What a runner does.
    """
    add = parser.add_argument
    add(
        "--runner",
        default="concurrent",
        dest="task_runner",
        metavar="RUNNER",
        help=f"{choices} (default: %(default)s)",
    )
    add("--workers", type=int, help=f"{pieces} under way at once (default: one for each processor)")


def add_memory_budget(parser: argparse.ArgumentParser) -> None:
    """Add ``--memory-budget``."""
    what = "for the whole process tree (default: %(default)s)"
    parser.add_argument("--memory-budget", default="1GiB", metavar="SIZE", help=what)


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--storage-option``."""
    parser.add_argument(
        "--storage-option",
        nargs="+",
        action="extend",
        metavar="NAME=VALUE",
        dest="storage_options",
        help="how object storage is reached, for example profile=lab or no_sign_request=true",
    )


def add_quiet(parser: argparse.ArgumentParser, account: str = "report") -> None:
    """Add ``--quiet``, which leaves out that account of the run."""
    parser.add_argument("--quiet", action="store_true", help=f"no progress, no {account}; errors only")


def pairs(option: str, texts: Sequence[str] | None) -> dict[str, str] | None:
    """The values of an option by their names; None where it was not given.

    Raises:
        ArgumentError: One of them is not of the form NAME=VALUE.

    >>> pairs("--cast", ["float=float32", "integer=int64"])
    {'float': 'float32', 'integer': 'int64'}
    """
    if texts is None:
        return None
    split = [text.partition("=") for text in texts]
    for text, parts in zip(texts, split, strict=True):
        if not all(parts):
            raise ArgumentError(f"{option}: {text!r} is not of the form NAME=VALUE.")
    return {name: value for name, _, value in split}
