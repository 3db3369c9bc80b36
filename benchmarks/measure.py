"""Measure a command and everything that it starts.

    python measure.py --output cells.parquet -- prefect-cytotable convert plate.sqlite cells.parquet

What the figures are:

wall        seconds from the start of the command to its end, as the shell would see it.
CPU         user and system seconds of the command and of all its children that it waited for (`wait4`).
peak RSS    the highest sum, over the processes alive at one moment, of their resident memory, looked at every
            20 ms. Pages that processes share (libraries, mapped files, what a fork has not yet changed) count
            once for each process: with several processes it is too high.
peak PSS    the same with each shared page divided among those who share it, which is what the tree really
            occupies. The kernel walks all page tables for it (0.5 ms for a process of 500 MB), so only every
            fifth look asks for it.
anonymous   RSS without the pages of files, by the same sums: mapped input and libraries are not in it.
bytes       the size of the named outputs after the end.

A peak shorter than the interval can be missed. Looking costs a few percent of a core. A process that detaches
itself is followed as long as it was seen once as a child; its CPU time is not counted.

Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

INTERVAL = 0.02
PSS_EVERY = 5  # looks
PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Measurement:
    """One run of one command; seconds and bytes."""

    wall: float
    user: float
    system: float
    peak_rss: int
    peak_pss: int
    peak_anonymous: int
    samples: int
    processes: int  # how many there were over the whole run
    written: int
    exit_code: int  # minus the signal's number if a signal ended it, as subprocess has it
    load_before: float  # 1-minute load average when it began: above 0.5 a wall time means little

    @property
    def cpu(self) -> float:
        """User and system seconds."""
        return self.user + self.system

    def line(self) -> str:
        """The figures on one line."""
        return (
            f"wall {self.wall:.2f} s, CPU {self.cpu:.2f} s, peak RSS {self.peak_rss / 1e6:.0f} MB "
            f"(PSS {self.peak_pss / 1e6:.0f}, anonymous {self.peak_anonymous / 1e6:.0f}) "
            f"in {self.processes} processes, "
            f"written {self.written / 1e6:.1f} MB, exit code {self.exit_code}"
        )


def size_of(path: Path) -> int:
    """Bytes in a file, or in all the files below a folder; 0 where there is nothing."""
    if path.is_dir():
        return sum(size_of(child) for child in path.iterdir())
    return path.stat().st_size if path.exists() else 0


class Sampler(threading.Thread):
    """Follows a process and its descendants until `finish`."""

    def __init__(self, root: int, interval: float = INTERVAL) -> None:
        """Follow `root`, looking every `interval` seconds."""
        super().__init__(daemon=True)
        self.alive = {root}
        self.seen = {root}
        self.interval = interval
        self.peak_rss = 0
        self.peak_pss = 0
        self.peak_anonymous = 0
        self.samples = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        while not self._done.is_set():
            self.look()
            self._done.wait(self.interval)

    def finish(self) -> None:
        """Stop looking."""
        self._done.set()
        self.join()

    def look(self) -> None:
        """Add up the memory of the tree as it is now."""
        rss = anonymous = pss = 0
        thorough = self.samples % PSS_EVERY == 0
        todo, visited = list(self.alive), set()
        while todo:
            pid = todo.pop()
            if pid in visited:
                continue
            visited.add(pid)
            try:
                _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_bytes().split())
                pss += proportional(pid) if thorough else 0
                todo.extend(children(pid))
            except (OSError, ValueError):
                self.alive.discard(pid)  # it has ended; a number that comes back is a child again first
                continue
            if resident:
                self.alive.add(pid)
                self.seen.add(pid)
            else:
                self.alive.discard(pid)  # a zombie
            rss += resident
            anonymous += resident - shared
        self.samples += 1
        self.peak_rss = max(self.peak_rss, rss * PAGE)
        self.peak_pss = max(self.peak_pss, pss)
        self.peak_anonymous = max(self.peak_anonymous, anonymous * PAGE)


def proportional(pid: int) -> int:
    """The PSS of a process in bytes; 0 where the kernel does not tell."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def children(pid: int) -> list[int]:
    """The children of a process; each of its threads may have some."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.extend(map(int, (thread / "children").read_bytes().split()))
        except OSError:
            continue  # the thread has ended
    return found


def run(
    command: Sequence[str],
    *,
    outputs: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    log: Path | None = None,
    timeout: float | None = None,
    interval: float = INTERVAL,
) -> Measurement:
    """Run a command and measure it.

    What it prints goes to the file `log`, or where our own output goes. After `timeout` seconds the command
    and its children are killed; the measurement then has the exit code -9.
    """
    load = os.getloadavg()[0]
    sink = log.open("wb") if log else None
    try:
        began = time.perf_counter()
        child = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdout=sink,
            stderr=subprocess.STDOUT if sink else None,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        sampler = Sampler(child.pid, interval)
        sampler.start()
        alarm = threading.Timer(timeout, os.killpg, (child.pid, signal.SIGKILL)) if timeout else None
        if alarm:
            alarm.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            wall = time.perf_counter() - began
            if alarm:
                alarm.cancel()
            sampler.finish()
        child.returncode = os.waitstatus_to_exitcode(status)  # it is waited for already
    finally:
        if sink:
            sink.close()
    return Measurement(
        wall=wall,
        user=usage.ru_utime,
        system=usage.ru_stime,
        peak_rss=sampler.peak_rss,
        peak_pss=sampler.peak_pss,
        peak_anonymous=sampler.peak_anonymous,
        samples=sampler.samples,
        processes=len(sampler.seen),
        written=sum(size_of(path) for path in outputs),
        exit_code=child.returncode,
        load_before=load,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the command after ``--``; the exit code is the command's."""
    parser = argparse.ArgumentParser(description="Wall time, CPU time and peak memory of a command's whole tree.")
    parser.add_argument("--output", type=Path, action="append", default=[], help="a file or folder it writes")
    parser.add_argument("--interval", type=float, default=INTERVAL, help="seconds between two looks")
    parser.add_argument("--timeout", type=float, help="seconds after which it is killed")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("command", nargs="+", help="the command, after --")
    asked = parser.parse_args(argv)
    try:
        found = run(asked.command, outputs=asked.output, timeout=asked.timeout, interval=asked.interval)
    except FileNotFoundError:
        print(f"measure: there is no command {asked.command[0]}", file=sys.stderr)
        return 127
    print(found.line(), file=sys.stderr)
    if asked.json:
        asked.json.write_text(json.dumps(asdict(found), indent=2) + "\n")
    return found.exit_code if found.exit_code >= 0 else 128 - found.exit_code


if __name__ == "__main__":
    sys.exit(main())
