"""From the arguments that a user gives to the options that the stages take, each checked with a clear error."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prefect_cytotable.tasks.core.arguments import named_arguments as named_arguments
from prefect_cytotable.tasks.core.budget import max_threads, parse_bytes
from prefect_cytotable.tasks.core.errors import ArgumentError, nearest
from prefect_cytotable.tasks.core.formats import COMPRESSIONS, ZARR_FORMATS, check_packages
from prefect_cytotable.tasks.core.layout import ALL_MODE, FILENAMES_MODE, METADATA_MODE, image_patterns
from prefect_cytotable.tasks.core.model import (
    IMAGE,
    Destination,
    Format,
    OnBadSource,
    Options,
    Preset,
    PresetRelation,
    Unmatched,
)
from prefect_cytotable.tasks.core.places import (
    StorageOptions,
    check_options_fit,
    check_storage_options,
    check_url,
    is_remote,
)
from prefect_cytotable.tasks.core.places.files import WORK_SUFFIX
from prefect_cytotable.tasks.core.places.options import ADDRESS_OPTIONS, PATH_OPTIONS
from prefect_cytotable.tasks.core.presets import TOML, load_preset
from prefect_cytotable.tasks.core.roots import check_endpoint, check_file, check_path
from prefect_cytotable.tasks.core.schema import check_casts
from prefect_cytotable.tasks.core.store import neighbour, remote_neighbour, scratch_of


def make_options(
    *,
    source_path: str | Path,
    dest_path: str | Path,
    dest_datatype: str,
    source_datatype: str | None,
    metadata: Sequence[str] | None,
    compartments: Sequence[str] | None,
    identifying_columns: Sequence[str] | None,
    concat: bool,
    join: bool,
    joins: str | None,
    chunk_size: int | None,
    infer_common_schema: bool,
    drop_null: bool,
    data_type_cast_map: Mapping[str, str] | None,
    add_tablenumber: bool | None,
    page_keys: Mapping[str, str] | None,
    sort_output: bool,
    preset: str | None,
    memory_budget: str | int,
    work_dir: str | Path | None,
    overwrite: bool,
    unmatched: str,
    on_bad_source: str,
    image_columns: str | Sequence[str],
    keep_chunks: bool,
    relations: Mapping[str, str] | None,
    workers: int | None,
    storage_options: Mapping[str, object] | None = None,
    html_report: bool = True,
    compression: str | None = None,
    zarr_format: int | None = None,
    x_chunk_rows: int | None = None,
    shared_work: bool = False,
) -> Options:
    """The options of a conversion. See `prefect_cytotable.flows.convert` for the arguments.

    `shared_work` tells that the workers may be other machines: parts of a destination in object storage then lie
    beside it instead of on this machine.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
        PresetError: There is no such preset.
        MissingPackageError: A library that dest_datatype needs is not installed.
    """
    datatype = Destination(_choice("dest_datatype", dest_datatype, list(Destination)))
    _check_storing(datatype, compression, zarr_format, x_chunk_rows)
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
        raise ArgumentError(f"chunk_size is {chunk_size!r}, not a positive number of rows.")
    if joins is not None and not join:
        raise ArgumentError("joins was given together with join=False. Leave one of them out.")
    for name, value in (("source_path", source_path), ("dest_path", dest_path)):
        if not str(value).strip():
            raise ArgumentError(f"{name} is empty.")
    storage = check_storage_options(storage_options)
    source, destination = _place(source_path), _place(dest_path)
    check_places(source, destination, work_dir, preset, storage)
    chosen = load_preset(preset)
    effective = _effective(chosen, metadata, compartments, identifying_columns, page_keys)
    check_options_fit(storage, [source, destination, *([_place(work_dir)] if work_dir else [])])
    destination = destination if is_remote(destination) else str(Path(destination).absolute())
    return Options(
        source=source,
        destination=destination,
        work_dir=work_folder(work_dir, destination, storage, shared_work),
        preset=effective,
        memory_budget=_budget(memory_budget),
        workers=_workers(workers),
        formats=_formats(source_datatype, chosen),
        join=bool(join),
        concat=bool(concat),
        query=(joins or "").strip().rstrip(";") if join else "",
        chunk_rows=chunk_size or 0,
        common_schema=bool(infer_common_schema),
        drop_null=bool(drop_null),
        casts=check_casts(dict(data_type_cast_map or {})),
        table_number=add_tablenumber,
        object_numbers=_object_numbers(page_keys, effective),
        sort_output=bool(sort_output),
        overwrite=bool(overwrite),
        keep_chunks=bool(keep_chunks),
        unmatched=Unmatched(_choice("unmatched", unmatched, list(Unmatched))),
        on_bad_source=OnBadSource(_choice("on_bad_source", on_bad_source, list(OnBadSource))),
        image_columns=image_patterns(_image_columns(image_columns), effective.image_columns),
        relations=_relations(relations, effective),
        required=tuple(one.lower() for one in _list("compartments", compartments or ())),
        storage=storage,
        html_report=bool(html_report),
        datatype=datatype,
        compression=compression or "",
        zarr_format=zarr_format or ZARR_FORMATS[0],
        x_chunk_rows=x_chunk_rows or 0,
    )


def _check_storing(datatype: Destination, compression: object, zarr_format: object, x_chunk_rows: object) -> None:
    """Refuse ways of storing an AnnData that there are not, or that its format does not know."""
    if compression is not None:
        choices = COMPRESSIONS[datatype]
        if not choices:
            raise ArgumentError(f"compression is {compression!r}; it is for AnnData, not for dest_datatype='parquet'.")
        if not isinstance(compression, str) or compression not in choices:
            raise ArgumentError(
                f"compression is {compression!r}; {datatype.value} knows {', '.join(map(repr, choices))}."
            )
    if zarr_format is not None:
        if datatype is not Destination.ZARR:
            raise ArgumentError(f"zarr_format was given, but dest_datatype is {datatype.value!r}.")
        if isinstance(zarr_format, bool) or zarr_format not in ZARR_FORMATS:
            raise ArgumentError(f"zarr_format is {zarr_format!r}, neither 2 nor 3.")
    if x_chunk_rows is not None:
        if datatype is Destination.PARQUET:
            raise ArgumentError("x_chunk_rows was given, but dest_datatype is 'parquet'.")
        if isinstance(x_chunk_rows, bool) or not isinstance(x_chunk_rows, int) or x_chunk_rows < 1:
            raise ArgumentError(f"x_chunk_rows is {x_chunk_rows!r}, not a positive number of rows.")
    check_packages(datatype)


def check_places(
    source: str, destination: str, work_dir: str | Path | None, preset: str | None, storage: StorageOptions
) -> None:
    """Refuse whatever lies outside the allowed roots, before anything of it is looked at.

    Raises:
        OutsideRootsError: A path, or the server of an address, is not allowed on this machine.
    """
    check_path("source_path", source)
    check_path("dest_path", destination)
    check_path("work_dir", None if work_dir is None else _place(work_dir))
    if not is_remote(destination):
        check_file("dest_path's hidden folder", neighbour(Path(destination).absolute()))
    if preset is not None and preset.endswith(TOML):
        check_file("preset", preset)
    for name, value in storage:
        if name in PATH_OPTIONS:
            check_file(f"storage_options {name}", value)
        elif name in ADDRESS_OPTIONS:
            check_endpoint(f"storage_options {name}", value)


def _place(value: str | Path) -> str:
    """A local path, or a URL of object storage."""
    text = check_url(str(value))
    return text if is_remote(text) else str(Path(text).expanduser())


def _choice(name: str, value: object, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name} is {value!r}. {nearest(str(value), choices)}")
    return value


def _texts(name: str, value: str | Sequence[str]) -> str | tuple[str, ...]:
    if isinstance(value, str):
        if not value:
            raise ArgumentError(f"{name} is empty.")
        return value
    if not all(isinstance(one, str) and one for one in value):
        raise ArgumentError(f"{name} is {value!r}, not a list of names.")
    return tuple(value)


def _image_columns(value: str | Sequence[str]) -> str | tuple[str, ...]:
    """A mode or patterns; a word that is neither is a misspelt mode, since every image column's name has a `_`."""
    modes = (METADATA_MODE, FILENAMES_MODE, ALL_MODE)
    texts = _texts("image_columns", value)
    if isinstance(texts, str) and texts not in modes and not set(texts) & set("_*?["):
        raise ArgumentError(f"image_columns is {texts!r}. {nearest(texts, modes)}")
    return texts


