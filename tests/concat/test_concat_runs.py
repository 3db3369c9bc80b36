"""Concatenations as runs: refused, killed, taken up again, told; on every local runner, and on the command line."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from concat_objects import assert_same, expected, read, write
from ears import Ear
from old_layout import as_of_0_7
from scipy import sparse

from prefect_cytotable.flows import cli
from prefect_cytotable.flows.concat import concat, plan_concat
from prefect_cytotable.tasks.core.concat import sizes
from prefect_cytotable.tasks.core.concat.model import JobResult
from prefect_cytotable.tasks.core.concat.plan import plan_lines
from prefect_cytotable.tasks.core.concat.progress import BlockLines
from prefect_cytotable.tasks.core.errors import (
    ArgumentError,
    BadSourceError,
    CytotableError,
    DestinationExistsError,
    LayoutError,
    MemoryBudgetError,
    SourceChangedError,
    SourceNotFoundError,
    UnknownArgumentError,
)

pytestmark = pytest.mark.usefixtures("alone")

SECONDS = 120.0
SMALL = 500
"""`max_loaded_elems` that makes many blocks of little data."""


def made(folder: Path, kind: str = "dense", count: int = 3, size: int = 60, format: str = "h5ad") -> list[Path]:
    """Objects whose variables overlap in part, in different orders."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        random = np.random.default_rng(number)
        names = [f"v{one}" for one in random.permutation(50)[:40]]
        rows = [f"{number}-{one}" for one in range(size)]
        values = random.random((size, len(names)))
        one = anndata.AnnData(
            values if kind == "dense" else sparse.csr_matrix(np.where(values < 0.3, values, 0)),
            obs=pd.DataFrame({"well": pd.Categorical(["A01", "B02"] * (size // 2))}, index=rows),
            var=pd.DataFrame(index=names),
            uns={"number": number},
        )
        paths.append(write(one, folder / f"{kind}{number}.{format}"))
    return paths


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return made(tmp_path / "in")


# --- runners, formats, interface ----------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["h5ad", "zarr"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_every_runner_gives_the_same(kind: str, format: str, tmp_path: Path) -> None:
    inputs = made(tmp_path / "in", kind, format=format)
    wanted = expected([read(path) for path in inputs], join="outer")
    for runner in ("sequential", "concurrent", *(("process",) if (kind, format) == ("dense", "zarr") else ())):
        ear = Ear()
        out = concat(
            inputs,
            tmp_path / f"{runner}.{format}",
            join="outer",
            max_loaded_elems=SMALL,
            task_runner=runner,
            workers=2,
            progress=ear,
        )
        assert_same(read(out), wanted)
        assert len(ear.results) == ear.chunks >= 4
    assert sorted(set(listing(tmp_path)) - {"in"}) == sorted(path.name for path in tmp_path.glob(f"*.{format}"))


def test_a_mapping_and_a_single_input(inputs: list[Path], tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"label": "plate", "index_unique": "_"}
    out = concat({"a": inputs[0], "b": str(inputs[1])}, tmp_path / "two.h5ad", **arguments)
    assert_same(read(out), expected([read(path) for path in inputs[:2]], keys=["a", "b"], **arguments))
    out = concat([inputs[0]], tmp_path / "one.zarr", keys=["x"], **arguments)
    assert list(read(out).obs_names[:2]) == ["0-0_x", "0-1_x"]
    assert set(read(out).obs["plate"]) == {"x"}


def test_an_input_without_rows_decides_types_as_in_pandas(tmp_path: Path) -> None:
    full = anndata.AnnData(np.ones((2, 1)), obs=pd.DataFrame({"number": [1, 2]}, index=["a", "b"]))
    for name, columns in (("with", {"other": np.empty(0)}), ("without", {})):
        empty = anndata.AnnData(np.ones((0, 1)), obs=pd.DataFrame(columns, index=[]))
        paths = [write(one, tmp_path / f"{name}{number}.h5ad") for number, one in enumerate((empty, full))]
        got = read(concat(paths, tmp_path / f"{name}.h5ad", join="outer"))
        assert_same(got, expected([read(path) for path in paths], join="outer"))


def test_a_function_merges(inputs: list[Path], tmp_path: Path) -> None:
    def largest(mappings: Any) -> dict[str, Any]:
        return {"number": max(one["number"] for one in mappings)}

    assert dict(read(concat(inputs, tmp_path / "out.h5ad", uns_merge=largest)).uns) == {"number": 2}


def test_backed_and_lazily_readable(inputs: list[Path], tmp_path: Path) -> None:
    out = concat(inputs, tmp_path / "out.h5ad", join="outer")
    backed = anndata.io.read_h5ad(out, backed="r")
    whole = read(out)
    np.testing.assert_array_equal(backed.X[70:90], whole.X[70:90])
    backed.file.close()
    with h5py.File(out) as file:
        lazy = anndata.experimental.read_elem_lazy(file["X"])
        np.testing.assert_array_equal(lazy[70:90].compute(), whole.X[70:90])


def test_chunks_of_inputs_are_kept_where_they_suit(tmp_path: Path) -> None:
    one = anndata.AnnData(np.random.default_rng(0).random((1000, 300), dtype=np.float32))
    one.write_zarr(tmp_path / "in.zarr", chunks=(250, 100))
    out = concat([tmp_path / "in.zarr"] * 2, tmp_path / "out.zarr")
    assert zarr.open_group(out, mode="r")["X"].chunks == (250, 100)


# --- refused before any work --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"join": "oter"}, ArgumentError, "'outer'"),
        ({"axis": 2}, ArgumentError, "axis is 2"),
        ({"merge": "frist"}, ArgumentError, "'first'"),
        ({"keys": ["a"]}, ArgumentError, "keys has 1 value"),
        ({"keys": ["a", "a", "b"]}, ArgumentError, "twice"),
        ({"max_loaded_elems": 0}, ArgumentError, "max_loaded_elems"),
        ({"fill_value": "x"}, ArgumentError, "fill_value"),
        ({"task_runner": "proces"}, ArgumentError, "'process'"),
        ({"memory_budget": "1MiB"}, MemoryBudgetError, "Give at least"),
        ({"lable": "a"}, UnknownArgumentError, "'label'"),
    ],
)
def test_wrong_arguments(
    arguments: dict[str, Any], error: type[CytotableError], told: str, inputs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(told)):
        concat(inputs, tmp_path / "out.h5ad", **arguments)
    assert listing(tmp_path) == ["in"]


def test_wrong_paths(inputs: list[Path], tmp_path: Path) -> None:
    for given, out, error in (
        ([*inputs, tmp_path / "none.h5ad"], "out.h5ad", SourceNotFoundError),
        ([], "out.h5ad", ArgumentError),
        (inputs, "out.txt", ArgumentError),
        (inputs, inputs[0], ArgumentError),
        ({"a": inputs[0]}, "s4://bucket/out.zarr", ArgumentError),
    ):
        with pytest.raises(error):
            concat(given, tmp_path / out if isinstance(out, str) and "://" not in out else out)
    (tmp_path / "text.h5ad").write_text("no HDF5")
    (tmp_path / "folder").mkdir()
    h5py.File(tmp_path / "other.h5ad", "w").close()
    for name in ("text.h5ad", "folder", "other.h5ad"):
        with pytest.raises(BadSourceError, match=name):
            concat([inputs[0], tmp_path / name], tmp_path / "out.h5ad")


def test_what_is_there_is_replaced_on_demand_alone(inputs: list[Path], tmp_path: Path) -> None:
    for name in ("out.h5ad", "out.zarr"):
        concat(inputs[:1], tmp_path / name)
        before = read(tmp_path / name).n_obs
        with pytest.raises(DestinationExistsError):
            concat(inputs, tmp_path / name)
        assert read(tmp_path / name).n_obs == before
        concat(inputs, tmp_path / name, overwrite=True)
        assert read(tmp_path / name).n_obs == 3 * before
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "note.txt").write_text("mine")
    with pytest.raises(DestinationExistsError, match="no AnnData"):
        concat(inputs, tmp_path / "mine.zarr", overwrite=True)
    assert (tmp_path / "mine.zarr" / "note.txt").read_text() == "mine"


def test_elements_that_do_not_fit(tmp_path: Path) -> None:
    numbers = anndata.AnnData(np.ones((2, 2)), obs=pd.DataFrame({"a": [1, 2]}, index=["a", "b"]))
    texts = anndata.AnnData(np.ones((2, 2)), obs=pd.DataFrame({"a": ["x", "y"]}, index=["c", "d"]))
    paths = [write(one, tmp_path / f"{number}.h5ad") for number, one in enumerate((numbers, texts))]
    with pytest.raises(LayoutError, match=r"obs: the column 'a' has numbers in .*0\.h5ad, text in .*1\.h5ad"):
        plan_concat(paths)
    repeated = anndata.AnnData(np.ones((2, 2)), var=pd.DataFrame(index=["x", "x"]))
    with pytest.raises(LayoutError, match=r"names in var repeat \('x'\)"):
        concat([paths[0], write(repeated, tmp_path / "repeated.h5ad")], tmp_path / "out.h5ad")


def test_elements_that_the_output_has_no_place_for(tmp_path: Path) -> None:
    one = anndata.AnnData(np.ones((2, 2)), obs=pd.DataFrame({"a": [1, 2]}, index=["a", "b"]), layers={"a": np.eye(2)})
    paths = [write(one, tmp_path / f"{number}.h5ad") for number in range(2)]
    with h5py.File(paths[0], "r+") as file:  # as anndata up to 0.12 writes it
        file.move("obs/a", "obs/in/a")
        file["obs"].attrs["column-order"] = ["in/a"]
    with h5py.File(paths[1], "r+") as file:
        file.move("layers/a", "layers/b/a")
    with pytest.raises(LayoutError, match=r"obs: the column 'in/a' cannot be written\. Rename it"):
        concat(paths[:1], tmp_path / "out.zarr")
    with pytest.raises(LayoutError, match=r"1\.h5ad: layers/b is no element of an AnnData"):
        concat(paths[1:], tmp_path / "other.h5ad")
    kinds = [pd.Categorical([1, 2]), pd.Categorical(["x", "y"])]
    mixed = [anndata.AnnData(np.ones((2, 2)), obs=pd.DataFrame({"a": one}, index=["a", "b"])) for one in kinds]
    paths = [write(one, tmp_path / f"mixed{number}.zarr") for number, one in enumerate(mixed)]
    with pytest.raises(LayoutError, match=r"obs: the column 'a' has categories of several kinds"):
        concat(paths, tmp_path / "out.zarr")
    assert not list(tmp_path.glob("out.zarr")) + list(tmp_path.glob("other.h5ad"))


@pytest.mark.parametrize("format", ["h5ad", "zarr"])
def test_none_in_uns(format: str, tmp_path: Path) -> None:
    one = anndata.AnnData(np.ones((2, 2)), uns={"none": None, "nested": {"none": None, "some": 1}})
    path = write(one, tmp_path / f"in.{format}")
    out = concat([path, path], tmp_path / f"out.{format}", uns_merge="same", index_unique="-")
    assert read(out).uns == {"none": None, "nested": {"none": None, "some": 1}}


@pytest.mark.parametrize("format", ["h5ad", "zarr"])
def test_files_of_anndata_0_7(format: str, tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        rows = [f"{number}-{one}" for one in range(4)]
        obs = {
            "well": pd.Categorical(["A", "B", None, "B"]),
            "dose": pd.Categorical(["low", "high"] * 2, categories=["low", "high"], ordered=True),
            "note": [f"note {one}" for one in rows],
            "count": [1, 2, 3, 4],
        }
        names = [f"v{one + number}" for one in range(3)]
        one = anndata.AnnData(sparse.csr_matrix(np.eye(4, 3) * (number + 1)), obs=pd.DataFrame(obs, index=rows))
        one.var_names = names
        one.var["gene"] = pd.Categorical(["a", "b", "a"])
        one.obsm["frame"] = pd.DataFrame({"of": pd.Categorical(["x", "y"] * 2)}, index=rows)
        one.layers["dense"] = np.ones((4, 3))
        one.raw = one.copy()
        paths.append(as_of_0_7(write(one, tmp_path / f"{number}.{format}")))
    arguments: dict[str, Any] = {"join": "outer", "merge": "first"}
    with pytest.warns(anndata.OldFormatWarning):
        loaded = [anndata.io.read_h5ad(path) if format == "h5ad" else anndata.io.read_zarr(path) for path in paths]
    assert loaded[0].obs["well"].isna().tolist() == [False, False, True, False]
    assert_same(read(concat(paths, tmp_path / f"out.{format}", **arguments)), expected(loaded, **arguments))


def test_the_plan_tells_what_differs(tmp_path: Path) -> None:
    inputs = made(tmp_path / "in", "sparse")
    bare = read(inputs[0])
    bare.layers["counts"] = np.ones(bare.shape)
    write(bare, inputs[0])
    text = "\n".join(plan_lines(plan_concat(inputs, tmp_path / "out.h5ad", join="outer")))
    assert "output       180 obs x 50 vars along obs" in text
    assert re.search(r"names        var: 3 input\(s\) differ, \d+ names in all, 50 in any; outer join keeps 50", text)
    assert "array        layers/counts: 180 x 50, dense float64, 70.3 KiB (from dense float64)" in text
    assert "note         layers/counts is filled with nan for 2 input(s) without it." in text
    assert "memory       " in text
    notes = plan_concat(inputs).notes
    assert any(note.startswith("layers/counts is left out by join='inner': 2 inputs, ") for note in notes)
    assert listing(tmp_path) == ["in"]


# --- files made elsewhere -----------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("exploded",))


def test_a_pickle_is_not_loaded(inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(read(inputs[0]), tmp_path / "bad.zarr")
    array = path / "uns" / "number"
    metadata = (array / ".zarray").read_text()
    (array / ".zarray").write_text(metadata.replace('"filters": null', '"filters": [{"id": "pickle", "protocol": 5}]'))
    (array / "0").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadSourceError, match="'pickle'"):
        concat([path], tmp_path / "out.h5ad", uns_merge="first")
    assert not (tmp_path / "exploded").exists()


def test_links_to_other_files_are_refused(inputs: list[Path], tmp_path: Path) -> None:
    with h5py.File(inputs[0], "r+") as file:
        file["uns/secret"] = h5py.ExternalLink(str(inputs[1]), "/X")
    with pytest.raises(BadSourceError, match="/uns/secret is a link to elsewhere"):
        concat(inputs, tmp_path / "out.h5ad", uns_merge="first")
    store = write(read(inputs[1]), tmp_path / "store.zarr")
    (store / "uns" / "number" / "0").unlink(missing_ok=True)
    (store / "uns" / "number" / "0").symlink_to(inputs[1])
    with pytest.raises(BadSourceError, match="is a link out of it"):
        concat([store], tmp_path / "out.h5ad")


def damage_indices(file: h5py.File) -> None:
    file["X/indices"][3] = 10_000


def damage_starts(file: h5py.File) -> None:
    file["X/indptr"][5] = 10_000_000


def damage_shape(file: h5py.File) -> None:
    file["X"].attrs["shape"] = [60, 41]


@pytest.mark.parametrize("damage", [damage_indices, damage_starts, damage_shape])
@pytest.mark.parametrize("join", ["inner", "outer"])
def test_damaged_sparse_arrays(damage: Callable[[h5py.File], None], join: str, tmp_path: Path) -> None:
    inputs = made(tmp_path / "in", "sparse")
    with h5py.File(inputs[1], "r+") as file:
        damage(file)
    with pytest.raises(BadSourceError, match="sparse1"):
        concat(inputs, tmp_path / "out.h5ad", join=join)
    assert not (tmp_path / "out.h5ad").exists()


# --- broken off ---------------------------------------------------------------------------------------------

KILLED = """
import sys, time
from prefect_cytotable.flows.concat import concat
class Slow:
    def say(self, text): pass
    def start(self, chunks, rows): pass
    def finish(self): pass
    def advance(self, result):
        print(result.record, flush=True)
        if sys.argv[3] == "sequential": time.sleep(3600)
if __name__ == "__main__":
    concat(sys.argv[4:], sys.argv[1], join="outer", max_loaded_elems=int(sys.argv[2]), task_runner=sys.argv[3],
           progress=Slow())
"""


@pytest.mark.parametrize(("kind", "format"), [("dense", "h5ad"), ("sparse", "zarr")])
def test_a_killed_run_goes_on_where_it_stopped(kind: str, format: str, tmp_path: Path) -> None:
    inputs = made(tmp_path / "in", kind)
    out = tmp_path / f"out.{format}"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out), str(SMALL), "sequential", *map(str, inputs)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        first = child.stdout.readline().strip()  # it now waits to be killed
    finally:
        child.kill()
        child.wait(SECONDS)
        if child.stdout:
            child.stdout.close()
    assert first
    assert not out.exists()
    assert len(list(tmp_path.glob(".out*/concat-*/records/*.json"))) == 1

    ear = Ear()
    concat(inputs, out, join="outer", max_loaded_elems=SMALL, progress=ear)
    assert {one.record for one in ear.results if one.reused} == {first}
    assert ear.said[-1].startswith(f"{ear.chunks} block(s), 1 of them done before")
    assert_same(read(out), expected([read(path) for path in inputs], join="outer"))
    assert listing(tmp_path) == ["in", out.name]


@pytest.mark.parametrize("format", ["h5ad", "zarr"])
def test_a_damaged_block_is_written_again(format: str, inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / f"out.{format}"

    class Failing(Ear):
        def advance(self, result: JobResult) -> None:
            super().advance(result)
            if len(self.results) == 3:
                raise KeyboardInterrupt

    failing = Failing()
    with pytest.raises(KeyboardInterrupt):
        concat(inputs, out, max_loaded_elems=SMALL, task_runner="sequential", progress=failing)
    (place,) = tmp_path.glob(".out*/concat-*")
    if format == "h5ad":
        with h5py.File(place / "output.h5ad", "r+") as file:
            file["X"][0, 0] = -1
    else:
        next(path for path in sorted((place / "output.zarr" / "X").iterdir()) if path.name == "0.0").unlink()
    ear = Ear()
    concat(inputs, out, max_loaded_elems=SMALL, progress=ear)
    assert {one.record for one in ear.results if one.reused} == {one.record for one in failing.results[1:]}
    assert_same(read(out), expected([read(path) for path in inputs]))


def test_an_input_that_changes_meanwhile(inputs: list[Path], tmp_path: Path) -> None:
    class Meddler(Ear):
        def advance(self, result: JobResult) -> None:
            os.utime(inputs[1], ns=(1, 1))

    with pytest.raises(SourceChangedError, match=re.escape(inputs[1].name)):
        concat(inputs, tmp_path / "out.h5ad", progress=Meddler())
    assert not (tmp_path / "out.h5ad").exists()


# --- memory -------------------------------------------------------------------------------------------------

MEASURED = """
import sys
from pathlib import Path
import prefect_cytotable.tasks.core.concat.local
from prefect_cytotable.flows.concat import concat

def peak():  # of this program alone; what getrusage tells begins with the peak of the process that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10

before = peak()
concat(sys.argv[2:], sys.argv[1], join="outer")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    one = anndata.AnnData(random.random((5000, 1000), dtype=np.float32))
    other = one[:, ::-1].copy()
    paths = [write(one, tmp_path / "a.h5ad"), write(other, tmp_path / "b.h5ad")]
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "out.h5ad"), *map(str, paths * 5)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    assert (tmp_path / "out.h5ad").stat().st_size > 10 * 20_000_000
    assert int(done.stdout) < 128


def test_the_budget_makes_blocks_smaller_and_workers_fewer(inputs: list[Path]) -> None:
    plans = [plan_concat(inputs, memory_budget=f"{size}MiB", workers=8) for size in (200, 1024)]
    assert plans[0].block_bytes < plans[1].block_bytes == sizes.LARGEST_BLOCK
    assert plans[0].workers < plans[1].workers
    assert all(plan.memory <= plan.options.memory_budget for plan in plans)


# --- the command line ---------------------------------------------------------------------------------------


def test_the_command_line(inputs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.zarr"
    command = ["concat", *map(str, inputs), str(out), "--join", "outer", "--fill-value", "-1", "--keys", "a", "b", "c"]
    command += ["--label", "plate", "--merge", "first", "--uns-merge", "first", "--index-unique", "-", "--pairwise"]
    assert cli.main([*command, "--plan"]) == 0
    assert "destination  " in capsys.readouterr().out
    assert cli.main(command) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[-2].startswith(f"wrote {out}: 180 obs x 50 vars of 3 input(s), ")
    arguments: dict[str, Any] = {"join": "outer", "fill_value": -1, "label": "plate", "merge": "first"}
    wanted = expected(
        [read(path) for path in inputs], keys=list("abc"), uns_merge="first", index_unique="-", **arguments
    )
    assert_same(read(out), wanted)
    assert cli.main(command) == 1
    assert cli.main(["concat", str(tmp_path / "none.h5ad"), str(tmp_path / "x.h5ad")]) == 2
    assert cli.main(["concat", str(inputs[0]), str(tmp_path / "x.h5ad"), "--fill-value", "x"]) == 2
    assert BlockLines().text().startswith("blocks 0/0")
