"""Make AnnData files for the comparison of concatenations, the same on each machine.

    python concat_generate.py --size 5000 data

A set is a number of files of `size` observations, dense or sparse (a tenth of the values), as h5ad and as zarr:

aligned     six files with the same `size` variables in the same order.
reindexed   nine files with `size` to 1.37 times `size` variables each, drawn from 1.4 times `size` names and shuffled.

Values are drawn anew for each file; what exists is not made again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

FILES = {"aligned": 6, "reindexed": 9}
KINDS = ("dense", "sparse")
FORMATS = ("h5ad", "zarr")
DENSITY = 0.1
WELLS = [f"{row}{column:02d}" for row in "ABCDEFGH" for column in range(1, 13)]
BLOCK = 500  # rows that are drawn at a time


def names_of(layout: str, number: int, size: int) -> list[str]:
    """The variables of a file."""
    if layout == "aligned":
        return [f"feature_{one:06d}" for one in range(size)]
    random = np.random.default_rng(1000 + number)
    count = size + int(0.37 * size * number / (FILES[layout] - 1))
    return [f"feature_{one:06d}" for one in random.permutation(int(1.4 * size))[:count]]


def make(layout: str, kind: str, number: int, size: int) -> anndata.AnnData:
    """One object."""
    random = np.random.default_rng(number)
    names = names_of(layout, number, size)
    if kind == "dense":
        values = random.random((size, len(names)), dtype=np.float32)
    else:
        blocks = []
        for low in range(0, size, BLOCK):
            shape = (min(BLOCK, size - low), len(names))
            blocks.append(sparse.random(*shape, DENSITY, "csr", np.float32, random_state=random))
        values = sparse.vstack(blocks, format="csr")
    obs = pd.DataFrame(
        {
            "Metadata_Well": pd.Categorical(random.choice(WELLS, size)),
            "Metadata_Count": random.integers(0, 100, size),
        },
        index=[f"plate{number}_{one:07d}" for one in range(size)],
    )  # fmt: skip
    return anndata.AnnData(values, obs=obs, var=pd.DataFrame(index=names))


def paths_of(folder: Path, layout: str, kind: str, format: str, size: int) -> list[Path]:
    """The files of a set."""
    return [folder / f"{layout}-{kind}-{size}-{number}.{format}" for number in range(FILES[layout])]


def generate(folder: Path, layout: str, kind: str, size: int, formats: Sequence[str] = FORMATS) -> None:
    """Make the files of a set that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(FILES[layout]):
        wanted = {format: paths_of(folder, layout, kind, format, size)[number] for format in formats}
        missing = {format: path for format, path in wanted.items() if not path.exists()}
        if not missing:
            continue
        made = make(layout, kind, number, size)
        for format, path in missing.items():
            temporary = path.with_name(f".{path.name}")
            if temporary.is_dir():
                shutil.rmtree(temporary)
            (made.write_h5ad if format == "h5ad" else made.write_zarr)(temporary)
            temporary.rename(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Make all sets."""
    parser = argparse.ArgumentParser(description="Make AnnData files for the comparison of concatenations.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=5000, help="observations of a file, and its variables, at least")
    asked = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    for layout in FILES:
        for kind in KINDS:
            generate(asked.folder, layout, kind, asked.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
