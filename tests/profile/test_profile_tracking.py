"""Processes under the real memray, with allocations of known sizes, and the resident size of real processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_cytotable.tasks.core.memory import report, resident
from prefect_cytotable.tasks.core.memory.model import Profile, Role

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("local")


def ran(code: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A script of its own, in the test's folder: this process itself stays as it is."""
    path = Path("script.py")
    path.write_text(textwrap.dedent(code))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == status, done.stderr
    return done


HEAD = """
    import os, sys, threading, time
    from prefect_cytotable.flows.profile import Profiling, profiled
    from prefect_cytotable.tasks.core.memory import tracking
    from prefect_cytotable.tasks.core.memory.tracking import marked
    MIB = 1 << 20

    def sampled(times=12):
        for _ in range(times):  # samples come every 10 ms: in many short pauses there is one, however busy the machine
            time.sleep(0.05)
"""


def made(folder: str = "out") -> Profile:
    return report.load(Path(folder))


def test_a_call_is_measured_to_the_byte_and_its_places_are_named() -> None:
    ran(
        HEAD
        + """
    def hold():
        return bytearray(40 * MIB)

    early = bytearray(70 * MIB)
    with profiled("out", "study") as recording:
        with marked("first"):
            one = hold()
            sampled()
        with marked("second"):
            two = bytearray(8 * MIB)
            sampled()
        del one, two
    assert recording.profile.peaks.allocated >= 48 * MIB
    assert tracking.current() is None and tracking.VARIABLE not in os.environ
    """
    )
    one = made()
    assert one.command == "study"
    assert one.status == 0
    assert one.complete
    assert not one.whole_process
    assert one.peaks.allocated is not None
    assert 48 * MIB <= one.peaks.allocated < 60 * MIB, "what was there before does not count"
    hold = next(site for site in one.sites if site.function == "hold")
    assert 40 * MIB <= hold.size < 41 * MIB
    assert hold.file.endswith("script.py")
    source = Path("script.py").read_text().splitlines()
    assert source[hold.line - 1].strip() == "return bytearray(40 * MIB)"
    (process,) = [process for process in one.processes if process.role is Role.MAIN]
    assert process.allocated == one.peaks.allocated == one.peaks.allocated_sum
    assert process.resident is not None
    assert process.resident > 110 * MIB, "what was there before is resident"
    first, second = one.tasks
    assert (first.name, second.name, first.beside, second.beside) == ("first", "second", 0, 0)
    assert first.before is not None
    assert first.before < 5 * MIB
    assert first.allocated is not None
    assert 40 * MIB <= first.allocated < 48 * MIB
    assert second.before is not None
    assert 40 * MIB <= second.before < 48 * MIB
    assert second.allocated is not None
    assert second.allocated >= 48 * MIB
    assert {path.name for path in Path("out").iterdir()} == {report.JSON, report.MARKDOWN, report.FLAMEGRAPH}
    assert [path.name for path in Path().glob(".tmp-*")] == []


def test_what_is_reserved_but_not_touched_is_the_difference() -> None:
    ran(
        HEAD
        + """
    import mmap
    with profiled("out"):
        space = mmap.mmap(-1, 2048 * MIB)
        sampled()
    """
    )
    one = made()
    assert one.peaks.allocated is not None
    assert one.peaks.resident is not None
    assert one.peaks.allocated >= 2048 * MIB
    assert one.peaks.resident < 1024 * MIB
    assert re.search(r"at least (1\.[5-9]|2\.0) GiB of the allocated peak had no memory behind it", one.explanation)


def test_a_block_that_fails_leaves_its_profile_and_its_error() -> None:
    done = ran(
        HEAD
        + """
    with profiled("out", say=print):
        with marked("bad"):
            raise KeyError("mine")
    """,
        status=1,
    )
    assert "KeyError: 'mine'" in done.stderr
    assert "During handling" not in done.stderr
    assert "memory profile of call: exit status 1" in done.stdout
    assert made().status == 1
    assert [(one.name, one.failed) for one in made().tasks] == [("bad", True)]


