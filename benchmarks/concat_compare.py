"""Concatenate AnnData files on disk with us and with anndata's function, in turn, and print what it took.

    python concat_compare.py --data data --size 5000

Eight cases, each with h5ad and with zarr: sparse and dense, aligned, reindexed with an inner and with an outer join;
and the sparse reindexed one with `max_loaded_elems` of ten million and of a billion. Beside them

copy    a plain copy: the inputs' bytes read, our output's bytes read and written.
codec   what the codec alone takes: each chunk of the inputs decoded, each of our output encoded, on a thread for each
        processor, from memory into memory; nothing is read, renamed, sorted, checked or written. Of zarr alone, since
        plain h5ad has no codec. We leave out the encoding of chunks that the output has as an input has them.

time    seconds of the function alone, without the start of Python and imports: the median of the rounds.
memray  the highest number of bytes allocated at once, in a run of its own.
RSS     the peak of the process tree above that of a process with the same imports that does nothing.

What we write is compared with what anndata writes where `--check` is given: both are loaded, so that takes memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import measure
from concat_generate import FORMATS, generate, paths_of

MIB = 1 << 20
CONTENDERS = ("ours", "anndata", "copy", "codec")
BATCH = 64
"""Chunks that are in memory at a time."""


@dataclass(frozen=True)
class Case:
    """One concatenation."""

    name: str
    layout: str
    kind: str
    join: str = "inner"
    max_loaded_elems: int = 100_000_000


CASES = (
    Case("sparse aligned", "aligned", "sparse"),
    Case("dense aligned", "aligned", "dense"),
    Case("sparse reindexed, inner", "reindexed", "sparse"),
    Case("sparse reindexed, outer", "reindexed", "sparse", "outer"),
    Case("dense reindexed, inner", "reindexed", "dense"),
    Case("dense reindexed, outer", "reindexed", "dense", "outer"),
    Case("max_loaded_elems 10M", "reindexed", "sparse", "inner", 10_000_000),
    Case("max_loaded_elems 1G", "reindexed", "sparse", "inner", 1_000_000_000),
)


@dataclass(frozen=True)
class Figures:
    """What a contender took for a case; seconds and bytes, -1 where it failed or was not asked."""

    case: str
    format: str
    contender: str
    seconds: float
    allocated: int
    resident: int


def work(contender: str, case: Case, inputs: list[Path], output: Path, model: Path) -> None:
    """What is measured."""
    if contender == "ours":
        from prefect_cytotable.flows.concat import concat

        concat(inputs, output, join=case.join, max_loaded_elems=case.max_loaded_elems)
    elif contender == "anndata":
        from anndata.experimental import concat_on_disk

        concat_on_disk(inputs, output, join=case.join, max_loaded_elems=case.max_loaded_elems)
    elif contender == "copy":
        for path in inputs:
            for file in path.rglob("*") if path.is_dir() else [path]:
                if file.is_file():
                    file.read_bytes()
        (shutil.copytree if model.is_dir() else shutil.copyfile)(model, output)


def codec_seconds(inputs: list[Path], model: Path) -> float:
    """The time that the codec itself takes for an X of zarr: the inputs' chunks decoded, the output's encoded."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        decoding = sum(in_batches(pool, path, encode=False) for path in inputs)
        return decoding + in_batches(pool, model, encode=True)


def in_batches(pool: ThreadPoolExecutor, store: Path, encode: bool) -> float:
    """Seconds for decoding, or for encoding, all chunks of X; what is not asked for is not counted."""
    import numpy as np

    from prefect_cytotable.tasks.core.concat.chunks import ChunkFiles

    seconds = 0.0
    sparse = (store / "X/data").is_dir()
    for folder in [store / "X/data", store / "X/indices"] if sparse else [store / "X"]:
        files = ChunkFiles.of(folder)
        if files is None or files.codec is None:
            continue
        numbers = files.numbers(0, files.shape[0])
        for low in range(0, len(numbers), BATCH):
            stored = [files.stored(one) for one in numbers[low : low + BATCH]]
            chunks = [np.empty(files.chunks, files.dtype) for _ in stored]
            began = time.perf_counter()
            list(pool.map(files.codec.decode, stored, chunks))
            if encode:
                began = time.perf_counter()
                list(pool.map(files.codec.encode, chunks))
            seconds += time.perf_counter() - began
    return seconds


