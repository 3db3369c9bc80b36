"""Profile the memory of a run: of a block of Python, a call with ``profile=``, or a whole command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from prefect_cytotable.flows.running import inside_flow
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.memory import child, reading, report, tracking
from prefect_cytotable.tasks.core.memory.errors import ProfileFailedError
from prefect_cytotable.tasks.core.memory.folder import Space, space
from prefect_cytotable.tasks.core.memory.model import Profile, Profiling, Role
from prefect_cytotable.tasks.core.memory.profile import Run, build
from prefect_cytotable.tasks.core.memory.resident import Resident, Sampler

__all__ = ["Profiling", "Recording", "profiled"]

COMMAND_LINE = "prefect_cytotable.flows.entry"

Say = Callable[[str], None]


@dataclass
class Recording:
    """What `profiled` gives.

    Attributes:
        folder: Where the profile will be.
        profile: The profile, once the block has ended.
    """

    folder: Path
    profile: Profile | None = None


@contextmanager
def profiled(
    profile: str | Path | Profiling | Mapping[str, Any], command: str = "call", say: Say | None = None
) -> Iterator[Recording]:
    """Profile the memory of a block: this process, the worker processes that it starts, and the tasks inside.

    The profile is written whether the block succeeds or raises. Inside a Prefect flow run it becomes an artifact of
    that run too. Memory that the process held before is not among what is allocated, but is resident.

    Args:
        profile: The folder to write, or more: see `Profiling`.
        command: What the profile calls the block.
        say: Hears the report, line by line.

    Yields:
        The recording, whose `profile` is there when the block has ended.

    Raises:
        MemrayMissingError: memray is not installed.
        ProfilerBusyError: This process is being profiled already.
        DestinationExistsError: The folder is there already.
        ProfileFailedError: The block succeeded, but its profile could not be written.
    """
    how = settled(profile)
    tracking.require_memray()
    with space(how) as place:
        recording = Recording(place.destination)
        begun = tracking.now()
        error: BaseException | None = None
        with _tracked(place), Sampler(os.getpid()) as sampler:
            try:
                yield recording
            except BaseException as raised:
                error = raised
        run = Run(command, 0 if error is None else 1, begun, tracking.now(), whole_process=False)
        try:
            recording.profile = _written(place, run, sampler.result)
        except Exception as problem:
            failed = _failed(place, problem)
            if error is None:
                raise failed from problem
            error.add_note(str(failed))
        else:
            _told(recording.profile, say)
            if inside_flow():
                from prefect_cytotable.flows import profile_artifacts  # Prefect is here already

                profile_artifacts.publish_here(recording.profile, say)
        if error is not None:
            raise error


@contextmanager
def _tracked(place: Space) -> Iterator[None]:
    """This process, and those that it starts meanwhile, under memray."""
    tracking.begin(place.raw, Role.MAIN, tracking.load_settings(place.raw))
    variables = _variables(place)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with _system_pool() if place.how.arrow_allocations else nullcontext():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        tracking.end()


def _variables(place: Space) -> dict[str, str]:
    """What the processes of the run find in their environment."""
    variables = {tracking.VARIABLE: str(place.raw)}
    if place.how.arrow_allocations:
        variables[tracking.ARROW_POOL] = tracking.SYSTEM_POOL
    return variables


@contextmanager
def _system_pool() -> Iterator[None]:
    """Arrow, which has read its environment already, with the system's allocator for what it allocates from here on."""
    import pyarrow as pa  # what is imported first by the block itself is in the profile

    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def settled(profile: str | Path | Profiling | Mapping[str, Any]) -> Profiling:
    """What ``profile=`` asks for.

    Raises:
        ArgumentError: It is neither a folder nor what `Profiling` takes.
    """
    if isinstance(profile, Profiling):
        return profile
    if isinstance(profile, str | os.PathLike):
        return Profiling(os.fspath(profile))
    try:
        return msgspec.convert(profile, Profiling)
    except msgspec.ValidationError as error:
        raise ArgumentError(f"profile is {profile!r}: {error}. Give a folder, or a Profiling.") from error


def run_command(arguments: Sequence[str], how: Profiling, say: Say) -> int:
    """Run a command of ``prefect-cytotable`` in a process of its own, profiled from its first import on.

    Args:
        arguments: The command's name and its arguments.
        how: What is recorded, and where to.
        say: Hears the report.

    Returns:
        The command's exit status; 128 + N where signal N ended it.

    Raises:
        MemrayMissingError, DestinationExistsError: Before anything runs.
        ProfileFailedError: The command succeeded, but its profile could not be written.
    """
    tracking.require_memray()
    with space(how) as place:
        begun = tracking.now()
        status, resident = _supervised(place, arguments)
        run = Run(arguments[0], status, begun, tracking.now(), whole_process=True)
        try:
            profile = _written(place, run, resident)
        except Exception as problem:
            failed = _failed(place, problem)
            if status == 0:
                raise failed from problem
            say(str(failed))
            return status
    _told(profile, say)
    say(f"  written to {place.destination}")
    if profile.flow_runs:
        from prefect_cytotable.flows import profile_artifacts  # Prefect takes 2 s to import

        profile_artifacts.publish_afterwards(profile, say)
    return status


def _supervised(place: Space, arguments: Sequence[str]) -> tuple[int, Resident]:
    """Run the command, sample its processes, and hand on the signals that would end it."""
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", child.__name__, str(place.raw), str(reader), COMMAND_LINE, *arguments],
            env={**os.environ, **_variables(place)},
            pass_fds=(reader,),
        )
        with _handed_on(process), Sampler(process.pid) as sampler:
            status = process.wait()
    finally:
        os.close(reader)
        os.close(writer)
    return status if status >= 0 else 128 - status, sampler.result


@contextmanager
def _handed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals that would end this process end the command; its profile is then still made.

    An interrupt from a terminal reaches the command by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hand_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    def wait(_number: int, _frame: FrameType | None) -> None:
        pass

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _written(place: Space, run: Run, resident: Resident) -> Profile:
    """Make and write the profile of what the processes left."""
    traced = reading.read_all(place.raw)
    profile = build(run, place.how, traced, resident)
    place.write(profile, traced)
    return profile


def _failed(place: Space, problem: Exception) -> ProfileFailedError:
    return ProfileFailedError(
        f"The run has ended, but its profile could not be written to {place.destination}: {str(problem).rstrip('.')}. "
        f"What the run itself made is not touched by this."
    )


def _told(profile: Profile, say: Say | None) -> None:
    if say is not None:
        for line in report.lines(profile):
            say(line)
