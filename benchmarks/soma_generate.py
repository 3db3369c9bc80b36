"""Make a local SOMA collection that is shaped like the CELLxGENE Census: `census_data/homo_sapiens`, with obs and var.

    python soma_generate.py census8 --cells 8000000

obs has the 28 columns of the Census schema and about its cardinalities; 61 values of `tissue_general`, of which lung
has 3,677,225 cells and ureter 2,390 (fewer where there are fewer cells). As in the Census, the cells of a dataset lie
together, and a dataset has one tissue, a few assays and donors, and some tens of cell types. The same call gives the
same data on each machine. The expression matrix, which makes the real one large, is left out.

The collection takes its name only when it is whole.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import tiledbsoma
from numpy.typing import NDArray

SEED = 20_240_701
LUNG, URETER = 3_677_225, 2_390
EXPERIMENT = "census_data/homo_sapiens"
STRIDE = 1 << 19  # rows of a write, each of which becomes a fragment; a multiple of the capacity of a tile

TISSUES = (
    "lung ureter adipose_tissue adrenal_gland axilla bladder_organ blood bone_marrow brain breast "
    "central_nervous_system colon cornea digestive_system ear embryo endocrine_gland esophagogastric_junction "
    "esophagus exocrine_gland eye fallopian_tube gallbladder heart immune_system intestine kidney lamina_propria "
    "large_intestine limb liver lymph_node mucosa musculature nose omentum ovary pancreas peritoneum placenta pleura "
    "pleural_fluid prostate_gland reproductive_system respiratory_system saliva scalp skeletal_system skin_of_body "
    "small_intestine spinal_cord spleen stomach tendon_of_semitendinosus testis tongue tonsil urinary_bladder uterus "
    "vasculature yolk_sac"
)


@dataclass(frozen=True)
class Labels:
    """A column of labels, and its ontology's twin where `ontology` names the prefix of its terms."""

    name: str
    count: int
    ontology: str = ""


LABELS = (
    Labels("dataset_id", 1_573),
    Labels("assay", 33, "EFO"),
    Labels("cell_type", 704, "CL"),
    Labels("development_stage", 184, "HsapDv"),
    Labels("disease", 127, "MONDO"),
    Labels("donor_id", 20_911),
    Labels("self_reported_ethnicity", 33, "HANCESTRO"),
    Labels("sex", 3, "PATO"),
    Labels("suspension_type", 3),
    Labels("tissue", 284, "UBERON"),
    Labels("tissue_type", 3),
    Labels("tissue_general", 61, "UBERON"),
)

ORDER = (
    "soma_joinid", "dataset_id", "assay", "assay_ontology_term_id", "cell_type", "cell_type_ontology_term_id",
    "development_stage", "development_stage_ontology_term_id", "disease", "disease_ontology_term_id", "donor_id",
    "is_primary_data", "observation_joinid", "self_reported_ethnicity", "self_reported_ethnicity_ontology_term_id",
    "sex", "sex_ontology_term_id", "suspension_type", "tissue", "tissue_ontology_term_id", "tissue_type",
    "tissue_general", "tissue_general_ontology_term_id", "raw_sum", "nnz", "raw_mean_nnz", "raw_variance_nnz",
    "n_measured_vars",
)  # fmt: skip

ALPHABET = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#", np.uint8)


def dictionaries() -> dict[str, pa.Array]:
    """The labels of every dictionary column."""
    found = {}
    for one in LABELS:
        tissues = [name.replace("_", " ") for name in TISSUES.split()]
        named = {"tissue_general": tissues, "sex": ["female", "male", "unknown"]}
        found[one.name] = pa.array(named.get(one.name) or [f"{one.name} {number:05d}" for number in range(one.count)])
        if one.ontology:
            found[f"{one.name}_ontology_term_id"] = pa.array([f"{one.ontology}:{n:07d}" for n in range(one.count)])
    return found


