"""Run us, the hand-written floor and CytoTable in turn on one data set and print how they compare.

    python compare.py sqlite-200 --samples SAMPLES --data DIR [--peer-python peer/bin/python]
    python compare.py smallest --samples SAMPLES --data DIR [--server]

SAMPLES has cellprofiler_sqlite/nf1.sqlite, cellprofiler_csv/ExampleHuman and deepprofiler/SQ00014812/A01_5.npz;
what a case needs and DIR does not have yet is made by generate.py. The rounds are interleaved, so that a busy
moment of the machine falls on all alike, and no run is left out: the table shows the median, the fastest and the
slowest. A run that fails is counted and named, but how long it took says nothing about the others.

Values are checked before times are believed. The exit code is 1 if a run failed or an output is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import generate
import measure
import verify
import verify_anndata
import verify_npz
from report import differences, machine, ratios, table

HERE = Path(__file__).resolve().parent
SQLITE_SAMPLE = Path("cellprofiler_sqlite", "nf1.sqlite")
CSV_SAMPLE = Path("cellprofiler_csv", "ExampleHuman")
NPZ_SAMPLE = Path("deepprofiler", "SQ00014812", "A01_5.npz")
READ_BYTES = 1 << 24
FORMATS = {"anndata_h5ad": "cells.h5ad", "anndata_zarr": "cells.zarr"}  # and what their outputs are called


@dataclass(frozen=True)
class Case:
    """One data set: what makes it and how it is converted."""

    kind: str  # a key of generate.MAKERS
    copies: int

    @property
    def sample(self) -> Path:
        """What it is made from, below the samples folder."""
        return {"sqlite": SQLITE_SAMPLE, "npz": NPZ_SAMPLE}.get(self.kind, CSV_SAMPLE)

    @property
    def preset(self) -> str:
        """The preset that reads it."""
        return {"sqlite": "cellprofiler_sqlite", "npz": "deepprofiler"}.get(self.kind, "cellprofiler_csv")

    @property
    def floor(self) -> str:
        """The script that is its floor."""
        return {"sqlite": "floor_sqlite.py", "npz": "floor_npz.py"}.get(self.kind, "floor_csv.py")

    @property
    def agreement(self) -> Callable[[Path, Path], verify.Agreement]:
        """What compares two outputs."""
        return verify_npz.compare if self.kind == "npz" else verify.compare

    @property
    def name(self) -> str:
        """Its file or folder name below the data folder."""
        return f"nf1_{self.copies}.sqlite" if self.kind == "sqlite" else f"{self.kind}{self.copies}"


CASES = {
    f"{kind}-{copies}": Case(kind, copies)
    for kind, sizes in {"sqlite": (20, 200, 1000), "sites": (100, 1000), "plate": (100, 1000), "npz": (40, 400)}.items()
    for copies in sizes
}


@dataclass(frozen=True)
class Contender:
    """Somebody who converts: what to run for a destination, and how often."""

    name: str
    command: Callable[[Path], list[str]]
    repeat: int
    output: str = ""  # the name of what it writes in the run's folder; nothing for a mere import
    environment: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # environment variables that it must not see


@dataclass(frozen=True)
class Run:
    """One run of one contender."""

    who: str
    number: int
    figures: measure.Measurement
    shape: verify.Shape | None


def once(contender: Contender, number: int, scratch: Path, timeout: float) -> Run:
    """One run in a folder of its own, so that nothing of an earlier run can be taken up again."""
    folder = scratch / f"{contender.name.replace(' ', '-')}-{number}"
    folder.mkdir()
    output = folder / contender.output if contender.output else None
    environment = {k: v for k, v in os.environ.items() if k not in contender.without}
    # Prefect's own settings and database are shared by the runs, cached results are not.
    environment |= {
        "PREFECT_HOME": str(scratch / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
    }
    found = measure.run(
        contender.command(output or folder),
        outputs=[output] if output else [],
        environment=environment | contender.environment,
        folder=folder,
        log=folder / "log.txt",
        timeout=timeout,
    )
    print(f"  {contender.name} {number}: {found.line()}", file=sys.stderr, flush=True)
    if found.exit_code:
        tail = (folder / "log.txt").read_text(errors="replace").splitlines()[-15:]
        print("\n".join(f"    | {line}" for line in tail), file=sys.stderr, flush=True)
    done = output is not None and not found.exit_code and output.exists()
    if output is None or not done:
        return Run(contender.name, number, found, None)
    shape_of = verify_anndata.shape if output.suffix in verify_anndata.SUFFIXES else verify.shape
    return Run(contender.name, number, found, shape_of(output))


def rounds(contenders: Sequence[Contender], scratch: Path, timeout: float) -> list[Run]:
    """All runs, interleaved; only the output of each contender's first run is kept."""
    runs = []
    for number in range(1, max(c.repeat for c in contenders) + 1):
        for contender in (c for c in contenders if number <= c.repeat):
            runs.append(once(contender, number, scratch, timeout))
            if number > 1:
                shutil.rmtree(scratch / f"{contender.name.replace(' ', '-')}-{number}")
    return runs


