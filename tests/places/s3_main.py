"""Runs moto's S3 server until the standard input ends: ``s3_main.py PORT [BUCKET=COUNT]``.

The bucket that is named has so many objects from the beginning, made without a request for each.
"""

from __future__ import annotations

import os
import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3 import models
from werkzeug.serving import run_simple

ACCOUNT = "123456789012"


def fill(bucket: str, count: int) -> None:
    backend = models.s3_backends[ACCOUNT]["aws"]
    backend.create_bucket(bucket, "us-east-1")
    for number in range(count):
        backend.put_object(bucket, f"plate/site-{number // 5:05d}/{number % 5}.csv", b"a\n1\n")


def end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    for argument in sys.argv[2:]:
        name, _, number = argument.partition("=")
        fill(name, int(number))
    models.S3_UPLOAD_PART_MIN_SIZE = 1  # parts of tests are small
    app = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
