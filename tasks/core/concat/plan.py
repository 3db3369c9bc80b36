"""What the output will hold and what it costs: decided from the inputs' metadata and names, before a value is read."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from prefect_cytotable.tasks.core.budget import show_bytes
from prefect_cytotable.tasks.core.concat.compressing import codec_of, compression_of, first_chunk, zarr_format_of
from prefect_cytotable.tasks.core.concat.model import (
    CALLABLE,
    ArrayPlan,
    Column,
    Element,
    FramePlan,
    Input,
    Join,
    Kind,
    Options,
    OtherPlan,
    Part,
    Plan,
)
from prefect_cytotable.tasks.core.concat.names import MAIN, RAW, Joined, join_names
from prefect_cytotable.tasks.core.concat.probe import Probed, probe_aligned, probe_mapping, probe_pairwise
from prefect_cytotable.tasks.core.concat.sizes import H5_SPARSE_CHUNK, block_bytes, dense_chunks, fitted, sparse_chunk
from prefect_cytotable.tasks.core.errors import LayoutError

Elements = Sequence[Element | None]


def plan_concat(inputs: tuple[Input, ...], options: Options, processes: bool, orchestrated: bool) -> Plan:
    """The plan for inputs that were looked at.

    Args:
        inputs: In order.
        options: What the user asked for.
        processes: Whether blocks are written by processes of their own.
        orchestrated: Whether Prefect runs the tasks.

    Raises:
        LayoutError: Elements do not fit together.
        MemoryBudgetError: The budget is too small for the annotations or for one block.
    """
    raw = all(one.has_raw for one in inputs)
    joined = {MAIN: join_names(inputs, options, MAIN)}
    if raw and options.axis == 0:
        joined[RAW] = join_names(inputs, options, RAW)
    drafted = _Draft(inputs, options, joined)
    drafted.decide(raw)
    draft = Plan(
        key="",
        options=options,
        inputs=inputs,
        joined=tuple(one.summary() for one in joined.values()),
        extent=sum(one.shape[options.axis] for one in inputs),
        arrays=tuple(drafted.arrays),
        frames=tuple(drafted.frames),
        others=tuple(drafted.others),
        notes=tuple(drafted.notes),
        annotations=0,
        block=0,
        workers=0,
        memory=0,
        disk=0,
        block_bytes=block_bytes(options),
        zarr_format=zarr_format_of(inputs, options),
    )
    return replace(fitted(draft, processes, orchestrated), key=_key(draft))


def indexers(joined: Joined) -> dict[str, Any]:
    """The indexers that differ from the identity, by the names of their files."""
    found = {indexer_name(joined.node, number): joined.indexer(number) for number in range(len(joined.of_inputs))}
    return {name: indexer for name, indexer in found.items() if indexer is not None}


def indexer_name(node: str, number: int) -> str:
    """The file of an input's indexer."""
    return f"{node or 'main'}-{number}.npy"


def width_indexer(name: str) -> Any:
    """The indexer behind a name that `_width_name` gave: the first columns, and none where there are no more."""
    own, width = (int(part) for part in name.removesuffix(".npy").split("-")[1:])
    places = np.arange(width, dtype=np.int64)
    return np.where(places < own, places, -1)


def _width_name(own: int, width: int) -> str:
    return "" if own == width else f"width-{own}-{width}.npy"


