"""The command ``prefect-cytotable concat``: AnnData files to one, on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefect_cytotable.flows.cli_options import (
    Adder,
    add_memory_budget,
    add_quiet,
    add_runner,
    add_storage_options,
    pairs,
)
from prefect_cytotable.tasks.core.concat.model import MAX_LOADED_ELEMS, Merge
from prefect_cytotable.tasks.core.concat.progress import BlockLines, SilentBlocks
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.places import is_remote


def add_command(command: Adder) -> None:
    """Add the command to a command line.

    Args:
        command: Makes a sub-parser of a name, a help text and the function that runs it.
    """
    one = command("concat", "Concatenate AnnData files (h5ad, zarr) on disk.", _concat)
    add = one.add_argument
    add("in_files", nargs="+", metavar="IN", help="h5ad files and zarr stores, in order")
    add("out_file", metavar="OUT", help="the file to write: its ending, .h5ad or .zarr, tells the format")
    add("--axis", default="obs", help="obs or var, along which inputs are put together (default: %(default)s)")
    add("--join", default="inner", help="names of the other axis: inner or outer (default: %(default)s)")
    strategies = ", ".join(Merge)
    add("--merge", metavar="STRATEGY", help=f"for what is not aligned to the axis: {strategies} (default: none)")
    add("--uns-merge", metavar="STRATEGY", help=f"for uns: {strategies} (default: none is kept)")
    add("--label", metavar="COLUMN", help="a column that tells each input's key")
    add("--keys", nargs="+", metavar="KEY", help="a key for each input (default: 0, 1, ...)")
    add("--index-unique", metavar="TEXT", help="put between each name and its input's key")
    add("--fill-value", metavar="NUMBER", help="what an outer join fills with (default: 0 if sparse, nan if dense)")
    add("--pairwise", action="store_true", help="keep obsp (varp) as blocks on the diagonal")
    add("--max-loaded-elems", type=int, default=MAX_LOADED_ELEMS, metavar="N", help="elements of a block, at most")
    add_runner(one, "sequential, concurrent, process, dask, or a Dask scheduler's address", "blocks")
    add_memory_budget(one)
    add("--compression", default="source", help="of large arrays in h5ad: gzip, lzf, none or source (%(default)s)")
    add_storage_options(one)
    add("--overwrite", action="store_true", help="replace the output once the new one is whole")
    add("--plan", action="store_true", help="show what would be done, and do nothing")
    add_quiet(one)


def _concat(given: argparse.Namespace) -> int:
    from prefect_cytotable.flows.concat import concat, plan_concat  # other commands need none of it

    given.source = next(
        (path for path in given.in_files if not is_remote(path) and not Path(path).exists()), "."
    )  # a missing one is named
    names = (
        "in_files", "out_file", "max_loaded_elems", "axis", "join", "merge", "uns_merge", "label", "keys",
        "index_unique", "pairwise", "task_runner", "memory_budget", "overwrite", "workers", "compression",
    )  # fmt: skip
    arguments: dict[str, Any] = {name: getattr(given, name) for name in names}
    arguments["fill_value"] = _number(given.fill_value)
    arguments["storage_options"] = pairs("--storage-option", given.storage_options)
    if given.plan:
        from prefect_cytotable.tasks.core.concat.plan import plan_lines  # with anndata, which is an extra

        print("\n".join(plan_lines(plan_concat(**arguments))))
        return 0
    concat(**arguments, progress=SilentBlocks() if given.quiet else BlockLines())
    return 0


def _number(text: str | None) -> float | int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError as error:
            raise ArgumentError(f"--fill-value is {text!r}, which is no number.") from error
