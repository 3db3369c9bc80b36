"""Stage 5, write output: join the parts to what was asked for; the destination appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefect_cytotable.tasks.core import formats
from prefect_cytotable.tasks.core.errors import AccountError, ArgumentError, DestinationExistsError
from prefect_cytotable.tasks.core.formats import Begun
from prefect_cytotable.tasks.core.model import (
    ChunkResult,
    Dataset,
    Destination,
    Options,
    OutputFile,
    OutputTable,
    Part,
    Plan,
    Preset,
    Report,
)
from prefect_cytotable.tasks.core.places import Entry, Places, is_remote
from prefect_cytotable.tasks.core.places.base import in_parallel
from prefect_cytotable.tasks.core.places.files import TEMPORARY
from prefect_cytotable.tasks.core.replacing import move_in, put_back
from prefect_cytotable.tasks.core.sources.registry import DATABASES
from prefect_cytotable.tasks.core.store import Store, discard, scratch, store_of

ZARR_UPLOADS = 4
"""Files of a zarr store that are uploaded at a time: they are many and small."""


def check_destination(options: Options) -> None:
    """Refuse a destination that cannot be written, before any work.

    Raises:
        DestinationExistsError: It is there and may not be replaced, or is a folder that this program did not make.
        ArgumentError: Its folder cannot be made, or it is the source itself.
    """
    if is_remote(options.destination):
        _check_remote_destination(options)
        return
    destination = Path(options.destination)
    overwrite, single = options.overwrite, _is_one_file(options)
    if (
        not is_remote(options.source)
        and destination.exists()
        and destination.resolve() == Path(options.source).resolve()
    ):
        raise ArgumentError(f"{destination}: source and destination are the same.")
    if destination.is_dir() and not destination.is_symlink():
        if single:
            raise DestinationExistsError(
                f"{destination} is a folder; the joined table becomes one file. Name a file, for example "
                f"{destination / f'cells{options.datatype.suffix}'}."
            )
        if not overwrite:
            raise DestinationExistsError(f"{destination} exists. Choose another, or replace it with overwrite=True.")
        if stranger := next(formats.strangers(destination), None):
            raise DestinationExistsError(
                f"{destination} holds files that this program did not make ({stranger.name}). Choose another."
            )
    elif os.path.lexists(destination) and not overwrite:
        raise DestinationExistsError(f"{destination} exists. Choose another, or replace it with overwrite=True.")
    try:
        destination.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{destination}: its folder cannot be made ({error.strerror}).") from error


def _is_one_table(options: Options) -> bool:
    return options.join and options.concat


def _is_one_file(options: Options) -> bool:
    """Whether the output is one file, and not a folder."""
    return _is_one_table(options) and options.datatype is not Destination.ZARR


def _check_remote_destination(options: Options) -> None:
    destination, places = options.destination, Places(options.storage)
    if destination == options.source:
        raise ArgumentError(f"{destination}: source and destination are the same.")
    if _is_one_file(options):
        if not options.overwrite and places.entry(destination) is not None:
            raise DestinationExistsError(f"{destination} exists. Choose another, or replace it with overwrite=True.")
    elif first := next(_objects_below(places, destination), None):
        raise DestinationExistsError(
            f"{destination} holds objects already ({first.path}); a folder in object storage is not replaced. "
            f"Remove it or choose another."
        )


def _objects_below(places: Places, folder: str) -> Iterator[Entry]:
    try:
        yield from places.entries(folder)
    except FileNotFoundError:
        return


def begin_output(plan: Plan) -> Begun | None:
    """The output's file, or zarr store, to be filled while chunks are converted.

    None where the output is not one table, or its parts do not lie on this machine.
    """
    if not _is_one_table(plan.options) or is_remote(plan.options.work_dir):
        return None
    return formats.begin(plan, plan.tables[0], _temporary(plan))


def _temporary(plan: Plan) -> Path:
    return scratch(plan.options) / f"{TEMPORARY}{secrets.token_hex(6)}"


def write_output(
    plan: Plan, results: Sequence[ChunkResult], report: Report, begun: Begun | None = None
) -> tuple[OutputFile, ...]:
    """Write the destination from the parts, in order; returns its files.

    Args:
        plan: What was planned.
        results: Of every chunk, in order.
        report: The account of the rows; it goes into the files' metadata.
        begun: The file that `begin_output` gave, with the first parts in it.
    """
    destination = plan.options.destination
    temporary = begun.path if begun else _temporary(plan)
    copies = temporary.with_name(f"{temporary.name}-parts")
    try:
        copies.mkdir()
        store = store_of(plan.options)
        if _is_one_table(plan.options):
            parts = [part for result in results for part in result.parts]
            paths = [store.fetched(part, copies) for part in parts]
            files = [_file(plan, plan.tables[0], parts, paths, begun or temporary, destination, report)]
        else:
            files = list(_folder(plan, results, store, copies, temporary, report))
        if is_remote(destination):
            _upload(plan.options, temporary)
        else:
            move_in(temporary, Path(destination), _previous(plan.options))
    finally:
        discard(temporary)
        discard(copies)
    return tuple(files)


def _upload(options: Options, temporary: Path) -> None:
    """Bring the output into object storage; of several files all or none."""
    places = Places(options.storage)
    if temporary.is_file():
        places.upload(temporary, options.destination, overwrite=options.overwrite)
        return
    done: list[str] = []

    def upload(file: Path) -> None:
        path = f"{options.destination}/{file.relative_to(temporary).as_posix()}"
        places.upload(file, path, overwrite=False)
        done.append(path)

    first, last = formats.in_upload_order(temporary)
    try:
        in_parallel(upload, first, ZARR_UPLOADS if options.datatype is Destination.ZARR else 1)
        in_parallel(upload, last, 1)
    except BaseException:
        for path in done:
            places.remove(path)
        raise


def _file(
    plan: Plan,
    table: OutputTable,
    parts: list[Part],
    paths: list[Path],
    output: Path | Begun,
    final: str,
    report: Report,
    source: str = "",
) -> OutputFile:
    begun = formats.begin(plan, table, output) if isinstance(output, Path) else output
    rows = formats.write(paths, table, report, begun)
    if rows != sum(part.rows for part in parts):
        raise AccountError(f"{final}: {rows} rows were written of {sum(part.rows for part in parts)}.")
    return OutputFile(
        table.name,
        _table_name(plan, table),
        final,
        rows,
        len(table.columns),
        formats.size_of(begun.path),
        source,
    )


def _folder(
    plan: Plan, results: Sequence[ChunkResult], store: Store, copies: Path, temporary: Path, report: Report
) -> list[OutputFile]:
    """A file for each table, for each chunk, or for both."""
    temporary.mkdir()
    suffix = plan.options.datatype.suffix
    places = {dataset.name: _place(dataset, plan.options.preset) for dataset in plan.datasets}
    files = []
    for table in plan.tables:
        parts = [part for result in results for part in result.parts if part.table == table.name]
        if plan.options.join:
            groups = [(f"part-{number:05d}{suffix}", [part]) for number, part in enumerate(parts)] or [
                (f"part-00000{suffix}", [])
            ]
        elif plan.options.concat:
            groups = [(f"{table.name}/{table.name}{suffix}", parts)]
        else:
            groups = [
                (f"{table.name}/{_safe(part.dataset)}/{table.name}-{number:05d}{suffix}", [part])
                for number, part in enumerate(parts)
            ] or [(f"{table.name}/{table.name}{suffix}", [])]
        for name, group in groups:
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            source = places[group[0].dataset] if group and not plan.options.concat else ""
            paths = [store.fetched(part, copies) for part in group]
            final = f"{plan.options.destination}/{name}"
            final = final if is_remote(plan.options.destination) else str(Path(final))
            files.append(_file(plan, table, group, paths, path, final, report, source))
    return files


def _place(dataset: Dataset, preset: Preset) -> str:
    """The database, the file or the folder of files that a dataset is."""
    source = next(iter(dataset.sources), None)
    if source is None:
        return ""
    if source.format in DATABASES or preset.any_table:
        return source.path
    return source.path.rpartition("/")[0] if is_remote(source.path) else str(Path(source.path).parent)


def _table_name(plan: Plan, table: OutputTable) -> str:
    """A table as the sources call it, with the format's ending: "Cells.csv", "Per_Cells.sqlite"."""
    for dataset in plan.datasets:
        if source := dataset.source(table.name):
            label = plan.inspected.gathered.label(table.name)
            prefix = source.table[: len(source.table) - len(label)]
            return f"{prefix}{label}.{source.format.value}"
    return table.name


def _safe(name: str) -> str:
    """A dataset's name as a relative path that stays inside."""
    return "/".join(piece for piece in name.split("/") if piece not in ("", ".", "..")) or "dataset"


def restore_previous(options: Options) -> bool:
    """Put back the output that a run, killed at the wrong moment, had moved aside to put a new one in its place."""
    if is_remote(options.destination):
        return False
    return put_back(Path(options.destination), _previous(options))


def _previous(options: Options) -> Path:
    return scratch(options) / "previous"