class _Draft:
    """Collects what the output holds."""

    def __init__(self, inputs: tuple[Input, ...], options: Options, joined: dict[str, Joined]) -> None:
        self._inputs, self._options, self._joined = inputs, options, joined
        self._block = block_bytes(options)
        self._lacks = {node: self._differences(one) for node, one in joined.items()}
        self.arrays: list[ArrayPlan] = []
        self.frames: list[FramePlan] = []
        self.others: list[OtherPlan] = []
        self.notes: list[str] = []

    def decide(self, raw: bool) -> None:
        """Go through all that inputs can hold."""
        axis = self._options.axis_name
        self._whole("X", MAIN)
        for name in self._keys("layers"):
            self._aligned(f"layers/{name}", MAIN)
        self._frame(axis, self._options.label)
        self._mapping(f"{axis}m")
        if self._options.pairwise:
            for name in self._keys(f"{axis}p"):
                self._pairwise(f"{axis}p/{name}")
        if raw:
            self._aligned("raw/X", RAW if self._options.axis == 0 else MAIN)
            if self._options.axis == 1:
                self._frame("raw/var", self._options.label)
                self._mapping("raw/varm")
        elif any(one.has_raw for one in self._inputs):
            self.notes.append(f"raw is left out: {self._lacking([one.has_raw for one in self._inputs])} none.")

    def _whole(self, path: str, node: str) -> None:
        """X, which is treated as any layer is."""
        elements = self._elements(path)
        if not any(elements):
            self.notes.append(f"No input has {path}, so the output has none.")
        elif all(elements) or self._options.join is Join.OUTER:
            self._aligned(path, node)
        else:
            have = [one is not None for one in elements]
            self.notes.append(f"{path} is left out by join='inner': {self._lacking(have)} none.")

    def _keys(self, mapping: str) -> list[str]:
        """The names that the output has in a mapping; what an inner join leaves out is told."""
        lists = [one.keys(mapping) for one in self._inputs]
        union = list(dict.fromkeys(name for names in lists for name in names))
        if self._options.join is Join.OUTER:
            return union
        common = [name for name in union if all(name in names for names in lists)]
        for name in union:
            if name not in common:
                have = [name in names for names in lists]
                self.notes.append(f"{mapping}/{name} is left out by join='inner': {self._lacking(have)} none.")
        return common

    def _lacking(self, have: Sequence[bool]) -> str:
        lacking = [one.name for one, there in zip(self._inputs, have, strict=True) if not there]
        return f"{lacking[0]} has" if len(lacking) == 1 else f"{len(lacking)} inputs, {lacking[0]} among them, have"

    def _elements(self, path: str) -> list[Element | None]:
        return [one.element(path) for one in self._inputs]

    def _differences(self, joined: Joined) -> list[tuple[str, int, bool]]:
        """Of each input: its indexer's file, how many names of the output it lacks, whether some of its own drop."""
        found = []
        for number, own in enumerate(joined.of_inputs):
            indexer = joined.indexer(number)
            if indexer is None:
                found.append(("", 0, False))
                continue
            missing = int((indexer < 0).sum())
            dropped = len(own) > len(indexer) - missing
            found.append((indexer_name(joined.node, number), missing if len(own) else -1, dropped))
        return found

    def _aligned(self, path: str, node: str) -> None:
        """An array that is aligned to both axes."""
        elements = self._elements(path)
        if self._told_apart(path, elements):
            return
        probed = probe_aligned(elements, [missing for _, missing, _ in self._lacks[node]], self._options)
        axis, width = self._options.axis, len(self._joined[node].names)
        parts = []
        for number, (element, one) in enumerate(zip(elements, self._inputs, strict=True)):
            indexer, _, dropped = self._lacks[node][number]
            own = len(self._joined[node].of_inputs[number])
            extent = element.shape[axis] if element else self._extent(one, path)
            parts.append(Part(number, element, extent, indexer, own, dropped))
        extent = sum(part.extent for part in parts)
        self._array(path, probed, (extent, width) if axis == 0 else (width, extent), axis, parts)

    def _extent(self, one: Input, path: str) -> int:
        raw = one.element("raw/var") if path.startswith("raw/") and self._options.axis == 1 else None
        return raw.shape[0] if raw else one.shape[self._options.axis]

    def _mapping(self, mapping: str) -> None:
        """Elements that are aligned to the axis of concatenation alone."""
        for name in self._keys(mapping):
            path = f"{mapping}/{name}"
            elements = self._elements(path)
            if any(one.kind is Kind.FRAME for one in elements if one):
                self._frame(path)
                continue
            if self._told_apart(path, elements):
                continue
            probed = probe_mapping(elements, self._options)
            parts = []
            for number, (element, one) in enumerate(zip(elements, self._inputs, strict=True)):
                own = element.shape[1] if element else 0
                indexer = _width_name(own, probed.width) if element else ""
                parts.append(Part(number, element, self._extent(one, path), indexer, own, own > probed.width))
            rest = next(one.shape[2:] for one in elements if one)
            shape = (sum(part.extent for part in parts), probed.width, *rest)
            self._array(path, probed, shape, 0, parts)

    def _pairwise(self, path: str) -> None:
        """Blocks on the diagonal."""
        elements = self._elements(path)
        if self._told_apart(path, elements):
            return
        probed = probe_pairwise(elements, self._options)
        parts = []
        for number, (element, one) in enumerate(zip(elements, self._inputs, strict=True)):
            extent = one.shape[self._options.axis]
            parts.append(Part(number, element, extent, "", extent))
        extent = sum(part.extent for part in parts)
        self._array(path, probed, (extent, extent), -1, parts)

    def _told_apart(self, path: str, elements: Elements) -> bool:
        """Whether anndata has to put the elements together in memory: they are no arrays of numbers."""
        if not any(one.kind is Kind.OTHER for one in elements if one):
            return False
        self.others.append(OtherPlan(path, sum(one.size for one in elements if one)))
        return True

    def _array(self, path: str, probed: Probed, shape: tuple[int, ...], axis: int, parts: list[Part]) -> None:
        kinds = {part.element.kind for part in parts if part.element}
        dtype = probed.dtype.newbyteorder("=")
        fill = np.zeros((), dtype)
        given = self._options.fill_value
        if axis >= 0 and (given is not None or not probed.sparse):
            lacking = any(part.element is None for part in parts) or self._fills(parts, path, shape, axis)
            if lacking:
                fill = np.asarray(np.nan if given is None else given).astype(dtype)
        if not probed.sparse:
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            known = next((part.element.chunks for part in parts if part.element and part.element.chunks), ())
            widest = max(_row(part.element) for part in parts) if axis == 0 else 0
            renamed = any(part.indexer for part in parts)
            kind, chunks = Kind.DENSE, dense_chunks(shape, dtype.itemsize, known, self._block, widest, renamed)
        else:
            kind = Kind.CSC if kinds == {Kind.CSC} and axis >= 0 else Kind.CSR
            size = sum(_entries(part, fill, shape, axis) for part in parts) * (dtype.itemsize + 8)
            copied = not any(part.indexer for part in parts)
            chunks = (sparse_chunk(self._block, first_chunk(parts, self._inputs) if copied else 0),)
        packed = compression_of(parts, self._options)
        if packed and kind.sparse:
            chunks = (min(chunks[0], H5_SPARSE_CHUNK),)
        self.arrays.append(
            ArrayPlan(
                path,
                kind,
                shape,
                dtype.str,
                axis,
                fill.tobytes().hex(),
                tuple(parts),
                chunks,
                size,
                packed,
                codec_of(parts, self._inputs, self._options),
            )
        )
        lacking_parts = [part for part in parts if part.element is None]
        if lacking_parts:
            value = fill.item()
            self.notes.append(f"{path} is filled with {value} for {len(lacking_parts)} input(s) without it.")

    def _fills(self, parts: list[Part], path: str, shape: tuple[int, ...], axis: int) -> bool:
        """Whether some input lacks entries of the output's other axis."""
        if path.rpartition("/")[0] in ("obsm", "varm", "raw/varm"):
            return any(part.width < shape[1] for part in parts)
        node = RAW if path == "raw/X" and RAW in self._joined else MAIN
        return any(missing for _, missing, _ in self._lacks[node])

    def _frame(self, path: str, label: str | None = None) -> None:
        """A data frame, put together column by column."""
        elements = self._elements(path)
        for one, element in zip(self._inputs, elements, strict=True):
            if element and element.kind is not Kind.FRAME:
                raise LayoutError(
                    f"{path} is a data frame in some inputs and {element.kind.value} in {one.name}. Make it the "
                    f"same in all inputs, or leave it out."
                )
        frames = [pd.DataFrame(columns=[column.name for column in one.columns]) for one in elements if one]
        columns = list(pd.concat(frames, join=self._options.join.value).columns) if frames else []
        for column in columns:
            filled = [element if element and element.shape[0] else None for element in elements]
            _check_column(path, column, [_column(element, column) for element in filled], self._inputs)
        self.frames.append(FramePlan(path, tuple(columns), tuple(elements), self._options.join, label))


