"""Fetch ureter and lung of a Census-shaped store in several ways: time, memray's peak, peak RSS.

    python soma_compare.py --data data [--cells 8000000] [--repeat 3]

plain           read().concat().to_pandas() with SOMA's buffers of 1 GiB for each column, its default
plain, 100 MB   the same with buffers of 100 MB
Feather         `prefect-cytotable fetch` to Feather
Parquet         the same to Parquet
DuckDB          the same rows from a Parquet file of the whole table to a Parquet file, with 256 MB

Wall and RSS are those of whole processes, imports included, the median and the highest of all rounds. memray's peak is
measured in a run of its own, because it costs time. `limited` is our fetch to Feather with 4 GiB of addresses
(``ulimit -v``). Rows are counted in every output; the exit code is 1 where they differ or a run of ours fails.

Needs the extras `soma`, `profile` and `test`, and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import measure
import memray
import pyarrow.feather
import pyarrow.parquet as pq
import soma_generate

GIB = 1 << 30
LIMIT = 4 * GIB
TISSUES = ("ureter", "lung")

PLAIN = """
import sys, tiledbsoma
store, tissue, buffer, output = sys.argv[1:]
config = {"soma.init_buffer_bytes": int(buffer)} if buffer != "default" else {}
with tiledbsoma.open(store, context=tiledbsoma.SOMATileDBContext(tiledb_config=config)) as experiment:
    frame = experiment.obs.read(value_filter=f"tissue_general == {tissue!r}").concat().to_pandas()
