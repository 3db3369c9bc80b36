"""One flamegraph of all processes, as a page that needs no network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_cytotable.tasks.core.memory.reading import Traced, opened

if TYPE_CHECKING:
    from memray import AllocationRecord, FileReader

Frame = tuple[str, str, int]


class _Rooted:
    """A record of one process whose stack begins with the process; memray's reporter asks it for no more than this."""

    def __init__(self, record: AllocationRecord, root: Frame) -> None:
        self._record, self._root = record, root
        self.tid, self.thread_name = record.tid, ""
        self.size, self.n_allocations = record.size, record.n_allocations

    def stack_trace(self) -> list[Frame]:
        return [*self._record.stack_trace(), self._root]

    def hybrid_stack_trace(self) -> list[Frame]:
        return [*self._record.hybrid_stack_trace(), self._root]


def write(path: Path, traced: Sequence[Traced], command: str) -> bool:
    """Draw the peak of every process, below one frame each; False where none left its allocations.

    Memory: the places of all processes are held at a time, with their stacks.
    """
    from memray import AllocatorType  # noqa: F401 - an extra: fails here, before its parts are imported
    from memray.reporters.flamegraph import FlameGraphReporter

    with ExitStack() as stack:
        readers = [(one, stack.enter_context(reader)) for one in traced if (reader := _reader(one)) is not None]
        if not readers:
            return False
        about = readers[0][1].metadata
        graph = FlameGraphReporter.from_snapshot(
            _records(readers),  # type: ignore[arg-type]
            memory_records=list(readers[0][1].get_memory_snapshots()),
            native_traces=about.has_native_traces,
        )
        shown = dataclasses.replace(
            about,
            command_line=command,  # the arguments may be nobody's business
            peak_memory=sum(reader.metadata.peak_memory for _, reader in readers),
            total_allocations=sum(one.capture.allocations for one, _ in readers if one.capture is not None),
        )
        with path.open("w", encoding="utf-8") as file:
            graph.render(
                outfile=file, metadata=shown, show_memory_leaks=False, merge_threads=True, inverted=False, no_web=True
            )
    return True


def _reader(one: Traced) -> FileReader | None:
    return opened(one.path) if one.capture is not None else None


def _records(readers: Sequence[tuple[Traced, FileReader]]) -> Iterator[_Rooted]:
    for one, reader in readers:
        root = (str(one.begun.role), "process", one.begun.pid)
        for record in reader.get_high_watermark_allocation_records(merge_threads=True):
            yield _Rooted(record, root)