def us(source: Path, preset: str, repeat: int, more: Sequence[str], *, server: bool = False) -> Contender:
    """This project from the command line; without a server unless asked."""
    command = [sys.executable, "-m", "prefect_cytotable.flows.cli", "convert", str(source)]
    options = ["--preset", preset, "--overwrite", *more]
    return Contender(
        name="us, with a server" if server else "us",
        command=lambda out: [*command, str(out), *options],
        repeat=repeat,
        output="cells.parquet",
        without=() if server else ("PREFECT_API_URL", "PREFECT_API_KEY"),
    )


def to_anndata(source: Path, preset: str, repeat: int, more: Sequence[str], format_: str) -> Contender:
    """This project, writing AnnData."""
    ours = us(source, preset, repeat, [*more, "--format", format_])
    return replace(ours, name=f"us to {format_}", output=FORMATS[format_])


def floor(case: Case, source: Path, repeat: int) -> Contender:
    """The hand-written floor."""
    script = str(HERE / case.floor)
    return Contender("floor", lambda out: [sys.executable, script, str(source), str(out)], repeat, output="parts")


def peer(python: Path, case: Case, source: Path, repeat: int) -> Contender:
    """CytoTable in its own environment."""
    start = [str(python.absolute()), str(HERE / "peer_cytotable.py"), str(source.absolute())]
    return Contender(
        name="CytoTable",
        command=lambda out: [*start, str(out), "--preset", case.preset],
        repeat=repeat,
        output="cells.parquet",
    )


def imports(modules: str, repeat: int) -> Contender:
    """A process that only imports: what no conversion with these modules can go below."""
    return Contender(f"import {modules}", lambda _: [sys.executable, "-c", f"import {modules}"], repeat)


def warm(path: Path) -> None:
    """Read the input once, so that all find it in the page cache alike."""
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as opened:
            while opened.read(READ_BYTES):
                pass


def checks(
    runs: Sequence[Run], scratch: Path, agreement: Callable[[Path, Path], verify.Agreement] = verify.compare
) -> tuple[list[str], bool]:
    """What the outputs say about each other, and whether all is well."""
    lines, good = [], True
    shapes: dict[str, set[verify.Shape]] = {}
    for run in runs:
        if run.figures.exit_code:
            good = False
            lines.append(f"{run.who}, run {run.number}: exit code {run.figures.exit_code}")
        elif run.shape:
            shapes.setdefault(run.who, set()).add(run.shape)
    for who, found in shapes.items():
        if len(found) > 1:
            good = False
            lines.append(f"{who}: the runs differ in shape: {sorted((s.rows, s.columns) for s in found)}")
    ours = scratch / "us-1" / "cells.parquet"
    others = [("floor", "parts", agreement), ("CytoTable", "cells.parquet", agreement)]
    others += [(f"us to {name}", output, verify_anndata.compare) for name, output in FORMATS.items()]
    for who, output, agree in others:
        other = scratch / f"{who.replace(' ', '-')}-1" / output
        if ours.exists() and other.exists():
            found_there = agree(ours, other)
            good = good and found_there.good
            lines.append(f"us and {who}: {found_there.line()}")
        elif who in shapes:
            good = False
            lines.append(f"us and {who}: NOT COMPARED, for our output is missing")
    return lines, good


