"""Runs that are killed (SIGKILL) at moments by chance, parts that are damaged, and what the next run makes of them.

In a test run each kind of run is killed at one or two moments. All of it, with ten moments a kind:

    CYTOTABLE_FAULT_MOMENTS=10 python -m pytest tests/faults/test_resume.py -k killed

CYTOTABLE_FAULT_SEED chooses other moments.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ears import Ear
from fault_tools import MOMENTS, SEED, Moment, Place, Served, copy_database, kept_batches, kill, moments, whole_chunks

from prefect_cytotable.flows.conducting import batch_name, batch_size
from prefect_cytotable.flows.runners import kind_of
from prefect_cytotable.tasks.caching import batch_key
from prefect_cytotable.tasks.core.model import Chunk

SHARE = {
    ("concurrent", True): 1,
    ("process", False): 1,
    ("dask", True): 1,
}
"""Moments of some kinds of run (runner, with a server) in a test run; CYTOTABLE_FAULT_MOMENTS asks for every kind."""

EVERY = [(runner, with_server) for with_server in (True, False) for runner in ("concurrent", "process", "dask")]
KINDS = EVERY if MOMENTS else [*SHARE]
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
def test_a_killed_run_is_finished_by_the_next(
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


# --- what is kept, and whether it is trusted ----------------------------------------------------------------


def part_of(place: Place, key: str) -> Path:
    (part,) = place.work.glob(f"parts/{key}-*.parquet")
    return part


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def exchanged(place: Place, keys: tuple[str, str]) -> None:
    """Put the results that Prefect keeps of two tasks in each other's place."""
    one, other = (place.work / "results" / key for key in keys)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_batches_that_were_done_are_cached_while_every_part_is_whole(
    served: Served, plate: Path, chunks: tuple[Chunk, ...], undisturbed: bytes, tmp_path: Path
) -> None:
    place = Place(plate, tmp_path, "concurrent", served)
    tasks = batches(chunks, place.runner)
    names = [batch_name(batch) for batch in tasks]
    assert len(tasks) == 8
    assert names[0] == f"{chunks[0].name} ... (5 chunks)"

    def again(**arguments: Any) -> tuple[set[str], dict[str, str]]:
        """The chunks that were converted, and the states of the tasks."""
        ear = Ear()
        assert place.again(ear, keep_chunks=True, **arguments) == undisturbed
        states = served.chunk_states(served.flow_run(ear.text), len(chunks))
        return {one.key for one in ear.results} - ear.reused, states

    everything = {chunk.key for chunk in chunks}
    assert again() == (everything, dict.fromkeys(names, "Completed"))
    assert again() == (set(), dict.fromkeys(names, "Cached"))

    harmed = [tasks[number][number % 5] for number in (1, 3, 5)]
    for chunk, harm in zip(harmed, (Path.unlink, lambda path: os.truncate(path, 1000), altered), strict=True):
        harm(part_of(place, chunk.key))
    converted, states = again()
    assert converted == {chunk.key for chunk in harmed}
    assert {name for name, state in states.items() if state != "Cached"} == {names[number] for number in (1, 3, 5)}

    exchanged(place, (batch_key(tasks[0]), batch_key(tasks[4])))
    assert again() == (set(), dict.fromkeys(names, "Cached"))

    (place.work / "results" / batch_key(tasks[2])).write_text("{")
    (place.work / "records" / f"{tasks[6][0].key}.json").write_text("{")
    converted, states = again()
    assert converted == {tasks[6][0].key}
    assert {name for name, state in states.items() if state != "Cached"} == {names[2], names[6]}

    converted, states = again(workers=1)
    assert converted == set()
    assert len(states) < len(tasks), "other batches: nothing is cached, and nothing done again"
