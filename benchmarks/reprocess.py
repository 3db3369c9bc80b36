"""How long `reprocess` takes over plates of which none has changed: the night on which nothing happened.

    python benchmarks/reprocess.py --plates 2000 --files 12          # without a server
    python benchmarks/reprocess.py --plates 2000 --files 12 --server # with one, which is started and ended
    python benchmarks/reprocess.py --plates 2000 --files 12 --s3     # plates in a bucket of a moto server

One plate is converted for real. Its output, its kept chunks and its row in the index are then repeated for the others,
each of which has files of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect_cytotable.flows import reprocess, reprocessing, server
from prefect_cytotable.flows.running import with_defaults
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.progress import Lines
from prefect_cytotable.tasks.core.reprocess.index import Index
from prefect_cytotable.tasks.core.reprocess.listing import listed
from prefect_cytotable.tasks.core.reprocess.settings import output_path

FILES = 4
"""Files of a site."""


def make_plates(folder: Path, plates: int, files: int) -> None:
    """So many folders, each with sites of four CSV files."""
    first = folder / "plate0000"
    write_csv_sites(tables(PlateShape(plate="p", wells=max(files // FILES, 1), sites=1, cells=3)), first)
    for number in range(1, plates):
        shutil.copytree(first, folder / f"plate{number:04d}", copy_function=shutil.copyfile)


def repeat_state(root: str, out: Path, options: dict[str, Any]) -> None:
    """Have the index and the destination know all plates, as if each had been converted like the first."""
    given = with_defaults(reprocess, {"source_root": root, "destination_root": out, **options})
    arguments = {name: value for name, value in given.items() if name not in ("progress", "task_runner")}
    settings, _, checked = reprocessing.settings_of(arguments)
    index = Index(str(out), Places(settings.storage))
    (known,) = index.rows.values()
    work = out / ".prefect-cytotable"
    (kept,) = work.glob("plate0000.parquet-*")
    rows = []
    for plate in listed(settings, checked).plates:
        path = Path(output_path(plate.name, settings))
        rows.append(
            replace(known, plate=plate.name, source=plate.source, path=str(path), fingerprint=plate.fingerprint)
        )
        if not path.exists():
            os.link(known.path, path)
            shutil.copytree(kept, work / kept.name.replace("plate0000", plate.name))
    index.put(*rows)


@contextmanager
def bucket_of(folder: Path, home: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The plates in a bucket of a moto server in a process of its own."""
    import boto3  # an extra

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        for _ in range(300):
            try:
                client.create_bucket(Bucket="plates")
                break
            except Exception:
                time.sleep(0.1)
        for path in sorted(folder.rglob("*.csv")):
            key = f"screen/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket="plates", Key=key, Body=path.read_bytes())
        options = {"endpoint_url": url, "region": "us-east-1", "local_cache_dir": str(home / "cache")}
        yield "s3://plates/screen", {"storage_options": options}
    finally:
        process.terminate()
        process.wait()


@contextmanager
def served(home: Path) -> Iterator[None]:
    """A Prefect server of our own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server.start(port, home=home / "server", timeout=240)
    try:
        yield
    finally:
        server.stop()


def measure(root: str, out: Path, options: dict[str, Any], runs: int) -> dict[str, Any]:
    walls, processor = [], []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        done = reprocess(root, out, progress=Lines(), **options)
        walls.append(round(time.perf_counter() - wall, 2))
        processor.append(round(time.process_time() - cpu, 2))
        assert not done.converted, done.converted[:3]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"unchanged": len(done.unchanged), "wall_s": walls, "cpu_s": processor, "peak_MiB": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plates", type=int, default=2000)
    parser.add_argument("--files", type=int, default=12, help="of a plate, a multiple of four")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--s3", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for variable in [one for one in os.environ if one.startswith("PREFECT_")]:
            del os.environ[variable]
        os.environ |= {"PREFECT_CYTOTABLE_HOME": str(home / "state"), "PREFECT_HOME": str(home / "prefect")}
        make_plates(home / "screen", given.plates, given.files)
        out = home / "tables"
        with bucket_of(home / "screen", home) if given.s3 else nullcontext((str(home / "screen"), {})) as (root, more):
            options: dict[str, Any] = {"settle": 0, **more}
            reprocess(root, out, plates="plate0000", **options)
            repeat_state(root, out, options)
            with served(home) if given.server else nullcontext():
                found = measure(root, out, options, given.runs)
    print(json.dumps({"plates": given.plates, "files": given.files, "server": given.server, "s3": given.s3, **found}))


if __name__ == "__main__":
    main()