def version_of(python: Path) -> str:
    """The version of CytoTable in an environment."""
    ask = "from importlib.metadata import version; print(version('cytotable'))"
    return subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def compare_case(asked: argparse.Namespace, scratch: Path) -> tuple[list[str], dict[str, Any], bool]:
    """Run one of CASES; the Markdown, the figures and whether all is well."""
    case = CASES[asked.case]
    source = (asked.data / case.name).absolute()
    made = generate.generate(case.kind, asked.samples / case.sample, source, case.copies)
    if not made and not generate.recipe_path(source).exists():
        print(f"{case.name} was not made by generate.py and is taken as it is", file=sys.stderr)
    warm(source)
    contenders = [
        us(source, case.preset, asked.repeat, asked.convert_args),
        *(to_anndata(source, case.preset, asked.repeat, asked.convert_args, format_) for format_ in asked.to),
        floor(case, source, asked.repeat),
    ]
    notes = []
    if asked.peer_python and asked.peer_repeat:
        contenders.append(peer(asked.peer_python, case, source, asked.peer_repeat))
        notes.append(f"CytoTable {version_of(asked.peer_python)}.")
    else:
        notes.append("CytoTable was not run (no --peer-python).")
    runs = rounds(contenders, scratch, asked.timeout)
    found, good = checks(runs, scratch, case.agreement)
    size = generate.size_of(source)
    pairs = [("CytoTable", "us"), ("us", "floor"), *((f"us to {format_}", "us") for format_ in asked.to)]
    text = [
        f"### {asked.case}",
        "",
        f"Input: {size / 1e6:,.0f} MB. {machine()} {' '.join(notes)}",
        "",
        *table(runs),
    ]
    text += ["", *ratios(runs, pairs), "", *(f"- {line}" for line in found)]
    return text, {"case": asked.case, "input_bytes": size, "runs": runs, "checks": found}, good


def compare_smallest(asked: argparse.Namespace, scratch: Path) -> tuple[list[str], dict[str, Any], bool]:
    """A single site from the shell, beside the mere imports."""
    source = (asked.samples / CSV_SAMPLE).absolute()
    pairs = [(us(source, "cellprofiler_csv", asked.repeat, asked.convert_args), "duckdb, pyarrow")]
    if asked.server:
        server = us(source, "cellprofiler_csv", asked.repeat, asked.convert_args, server=True)
        pairs.append((server, "prefect, duckdb, pyarrow"))
    contenders = []
    for ours, modules in pairs:
        contenders += [ours, replace(imports(modules, asked.repeat), without=ours.without)]
    warm(source)
    runs = rounds(contenders, scratch, asked.timeout)
    found, good = checks(runs, scratch)
    beside = [(ours.name, f"import {modules}") for ours, modules in pairs]
    text = ["### smallest", "", f"ExampleHuman, 289 cells. {machine()}", "", *table(runs), ""]
    text += [*differences(runs, beside), *(f"- {line}" for line in found)]
    return text, {"case": "smallest", "runs": runs, "checks": found}, good


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description="Compare us, the floor and CytoTable on one data set.")
    parser.add_argument("case", choices=[*CASES, "smallest"])
    parser.add_argument("--samples", type=Path, required=True, help="the folder of the small real exports")
    parser.add_argument("--data", type=Path, required=True, help="where data sets are, or will be made")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--peer-python", type=Path, help="the interpreter that has CytoTable")
    parser.add_argument("--peer-repeat", type=int, default=1, help="rounds with CytoTable, which is slow (default: 1)")
    parser.add_argument("--server", action="store_true", help="smallest: also against PREFECT_API_URL")
    parser.add_argument("--convert-args", type=shlex.split, default=[], help="more options for our command")
    parser.add_argument("--to", nargs="+", choices=FORMATS, default=[], help="AnnData too, beside Parquet")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a run may take (default: 3600)")
    parser.add_argument("--scratch", type=Path, help="where outputs go (default: below --data)")
    parser.add_argument("--keep", action="store_true", help="keep the first output and log of each")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    asked = parser.parse_args(argv)
    if asked.repeat < 1 or asked.peer_repeat < 0:
        parser.error("--repeat must be at least 1 and --peer-repeat at least 0")
    if asked.server and (asked.case != "smallest" or not os.environ.get("PREFECT_API_URL")):
        parser.error("--server belongs to the case smallest and needs PREFECT_API_URL, the address of a server")
    if asked.peer_python and not asked.peer_python.exists():
        parser.error(f"--peer-python: there is no {asked.peer_python}; peer_cytotable.py says how to make it")
    return asked


def main(argv: Sequence[str] | None = None) -> int:
    """Run a case and print it."""
    asked = arguments(argv)
    asked.data.mkdir(parents=True, exist_ok=True)
    base = asked.scratch or asked.data
    base.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="compare-", dir=base)).absolute()
    try:
        run = compare_smallest if asked.case == "smallest" else compare_case
        text, figures, good = run(asked, scratch)
    except generate.GenerateError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    finally:
        if asked.keep:
            print(f"outputs and logs are in {scratch}", file=sys.stderr)
        else:
            shutil.rmtree(scratch)
    print("\n".join(text))
    if asked.json:
        figures |= {"machine": machine(), "runs": [asdict(run) for run in figures["runs"]]}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
