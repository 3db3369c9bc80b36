"""How the output's large arrays are compressed, and in which version of zarr: as was asked for, or as inputs are."""

from __future__ import annotations

from prefect_cytotable.tasks.core.concat.model import Compression, Element, Input, Options, Part, StoreFormat

DEFAULT_ZARR_FORMAT = 2
"""That of anndata, where no input is zarr."""


def compression_of(parts: list[Part], options: Options) -> str:
    """How an array is compressed in h5ad: as was asked for, or as it is in the first h5ad file that has it."""
    if options.format is not StoreFormat.H5AD or options.compression is Compression.NONE:
        return ""
    if options.compression is not Compression.SOURCE:
        return options.compression.value
    first = next((part.element for part in parts if part.element), None)
    known = first.compression if first else ""
    return known if known in (Compression.GZIP, Compression.LZF) else ""


def _first_zarr(parts: list[Part], inputs: tuple[Input, ...]) -> tuple[Input, Element] | None:
    """The first zarr store that has an array, and its element."""
    pairs = ((inputs[part.input], part.element) for part in parts)
    return next(((one, element) for one, element in pairs if element and one.zarr_format), None)


def first_chunk(parts: list[Part], inputs: tuple[Input, ...]) -> int:
    """Stored values of a chunk of a sparse array in the first zarr store that has it; 0 where none has."""
    found = _first_zarr(parts, inputs)
    return found[1].chunks[0] if found and found[1].kind.sparse and found[1].chunks else 0


def codec_of(parts: list[Part], inputs: tuple[Input, ...], options: Options) -> str:
    """How an array is compressed in zarr: as was asked for, or as it is in the first zarr store that has it."""
    if options.format is not StoreFormat.ZARR:
        return ""
    if options.compression is not Compression.SOURCE:
        return options.compression.value
    found = _first_zarr(parts, inputs)
    return found[1].codec if found and found[0].zarr_format == zarr_format_of(inputs, options) else ""


def zarr_format_of(inputs: tuple[Input, ...], options: Options) -> int:
    """The version of zarr for the output: that of the first input that is zarr."""
    if options.format is not StoreFormat.ZARR:
        return 0
    return next((one.zarr_format for one in inputs if one.zarr_format), DEFAULT_ZARR_FORMAT)
