"""Writes the output with all but the values of its large arrays, and lays out how blocks will fill those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import msgspec
import numpy as np
import zarr
from numpy.typing import NDArray

from prefect_cytotable.tasks.core.concat import merged, packing, zarr_making
from prefect_cytotable.tasks.core.concat.frames import Inputs, write_frame
from prefect_cytotable.tasks.core.concat.model import (
    ArrayLayout,
    ArrayPlan,
    Job,
    Kind,
    Layout,
    Plan,
    Source,
    StoreFormat,
)
from prefect_cytotable.tasks.core.concat.names import MAIN, RAW, forget_names, join_names
from prefect_cytotable.tasks.core.concat.plan import indexers, width_indexer
from prefect_cytotable.tasks.core.concat.request import Merges
from prefect_cytotable.tasks.core.concat.sizes import job_rows, keep_freed_memory
from prefect_cytotable.tasks.core.concat.sparse import SparseSources, count_entries
from prefect_cytotable.tasks.core.concat.stores import Group, create_group, quiet
from prefect_cytotable.tasks.core.concat.turn import make_csr
from prefect_cytotable.tasks.core.concat.zarr_store import DirectStore, create_store, folder_of, zarr_format_of
from prefect_cytotable.tasks.core.places.files import whole

LAYOUT = "layout.json"

INT32 = int(np.iinfo(np.int32).max)

_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_ENCODINGS = {Kind.CSR: "csr_matrix", Kind.CSC: "csc_matrix"}


def prepare(plan: Plan, merges: Merges, folder: Path) -> Layout:
    """Write the output without the values of its large arrays.

    Args:
        plan: What was planned.
        merges: The merge strategies, functions among them.
        folder: A new folder for the output and what the blocks need; its layout appears last.

    Raises:
        CytotableError: Something does not fit, or an input is damaged.
    """
    keep_freed_memory()
    options = plan.options
    folder.mkdir(parents=True)
    (folder / "records").mkdir()
    output = folder / f"output.{options.format.value}"
    joined = {MAIN: join_names(plan.inputs, options, MAIN)}
    if any(one.node == RAW for one in plan.joined):
        joined[RAW] = join_names(plan.inputs, options, RAW)
    inputs = Inputs(plan.inputs)
    try:
        for one in joined.values():
            for name, indexer in indexers(one).items():
                np.save(folder / name, indexer, allow_pickle=False)
        with _created(output, plan) as root, quiet():
            _annotations(root, plan, merges, joined, inputs)
            del joined
            forget_names()
            layouts = [_array(root, array, plan, folder, number) for number, array in enumerate(plan.arrays)]
    finally:
        inputs.close()
    if options.format is StoreFormat.H5AD:
        layouts = _with_offsets(layouts, output)
    layout = Layout(
        key=plan.key,
        folder=str(folder),
        output=str(output),
        format=options.format,
        arrays=tuple(layouts),
        jobs=tuple(_jobs(layouts, plan.block_bytes)),
        block_bytes=plan.block_bytes,
    )
    with whole(folder / LAYOUT) as temporary:
        temporary.write_bytes(msgspec.json.encode(layout))
    return layout


@contextmanager
def _created(output: Path, plan: Plan) -> Iterator[Group]:
    """A new root group."""
    if plan.options.format is StoreFormat.H5AD:
        with h5py.File(output, "w") as file:
            yield _encoded(file, "anndata", "0.1.0")
    else:
        yield _encoded(create_store(output, plan.zarr_format), "anndata", "0.1.0")


def _encoded(node: Any, kind: str, encoding_version: str) -> Any:
    node.attrs.update({"encoding-type": kind, "encoding-version": encoding_version})
    return node


def _annotations(root: Group, plan: Plan, merges: Merges, joined: dict[str, Any], inputs: Inputs) -> None:
    """Names, data frames, `uns`, and what else is put together in memory."""
    options = plan.options
    for mapping in ("layers", "obsm", "varm", "obsp", "varp"):
        create_group(root, mapping, merged.DICT)
    raw = any(array.path == "raw/X" for array in plan.arrays) or any(one.path == "raw/X" for one in plan.others)
    if raw:
        create_group(root, "raw", {"encoding-type": "raw", "encoding-version": "0.1.0"})
        create_group(root, "raw/varm", merged.DICT)
        if options.axis == 0:
            merged.write_names(root["raw"], "var", joined[RAW].names)
    merged.write_other_axis(root, plan, merges, joined[MAIN], inputs)
    merged.write_uns(root, plan, merges, inputs)
    for frame in plan.frames:
        index = "raw/var" if frame.path.startswith("raw/") else options.axis_name
        write_frame(root, frame, index, inputs, options, options.format)
    for other in plan.others:
        merged.write_other(root, other.path, plan, joined, inputs)


def _array(root: Group, array: ArrayPlan, plan: Plan, folder: Path, number: int) -> ArrayLayout:
    """Make an array; of a sparse one, count its values and write where its slices begin."""
    for part in array.parts:
        if part.indexer.startswith("width-") and not (folder / part.indexer).exists():
            np.save(folder / part.indexer, width_indexer(part.indexer), allow_pickle=False)
    sources = _sources(array, plan, folder, number)
    stacked = array.axis == -1 or (array.axis == 0) is (array.kind is Kind.CSR)
    layout = ArrayLayout(
        path=array.path,
        kind=array.kind,
        shape=array.shape,
        dtype=array.dtype,
        index_dtype=np.dtype(np.int32 if max(array.shape) <= INT32 else np.int64).str,
        axis=array.axis,
        fill=array.fill,
        sources=sources,
        chunk=array.chunks[0],
        stacked=stacked,
        indptr="",
        nnz=0,
        offsets=(),
        chunks=array.chunks,
    )
    mapping, _, name = array.path.rpartition("/")
    parent = root[mapping] if mapping else root
    if array.kind is Kind.DENSE:
        packed = array.compression if all(array.shape) else ""
        _empty(parent, name, array.shape, array.dtype, array.chunks, packed, array.codec, _ARRAY)
        return replace(layout, compression=packed)
    indptr = _starts(layout, plan, folder)
    nnz = int(indptr[-1])
    layout = replace(layout, indptr=f"indptr-{number}.npy", nnz=nnz)
    if array.compression and nnz:
        chunks = (min(array.chunks[0], nnz),)
        layout = replace(layout, chunk=chunks[0], chunks=chunks, compression=array.compression)
    np.save(folder / layout.indptr, indptr, allow_pickle=False)
    how = {"encoding-type": _ENCODINGS[array.kind], "encoding-version": "0.1.0", "shape": list(array.shape)}
    group = create_group(parent, name, how)
    for dataset, dtype in (("data", layout.dtype), ("indices", layout.index_dtype)):
        _empty(group, dataset, (layout.nnz,), dtype, layout.chunks, layout.compression, array.codec)
    starts = indptr.astype(np.int32 if layout.nnz <= INT32 else np.int64)
    if plan.options.format is StoreFormat.ZARR:
        zarr_making.write_numbers(folder_of(group) / "indptr", zarr_format_of(group), starts, {}, array.codec)
    else:
        group.create_dataset("indptr", data=starts)
    return layout


def _empty(
    group: Group,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    chunks: tuple[int, ...],
    compression: str,
    codec: str,
    attributes: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Make an array without values. In HDF5 its bytes lie in a row, at a place that it gets now, or are compressed."""
    if isinstance(group, zarr.Group):
        version, told = zarr_format_of(group), dict(attributes)
        packed = zarr_making.codec(codec, version)
        if zarr_making.is_plain(name):
            zarr_making.make_array(folder_of(group) / name, version, shape, np.dtype(dtype), chunks, told, packed)
        else:
            group.create_array(
                name, shape=shape, dtype=dtype, chunks=chunks, fill_value=0, compressors=packed, attributes=told
            )
        return
    if compression:
        made = group.create_dataset(name, shape, np.dtype(dtype), chunks=chunks, compression=compression)
    else:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_layout(h5py.h5d.CONTIGUOUS)
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype), logical=True)
        made = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, settings))
    made.attrs.update(attributes)


