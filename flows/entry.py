"""Where ``prefect-cytotable`` begins: settles what has to be settled before Arrow is imported.

Importing this module imports nothing that imports Arrow.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] == "fetch":
        # Arrow chooses its allocator when it is imported, and its own one reserves 1 GiB of addresses at once.
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from prefect_cytotable.flows import cli  # imports Arrow

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