def test_threads_share_a_peak_and_say_so() -> None:
    ran(
        HEAD
        + """
    both = threading.Barrier(2)
    def work(name):
        with marked(name):
            both.wait()
            one = bytearray(20 * MIB)
            sampled()
            both.wait()
    with profiled("out"):
        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        [one.start() for one in threads]
        [one.join() for one in threads]
    """
    )
    assert {one.name: one.beside for one in made().tasks} == {"a": 1, "b": 1}
    assert all(one.allocated is not None and one.allocated >= 40 * MIB for one in made().tasks)


def test_workers_are_tracked_wherever_they_are_started() -> None:
    """With our initializer, and without one: the first task begins the tracking then."""
    ran(
        HEAD
        + """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from prefect_cytotable.tasks.core.processes import end_with_run

    def task(size):
        with marked(f"task {size}"):
            one = bytearray(size * MIB)
            sampled()
            return len(one)

    if __name__ == "__main__":
        spawn = multiprocessing.get_context("spawn")
        with profiled("out"):
            for size, initializer in ((30, end_with_run), (50, None)):
                with ProcessPoolExecutor(1, spawn, initializer=initializer) as pool:
                    assert pool.submit(task, size).result() == size * MIB
    """
    )
    one = made()
    workers = [process for process in one.processes if process.role is Role.WORKER]
    assert len(workers) == 2
    assert one.complete
    for worker, size in zip(workers, (30, 50), strict=True):
        assert worker.allocated is not None
        assert size * MIB <= worker.allocated < (size + 20) * MIB
    assert one.peaks.allocated is not None
    assert 50 * MIB <= one.peaks.allocated < 80 * MIB, "they were not there at one moment"
    assert one.peaks.allocated_sum is not None
    assert one.peaks.allocated_sum >= 80 * MIB
    assert {task.name: task.pid for task in one.tasks} == {"task 30": workers[0].pid, "task 50": workers[1].pid}
    text = Path("out", report.FLAMEGRAPH).read_text()
    assert all(f"worker at process:{worker.pid}" in text for worker in workers), "each has a root of its own"


def test_a_killed_worker_is_missed_but_not_its_size() -> None:
    ran(
        HEAD
        + """
    import multiprocessing, signal
    def work(ready):
        with marked("doomed"):
            one = bytearray(60 * MIB)
            ready.set()
            time.sleep(600)

    if __name__ == "__main__":
        spawn = multiprocessing.get_context("spawn")
        with profiled("out"):
            ready = spawn.Event()
            one = spawn.Process(target=work, args=(ready,))
            one.start()
            assert ready.wait(60)
            sampled(40)
            os.kill(one.pid, signal.SIGKILL)
            one.join()
    """
    )
    one = made()
    assert not one.complete
    (worker,) = [process for process in one.processes if process.role is Role.WORKER]
    assert (worker.allocated, worker.complete) == (None, False)
    assert worker.resident is not None
    assert worker.resident > 60 * MIB
    assert one.peaks.resident is not None
    assert one.peaks.resident > worker.resident


def test_every_allocation_counts_them_and_survives_a_kill() -> None:
    ran(
        HEAD
        + """
    from pathlib import Path
    from prefect_cytotable.tasks.core.memory import reading
    with profiled(Profiling("out", every_allocation=True, keep_raw=True)):
        for _ in range(500):
            bytearray(MIB)
    place = Path("killed").absolute()
    place.mkdir()
    pid = os.fork()
    if pid == 0:
        tracking.begin(place, "worker", tracking.How(every_allocation=True))
        kept = bytearray(33 * MIB)
        more = [bytes(2000) for _ in range(100_000)]
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    (one,) = reading.read_all(place)
    assert one.ended is None and one.capture is not None
    assert one.capture.peak >= 33 * MIB, one.capture.peak
    """
    )
    assert made().total_allocations is not None
    assert made().total_allocations >= 500
    assert made().peaks.allocated is not None
    assert made().peaks.allocated < 10 * MIB
    assert list(Path("out", report.RAW).glob("main-*.bin"))


def test_native_stacks_name_what_python_did_not_allocate() -> None:
    ran(
        HEAD
        + """
    import pyarrow as pa, pyarrow.compute as pc
    numbers = pa.array(range(3_000_000))
    with profiled(Profiling("out", native=True, arrow_allocations=True)):
        assert pa.default_memory_pool().backend_name == "system"
        kept = pc.add(numbers, 1)
    assert pa.default_memory_pool().backend_name != "system"
    assert "ARROW_DEFAULT_MEMORY_POOL" not in os.environ
    """
    )
    one = made()
    assert one.native
    assert one.arrow_allocations
    assert sum(site.size for site in one.sites) >= 24_000_000
    text = Path("out", report.FLAMEGRAPH).read_text()
    assert "arrow::" in text