def index_type(labels: pa.Array) -> pa.DataType:
    """The narrowest signed index, as the Census has it."""
    return pa.int8() if len(labels) < 127 else pa.int16() if len(labels) < 32_767 else pa.int32()


@dataclass(frozen=True)
class Blocks:
    """Runs of cells of one dataset: how many each has, and its tissue."""

    sizes: NDArray[np.int64]
    tissues: NDArray[np.int64]


def blocks(cells: int, generator: np.random.Generator) -> Blocks:
    """Cut the cells of each tissue into datasets, and shuffle these."""
    lung = min(LUNG, cells * LUNG // 8_000_000)
    ureter = min(URETER, max(cells // 100, 1))
    weights = generator.dirichlet(np.full(59, 0.5))
    counts = np.concatenate(([lung, ureter], np.floor(weights * (cells - lung - ureter)).astype(np.int64)))
    counts[2] += cells - counts.sum()
    sizes, tissues = [], []
    for tissue, count in enumerate(counts.tolist()):
        while count:
            size = min(count, int(generator.lognormal(9, 1.2)) + 1)
            sizes.append(size)
            tissues.append(tissue)
            count -= size
    order = generator.permutation(len(sizes))
    return Blocks(np.array(sizes)[order], np.array(tissues)[order])


def tables(cells: int) -> Iterator[pa.Table]:
    """The rows of obs, `STRIDE` at a time."""
    generator = np.random.default_rng(SEED)
    cut = blocks(cells, generator)
    labels = dictionaries()
    block_of = np.repeat(np.arange(len(cut.sizes)), cut.sizes)
    limits = {one.name: one.count for one in LABELS}
    fixed = {  # one value for each block
        "dataset_id": np.arange(len(cut.sizes)) % limits["dataset_id"],
        "tissue_general": cut.tissues,
        "suspension_type": generator.integers(0, 3, len(cut.sizes)),
        "tissue_type": generator.choice(3, len(cut.sizes), p=[0.9, 0.07, 0.03]),
        "is_primary_data": generator.random(len(cut.sizes)) < 0.6,
    }
    some = {  # so many values in each block
        name: (generator.integers(0, limits[name], len(cut.sizes)), spread)
        for name, spread in (
            ("assay", 3), ("cell_type", 40), ("development_stage", 8), ("disease", 3), ("donor_id", 15),
            ("self_reported_ethnicity", 4), ("sex", 3), ("tissue", 5),
        )
    }  # fmt: skip
    for first in range(0, cells, STRIDE):
        block = block_of[first : first + STRIDE]
        rows = len(block)
        codes = {name: values[block] for name, values in fixed.items()}
        for name, (base, spread) in some.items():
            codes[name] = (base[block] + generator.integers(0, spread, rows)) % limits[name]
        columns: dict[str, pa.Array] = {"soma_joinid": pa.array(np.arange(first, first + rows, dtype=np.int64))}
        columns["is_primary_data"] = pa.array(codes.pop("is_primary_data"))
        for name, values in labels.items():
            code = codes[name.removesuffix("_ontology_term_id")].astype(index_type(values).to_pandas_dtype())
            columns[name] = pa.DictionaryArray.from_arrays(pa.array(code), values)
        columns |= measures(rows, generator)
        yield pa.table([columns[name] for name in ORDER], names=ORDER)


def measures(rows: int, generator: np.random.Generator) -> dict[str, pa.Array]:
    """The columns that differ from cell to cell."""
    nnz = generator.integers(200, 9_000, rows)
    mean = generator.gamma(2.0, 1.5, rows) + 1
    text = ALPHABET[generator.integers(0, len(ALPHABET), 10 * rows, dtype=np.uint8)]
    offsets = np.arange(0, 10 * rows + 1, 10, dtype=np.int64)
    joinid = pa.Array.from_buffers(pa.large_string(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(text)])
    return {
        "observation_joinid": joinid,
        "raw_sum": pa.array(np.floor(nnz * mean)),
        "nnz": pa.array(nnz),
        "raw_mean_nnz": pa.array(mean),
        "raw_variance_nnz": pa.array(generator.gamma(2.0, 40.0, rows)),
        "n_measured_vars": pa.array(generator.integers(20_000, 60_000, rows)),
    }


def genes(count: int) -> pa.Table:
    """The rows of var."""
    generator = np.random.default_rng(SEED + 1)
    types = pa.DictionaryArray.from_arrays(
        pa.array(generator.integers(0, 3, count), pa.int8()), pa.array(["protein_coding", "lncRNA", "unknown"])
    )
    return pa.table(
        {
            "soma_joinid": pa.array(np.arange(count, dtype=np.int64)),
            "feature_id": pa.array([f"ENSG{number:011d}" for number in range(count)], pa.large_string()),
            "feature_name": pa.array([f"GENE{number}" for number in range(count)], pa.large_string()),
            "feature_type": types,
            "feature_length": pa.array(generator.integers(200, 20_000, count)),
            "nnz": pa.array(generator.integers(0, 8_000_000, count)),
            "n_measured_obs": pa.array(generator.integers(0, 8_000_000, count)),
        }
    )


def options(dimension: str) -> dict[str, object]:
    """How TileDB lays a data frame out."""
    zstd = {"_type": "ZstdFilter", "level": 3}
    return {
        "tiledb": {
            "create": {
                "capacity": 65_536,
                "dims": {dimension: {"tile": 2048, "filters": ["DoubleDeltaFilter", zstd]}},
                "offsets_filters": ["DoubleDeltaFilter", zstd],
                "attrs": {},
                "allows_duplicates": True,
            }
        }
    }


def write_frame(uri: str, first: pa.Table, more: Iterator[pa.Table], rows: int) -> None:
    """Make a data frame of the shape of `first` and fill it.

    It is opened anew for writing: labels that are written into a data frame just made are lost.
    """
    schema = first.schema
    with tiledbsoma.DataFrame.create(
        uri,
        schema=schema,
        index_column_names=["soma_joinid"],
        domain=[[0, max(rows - 1, 0)]],
        platform_config=options("soma_joinid"),
    ):
        pass
    for table in chain([first], more):
        with tiledbsoma.DataFrame.open(uri, "w") as frame:
            frame.write(table)


def generate(destination: Path, cells: int, features: int = 60_530) -> Path:
    """Make the collection; returns the path of its experiment."""
    temporary = destination.with_name(f".making-{destination.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with tiledbsoma.Collection.create(str(temporary)) as census:
        data = census.add_new_collection("census_data")
        experiment = data.add_new_collection("homo_sapiens", tiledbsoma.Experiment)
        rna = experiment.add_new_collection("ms", tiledbsoma.Collection).add_new_collection(
            "RNA", tiledbsoma.Measurement
        )
        where = {"obs": experiment.uri, "var": rna.uri}
    made = tables(cells)
    write_frame(f"{where['obs']}/obs", next(made), made, cells)
    write_frame(f"{where['var']}/var", genes(features), iter(()), features)
    with tiledbsoma.Experiment.open(where["obs"], "w") as experiment:
        experiment.set("obs", tiledbsoma.DataFrame.open(f"{where['obs']}/obs"), use_relative_uri=True)
    with tiledbsoma.Measurement.open(where["var"], "w") as rna:
        rna.set("var", tiledbsoma.DataFrame.open(f"{where['var']}/var"), use_relative_uri=True)
    temporary.rename(destination)
    return destination / EXPERIMENT


def main(argv: Sequence[str] | None = None) -> int:
    """Make a collection, unless it is there."""
    parser = argparse.ArgumentParser(description="Make a SOMA collection that is shaped like the CELLxGENE Census.")
    parser.add_argument("destination", type=Path)
    parser.add_argument("--cells", type=int, default=8_000_000, help="rows of obs (default: %(default)s)")
    asked = parser.parse_args(argv)
    if asked.destination.exists():
        print(f"{asked.destination} is there already", file=sys.stderr)
        return 0
    print(generate(asked.destination, asked.cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