def _entries(part: Part, fill: Any, shape: tuple[int, ...], axis: int) -> int:
    """Stored values that a part gives to a sparse array, at most."""
    element, cells = part.element, part.extent * (shape[1 - axis] if axis >= 0 else 0)
    stored = 0 if element is None else element.nnz if element.kind.sparse else int(np.prod(element.shape))
    return stored + (cells if fill != 0 else 0)


def _row(element: Element | None) -> int:
    """Bytes of a row of a dense element."""
    return int(np.prod(element.shape[1:], dtype=np.int64)) * np.dtype(element.dtype).itemsize if element else 0


def _column(element: Element | None, name: str) -> Column | None:
    return next((one for one in element.columns if one.name == name), None) if element else None


def _class(column: Column) -> str:
    """What the values of a column are, as far as that decides whether columns can become one."""
    if column.encoding == "categorical":
        return ""
    if column.encoding in ("string-array", "nullable-string-array"):
        return "text"
    if column.encoding == "nullable-boolean" or np.dtype(column.dtype or "f8").kind == "b":
        return "truth values"
    if column.dtype or column.encoding == "nullable-integer":
        return "numbers"
    return column.encoding


def _check_column(path: str, name: str, columns: Sequence[Column | None], inputs: tuple[Input, ...]) -> None:
    """Refuse columns whose values have no common type that can be written."""
    classes: dict[str, str] = {}
    for one, column in zip(inputs, columns, strict=True):
        if column and (found := _class(column)):
            classes.setdefault(found, one.name)
    if len(classes) > 1:
        told = ", ".join(f"{found} in {where}" for found, where in classes.items())
        raise LayoutError(f"{path}: the column {name!r} has {told}. Make it the same in all inputs, or leave it out.")