def work_folder(work_dir: str | Path | None, destination: str, storage: StorageOptions, shared: bool) -> str:
    """A folder in `work_dir` that belongs to one destination: other runs and other files there are left alone."""
    if work_dir is None and not is_remote(destination):
        return str(neighbour(Path(destination)))
    if work_dir is None:
        own = scratch_of(destination, storage)
        return remote_neighbour(destination) if shared else str(own)
    mark = zlib.crc32(destination.encode("utf-8", "surrogateescape"))
    name = f"{destination.replace(os.sep, '/').rpartition('/')[2][:100]}-{mark:08x}{WORK_SUFFIX}"
    place = _place(work_dir)
    return f"{place.rstrip('/')}/{name}" if is_remote(place) else str(Path(place).absolute() / name)


def _budget(size: str | int) -> int:
    try:
        return parse_bytes(size)
    except (OverflowError, TypeError) as error:
        raise ArgumentError(f"memory_budget is {size!r}, not a size such as '1GiB'.") from error


def _workers(wanted: int | None) -> int:
    if wanted is None:
        return max_threads()
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ArgumentError(f"workers is {wanted!r}, not a positive number.")
    return wanted


def _formats(source_datatype: str | None, preset: Preset) -> tuple[Format, ...]:
    if source_datatype is None:
        return (preset.format,) if preset.name else (Format.CSV, Format.SQLITE)
    return (Format(_choice("source_datatype", source_datatype.lower().lstrip("."), list(Format))),)


