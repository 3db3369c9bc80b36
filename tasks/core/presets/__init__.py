"""Presets: names, keys and relations of one exporter's layout, as checked TOML.

A user copies one (``prefect-cytotable presets cellprofiler_csv``), changes it and gives the file's path instead of
the name.
"""

from __future__ import annotations

import string
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from prefect_cytotable.tasks.core.errors import PresetError, nearest
from prefect_cytotable.tasks.core.model import ANY_TABLE, IMAGE, Format, Preset, PresetRelation

TOML = ".toml"
"""How the name of a user's preset ends, which is then the path of a file."""

_FIELDS: dict[str, type] = {
    "title": str,
    "format": str,
    "table_names": list,
    "compartments": list,
    "metadata": list,
    "base": str,
    "image_number": str,
    "object_number": str,
    "identifying": list,
    "image_columns": list,
    "relations": list,
}
_OPTIONAL: dict[str, type] = {"table_number": str, "keep_names": bool}
_RELATION_FIELDS = ("child", "parent", "column")


def preset_names() -> tuple[str, ...]:
    """The names of the packaged presets."""
    folder = resources.files(__name__)
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def preset_text(name: str) -> str:
    """The TOML of a packaged preset.

    Raises:
        PresetError: There is no preset of that name.
    """
    if name not in preset_names():
        raise PresetError(f"There is no preset {name!r}. {nearest(name, preset_names())}")
    return resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def load_preset(name: str | None) -> Preset:
    """A packaged preset by name, or a user's by the path of its TOML file.

    Args:
        name: The name or path; None stands for tables that no preset describes, whose compartments and relations
            come from the arguments and from the tables.

    Raises:
        PresetError: There is no such preset, or its file is not what it should be.
    """
    if name is None:
        return _WITHOUT
    if name.endswith(TOML):
        path = Path(name)
        if not path.is_file():
            raise PresetError(f"{name}: there is no such preset file.")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PresetError(f"{name} cannot be read as UTF-8 text: {error}.") from error
        return _parsed(path.stem, text, name)
    return _packaged(name)


@cache
def _packaged(name: str) -> Preset:
    return _parsed(name, preset_text(name), f"preset {name}")


def _parsed(name: str, text: str, where: str) -> Preset:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PresetError(f"{where} is not valid TOML: {error}.") from error
    fields = _FIELDS | _OPTIONAL
    for key, value in data.items():
        if key not in fields:
            raise PresetError(f"{where} has the field {key!r}. {nearest(key, fields)}")
        if not isinstance(value, fields[key]):
            raise PresetError(f"{where}: {key} is {value!r}, not a {fields[key].__name__}.")
    for key in _FIELDS:
        if key not in data:
            raise PresetError(f"{where} lacks the field {key!r}.")
    if data["format"] not in list(Format):
        raise PresetError(f"{where}: format is {data['format']!r}. {nearest(data['format'], list(Format))}")
    compartments = tuple(_key(one) for one in _texts(data, "compartments", where))
    for field, known in (("object_number", {"label"}), ("table_names", {"label"})):
        for pattern in [data[field]] if isinstance(data[field], str) else _texts(data, field, where):
            if field == "object_number" and not pattern and ANY_TABLE in data["table_names"]:
                continue
            _check_pattern(pattern, known, field, where)
            if field == "table_names" and pattern != ANY_TABLE and pattern.count("{label}") != 1:
                raise PresetError(
                    f"{where}: table_names holds {pattern!r}, which needs {{label}} once, or is {ANY_TABLE!r} alone."
                )
    if ANY_TABLE in data["table_names"] and (len(compartments) != 1 or data["metadata"]):
        raise PresetError(f"{where}: table_names is {ANY_TABLE!r}, so there is one compartment and no metadata table.")
    if not data["image_number"] and ANY_TABLE not in data["table_names"]:
        raise PresetError(f"{where}: image_number is empty. Only where table_names is {ANY_TABLE!r} may it be.")
    if data["base"] and _key(data["base"]) not in compartments:
        raise PresetError(f"{where}: base is {data['base']!r}. {nearest(data['base'], compartments)}")
    return Preset(
        name=name,
        title=data["title"],
        format=Format(data["format"]),
        table_names=_texts(data, "table_names", where),
        compartments=compartments,
        metadata=tuple(_key(one) for one in _texts(data, "metadata", where)),
        base=_key(data["base"]),
        image_number=data["image_number"],
        object_number=data["object_number"],
        identifying=_texts(data, "identifying", where),
        image_columns=_texts(data, "image_columns", where),
        relations=tuple(_relation(one, compartments, where) for one in data["relations"]),
        table_number=data.get("table_number", "TableNumber"),
        keep_names=data.get("keep_names", False),
    )


def _texts(data: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    for value in data[field]:
        if not isinstance(value, str) or not value:
            raise PresetError(f"{where}: {field} holds {value!r}, not a name.")
    return tuple(data[field])


def _relation(data: object, compartments: tuple[str, ...], where: str) -> PresetRelation:
    if not isinstance(data, dict) or set(data) != set(_RELATION_FIELDS):
        raise PresetError(f"{where}: a relation has the fields {', '.join(_RELATION_FIELDS)}; found {data!r}.")
    for side in ("child", "parent"):
        if not isinstance(data[side], str) or _key(data[side]) not in compartments:
            raise PresetError(f"{where}: {side} is {data[side]!r}. {nearest(str(data[side]), compartments)}")
    _check_pattern(data["column"], {"child", "parent"}, "column", where)
    return PresetRelation(_key(data["child"]), _key(data["parent"]), data["column"])


def _check_pattern(pattern: object, known: set[str], field: str, where: str) -> None:
    if not isinstance(pattern, str) or not pattern:
        raise PresetError(f"{where}: {field} holds {pattern!r}, not a pattern.")
    try:
        used = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
    except ValueError as error:
        raise PresetError(f"{where}: {field} is {pattern!r}: {error}.") from error
    if not used <= known:
        strange = sorted(used - known)[0]
        raise PresetError(f"{where}: {field} uses {{{strange}}}. {nearest(strange, known)}")


def _key(compartment: str) -> str:
    return compartment.lower()


_WITHOUT = Preset(
    name="",
    title="Tables that no preset describes",
    format=Format.CSV,
    table_names=("{label}", "Per_{label}"),
    compartments=(),
    metadata=(IMAGE,),
    base="",
    image_number="ImageNumber",
    object_number="",
    identifying=("ImageNumber", "ObjectNumber", "TableNumber"),
    image_columns=("Image_FileName_*",),
    relations=(),
)
