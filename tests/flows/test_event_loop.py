"""`convert` is a plain call, also where an event loop runs: in a notebook, in a coroutine, in a thread with a loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import folder_of, rows_of

from prefect_cytotable.flows import convert, plan

pytestmark = pytest.mark.usefixtures("local")


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "plate")


@pytest.mark.parametrize("runner", ["sequential", "concurrent", "process"])
def test_a_plain_call_inside_a_running_loop(plate: Path, tmp_path: Path, runner: str) -> None:
    async def main() -> object:
        assert asyncio.get_running_loop().is_running()
        assert plan(plate).chunks
        return convert(plate, tmp_path / "out.parquet", task_runner=runner, chunk_size=20, workers=2)

    path = asyncio.run(main())
    assert isinstance(path, str)
    assert pq.read_table(path).num_rows == rows_of(plate / "Cytoplasm.csv")


def test_conversions_side_by_side_in_a_loop(plate: Path, tmp_path: Path) -> None:
    async def main() -> list[object]:
        calls = (asyncio.to_thread(convert, plate, tmp_path / f"{n}.parquet", chunk_size=10) for n in range(3))
        return await asyncio.gather(*calls)

    paths = asyncio.run(main())
    contents = {Path(str(path)).read_bytes() for path in paths}
    assert len(contents) == 1


def test_a_thread_that_has_a_loop_of_its_own(plate: Path, tmp_path: Path, ear: Ear) -> None:
    """As in IPython's kernel: cells run inside the loop of a thread that is not the main one."""
    found: list[object] = []

    def kernel() -> None:
        async def cell() -> None:
            found.append(convert(plate, tmp_path / "out.parquet", chunk_size=20, progress=ear))

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(cell())
        finally:
            loop.close()

    thread = threading.Thread(target=kernel)
    thread.start()
    thread.join(120)
    assert found == [str(tmp_path / "out.parquet")]
    assert len(ear.results) == ear.chunks > 1


NOTEBOOK = """
    import ast, asyncio, sys
    code = '''
    from prefect_cytotable.flows import convert
    print(convert({source!r}, {destination!r}))
    await asyncio.sleep(0)
    '''
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    async def cell():
        await eval(compile(code.replace("\\n    ", "\\n"), "cell", "exec", flags=flags), globals())
    asyncio.run(cell())
    assert "prefect" not in sys.modules, "a run without a server must not pay for Prefect"
"""


def test_a_notebooks_cell_without_prefect_being_imported(plate: Path, tmp_path: Path) -> None:
    code = textwrap.dedent(NOTEBOOK).format(source=str(plate), destination=str(tmp_path / "out.parquet"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (str(tmp_path / "out.parquet"), "")