def _effective(
    preset: Preset,
    metadata: Sequence[str] | None,
    compartments: Sequence[str] | None,
    identifying_columns: Sequence[str] | None,
    page_keys: Mapping[str, str] | None,
) -> Preset:
    """The preset with what the user put in the place of its own."""
    if compartments is not None:
        names = tuple(dict.fromkeys(one.lower() for one in _list("compartments", compartments)))
        preset = replace(preset, compartments=names, base=preset.base if preset.base in names else "")
    if not preset.compartments:
        raise ArgumentError(
            "Without a preset, compartments must be named, for example compartments=['cells', 'nuclei']."
        )
    preset = _with_image_table(preset, preset.metadata if metadata is None else _list("metadata", metadata))
    both = set(preset.metadata) & set(preset.compartments)
    if both:
        raise ArgumentError(f"{sorted(both)[0]!r} is named in metadata and in compartments. Take it out of one.")
    if identifying_columns is not None:
        preset = replace(preset, identifying=_list("identifying_columns", identifying_columns))
    images = [column for key, column in (page_keys or {}).items() if key.lower() in preset.metadata]
    return replace(preset, image_number=images[0]) if images else preset


def _with_image_table(preset: Preset, names: tuple[str, ...]) -> Preset:
    """The preset with another image table: `metadata` is then ("image", its name), so that one key means it."""
    if len(names) > 1:
        raise ArgumentError(f"metadata names {len(names)} tables ({', '.join(names)}); a dataset has one image table.")
    if not names or names[0].lower() == IMAGE:
        return replace(preset, metadata=tuple(one.lower() for one in names))
    columns = tuple(names[0] + one[len(IMAGE) :] for one in preset.image_columns if one.startswith("Image_"))
    return replace(preset, metadata=(IMAGE, names[0].lower()), image_columns=(*preset.image_columns, *columns))


def _list(name: str, value: Sequence[str]) -> tuple[str, ...]:
    texts = _texts(name, value)
    return (texts,) if isinstance(texts, str) else texts


def _object_numbers(page_keys: Mapping[str, str] | None, preset: Preset) -> tuple[tuple[str, str], ...]:
    """The object number columns that ``page_keys`` names; "join" and the image table's key need none."""
    pairs = []
    for key, column in (page_keys or {}).items():
        name = key.lower()
        if name in preset.compartments:
            if column != preset.image_number:
                pairs.append((name, column))
        elif name not in (*preset.metadata, "join"):
            known = (*preset.compartments, *preset.metadata, "join")
            raise ArgumentError(f"page_keys names {key!r}. {nearest(key, known)}")
    return tuple(pairs)


def _relations(relations: Mapping[str, str] | None, preset: Preset) -> tuple[PresetRelation, ...]:
    """``relations={"Cytoplasm.Parent_Cells": "Cells"}`` as relations."""
    found = []
    for left, parent in (relations or {}).items():
        child, dot, column = left.partition(".")
        if not dot or not column:
            raise ArgumentError(f"relations has {left!r}; write 'Child.Column', for example 'Cytoplasm.Parent_Cells'.")
        for name in (child, parent):
            if name.lower() not in preset.compartments:
                raise ArgumentError(f"relations names {name!r}. {nearest(name, preset.compartments)}")
        pattern = column.replace("{", "{{").replace("}", "}}")
        found.append(PresetRelation(child.lower(), parent.lower(), pattern))
    return tuple(found)
