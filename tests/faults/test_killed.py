"""Runs that are killed (SIGKILL) at moments by chance, and what the next run makes of them.

In a test run each kind of run is killed at one or two moments. All of it, with ten moments a kind:

    CYTOTABLE_FAULT_MOMENTS=10 python -m pytest tests/faults/test_killed.py

CYTOTABLE_FAULT_SEED chooses other moments.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_tools import (
    MOMENTS,
    SEED,
    Ear,
    Moment,
    Place,
    Served,
    copy_database,
    kept_batches,
    kill,
    moments,
    whole_chunks,
)

from prefect_cytotable.flows.conducting import batch_name, batch_size
from prefect_cytotable.flows.runners import kind_of
from prefect_cytotable.tasks.caching import batch_key
from prefect_cytotable.tasks.core.model import Chunk

SHARE = {
    ("concurrent", True): 1,
    ("process", True): 1,
    ("dask", True): 1,
    ("concurrent", False): 1,
    ("process", False): 1,
}
"""Moments of each kind of run (runner, with a server) in a test run. Dask without a server starts one for each run."""

KINDS = [*SHARE, ("dask", False)] if MOMENTS else [*SHARE]
CASES = [
    pytest.param(runner, with_server, moment, id=f"{runner}-{'served' if with_server else 'local'}-{number}")
    for runner, with_server in KINDS
    for number, moment in enumerate(moments(MOMENTS or SHARE[runner, with_server], runner, with_server))
]


def batches(chunks: tuple[Chunk, ...], runner: str) -> list[tuple[Chunk, ...]]:
    """The tasks of a run of these chunks, which take next to no time, with two workers."""
    size = batch_size(len(chunks), 2, 0.001, kind_of(runner))
    return [chunks[first : first + size] for first in range(0, len(chunks), size)]


@pytest.mark.parametrize(("runner", "with_server", "moment"), CASES)
def test_the_next_run_does_the_rest(
    runner: str,
    with_server: bool,
    moment: Moment,
    plate: Path,
    chunks: tuple[Chunk, ...],
    undisturbed: bytes,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    served: Served | None = request.getfixturevalue("served") if with_server else None
    place = Place(plate, tmp_path, runner, served)
    if (runner, with_server) == ("dask", False):  # Prefect then starts a server: with a database that is there already
        copy_database(request.getfixturevalue("served"), tmp_path / "home")
    running = kill(place, moment)
    done, kept = whole_chunks(place), kept_batches(place)
    print(f"seed {SEED}: killed at {moment}, still running: {running}, {len(done)} chunks done, {len(kept)} tasks kept")
    if place.out.exists():
        assert place.out.read_bytes() == undisturbed, "what stands at the destination is whole"

    ear = Ear()
    assert place.again(ear) == undisturbed
    assert ear.reused == done
    assert len(ear.results) == len(chunks)
    if done:
        assert f"{len(chunks)} chunk(s), {len(done)} of them done before" in ear.text
    assert place.listing() == ["cells.parquet"]
    if served is None:
        return
    tasks = batches(chunks, runner)
    expected = {
        batch_name(batch): "Cached" if {one.key for one in batch} <= done and batch_key(batch) in kept else "Completed"
        for batch in tasks
    }
    assert served.chunk_states(served.flow_run(ear.text), len(chunks)) == expected
