r"""Run CytoTable, the peer, on the same data with its defaults; for its own interpreter, not for ours.

An environment for it, once:

    python -m venv peer
    peer/bin/pip install cytotable==1.2.6 duckdb==1.5.5 duckdb-extensions \
        duckdb-extension-sqlite-scanner==1.5.5 duckdb-extension-httpfs==1.5.5
    peer/bin/python -c "import duckdb_extensions as e
    e.import_extension('sqlite_scanner')
    e.import_extension('httpfs')"

The extensions come as packages because DuckDB would otherwise download them at the first conversion. Then:

    peer/bin/python peer_cytotable.py nf1_200.sqlite peer.parquet --preset cellprofiler_sqlite

It runs on a Parsl thread pool, so that one process and all that it needs can be measured. Its default, the
high-throughput executor, starts worker processes instead and is not measured here. All else is what
`cytotable.convert` does when nothing is said.
"""

from __future__ import annotations

import argparse
import sys
import tempfile

import cytotable
from parsl.config import Config
from parsl.executors import ThreadPoolExecutor


def main() -> int:
    """Convert SRC to the Parquet file DEST."""
    parser = argparse.ArgumentParser(description="CytoTable's convert on a thread pool.")
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("dest", metavar="DEST")
    parser.add_argument("--preset", required=True)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parsl-") as run_dir:
        pool = ThreadPoolExecutor(label="benchmark", max_threads=asked.threads)
        cytotable.convert(
            source_path=asked.source,
            dest_path=asked.dest,
            dest_datatype="parquet",
            preset=asked.preset,
            parsl_config=Config(executors=[pool], run_dir=run_dir, initialize_logging=False),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
