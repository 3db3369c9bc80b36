"""The steps that read rows: one chunk to a part, parts to the output, or the whole table straight to the output.

An output is a temporary file here; the pipeline gives it its name once everything that was asked for is whole.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from itertools import count
from pathlib import Path

import msgspec
import pyarrow as pa

from prefect_cytotable.tasks.core.checksums import checksum
from prefect_cytotable.tasks.core.errors import AccountError, DamagedPartError
from prefect_cytotable.tasks.core.memory.tracking import marked
from prefect_cytotable.tasks.core.model import Account, ChunkResult, OutputFile, Part
from prefect_cytotable.tasks.core.places.files import TEMPORARY, whole
from prefect_cytotable.tasks.core.report import PRODUCER
from prefect_cytotable.tasks.core.retries import PlanPlace
from prefect_cytotable.tasks.core.soma import sinks
from prefect_cytotable.tasks.core.soma.memory import system_memory
from prefect_cytotable.tasks.core.soma.model import FetchPlan, Range, TableFormat
from prefect_cytotable.tasks.core.soma.rows import output_schema, tables
from prefect_cytotable.tasks.core.store import PLAN, LocalStore, discard

# Made while one thread imports this module, as in `prefect_cytotable.tasks.core.store`.
_PLAN = msgspec.json.Decoder(FetchPlan)


def save_plan(plan: FetchPlan, store: LocalStore) -> PlanPlace:
    """Write a plan where chunk tasks find it; returns its place."""
    path = Path(store.folder) / f"{PLAN}{secrets.token_hex(8)}.json"
    with whole(path) as temporary:
        temporary.write_bytes(msgspec.json.encode(plan))
    return PlanPlace(str(path))


@lru_cache(maxsize=4)
def _plan(place: PlanPlace) -> FetchPlan:
    return _PLAN.decode(Path(place.path).read_bytes())


def fetch_job(place: PlanPlace, number: int) -> ChunkResult:
    """Fetch chunk `number` of the plan at `place`, unless it is done already."""
    plan = _plan(place)
    chunk = plan.chunks[number]
    with marked(chunk.name):
        return _fetched(plan, chunk, LocalStore(plan.options.work_dir))


def fetch_jobs(place: PlanPlace, numbers: Sequence[int]) -> list[ChunkResult]:
    """Fetch some chunks in turn. After a failure, those that are done are found done when it is tried again."""
    return [fetch_job(place, number) for number in numbers]


def _fetched(plan: FetchPlan, chunk: Range, store: LocalStore) -> ChunkResult:
    if (done := store.load(chunk.key)) is not None:
        return replace(done, number=chunk.number)
    started = time.perf_counter()
    path = store.parts / f"{chunk.key}.feather"
    with system_memory(), whole(path) as temporary:
        rows, size = sinks.write(
            tables(plan.table, plan.sizes, chunk.first, chunk.last),
            output_schema(plan.table),
            TableFormat.FEATHER,
            temporary,
            plan.group_rows,
        )
    part = Part(plan.options.axis.value, str(path), rows, size, checksum(path))
    result = ChunkResult(
        chunk.key, chunk.number, (part,), (_account(plan, rows),), seconds=round(time.perf_counter() - started, 3)
    )
    store.save(result)
    return result


def stream(plan: FetchPlan, heard: Callable[[ChunkResult], None]) -> OutputFile:
    """The whole table to a temporary file, without parts.

    Args:
        plan: Without chunks.
        heard: Called with a record of each slice.
    """
    numbers = count()

    def told(rows: int) -> None:
        heard(ChunkResult("", next(numbers), accounts=(_account(plan, rows),)))

    return _written(plan, tables(plan.table, plan.sizes, plan.table.first, plan.table.last, told))


def assemble(plan: FetchPlan, results: Sequence[ChunkResult]) -> OutputFile:
    """The parts, in order, to a temporary file."""
    parts = [part for result in results for part in result.parts]
    file = _written(plan, _parts(parts))
    if file.rows != sum(part.rows for part in parts):
        raise AccountError(f"{file.path}: {file.rows} rows were written of {sum(part.rows for part in parts)}.")
    return file


def _account(plan: FetchPlan, rows: int) -> Account:
    return Account(plan.options.axis.value, rows, rows)


def _parts(parts: Iterable[Part]) -> Iterator[pa.Table]:
    for part in parts:
        try:
            with pa.OSFile(part.path) as file:
                reader = pa.ipc.open_file(file)
                for number in range(reader.num_record_batches):
                    yield pa.Table.from_batches([reader.get_batch(number)])
        except (pa.ArrowException, OSError) as error:
            raise DamagedPartError(f"{part.path}: the part cannot be read ({error}). Run the same again.") from error


def _written(plan: FetchPlan, rows: Iterable[pa.Table]) -> OutputFile:
    """Rows to a file in the scratch folder, checked; giving it its name is left to who asked for it."""
    options = plan.options
    temporary = Path(options.scratch) / f"{TEMPORARY}{secrets.token_hex(6)}"
    try:
        with system_memory():
            schema = output_schema(plan.table).with_metadata(_metadata(plan))
            written, size = sinks.write(rows, schema, options.format, temporary, plan.group_rows)
    except BaseException:
        discard(temporary)
        raise
    return OutputFile(
        options.axis.value, Path(options.destination).name, str(temporary), written, len(plan.table.columns), size
    )


def _metadata(plan: FetchPlan) -> dict[str, str]:
    """Where the file comes from; the same fetch gives the same text."""
    options = plan.options
    content = {
        "tool": PRODUCER,
        "version": version(PRODUCER),
        "source": options.source,
        "axis": options.axis,
        "measurement": options.measurement,
        "value_filter": plan.table.value_filter,
        "columns": plan.table.columns,
    }
    return {
        "data-producer": PRODUCER,
        "data-producer-version": version(PRODUCER),
        PRODUCER: msgspec.json.encode(content).decode(),
    }
