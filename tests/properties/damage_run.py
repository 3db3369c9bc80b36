"""One example: a plate written, damaged, converted, and judged.

How many examples are run: each test's own number, times the environment variable CYTOTABLE_EXAMPLES. Without it the
examples are the same each time; with it they are drawn anew, and those that failed are remembered by Hypothesis.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from damage_judge import Shape, Verdict
from damage_plate import Files, Layout, Site, written
from damage_said import World
from damage_text import Harm, harmed
from hypothesis import HealthCheck, settings

from prefect_cytotable.flows import convert
from prefect_cytotable.tasks.core import pipeline
from prefect_cytotable.tasks.core.errors import CytotableError
from prefect_cytotable.tasks.core.local import LocalCaller, Runner
from prefect_cytotable.tasks.core.model import Report
from prefect_cytotable.tasks.core.progress import Silent
from prefect_cytotable.tasks.core.request import make_options

TIMES = os.environ.get("CYTOTABLE_EXAMPLES")
"""How many times the usual number of examples."""

_OPTIONS = tuple(inspect.signature(make_options).parameters)
_DEFAULTS = {name: one.default for name, one in inspect.signature(convert).parameters.items()}


def examples(usual: int) -> settings:
    """Settings for a test that runs `usual` examples where nothing else is said."""
    times = float(TIMES or 1)
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    common: dict[str, Any] = {
        "max_examples": max(int(usual * times), 1),
        "deadline": None,
        "suppress_health_check": slow,
    }
    return settings(derandomize=True, **common) if TIMES is None else settings(print_blob=True, **common)


def seconds(usual: int) -> float:
    """A time limit for the same test that says nothing about how fast the machine is."""
    return 600 + usual * float(TIMES or 1)


@dataclass(frozen=True)
class Example:
    """A plate, how it is written, what is done to it, and how it is converted.

    Attributes:
        harms: Done one after the other.
        again: Whether it is converted twice.
    """

    plate: tuple[Site, ...]
    layout: Layout
    harms: tuple[Any, ...]
    chunk_size: int | None = None
    strict: bool = False
    again: bool = False


def files_of(example: Example, harm: Callable[[Files, Any], Files] | None = None) -> Files:
    """The files of an example, damaged."""
    files = written(example.plate, example.layout)
    for one in example.harms:
        files = harm(files, one) if harm and not isinstance(one, Harm) else harmed(files, one, example.layout.delimiter)
    return files


def put(files: Files, root: Path) -> None:
    """Write files."""
    root.mkdir(parents=True)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)


def taken(root: Path) -> Files:
    """The files below a folder, as they are now."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def judged(
    example: Example,
    files: Files,
    place: Path,
    shape: Shape,
    world_of: Callable[[Files, Path], World],
    touched: bool = True,
    **arguments: Any,
) -> str:
    """Convert an example below `place` and hold the outcome to what its files say; returns a word for the outcome.

    Raises:
        AssertionError: The outcome is wrong.
    """
    (place / "example.txt").write_text(f"{example!r}\n", encoding="utf-8", errors="backslashreplace")
    root, out = place / "plate", place / "out" / "cells.parquet"
    try:
        put(files, root)
        world = world_of(files, root)
        if example.chunk_size:
            arguments["chunk_size"] = example.chunk_size
        if example.strict:
            arguments["on_bad_source"] = "error"
        outcome = _run(root, out, arguments)
        verdict = Verdict(world, shape, touched)
        if isinstance(outcome, CytotableError):
            verdict.error(outcome, str(root), example.strict)
            _check_left_over(out)
        else:
            with pq.ParquetFile(out) as file:
                table = file.read(use_threads=False)
            assert [one.rows for one in outcome.files] == [table.num_rows]
            page = out.with_name(f"{out.stem}.report.html")
            assert sorted(out.parent.iterdir()) == [out, page], sorted(out.parent.rglob("*"))
            verdict.table(outcome, table)
        if example.again:
            _run_again(root, out, arguments, outcome)
        assert taken(root) == files, "a source was changed"
    finally:
        for folder in (root, out.parent):
            if folder.exists():
                shutil.rmtree(folder)
    return "table" if isinstance(outcome, Report) else type(outcome).__name__


def _check_left_over(out: Path) -> None:
    """Holds that a run that failed leaves finished parts and their records, for the next run, and nothing else."""
    left = [path.relative_to(out.parent).parts for path in out.parent.rglob("*") if path.is_file()]
    for path in left:
        finished = path[0] == f".{out.name}.prefect-cytotable" and path[1] in ("parts", "records", "lock")
        assert finished and not path[-1].startswith((".tmp-", "plan-")), path


def _run(root: Path, out: Path, arguments: dict[str, Any]) -> Report | CytotableError:
    given = {**_DEFAULTS, "workers": 1, "image_columns": "all", "source_path": root, "dest_path": out, **arguments}
    try:
        options = make_options(**{name: given[name] for name in _OPTIONS if name in given})
        return pipeline.run(options, LocalCaller(Runner.SEQUENTIAL, Silent()))
    except CytotableError as error:
        return error


def _run_again(root: Path, out: Path, arguments: dict[str, Any], before: Report | CytotableError) -> None:
    first = out.read_bytes() if isinstance(before, Report) else b""
    again = _run(root, out, {**arguments, "overwrite": True})
    if isinstance(before, Report):
        assert isinstance(again, Report), again
        assert out.read_bytes() == first, "the same input gave other bytes"
        assert (again.accounts, again.skipped, again.notes) == (before.accounts, before.skipped, before.notes)
    else:
        assert (type(again), str(again)) == (type(before), str(before))