def child(asked: argparse.Namespace) -> int:
    """A process that imports, then does the work, or nothing."""
    warnings.simplefilter("ignore")
    import anndata  # noqa: F401
    import dask.array  # noqa: F401
    from anndata.experimental import concat_on_disk  # noqa: F401

    import prefect_cytotable.flows.concat
    import prefect_cytotable.tasks.core.concat.local  # noqa: F401

    case = CASES[asked.case]
    inputs = paths_of(asked.data, case.layout, case.kind, asked.format, asked.size)
    if asked.child == "codec":
        print(json.dumps({"seconds": codec_seconds(inputs, asked.model)}))
        return 0
    began = time.perf_counter()
    if asked.memray:
        import memray

        with memray.Tracker(asked.memray):
            work(asked.child, case, inputs, asked.output, asked.model)
    else:
        work(asked.child, case, inputs, asked.output, asked.model)
    print(json.dumps({"seconds": time.perf_counter() - began}))
    return 0


def remove(path: Path) -> None:
    """Remove a file or folder that this script made."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Arena:
    """Runs contenders in processes of their own."""

    def __init__(self, asked: argparse.Namespace) -> None:
        """For the sizes and folders that were asked for."""
        self._asked = asked
        self._scratch: Path = asked.scratch
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._idle = self._run("nothing", 0, "h5ad")[1]

    def output(self, contender: str, format: str) -> Path:
        """Where a contender writes."""
        return self._scratch / f"{contender}.{format}"

    def _run(self, contender: str, case: int, format: str, memray: Path | None = None) -> tuple[float, int]:
        output = self.output(contender, format)
        remove(output)
        command = [sys.executable, __file__, "--child", contender, "--case", str(case), "--format", format]
        command += ["--data", str(self._asked.data), "--size", str(self._asked.size), "--output", str(output)]
        command += ["--model", str(self.output("ours", format))]
        if memray:
            memray.unlink(missing_ok=True)
            command += ["--memray", str(memray)]
        log = self._scratch / "log.txt"
        found = measure.run(command, log=log, timeout=3600)
        if found.exit_code:
            print(f"{contender}, {CASES[case].name}, {format}: {log.read_text()[-2000:]}", file=sys.stderr)
            return -1.0, -1
        return json.loads(log.read_text().splitlines()[-1])["seconds"], found.peak_rss

    def figures(self, contender: str, number: int, format: str) -> Figures:
        """Rounds for the time and the resident memory, one more for the allocations."""
        runs = [self._run(contender, number, format) for _ in range(self._asked.repeat)]
        allocated = -1
        if self._asked.memory and contender in ("ours", "anndata"):
            trace = self._scratch / "trace.bin"
            if self._run(contender, number, format, trace)[0] >= 0:
                allocated = peak(trace)
            trace.unlink(missing_ok=True)
        seconds = median(one[0] for one in runs)
        resident = max(one[1] for one in runs) - self._idle
        return Figures(CASES[number].name, format, contender, seconds, allocated, resident)

    def check(self, format: str) -> str:
        """Whether we wrote what anndata wrote."""
        code = (
            "import sys, warnings, anndata; warnings.simplefilter('ignore'); "
            "from anndata.tests.helpers import assert_equal; "
            "assert_equal(*(anndata.io.read_h5ad(one) if one.endswith('h5ad') else anndata.io.read_zarr(one) "
            "for one in sys.argv[1:]))"
        )
        both = [str(self.output(contender, format)) for contender in ("ours", "anndata")]
        done = subprocess.run([sys.executable, "-c", code, *both], capture_output=True, text=True, check=False)
        return "equal" if done.returncode == 0 else f"DIFFER: {done.stderr.strip().splitlines()[-1]}"


def peak(trace: Path) -> int:
    """The highest number of bytes allocated at once."""
    import memray

    return int(memray.FileReader(trace).metadata.peak_memory)


def rows(found: list[Figures], verdicts: dict[tuple[str, str], str]) -> list[str]:
    """A Markdown table."""
    lines = [
        "| case | format | ours s | anndata s | copy s | codec s | anndata / ours | ours / copy "
        "| ours / (copy + codec) | memray MiB, ours | anndata | RSS MiB, ours | anndata | values |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    table: dict[tuple[str, str], dict[str, Figures]] = {}
    for one in found:
        table.setdefault((one.case, one.format), {})[one.contender] = one
    for (case, format), by in table.items():
        ours, theirs, copy, codec = (by.get(name) for name in CONTENDERS)
        cells: list[str] = [case, format]
        cells += [f"{one.seconds:.2f}" if one and one.seconds >= 0 else "" for one in (ours, theirs, copy, codec)]
        floor = replace(copy, seconds=copy.seconds + codec.seconds) if copy and codec else None
        cells += [ratio(theirs, ours), ratio(ours, copy), ratio(ours, floor)]
        cells += [mebibytes(one, "allocated") for one in (ours, theirs)]
        cells += [mebibytes(one, "resident") for one in (ours, theirs)]
        lines.append(f"| {' | '.join([*cells, verdicts.get((case, format), '')])} |")
    return lines


def ratio(one: Figures | None, other: Figures | None) -> str:
    """How many times longer one took."""
    if not one or not other or min(one.seconds, other.seconds) <= 0:
        return ""
    return f"{one.seconds / other.seconds:.2f}"


def mebibytes(one: Figures | None, field: str) -> str:
    """A figure of memory."""
    value = getattr(one, field) if one else -1
    return f"{value / MIB:.0f}" if value >= 0 else ""


def arguments(argv: Sequence[str] | None) -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(description="Concatenations on disk: us, anndata, a plain copy, the codec.")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the inputs lie; missing ones are made")
    parser.add_argument("--scratch", type=Path, help="where outputs go (default: in the data's folder)")
    parser.add_argument("--size", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=1, help="rounds for the time")
    parser.add_argument("--only", default="", help="cases with this in their names")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), help="ours has to come first")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="a run under memray too")
    parser.add_argument("--check", action="store_true", help="compare the outputs")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    for name in ("child", "format"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    for name in ("output", "model", "memray"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    asked.data = asked.data.absolute()
    asked.scratch = (asked.scratch or asked.data / "scratch").absolute()
    return asked


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code is 1 where an output differs or a contender failed."""
    asked = arguments(argv)
    if asked.child:
        return child(asked)
    cases = [number for number, case in enumerate(CASES) if asked.only in case.name]
    for layout, kind in sorted({(CASES[number].layout, CASES[number].kind) for number in cases}):
        generate(asked.data, layout, kind, asked.size)
    arena, found, verdicts = Arena(asked), [], {}
    for number in cases:
        for format in asked.formats:
            contenders = [one for one in asked.contenders if one != "codec" or format == "zarr"]
            for contender in contenders:
                found.append(arena.figures(contender, number, format))
                print(asdict(found[-1]), file=sys.stderr, flush=True)
            if asked.check:
                verdicts[CASES[number].name, format] = arena.check(format)
            for contender in contenders:
                remove(arena.output(contender, format))
    print("\n".join(rows(found, verdicts)))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
    failed = any(one.seconds < 0 for one in found) or any(one != "equal" for one in verdicts.values())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
