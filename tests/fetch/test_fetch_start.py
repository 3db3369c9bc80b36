"""What a fetch imports, and what it asks of the allocator: a short one consists of little else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from prefect_cytotable.flows import fetch_obs

FETCH = """
import json, sys
from prefect_cytotable.flows import entry
status = entry.main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps(sorted(sys.modules)))
sys.exit(status)
"""

CORE = "prefect_cytotable.tasks.core"

NEEDLESS = (
    "prefect", "duckdb", "adbc_driver_manager", "sqlite3", "pyarrow.parquet", "pyarrow.csv",
    f"{CORE}.sources", f"{CORE}.presets", f"{CORE}.join", f"{CORE}.plan", f"{CORE}.chunk", f"{CORE}.inspection",
    f"{CORE}.sinks.parquet", "anndata", "pandas", "scipy", "shapely", "zarr", "dask", "h5py", "numba",
)  # fmt: skip


def fetched(tmp_path: Path, *arguments: str, **variables: str) -> set[str]:
    """The modules that the command has imported at its end."""
    home = {"PREFECT_HOME": str(tmp_path / "p"), "PREFECT_CYTOTABLE_HOME": str(tmp_path / "c")}
    found = tmp_path / "modules.json"
    command = [sys.executable, "-c", FETCH, str(found), "fetch", *arguments]
    subprocess.run(command, env={**os.environ, **home, **variables}, check=True, timeout=300, capture_output=True)
    return set(json.loads(found.read_text()))


def test_a_fetch_imports_nothing_of_a_conversion(census: Path, tmp_path: Path) -> None:
    modules = fetched(tmp_path, str(census), str(tmp_path / "u.feather"), "-t", "ureter")
    assert "tiledbsoma" in modules
    assert not [one for one in NEEDLESS if one in modules]
    assert not [one for one in modules if one.startswith("prefect.")]
    fetch_obs(census, tmp_path / "u2.feather", tissue="ureter")  # in a process that imports everything
    assert (tmp_path / "u2.feather").read_bytes() == (tmp_path / "u.feather").read_bytes()


def test_parquet_needs_no_more_than_arrows_part_for_it(census: Path, tmp_path: Path) -> None:
    modules = fetched(tmp_path, str(census), str(tmp_path / "lung.parquet"), "-t", "lung", "-c", "cell_type,sex")
    assert "pyarrow.parquet" in modules
    assert not [one for one in NEEDLESS if one in modules and one != "pyarrow.parquet"]


def test_the_allocators_settings_are_the_users_where_there_are_some() -> None:
    tell = """
import ctypes, os, types
asked = []
ctypes.CDLL = lambda name: types.SimpleNamespace(mallopt=lambda option, value: asked.append((option, value)))
from prefect_cytotable.tasks.core.soma import memory
memory.reuse_memory()
print(asked, os.environ[memory.TRIM])
"""

    def told(**variables: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "TILEDB_"))}
        command = [sys.executable, "-c", tell]
        return subprocess.run(
            command, env={**environment, **variables}, check=True, timeout=120, capture_output=True, text=True
        ).stdout.strip()

    all_of_it = "[(-3, 33554432), (-1, 67108864), (-8, 1)] false" if sys.platform == "linux" else "[] false"
    assert told() == all_of_it
    own = {"MALLOC_ARENA_MAX": "4", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    assert told(**own, TILEDB_SM_MEM_MALLOC_TRIM="true") == "[] true"