def _with_offsets(layouts: list[ArrayLayout], output: Path) -> list[ArrayLayout]:
    found = []
    with h5py.File(output, "r") as root:
        for layout in layouts:
            if layout.compression:
                found.append(layout)
                continue
            names = ("",) if layout.kind is Kind.DENSE else ("data", "indices")
            paths = {name: f"{layout.path}/{name}".rstrip("/") for name in names}
            offsets = tuple((name, root[path].id.get_offset() or 0) for name, path in paths.items())
            found.append(replace(layout, offsets=offsets))
    return found


def _sources(array: ArrayPlan, plan: Plan, folder: Path, number: int) -> tuple[Source, ...]:
    """Where the parts are read; those of another format are turned round first."""
    stops = list(accumulate(part.extent for part in array.parts))
    stacked = array.axis >= 0 and (array.axis == 0) is (array.kind is Kind.CSR)
    found = []
    for part, stop in zip(array.parts, stops, strict=True):
        one, element, start = plan.inputs[part.input], part.element, stop - part.extent
        minor = 0 if stacked or array.kind is Kind.DENSE else start
        file, format, path = one.path, one.format.value, ""
        shape: tuple[int, ...] = (part.extent, part.width)
        if element:
            path, shape = element.path, element.shape
            if array.kind is not Kind.DENSE and element.kind is not array.kind:
                place = folder / "turned" / f"{number}-{part.input}"
                make_csr(one, element, place, plan.block_bytes)
                file, format, path = str(place), "raw", element.path
        found.append(Source(file, format, path, shape, start, stop, minor, part.indexer))
    return tuple(found)


