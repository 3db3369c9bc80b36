"""Copy everything below a prefix from S3 with boto3, file by file, as a scientist would.

python copy_s3.py ENDPOINT BUCKET PREFIX OUTDIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

import boto3


def copy(endpoint: str, bucket: str, prefix: str, out: Path) -> int:
    """Copy all objects; returns their number."""
    client = boto3.client("s3", endpoint_url=endpoint)
    copied = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            target = out / entry["Key"].removeprefix(prefix).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, entry["Key"], str(target))
            copied += 1
    return copied


def main() -> None:
    """Copy, and say how many."""
    parser = argparse.ArgumentParser(description="Copy a prefix from S3 with boto3.")
    parser.add_argument("endpoint")
    parser.add_argument("bucket")
    parser.add_argument("prefix")
    parser.add_argument("out", type=Path, metavar="OUTDIR")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    print(copy(asked.endpoint, asked.bucket, asked.prefix, asked.out), "objects")


if __name__ == "__main__":
    main()
