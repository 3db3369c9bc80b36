"""From the arguments of `reprocess` to its settings and to the options of each plate's conversion."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from prefect_cytotable.tasks.core.budget import BASE, SMALLEST_CHUNK, parse_bytes, show_bytes
from prefect_cytotable.tasks.core.durations import parse_seconds
from prefect_cytotable.tasks.core.errors import ArgumentError, MemoryBudgetError, UnknownArgumentError, nearest
from prefect_cytotable.tasks.core.model import Destination, Options
from prefect_cytotable.tasks.core.places import check_storage_options, check_url, is_remote, join
from prefect_cytotable.tasks.core.places.files import WORK_SUFFIX
from prefect_cytotable.tasks.core.reprocess.listing import check_apart
from prefect_cytotable.tasks.core.reprocess.model import NewVersion, Plate, Settings
from prefect_cytotable.tasks.core.request import make_options, work_folder
from prefect_cytotable.tasks.core.roots import check_path
from prefect_cytotable.tasks.core.store import scratch_of

DAY = 86400.0

OWN = (
    "source_path", "dest_path", "preset", "memory_budget", "workers", "work_dir", "storage_options", "task_runner",
    "overwrite", "keep_chunks", "profile", "progress",
)  # fmt: skip
"""Arguments of `convert` that are not among ``options``: `reprocess` has them itself, or decides them."""

_LEAST_SHARE = BASE + 16 * SMALLEST_CHUNK


@dataclass(frozen=True)
class Recipe:
    """How each plate is converted: the arguments of `convert` that are the same for all of them."""

    arguments: Mapping[str, Any]

    def for_plate(self, plate: Plate, settings: Settings, workers: int | None, overwrite: bool) -> dict[str, Any]:
        """The arguments of one plate's conversion, but for its runner, profile and progress."""
        return {
            **self.arguments,
            "source_path": plate.source,
            "dest_path": output_path(plate.name, settings),
            "memory_budget": settings.share,
            "workers": workers,
            "work_dir": settings.work_root,
            "keep_chunks": settings.keep > 0,
            "overwrite": overwrite,
        }


def output_path(plate: str, settings: Settings) -> str:
    """Where a plate's output lies."""
    return join(settings.destination_root, plate + settings.suffix)


def make_settings(
    *,
    defaults: Mapping[str, Any],
    source_root: str | Path,
    destination_root: str | Path,
    preset: str | None,
    options: Mapping[str, Any] | None,
    settle: str | float,
    plates_at_once: int,
    plates: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    memory_budget: str | int,
    workers: int | None,
    work_dir: str | Path | None,
    keep: str | int,
    keep_days: float,
    new_version: str,
    overwrite: bool,
    storage_options: Mapping[str, object] | None,
    shared_work: bool = False,
) -> tuple[Settings, Recipe, Options]:
    """The settings of a run, the arguments of each conversion, and the options of one for the sake of their checks.

    Args:
        defaults: The arguments of `convert` with their defaults.
        source_root: As for `prefect_cytotable.flows.reprocess`, like all that follow.
        destination_root: The same.
        preset: The same.
        options: The same.
        settle: The same.
        plates_at_once: The same.
        plates: The same.
        exclude: The same.
        memory_budget: The same.
        workers: The same.
        work_dir: The same.
        keep: The same.
        keep_days: The same.
        new_version: The same.
        overwrite: The same.
        storage_options: The same.
        shared_work: Whether the workers may be other machines.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
        OutsideRootsError: A root or the work folder is not allowed on this machine.
        UnknownArgumentError: `options` has a name that is no argument of `convert`.
        MemoryBudgetError: The budget is too small for so many plates at once.
    """
    check_names(options or {}, defaults)
    root, destination = _place("source_root", source_root), _place("destination_root", destination_root)
    check_path("source_root", root)
    check_path("destination_root", destination)
    check_path("work_dir", work_dir)
    check_apart(root, destination)
    arguments = {**defaults, **(options or {}), "preset": preset, "storage_options": storage_options}
    known = {
        name: value for name, value in arguments.items() if name not in OWN or name in ("preset", "storage_options")
    }
    single = known["join"] and known["concat"]
    suffix = f".{str(known['dest_datatype']).rpartition('_')[2]}" if single else ""
    whole = _size("memory_budget", memory_budget)
    at_once = _at_once(plates_at_once)
    share = share_of(whole, at_once)
    storage = check_storage_options(storage_options)
    work_root = _work_root(work_dir, destination, storage, shared_work)
    kept = _size("keep", keep)
    if isinstance(keep_days, bool) or not isinstance(keep_days, int | float) or keep_days < 0:
        raise ArgumentError(f"keep_days is {keep_days!r}, not a number of days.")
    if new_version not in list(NewVersion):
        raise ArgumentError(f"new_version is {new_version!r}. {nearest(str(new_version), NewVersion)}")
    settings = Settings(
        source_root=root,
        destination_root=destination,
        settle=parse_seconds("settle", settle),
        options="",
        suffix=suffix,
        work_root=work_root,
        plates_at_once=at_once,
        share=share,
        workers=1,
        keep=kept if keep_days else 0,
        keep_seconds=keep_days * DAY,
        new_version=NewVersion(new_version),
        overwrite=bool(overwrite),
        only=_patterns("plates", plates),
        exclude=_patterns("exclude", exclude),
        storage=storage,
    )
    recipe = Recipe(known)
    sample = Plate("plate", join(root, "plate"), 0, 0, 0, "")
    checked = make_options(**makeable(recipe.for_plate(sample, settings, workers, False)))
    if (not single or checked.datatype is Destination.ZARR) and is_remote(destination):
        raise ArgumentError(
            f"{destination}: with join=False, concat=False or zarr an output is a folder, and folders in object "
            f"storage are not replaced when a plate changes. Choose a destination on this machine, or one file a plate."
        )
    mark = options_mark(checked, str(known["dest_datatype"]))
    return replace(settings, options=mark, workers=checked.workers), recipe, checked


