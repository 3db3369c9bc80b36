"""Numbered pieces of work on threads or processes of our own: what local runs of every kind have in common."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol, TypeVar

from prefect_cytotable.tasks.core.errors import WorkerDiedError
from prefect_cytotable.tasks.core.processes import end_with_run
from prefect_cytotable.tasks.core.runner import POOL_ATTEMPTS


class Numbered(Protocol):
    """What a piece of work became."""

    @property
    def number(self) -> int:
        """Of the piece."""
        ...


Place = TypeVar("Place")
Result = TypeVar("Result", bound=Numbered)


@dataclass(frozen=True)
class Pool:
    """Threads or processes that are begun for a run and end with it.

    Attributes:
        workers: How many.
        processes: Whether they are processes; a piece whose process dies is begun again in new ones.
        say: Tells the user of that.
    """

    workers: int
    processes: bool
    say: Callable[[str], None]

    def results(self, work: Callable[[Place, int], Result], place: Place, numbers: Sequence[int]) -> Iterator[Result]:
        """The results of ``work(place, number)`` for each number, as they are done.

        After a failure nothing new is begun.

        Args:
            work: A function of a module, for processes import it.
            place: What it is called with, small.
            numbers: Of the pieces.

        Raises:
            WorkerDiedError: Worker processes died `POOL_ATTEMPTS` times.
        """
        done: set[int] = set()
        for attempt in range(1, POOL_ATTEMPTS + 1):
            pool = self._executor()
            try:
                futures = [pool.submit(work, place, number) for number in numbers if number not in done]
                for future in as_completed(futures):
                    result = future.result()
                    done.add(result.number)
                    yield result
                return
            except BrokenProcessPool as error:
                if attempt == POOL_ATTEMPTS:
                    raise WorkerDiedError.after(attempt) from error
                self.say(WorkerDiedError.AGAIN)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _executor(self) -> Executor:
        if not self.processes:
            return ThreadPoolExecutor(self.workers, thread_name_prefix="chunk")
        return ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), initializer=end_with_run)
