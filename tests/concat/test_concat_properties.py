"""What is written equals what anndata puts together in memory, whatever the inputs hold.

The variable CYTOTABLE_EXAMPLES multiplies the number of examples.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata._io.specs.registry import IORegistryError
from concat_objects import assert_same, expected, objects, read, write
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from prefect_cytotable.flows.concat import concat
from prefect_cytotable.tasks.core.errors import LayoutError

pytestmark = pytest.mark.usefixtures("alone")

EXAMPLES = int(os.environ.get("CYTOTABLE_EXAMPLES") or 1)

STRATEGIES = (None, "same", "unique", "first", "only")


@st.composite
def asked(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that `concat` and `anndata.concat` share."""
    return {
        "join": draw(st.sampled_from(["inner", "outer"])),
        "merge": draw(st.sampled_from(STRATEGIES)),
        "uns_merge": draw(st.sampled_from(STRATEGIES)),
        "label": draw(st.sampled_from([None, "batch", "integer"])),
        "index_unique": draw(st.sampled_from([None, "-"])),
        "fill_value": draw(st.sampled_from([None, 0, 3, 1.5, np.nan])),
        "pairwise": draw(st.booleans()),
    }


def can_be_written(result: Any, folder: Path) -> bool:
    """Whether anndata itself can write a result: it refuses columns and arrays of mixed objects."""
    try:
        write(result, folder / "theirs.h5ad")
    except (TypeError, ValueError, RuntimeError, NotImplementedError, IORegistryError):
        return False
    return True


# An example writes files, so that looking for a smaller one that fails too would take minutes.
@settings(max_examples=8 * EXAMPLES, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data(), arguments=asked(), axis=st.sampled_from([0, 1]), elements=st.sampled_from([1, 10, 10**8]))
def test_the_result_is_that_of_anndata(
    data: st.DataObject, arguments: dict[str, Any], axis: int, elements: int
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        paths = []
        for number, one in enumerate(data.draw(objects(axis))):
            format = data.draw(st.sampled_from(["2.zarr", "3.zarr", ".h5ad", ".h5ad"]))
            paths.append(write(one, folder / f"in {number}{format}", int(format[0]) if format[0].isdigit() else 2))
        keys = [f"key {number}" for number in range(len(paths))]
        try:
            wanted = expected([read(path) for path in paths], axis=axis, keys=keys, **arguments)
        except Exception:  # what anndata, pandas, SciPy or awkward refuse, each in its way
            wanted = None
        out = folder / data.draw(st.sampled_from(["out.h5ad", "out.zarr"]))
        try:
            concat(paths, out, axis=axis, keys=keys, max_loaded_elems=elements, task_runner="sequential", **arguments)
        except LayoutError:
            assert wanted is None or not can_be_written(wanted, folder)
            assert not out.exists()
            return
        if wanted is not None:
            assert_same(read(out), wanted)
    finally:
        shutil.rmtree(folder)
