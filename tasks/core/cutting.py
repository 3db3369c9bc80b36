"""Cutting datasets into chunks: small datasets together, large ones by images, large images by objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prefect_cytotable.tasks.core import steady
from prefect_cytotable.tasks.core.model import Dataset, Inspected, Options, Region, Schema, Slice, Source, Span
from prefect_cytotable.tasks.core.places import Places
from prefect_cytotable.tasks.core.sources.base import Cut, ImageRows, Index, Keys
from prefect_cytotable.tasks.core.sources.registry import reader_of


@dataclass(frozen=True)
class Sizes:
    """Rows and bytes of one dataset: counted where it was indexed, estimated otherwise."""

    dataset: int
    indexes: dict[str, Index] | None
    rows: int
    memory: int


def keys_of(schema: Schema) -> Keys:
    """The columns that number the rows of a compartment."""
    return Keys(schema.image_number, schema.object_number)


def sources_of(inspected: Inspected, dataset: Dataset) -> list[tuple[Schema, Source]]:
    """The compartments that a dataset has, with their sources."""
    pairs = [(schema, dataset.source(schema.compartment)) for schema in inspected.schemas]
    return [(schema, source) for schema, source in pairs if source is not None]


Draft = tuple[tuple[Slice, ...], int, int]
"""(slices, rows of the base, Arrow bytes) of a chunk to be."""

Whole = tuple[Slice, int, int]
"""(slice, rows of the base, Arrow bytes) of a dataset that is not cut."""


def cut(inspected: Inspected, options: Options, sizes: list[Sizes], limit: int) -> Iterator[Draft]:
    """Chunks in the order of the output: small datasets together, large ones cut."""
    waiting: list[Whole] = []
    for one in sizes:
        if one.indexes is not None and not _stays_whole(inspected, options, one, limit):
            yield from _gathered(inspected, options, waiting, limit)
            waiting = []
            yield from _cut(inspected, options, one.dataset, one.indexes, limit)
            continue
        present = sources_of(inspected, inspected.gathered.datasets[one.dataset])
        regions = tuple(_whole(schema.compartment, one.indexes) for schema, _ in present)
        waiting.append((Slice(one.dataset, regions), one.rows, one.memory))
    yield from _gathered(inspected, options, waiting, limit)


def _gathered(inspected: Inspected, options: Options, whole: list[Whole], limit: int) -> Iterator[Draft]:
    """Chunks of neighbouring datasets that stay whole; where chunks are kept, always about the same ones together."""
    if not options.concat and not options.join:
        yield from (_together([one]) for one in whole)
    elif options.keep_chunks:
        names = [inspected.gathered.datasets[slice_.dataset].name for slice_, _, _ in whole]
        weights = [rows if options.chunk_rows else memory for _, rows, memory in whole]
        for start, stop in steady.groups(names, weights, options.chunk_rows or limit):
            yield _together(whole[start:stop])
    else:
        yield from _filled(options, whole, limit)


def _filled(options: Options, whole: list[Whole], limit: int) -> Iterator[Draft]:
    """Chunks as full as can be, one after the other."""
    waiting: list[Whole] = []
    for one in whole:
        rows = sum(row for _, row, _ in waiting) + one[1]
        memory = sum(size for _, _, size in waiting) + one[2] // 2
        if waiting and (memory > limit or (options.chunk_rows and rows > options.chunk_rows)):
            yield _together(waiting)
            waiting = []
        waiting.append(one)
    if waiting:
        yield _together(waiting)


def _stays_whole(inspected: Inspected, options: Options, sizes: Sizes, limit: int) -> bool:
    """Whether a dataset stays whole: its rows stay together, or it is a small one of many inside a file."""
    dataset = inspected.gathered.datasets[sizes.dataset]
    if all(reader_of(source.format, Places(options.storage)).cut is Cut.NEVER for source in dataset.sources):
        return True
    if options.query or not any(source.only for source in dataset.sources):
        return False
    return sizes.memory <= limit and (not options.chunk_rows or sizes.rows <= options.chunk_rows)


def _whole(compartment: str, indexes: dict[str, Index] | None) -> Region:
    """All of a source, with what its index tells, where it has one."""
    index = (indexes or {}).get(compartment)
    if index is None:
        return Region(compartment)
    spans = tuple(span for one in index.images for span in one.spans) + index.keyless_spans
    return Region(compartment, _condensed(spans), index.rows)


def _together(waiting: list[Whole]) -> Draft:
    return (
        tuple(one for one, _, _ in waiting),
        sum(row for _, row, _ in waiting),
        sum(size for *_, size in waiting),
    )


def _cut(inspected: Inspected, options: Options, number: int, indexes: dict[str, Index], limit: int) -> Iterator[Draft]:
    """Chunks of one dataset: ranges of images, or of objects where one image is too large."""
    by_image: dict[str, dict[int, ImageRows]] = {
        name: {one.image: one for one in index.images} for name, index in indexes.items()
    }
    widths = {schema.compartment: schema.row_bytes for schema in inspected.schemas}
    images = sorted({image for found in by_image.values() for image in found})
    base = by_image.get(inspected.base, {})
    keyless = {name: index.keyless for name, index in indexes.items()}
    first = True
    group: list[int] = []
    rows = memory = 0

    def close() -> Draft:
        nonlocal first
        regions = tuple(
            _region(name, [found[image] for image in group if image in found], keyless[name] if first else 0)
            for name, found in by_image.items()
        )
        bounds = (group[0], group[-1]) if group else (0, -1)
        first = False
        return (Slice(number, regions, bounds),), rows, memory

    for image in images:
        here = sum(found[image].rows * widths[name] for name, found in by_image.items() if image in found)
        count = base[image].rows if image in base else 0
        too_many = bool(options.chunk_rows) and rows + count > options.chunk_rows
        if group and (too_many or (not options.chunk_rows and memory + here // 2 > limit)):
            yield close()
            group, rows, memory = [], 0, 0
        pieces = _pieces(options, count, here, limit)
        if pieces > 1:
            parts = list(_objects(inspected, options, number, by_image, image, pieces, here))
            if parts:
                if first and any(keyless.values()):
                    yield close()
                first = False
                yield from parts
                continue
        group.append(image)
        rows, memory = rows + count, memory + here
    if group or first:
        yield close()


def _region(name: str, images: list[ImageRows], keyless: int) -> Region:
    spans = tuple(span for one in images for span in one.spans)
    return Region(name, _condensed(spans), sum(one.rows for one in images), keyless)


def _condensed(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Spans that follow each other made one."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start):
        if joined and span.start <= joined[-1].stop + 1:
            joined[-1] = Span(joined[-1].start, max(joined[-1].stop, span.stop))
        else:
            joined.append(Span(span.start, span.stop))
    return tuple(joined)


def _pieces(options: Options, rows: int, memory: int, limit: int) -> int:
    """Into how many parts an image is cut; one where it fits a chunk."""
    if options.query or not options.join or not rows:
        return 1
    if options.chunk_rows:
        return -(-rows // options.chunk_rows)
    return -(-memory // limit) if memory > 2 * limit else 1


def _objects(
    inspected: Inspected,
    options: Options,
    number: int,
    by_image: dict[str, dict[int, ImageRows]],
    image: int,
    pieces: int,
    memory: int,
) -> Iterator[Draft]:
    """One image cut by the object numbers of the base; nothing where it has rows without a number."""
    dataset = inspected.gathered.datasets[number]
    schema, source = inspected.schema(inspected.base), dataset.source(inspected.base)
    assert schema is not None
    assert source is not None
    if not schema.object_number:
        return
    numbers = reader_of(source.format, Places(options.storage)).objects(source, keys_of(schema), image)
    rows = by_image[inspected.base][image].rows
    if len(numbers) != rows:
        return
    step = options.chunk_rows or -(-rows // pieces)
    for start in range(0, rows, step):
        objects = numbers[start : start + step]
        regions = []
        for name, found in by_image.items():
            one = found.get(image, ImageRows(image, 0))
            counted = len(objects) if name == inspected.base else (0 if not one.rows else None)
            regions.append(Region(name, one.spans, counted))
        yield (
            (Slice(number, tuple(regions), (image, image), (objects[0], objects[-1])),),
            len(objects),
            memory * len(objects) // rows,
        )