def makeable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a conversion's arguments those that `make_options` takes."""
    return {name: value for name, value in arguments.items() if name not in ("task_runner", "profile", "progress")}


def check_names(options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse an option that no conversion has, or that `reprocess` has itself.

    Raises:
        UnknownArgumentError: `convert` has no such argument.
        ArgumentError: It does not belong among the options.
    """
    for name in options:
        if name not in known:
            raise UnknownArgumentError(f"options has {name!r}. {nearest(name, set(known) - set(OWN))}")
        if name in OWN:
            raise ArgumentError(f"options has {name!r}, which reprocess has an argument for, or decides itself.")


def share_of(budget: int, at_once: int) -> int:
    """The memory budget of each plate, where so many share one process: what the process itself needs counts once.

    It depends on nothing else, so that a later run with fewer plates makes the same chunks and finds them done.

    Raises:
        MemoryBudgetError: Too little is left for a plate.
    """
    share = BASE + (budget - BASE) // at_once
    if at_once > 1 and share < _LEAST_SHARE:
        needed = BASE + at_once * (_LEAST_SHARE - BASE)
        raise MemoryBudgetError(
            f"memory_budget is {show_bytes(budget)}; {at_once} plates at once need at least {show_bytes(needed)}. Give "
            f"more, or convert fewer plates at once."
        )
    return share


def options_mark(options: Options, datatype: str) -> str:
    """A hash of what decides the content of an output.

    What has its default counts for nothing, so that an option that a later version adds changes no mark.
    """
    apart = {"source", "destination", "work_dir", "memory_budget", "workers", "overwrite", "keep_chunks", "storage"}
    if options.concat:
        apart.add("chunk_rows")
    content = {
        one.name: getattr(options, one.name)
        for one in fields(options)
        if one.name not in apart and (one.default is MISSING or getattr(options, one.name) != one.default)
    }
    return hashlib.sha256(msgspec.json.encode([datatype, content], order="sorted")).hexdigest()[:32]


def _place(name: str, value: str | Path) -> str:
    text = check_url(str(value))
    if not text.strip():
        raise ArgumentError(f"{name} is empty.")
    return text if is_remote(text) else str(Path(text).expanduser().absolute())


def _work_root(
    work_dir: str | Path | None, destination: str, storage: tuple[tuple[str, str], ...], shared: bool
) -> str:
    """The folder for the parts of all plates of a destination: in the destination, unless that is remote."""
    if work_dir is not None:
        return work_folder(work_dir, destination, storage, shared)
    if is_remote(destination) and not shared:
        return str(scratch_of(destination, storage))
    return join(destination, WORK_SUFFIX)


def _size(name: str, value: str | int) -> int:
    if name == "keep" and str(value).strip() == "0":
        return 0
    try:
        return parse_bytes(value)
    except (ArgumentError, OverflowError, TypeError) as error:
        raise ArgumentError(f"{name} is {value!r}, not a size such as '20GiB' or a number of bytes.") from error


def _at_once(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"plates_at_once is {value!r}, not a positive number.")
    return value


def _patterns(name: str, value: str | Sequence[str] | None) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else tuple(value or ())
    if not all(isinstance(one, str) and one for one in found):
        raise ArgumentError(f"{name} is {value!r}, not a list of names or patterns such as 'BR*'.")
    return found