def test_python_allocators_are_recorded_one_by_one() -> None:
    counts = {}
    for which in (False, True):
        ran(
            HEAD
            + f"""
    with profiled(Profiling("out", python_allocators={which}, overwrite=True)):
        kept = [object() for _ in range(50_000)]
    """
        )
        assert made().python_allocators is which
        counts[which] = made().peaks.allocations or 0
    assert counts[True] >= 50_000 > 10 * counts[False]


def test_one_profile_at_a_time() -> None:
    ran(
        HEAD
        + """
    import memray
    from prefect_cytotable.tasks.core.memory.errors import ProfilerBusyError
    with profiled("out"):
        try:
            with profiled("inner"):
                raise AssertionError
        except ProfilerBusyError as error:
            assert "being profiled already" in str(error)
    with memray.Tracker("theirs.bin"):
        try:
            with profiled("inner"):
                raise AssertionError
        except ProfilerBusyError as error:
            assert "under memray already" in str(error)
    assert not os.path.exists("inner")
    with profiled("again"):
        pass
    """
    )
    assert made().complete
    assert made("again").complete


def test_without_memray_there_is_one_error_before_anything_runs() -> None:
    ran(
        """
    import os, sys
    sys.modules["memray"] = None  # as an import finds it where it is not installed
    from prefect_cytotable.flows import convert
    from prefect_cytotable.tasks.core.errors import CytotableError
    try:
        convert("nowhere", "out.parquet", profile="out")
    except ImportError as error:
        assert isinstance(error, CytotableError)
        assert "pip install 'prefect-cytotable[profile]'" in str(error), error
    else:
        raise AssertionError
    assert not os.path.exists("out")
    """
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [("''", "is empty"), ("{'folder': 3}", "Expected"), ("{'path': 'x'}", "folder"), ("3", "profile is 3")],
)
def test_a_profile_argument_that_means_nothing(given: str, expected: str) -> None:
    done = ran(f"from prefect_cytotable.flows import convert\nconvert('nowhere', 'x.parquet', profile={given})", 1)
    last = done.stderr.strip().splitlines()[-1]
    assert "ArgumentError" in last
    assert expected in last


def test_the_library_without_a_profile_does_not_import_memray() -> None:
    ran(
        """
    import sys
    from prefect_cytotable.flows import convert, cli
    from prefect_cytotable.tasks.core.memory.tracking import marked
    with marked("nothing"):
        pass
    assert "memray" not in sys.modules
    """
    )


# --- resident sizes ------------------------------------------------------------------------------------------

CHILD = "import sys; one = b'x' * (80 << 20); print('ready', flush=True); sys.stdin.read()"
SYSTEMS = [pytest.param(resident._Ps, id="ps")]
if sys.platform == "linux":
    SYSTEMS.append(pytest.param(resident._Proc, id="proc"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_tree_is_found_and_measured(system: Callable[..., Any]) -> None:
    if system is resident._Ps and not resident._ps():
        pytest.skip("there is no ps here")
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        source = system(os.getpid(), None)
        found = source.find()
        sizes = {one.pid: size for one, size in source.sizes(found).items()}
        without = [one.pid for one in system(os.getpid(), child.pid).find()]
        assert child.stdin is not None
        child.stdin.close()
    assert 80 * MIB < sizes[child.pid] < 200 * MIB
    assert sizes[os.getpid()] > 10 * MIB
    assert os.getpid() in without
    assert child.pid not in without
    gone = next(one for one in found if one.pid == child.pid)
    assert source.sizes([gone]) == {}
    assert source.highest(gone) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the peak of a process")
def test_a_peak_between_two_samples_is_known_by_the_system() -> None:
    code = "one = b'x' * (90 << 20); del one; print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with resident.Sampler(child.pid) as sampler:
            pass
        assert child.stdin is not None
        child.stdin.close()
    seen = sampler.result.of(child.pid)
    assert seen is not None
    assert seen.largest < 80 * MIB
    assert seen.highest is not None
    assert seen.highest > 90 * MIB
