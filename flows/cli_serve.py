"""The command ``prefect-cytotable serve``."""

from __future__ import annotations

import argparse
import os

from prefect_cytotable.flows import deployments
from prefect_cytotable.flows.cli_options import Adder
from prefect_cytotable.tasks.core.roots import ROOTS

HELP = "Offer convert and fetch to a Prefect server as deployments, and run what it asks for."

CONSOLE_LEVEL = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"


def add_command(command: Adder) -> None:
    """Add the sub-command.

    Args:
        command: Makes a sub-parser of a name, a help text and an action.
    """
    one = command("serve", HELP, _serve)
    one.add_argument(
        "--runner",
        metavar="RUNNER",
        help="what converts chunks where a run does not say: as for convert (default: concurrent)",
    )
    one.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        dest="roots",
        help=f"a folder or URL prefix that runs may read and write, and no other; again for more (default: {ROOTS})",
    )
    one.add_argument("--limit", type=int, default=1, metavar="N", help="runs at once (default: %(default)s)")


def _serve(given: argparse.Namespace) -> int:
    os.environ.pop(CONSOLE_LEVEL, None)  # its runs tell their story on the terminal of the process that serves them
    deployments.serve(runner=given.runner, roots=given.roots, limit=given.limit)
    return 0