open(output, "w").write(str(len(frame)))
"""
DUCKDB = """
import sys, duckdb
source, tissue, output = sys.argv[1:]
duckdb.sql("SET memory_limit = '256MB'")
duckdb.sql(f"COPY (FROM '{source}' WHERE tissue_general = '{tissue}') TO '{output}'")
"""


@dataclass(frozen=True)
class Way:
    """One way to fetch; `command` makes the arguments of Python from tissue and output."""

    name: str
    command: Callable[[str, Path], list[str]]
    ending: str


@dataclass(frozen=True)
class Figures:
    """Median seconds, highest bytes."""

    tissue: str
    way: str
    wall: float
    cpu: float
    rss: int
    heap: int
    rows: int
    written: int
    failed: str


def ways(store: Path, table: Path) -> list[Way]:
    """All of them."""
    experiment = str(store / soma_generate.EXPERIMENT)

    def ours(tissue: str, output: Path) -> list[str]:
        cli = ["-m", "prefect_cytotable.flows.entry", "fetch"]
        return [*cli, str(store), str(output), "-t", tissue, "--quiet", "--overwrite"]

    def plain(buffer: str) -> Callable[[str, Path], list[str]]:
        return lambda tissue, output: ["-c", PLAIN, experiment, tissue, buffer, str(output)]

    return [
        Way("plain", plain("default"), "txt"),
        Way("plain, 100 MB", plain("100000000"), "txt"),
        Way("Feather", ours, "feather"),
        Way("Parquet", ours, "parquet"),
        Way("DuckDB", lambda tissue, output: ["-c", DUCKDB, str(table), tissue, str(output)], "parquet"),
    ]


def rows_of(path: Path) -> int:
    """Rows that an output tells."""
    if not path.exists():
        return -1
    if path.suffix == ".feather":
        return int(pyarrow.feather.read_table(path, columns=["soma_joinid"]).num_rows)
    return int(pq.read_metadata(path).num_rows) if path.suffix == ".parquet" else int(path.read_text())


def heap_of(way: Way, tissue: str, scratch: Path, environment: dict[str, str]) -> int:
    """The peak that memray tells, bytes."""
    record, output = scratch / "memray.bin", scratch / f"tracked.{way.ending}"
    command = way.command(tissue, output)
    if command[0] == "-c":
        (scratch / "script.py").write_text(command[1])
        command = [str(scratch / "script.py"), *command[2:]]
    record.unlink(missing_ok=True)
    run = [sys.executable, "-m", "memray", "run", "--aggregate", "-q", "-o", str(record), *command]
    measure.run(run, environment=environment, log=scratch / "memray.log")
    with memray.FileReader(record) as reader:
        return int(reader.metadata.peak_memory)


def figures(way: Way, tissue: str, repeat: int, scratch: Path, environment: dict[str, str]) -> Figures:
    """All runs of one way."""
    output = scratch / f"{way.name.split(',')[0]}-{tissue}.{way.ending}"
    runs, failed = [], ""
    for number in range(repeat):
        output.unlink(missing_ok=True)
        log = scratch / "log.txt"
        command = [sys.executable, *way.command(tissue, output)]
        runs.append(measure.run(command, outputs=[output], environment=environment, log=log))
        print(f"  {tissue}, {way.name} {number + 1}: {runs[-1].line()}", file=sys.stderr, flush=True)
        if runs[-1].exit_code:
            failed = f"exit {runs[-1].exit_code}: {(log.read_text(errors='replace').splitlines() or [''])[-1][:80]}"
            break
    return Figures(
        tissue=tissue,
        way=way.name,
        wall=statistics.median(run.wall for run in runs),
        cpu=statistics.median(run.cpu for run in runs),
        rss=max(run.peak_rss for run in runs),
        heap=0 if failed else heap_of(way, tissue, scratch, environment),
        rows=rows_of(output),
        written=runs[-1].written,
        failed=failed,
    )


def limited(way: Way, tissue: str, scratch: Path, environment: dict[str, str]) -> str:
    """What becomes of a way that may use 4 GiB of addresses."""
    output = scratch / f"limited.{way.ending}"
    output.unlink(missing_ok=True)
    command = f"ulimit -v {LIMIT // 1024}; exec {shlex.join([sys.executable, *way.command(tissue, output)])}"
    found = measure.run(["bash", "-c", command], environment=environment, log=scratch / "log.txt")
    return f"{rows_of(output):,} rows" if found.exit_code == 0 else f"fails (exit {found.exit_code})"


def table_lines(found: Sequence[Figures]) -> list[str]:
    """A Markdown table."""
    lines = ["| tissue | way | wall s | CPU s | peak RSS MiB | memray peak GiB | rows | written MB |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for one in found:
        heap = f"{one.heap / GIB:.2f}" if one.heap else "-"
        rows = one.failed or f"{one.rows:,}"
        lines.append(
            f"| {one.tissue} | {one.way} | {one.wall:.2f} | {one.cpu:.2f} | {one.rss >> 20:,} | {heap} | {rows} | "
            f"{one.written / 1e6:.1f} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, run all ways, print the table."""
    parser = argparse.ArgumentParser(description="Time and memory of fetching ureter and lung in several ways.")
    parser.add_argument("--data", type=Path, required=True, help="where stores are, or will be made")
    parser.add_argument("--cells", type=int, default=8_000_000, help="rows of obs (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", help="only these")
    parser.add_argument("--tissues", nargs="+", default=TISSUES, help="only these")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    asked = parser.parse_args(argv)
    store = (asked.data / f"census-{asked.cells}").absolute()
    if not store.exists():
        soma_generate.generate(store, asked.cells)
    whole = store.with_suffix(".parquet")
    chosen = [way for way in ways(store, whole) if not asked.ways or way.name in asked.ways]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    scratch = Path(tempfile.mkdtemp(prefix="soma-compare-", dir=asked.data)).absolute()
    environment |= {"PREFECT_HOME": str(scratch), "PREFECT_CYTOTABLE_HOME": str(scratch)}
    try:
        if not whole.exists():
            fetch = [sys.executable, "-m", "prefect_cytotable.flows.entry", "fetch", str(store), str(whole), "--quiet"]
            if measure.run(fetch, environment=environment).exit_code:
                return 1
        found = [figures(way, tissue, asked.repeat, scratch, environment) for tissue in asked.tissues for way in chosen]
        limits = {
            way.name: limited(way, asked.tissues[-1], scratch, environment)
            for way in chosen
            if way.name in ("plain", "Feather", "Parquet")
        }
    finally:
        shutil.rmtree(scratch)
    print(f"{asked.cells:,} cells, {os.cpu_count()} processors, {platform.python_version()}\n")
    print("\n".join(table_lines(found)))
    for name, what in limits.items():
        print(f"\nWith 4 GiB of addresses, {asked.tissues[-1]}, {name}: {what}")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
    good = [one for one in found if one.way != "plain"]
    agree = all(len({one.rows for one in good if one.tissue == tissue}) == 1 for tissue in asked.tissues)
    return 0 if agree and not any(one.failed for one in good) else 1


if __name__ == "__main__":
    sys.exit(main())
