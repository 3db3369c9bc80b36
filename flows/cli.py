"""The command line, ``prefect-cytotable``: convert, plan, reprocess, concat, fetch, demo, server, serve and others.

Exit status: 0 for success, 1 for a run that failed, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from prefect_cytotable.flows import cli_concat, cli_fetch, cli_profile, cli_reprocess, cli_serve
from prefect_cytotable.flows.cli_options import add_memory_budget, add_quiet, add_runner, add_storage_options, pairs
from prefect_cytotable.tasks.core.errors import (
    ArgumentError,
    CytotableError,
    PresetError,
    SourceNotFoundError,
    UnknownArgumentError,
    nearest,
)
from prefect_cytotable.tasks.core.model import Destination, Format
from prefect_cytotable.tasks.core.progress import Lines, Silent
from prefect_cytotable.tasks.core.roots import check_file

QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "DASK_LOGGING__DISTRIBUTED": "critical",  # its workers complain of every run that is broken off
}
"""The run tells its progress itself; Prefect's own lines go to the server, and not to the terminal as well."""

FAILED, WRONG_ARGUMENTS, INTERRUPTED = 1, 2, 130
NO_PRESET = "none"


class _Parser(argparse.ArgumentParser):
    """Names the nearest option where one is misspelt."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0].split("=")[0]
            if word.startswith("-"):
                message = f"there is no option {word}. {nearest(word, self.options())}"
        super().error(message)

    def options(self) -> list[str]:
        """Every long option of this command and of its sub-commands."""
        found = []
        for action in self._actions:
            found += [one for one in action.option_strings if one.startswith("--")]
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    found += parser.options()
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    gc.freeze()  # what is imported stays: no need to look through it again and again
    parser = _parser()
    arguments = parser.parse_args(argv)
    with _interruptions() as interrupted:
        try:
            status: int = arguments.action(arguments)
            return status
        except KeyboardInterrupt:
            return _interrupted()
        except Exception as error:
            if interrupted and not arguments.debug:
                return _interrupted()
            return _failed(error, arguments)


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """The interruptions (Ctrl-C) so far: a library that is interrupted may raise an error of its own instead."""
    came: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    try:
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        before = signal.signal(signal.SIGINT, interrupt) if ours else None
    except ValueError:  # not in the main thread, which alone is interrupted
        before = None
    try:
        yield came
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _interrupted() -> int:
    print("Interrupted; what is done is kept, and the same command goes on from there.", file=sys.stderr)
    return INTERRUPTED


def _failed(error: Exception, arguments: argparse.Namespace) -> int:
    match error:
        case ArgumentError() | UnknownArgumentError() | PresetError():
            return _told(error, arguments, WRONG_ARGUMENTS)
        case SourceNotFoundError():
            return _told(error, arguments, FAILED if Path(arguments.source).exists() else WRONG_ARGUMENTS)
        case CytotableError() | OSError():
            return _told(error, arguments, FAILED)
    return _told(error, arguments, FAILED, unexpected=True)


def _told(error: Exception, arguments: argparse.Namespace, status: int, unexpected: bool = False) -> int:
    if arguments.debug:
        raise error
    text = f"{type(error).__name__}: {error}" if unexpected else str(error)
    print(f"error: {text}", file=sys.stderr)
    if unexpected:
        print("This was not foreseen. Run with --debug for a traceback, and please report it.", file=sys.stderr)
    return status


def _parser() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(prog="prefect-cytotable", description=__doc__.split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, help_: str, action: Any) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help_, description=help_, parents=[common], allow_abbrev=False)
        one.set_defaults(action=action)
        return one

    one = command("convert", "Convert measurements to one single-cell table.", _convert)
    one.add_argument("source", help="a folder that is searched for tables, or one file; a path or a URL")
    one.add_argument(
        "destination", help="the file to write, .parquet, .h5ad or .zarr (a folder with --no-join or --no-concat)"
    )
    _add_conversion_options(one)
    one.add_argument("--overwrite", action="store_true", help="replace the destination once the new one is whole")
    add_quiet(one)

    one = command("plan", "Show what convert would do; reads headers, counts and samples only.", _plan)
    one.add_argument("source", help="as for convert")
    one.add_argument("destination", nargs="?", default="converted.parquet", help="as for convert")
    _add_conversion_options(one)

    cli_reprocess.add_commands(command, _add_conversion_options, _arguments)
    cli_fetch.add_command(command)

    one = command("presets", "List the presets, or show one as TOML to copy and change.", _presets)
    one.add_argument("name", nargs="?", help="the preset to show")

    one = command("demo", "Make a small synthetic plate, convert it, and show the table.", _demo)
    one.add_argument("folder", nargs="?", default="prefect-cytotable-demo", help="where to (default: %(default)s)")

    one = command("server", "Run a local Prefect server, where runs can be watched in a browser.", _server)
    one.add_argument("what", choices=["start", "status", "stop", "settings"], help="what to do with it")
    one.add_argument("--port", type=int, default=4200, help="its port on this machine (default: %(default)s)")

    cli_concat.add_command(command)
    cli_serve.add_command(command)
    cli_profile.add_commands(command, parser)
    return parser


def _add_conversion_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--preset",
        default="cellprofiler_csv",
        help="a preset's name, a TOML file, or 'none' (default: %(default)s)",
    )
    add_runner(parser, "sequential, concurrent, process, dask, dask:slurm and its like, or a Dask scheduler's address")
    add_memory_budget(parser)
    add("--chunk-size", type=int, metavar="ROWS", help="rows of a chunk (default: what the memory allows)")
    add("--work-dir", metavar="DIR", help="where parts lie meanwhile (default: next to the destination)")
    add(
        "--keep-chunks",
        action="store_true",
        help="keep the parts, so that a later run converts only what changed",
    )
    add(
        "--format",
        choices=[one.value for one in Destination],
        dest="dest_datatype",
        help="of the output (default: what the destination's ending says, else parquet)",
    )
    add("--compression", metavar="NAME", help="of an AnnData: gzip, lzf or none in h5ad, lz4, zstd or none in zarr")
    add("--zarr-format", type=int, metavar="2|3", help="of an AnnData in zarr (default: 2)")
    add("--x-chunk-rows", type=int, metavar="ROWS", help="of a stored chunk of an AnnData's X (default: by bytes)")
    add("--source-datatype", choices=[one.value for one in Format], help="where it is not the preset's")
    add_storage_options(parser)
    add("--compartments", nargs="+", metavar="NAME", help="instead of the preset's")
    add("--metadata", nargs="+", metavar="NAME", help="image tables, instead of the preset's")
    add("--identifying-columns", nargs="+", metavar="COLUMN", help="instead of the preset's")
    add(
        "--relation",
        nargs="+",
        action="extend",
        metavar="CHILD.COLUMN=PARENT",
        dest="relations",
        help="for example Cytoplasm.Parent_Cells=Cells, instead of the preset's",
    )
    add(
        "--page-key",
        nargs="+",
        action="extend",
        metavar="TABLE=COLUMN",
        dest="page_keys",
        help="the column that numbers a table's objects",
    )
    add(
        "--image-columns",
        nargs="+",
        default=["metadata"],
        metavar="PATTERN",
        help="metadata, filenames, all, or patterns (default: metadata)",
    )
    add("--joins", metavar="FILE", help="a file with SQL for the join")
    add(
        "--cast",
        nargs="+",
        action="extend",
        metavar="GROUP=TYPE",
        dest="data_type_cast_map",
        help="for example float=float32",
    )
    add(
        "--unmatched",
        default="drop",
        help="objects without parents: drop, keep or error (default: %(default)s)",
    )
    add(
        "--on-bad-source",
        default="skip",
        help="sources that cannot be read: skip or error (default: %(default)s)",
    )
    add(
        "--tablenumber",
        action=argparse.BooleanOptionalAction,
        default=None,
        dest="add_tablenumber",
        help="Metadata_TableNumber in the output (default: with more than one dataset)",
    )
    add("--drop-null", action="store_true", help="drop rows with a missing value")
    add(
        "--html-report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a report for a browser beside the output",
    )
    for name, text in (
        ("concat", "one file instead of one for each chunk"),
        ("join", "compartments joined instead of a table for each"),
        ("sort-output", "rows sorted by table, image and object number"),
        ("infer-common-schema", "sources with different columns united"),
    ):
        add(f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=text)


def _arguments(given: argparse.Namespace) -> dict[str, Any]:
    names = (
        "task_runner", "workers", "memory_budget", "chunk_size", "work_dir", "keep_chunks", "source_datatype",
        "compartments", "metadata", "identifying_columns", "unmatched", "on_bad_source", "add_tablenumber",
        "drop_null", "concat", "join", "sort_output", "infer_common_schema", "html_report", "compression",
        "zarr_format", "x_chunk_rows",
    )  # fmt: skip
    arguments = {name: getattr(given, name) for name in names}
    arguments["dest_datatype"] = given.dest_datatype or _format_of(given.destination)
    arguments["preset"] = None if given.preset.lower() == NO_PRESET else given.preset
    for name in ("relations", "page_keys", "data_type_cast_map", "storage_options"):
        arguments[name] = pairs(name, getattr(given, name))
    columns = given.image_columns
    arguments["image_columns"] = columns[0] if len(columns) == 1 and "*" not in columns[0] else columns
    if given.joins:
        check_file("--joins", given.joins)
        try:
            arguments["joins"] = Path(given.joins).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ArgumentError(f"--joins {given.joins}: the file cannot be read ({cause}).") from error
    return arguments


def _format_of(destination: str) -> str:
    """The format that a destination's ending says."""
    path = destination.rstrip("/")
    return next((one.value for one in Destination if path.endswith(one.suffix)), Destination.PARQUET.value)


