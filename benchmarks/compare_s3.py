"""The same conversion from S3 and from local files, beside a plain copy of the bytes out of the same S3.

    python compare_s3.py sites-100 --samples SAMPLES --data DIR [--repeat 3]

The server is moto's, started here on this machine; it answers in Python, so that its own time is a good part of every
figure, and it keeps the objects in memory. What counts is the ratio: the job from S3 over the local job plus the copy.
The output from S3 is compared with the local one. The exit code is 1 if a run failed or an output differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import compare
import generate
from report import machine, table

BUCKET = "screen"
PREFIX = "plate"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def server() -> Iterator[str]:
    """Moto's S3 in a process of its own; gives its address."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def upload(url: str, source: Path) -> int:
    """Put a data set into the bucket; returns its number of objects."""
    import boto3

    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket=BUCKET)
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    for file in files:
        name = file.name if source.is_file() else file.relative_to(source).as_posix()
        client.upload_file(str(file), BUCKET, f"{PREFIX}/{name}")
    return len(files)


def contenders(case: compare.Case, source: Path, url: str, repeat: int) -> list[compare.Contender]:
    """Local job, plain copy, job from S3."""
    copy = [sys.executable, str(compare.HERE / "copy_s3.py"), url, BUCKET, PREFIX]
    local = compare.us(source, case.preset, repeat, [])
    remote = compare.us(Path("unused"), case.preset, repeat, [])
    command = [sys.executable, "-m", "prefect_cytotable.flows.cli", "convert", f"s3://{BUCKET}/{PREFIX}"]
    options = ["--preset", case.preset, "--overwrite", "--storage-option", f"endpoint_url={url}"]
    return [
        replace(local, name="local"),
        compare.Contender("boto3 copy", lambda out: [*copy, str(out)], repeat, output="copy"),
        replace(
            remote,
            name="S3",
            command=lambda out: [*command, str(out), *options, f"local_cache_dir={out.parent / 'cache'}"],
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a case and print it."""
    parser = argparse.ArgumentParser(description="Compare a conversion from S3 with the local one and a copy.")
    parser.add_argument("case", choices=list(compare.CASES))
    parser.add_argument("--samples", type=Path, required=True, help="the folder of the small real exports")
    parser.add_argument("--data", type=Path, required=True, help="where data sets are, or will be made")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a run may take (default: 3600)")
    asked = parser.parse_args(argv)
    case = compare.CASES[asked.case]
    asked.data.mkdir(parents=True, exist_ok=True)
    source = (asked.data / case.name).absolute()
    generate.generate(case.kind, asked.samples / case.sample, source, case.copies)
    os.environ |= CREDENTIALS
    scratch = Path(tempfile.mkdtemp(prefix="compare-s3-", dir=asked.data)).absolute()
    try:
        with server() as url:
            objects = upload(url, source)
            compare.warm(source)
            runs = compare.rounds(contenders(case, source, url, asked.repeat), scratch, asked.timeout)
        good = not any(run.figures.exit_code for run in runs)
        same = good and case.agreement(scratch / "S3-1" / "cells.parquet", scratch / "local-1" / "cells.parquet")
    finally:
        shutil.rmtree(scratch)
    walls = {
        name: statistics.median(run.figures.wall for run in runs if run.who == name)
        for name in ("local", "boto3 copy", "S3")
    }
    ratio = walls["S3"] / (walls["local"] + walls["boto3 copy"])
    print(f"### {asked.case} from S3\n\n{objects:,} objects, {generate.size_of(source) / 1e6:,.0f} MB. {machine()}\n")
    print("\n".join(table(runs)))
    print(f"\nS3 / (local + boto3 copy), medians: {ratio:.2f}")
    if same:
        print(f"- S3 and local: {same.line()}")
    return 0 if good and same and same.good else 1


if __name__ == "__main__":
    sys.exit(main())
