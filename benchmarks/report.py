"""Put the figures of compare.py into Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from measure import Measurement
from verify import Shape

PACKAGES = ("pyarrow", "adbc-driver-sqlite", "duckdb", "prefect", "prefect-cytotable")
MB = 1e6


class Run(Protocol):
    """What is read of a run."""

    @property
    def who(self) -> str:
        """Whose run it is."""

    @property
    def figures(self) -> Measurement:
        """What was measured."""

    @property
    def shape(self) -> Shape | None:
        """Rows and columns of its output, if it has one."""


def machine() -> str:
    """One sentence: cores, memory, Python and package versions."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores, {memory:.0f} GiB, Python {platform.python_version()}, {', '.join(found)}."


def by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each, in the order in which they first appear."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.who, []).append(run)
    return groups


def good(runs: Sequence[Run]) -> list[Measurement]:
    """The figures of the runs that came to their end; how long a failure takes says nothing."""
    return [run.figures for run in runs if run.figures.exit_code == 0]


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table: the first column to the left, figures to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def table(runs: Sequence[Run]) -> list[str]:
    """One line for each who ran."""
    header = [
        "",
        "runs",
        "median wall s",
        "min",
        "max",
        "CPU s",
        "peak RSS MB",
        "PSS MB",
        "written MB",
        "rows",
        "columns",
    ]
    rows = []
    for who, own in by_name(runs).items():
        done = good(own)
        runs_of = f"{len(own)}" if len(done) == len(own) else f"{len(done)} of {len(own)}"
        if not done:
            rows.append([who, runs_of, *("failed" for _ in header[2:])])
            continue
        walls = [one.wall for one in done]
        shapes = [run.shape for run in own if run.shape]
        rows.append(
            [
                who,
                runs_of,
                *(f"{value:.2f}" for value in (statistics.median(walls), min(walls), max(walls))),
                f"{statistics.median(one.cpu for one in done):.2f}",
                f"{max(one.peak_rss for one in done) / MB:,.0f}",
                f"{max(one.peak_pss for one in done) / MB:,.0f}",
                f"{max(one.written for one in done) / MB:,.1f}" if shapes else "",
                f"{shapes[-1].rows:,}" if shapes else "",
                f"{shapes[-1].columns:,}" if shapes else "",
            ]
        )
    return grid(header, rows)


FIGURES: dict[str, Callable[[Sequence[Measurement]], float]] = {
    "wall": lambda done: statistics.median(one.wall for one in done),
    "CPU": lambda done: statistics.median(one.cpu for one in done),
    "peak RSS": lambda done: float(max(one.peak_rss for one in done)),
    "peak PSS": lambda done: float(max(one.peak_pss for one in done)),
    "written": lambda done: float(max(one.written for one in done)),
}


def ratios(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """How many times the second's figure the first's is, for the pairs that both ran."""
    groups = {who: good(own) for who, own in by_name(runs).items()}
    rows = [
        [f"{one} / {two}", *(f"{of(groups[one]) / of(groups[two]):.2f}" for of in FIGURES.values())]
        for one, two in pairs
        if groups.get(one) and groups.get(two)
    ]
    return grid(["ratio", "wall (medians)", "CPU (medians)", "peak RSS", "peak PSS", "written"], rows) if rows else []


def differences(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """What the first costs beyond the second."""
    groups = {who: good(own) for who, own in by_name(runs).items()}
    return [
        f"- {one} beyond `{two}`: wall {FIGURES['wall'](groups[one]) - FIGURES['wall'](groups[two]):+.2f} s, "
        f"CPU {FIGURES['CPU'](groups[one]) - FIGURES['CPU'](groups[two]):+.2f} s, "
        f"peak RSS {(FIGURES['peak RSS'](groups[one]) - FIGURES['peak RSS'](groups[two])) / MB:+,.0f} MB"
        for one, two in pairs
        if groups.get(one) and groups.get(two)
    ]