def _convert(given: argparse.Namespace) -> int:
    from prefect_cytotable.flows.convert import convert  # the readers of its sources: other commands need none of it

    progress = Silent() if given.quiet else Lines()
    convert(given.source, given.destination, overwrite=given.overwrite, progress=progress, **_arguments(given))
    return 0


def _plan(given: argparse.Namespace) -> int:
    from prefect_cytotable.flows.convert import plan  # as above
    from prefect_cytotable.tasks.core.pipeline import plan_lines

    print("\n".join(plan_lines(plan(given.source, given.destination, **_arguments(given)))))
    return 0


def _presets(given: argparse.Namespace) -> int:
    from prefect_cytotable.tasks.core.presets import load_preset, preset_names, preset_text  # as above

    if given.name:
        print(preset_text(given.name), end="")
        return 0
    for name in preset_names():
        print(f"{name:<36} {load_preset(name).title}")
    return 0


def _demo(given: argparse.Namespace) -> int:
    from prefect_cytotable.flows.demo import run_demo  # only this command needs it

    run_demo(Path(given.folder))
    return 0


def _server(given: argparse.Namespace) -> int:
    from prefect_cytotable.flows import server  # only this command needs it

    if given.what == "start":
        started = server.start(port=given.port)
        print(f"{'Already running' if started.already_running else 'Running'}: {started.ui_url}")
        print("Runs from now on are shown there. `prefect-cytotable server stop` ends it.")
        return 0
    if given.what == "settings":
        print("\n".join(f"{name}={value}" for name, value in server.SERVER_SETTINGS.items()))
        return 0
    if given.what == "stop":
        print("Stopped." if server.stop() else "No server was running.")
        return 0
    state = server.status()
    print(f"Running: {state.ui_url}" if state else "No server is running. `prefect-cytotable server start` starts one.")
    return 0 if state else FAILED


if __name__ == "__main__":
    sys.exit(main())