def _starts(layout: ArrayLayout, plan: Plan, folder: Path) -> NDArray[np.int64]:
    """Where each major slice of a sparse array begins, from what each source will contribute."""
    major = layout.shape[0 if layout.kind is Kind.CSR else 1]
    counts = np.zeros(major + 1, np.int64)
    context = Layout(plan.key, str(folder), "", plan.options.format, (), (), plan.block_bytes)

    def count(number: int) -> list[tuple[int, NDArray[np.int64]]]:
        with SparseSources(context, layout) as sources:
            return list(count_entries(layout, sources, number, max(plan.block_bytes // 16, 1)))

    with ThreadPoolExecutor(plan.workers, thread_name_prefix="count") as pool:
        for first in range(0, len(layout.sources), plan.workers):
            numbers = range(first, min(first + plan.workers, len(layout.sources)))
            for found in pool.map(count, numbers):
                for low, more in found:
                    counts[low + 1 : low + 1 + len(more)] += more
    return np.cumsum(counts)


def _jobs(layouts: list[ArrayLayout], block: int) -> Iterator[Job]:
    """Ranges of the arrays, large ones in several."""
    number = 0
    for place, layout in enumerate(layouts):
        sparse = layout.kind is not Kind.DENSE
        total = layout.nnz if sparse else layout.shape[0]
        width = 1 if sparse else int(np.prod(layout.shape[1:], dtype=np.int64))
        row = width * np.dtype(layout.dtype).itemsize + (np.dtype(layout.index_dtype).itemsize if sparse else 0)
        step = job_rows(total, row, layout.chunk, block)
        for start in range(0, total if row else 0, step):
            stop = min(start + step, total)
            of = "values" if sparse else "rows"
            yield Job(number, place, start, stop, (stop - start) * row, f"{layout.path}, {of} {start}-{stop - 1}")
            number += 1


_LAYOUT = msgspec.json.Decoder(Layout)


def load_layout(folder: Path) -> Layout | None:
    """The layout of an output that an earlier run has prepared; None where there is none."""
    try:
        layout = _LAYOUT.decode((folder / LAYOUT).read_bytes())
    except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
        return None
    if packing.was_broken_off(layout):
        return None
    return layout if Path(layout.output).exists() and Path(layout.folder) == folder else None


def load_known_layout(path: str) -> Layout:
    """The layout for a block that is to be written."""
    return _LAYOUT.decode((Path(path) / LAYOUT).read_bytes())


def finish_output(layout: Layout) -> None:
    """What comes after the last block: in zarr one file with all metadata, in h5ad the chunks that are compressed."""
    if layout.format is StoreFormat.ZARR:
        with quiet():
            zarr.consolidate_metadata(DirectStore(Path(layout.output)))
    else:
        packing.pack(layout)