def _key(plan: Plan) -> str:
    """Of all that the result depends on. A function that merges is unknown to us, so it serves one run alone."""
    asked = replace(plan.options, workers=0, memory_budget=0, overwrite=False)
    parts = [version("prefect-cytotable"), asked, plan.inputs, plan.block_bytes, plan.zarr_format, plan.arrays]
    if CALLABLE in (asked.merge, asked.uns_merge):
        parts.append(secrets.token_hex(8))
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def plan_lines(plan: Plan) -> list[str]:
    """A plan as text: what would be done, where, and what it would cost."""
    options, text = plan.options, []
    for one, key in zip(plan.inputs, options.keys, strict=True):
        text.append(
            f"input        {one.name}: {one.shape[0]:,} obs x {one.shape[1]:,} vars, {one.format.value}, "
            f"{show_bytes(one.size)}, key {key}"
        )
    text.append(f"output       {plan.shape[0]:,} obs x {plan.shape[1]:,} vars along {options.axis_name}")
    for joined in plan.joined:
        where = f"raw/{options.other_name}" if joined.node else options.other_name
        if joined.differing:
            text.append(
                f"names        {where}: {len(joined.differing)} input(s) differ, {joined.common:,} names in all, "
                f"{joined.union:,} in any; {options.join.value} join keeps {joined.names:,}"
            )
        else:
            text.append(f"names        {where}: the same {joined.names:,} in all inputs")
    for array in plan.arrays:
        shape = " x ".join(f"{size:,}" for size in array.shape)
        stored = sorted(
            {f"{part.element.kind.value} {np.dtype(part.element.dtype)}" for part in array.parts if part.element}
        )
        text.append(
            f"array        {array.path}: {shape}, {array.kind.value} {np.dtype(array.dtype)}, "
            f"{show_bytes(array.size)} (from {', '.join(stored)})"
        )
    text += [f"data frame   {frame.path}: {len(frame.columns)} column(s)" for frame in plan.frames]
    text += [f"in memory    {other.path}: {show_bytes(other.size)}" for other in plan.others]
    text += [f"note         {note}" for note in plan.notes]
    return [
        *text,
        f"memory       {show_bytes(plan.memory)} projected, {plan.workers} block(s) at a time, "
        f"budget {show_bytes(options.memory_budget)}",
        f"disk         up to {show_bytes(plan.disk)}",
        f"destination  {options.destination}",
    ]
