"""The command ``prefect-cytotable fetch``."""

from __future__ import annotations

import argparse
import gc

from prefect_cytotable.flows.cli_options import Adder, add_quiet, add_runner
from prefect_cytotable.flows.fetch import fetch_obs
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.progress import Lines, Silent
from prefect_cytotable.tasks.core.soma.memory import reuse_memory
from prefect_cytotable.tasks.core.soma.model import CENSUS_SCHEME

HELP = "Fetch obs or var of a SOMA experiment, such as the CELLxGENE Census, to one file."

NAMES = (
    "columns", "tissue", "value_filter", "axis", "measurement", "organism", "memory_budget", "buffer_bytes",
    "chunk_size", "task_runner", "workers", "work_dir", "keep_chunks", "overwrite", "dest_datatype",
    "var_joinids",
)  # fmt: skip
"""The options that are arguments of `fetch_obs`."""


def add_command(command: Adder) -> None:
    """Add the sub-command.

    Args:
        command: Makes a sub-parser of a name, a help text and an action.
    """
    one = command("fetch", HELP, _fetch)
    add = one.add_argument
    add(
        "source",
        nargs="?",
        default="",
        help="a path or URI of an experiment, a Census or a data frame (not with --census-version)",
    )
    add("destination", help="the file to write: .feather, .arrow, .parquet or .csv")
    add("-t", "--tissue", metavar="NAME", help="rows with this value of tissue_general")
    add("--value-filter", metavar="FILTER", help="rows that this filter lets through, in SOMA's language")
    add("-c", "--columns", nargs="+", metavar="NAME", help="columns, also with commas between them (default: all)")
    add("-C", "--census-version", metavar="VERSION", help="of the public Census: a date, stable or latest")
    add("--organism", default="homo_sapiens", help="the experiment in a Census (default: %(default)s)")
    add("--axis", default="obs", help="obs or var (default: %(default)s)")
    add("-V", "--var-joinids", action="store_true", help="the joinids of var too: OUT.var.feather beside OUT.feather")
    add("--measurement", default="RNA", metavar="NAME", help="whose var is meant (default: %(default)s)")
    add(
        "-b",
        "--memory-budget",
        default="128MiB",
        metavar="SIZE",
        help="above the interpreter with its imports (default: %(default)s)",
    )
    add("-B", "--buffer-bytes", metavar="SIZE", help="SOMA's buffer for each column (default: from schema and budget)")
    add("--chunk-size", type=int, metavar="JOINIDS", help="of a chunk (default: chunks of a remote store alone)")
    add_runner(one, "of chunks: sequential, concurrent, process, dask, or an address")
    add("--work-dir", metavar="DIR", help="where parts lie meanwhile (default: next to the destination)")
    add("--keep-chunks", action="store_true", help="keep the parts for a later run")
    add("--format", dest="dest_datatype", help="feather, parquet or csv (default: from the destination's ending)")
    add("--overwrite", action="store_true", help="replace the destination once the new one is whole")
    add_quiet(one, "summary")


def _fetch(given: argparse.Namespace) -> int:
    reuse_memory()
    source = given.source
    if given.census_version:
        if source:
            raise ArgumentError("A source and --census-version were given. Leave one of them out.")
        source = CENSUS_SCHEME + given.census_version
    if not source:
        raise ArgumentError("No source was given. Name an experiment before the destination, or use --census-version.")
    progress = Silent() if given.quiet else Lines()
    try:
        fetch_obs(source, given.destination, progress=progress, **{name: getattr(given, name) for name in NAMES})
    finally:
        gc.freeze()  # at its end the interpreter would look through all that was imported, several times: 0.1 s
    return 0
