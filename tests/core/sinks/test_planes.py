"""Streams that store what cannot be compressed are zlib streams all the same."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from prefect_cytotable.tasks.core.sinks.planes import deflated, shuffled, streams, worth_compressing


def of(type_: type) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(type_, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@given(blocks=st.sampled_from([np.float64, np.float32]).flatmap(lambda type_: st.lists(of(type_), min_size=1)))
def test_a_stream_inflates_to_the_shuffled_block(blocks: list[np.ndarray]) -> None:
    for block, stream in zip(blocks, streams(blocks), strict=True):
        planes = np.frombuffer(zlib.decompress(stream), np.uint8).reshape(block.itemsize, block.size)
        assert np.ascontiguousarray(planes.T).tobytes() == block.tobytes()


@given(compress=st.lists(st.booleans(), min_size=8, max_size=8))
def test_any_choice_of_planes_inflates(compress: list[bool]) -> None:
    planes = shuffled(np.random.default_rng(1).random((9, 1000)))  # a plane is longer than one stored block
    longer = np.tile(planes, 9)
    assert zlib.decompress(deflated(longer, compress)) == longer.tobytes()


def test_noise_is_stored_and_exponents_are_compressed() -> None:
    planes = shuffled(np.random.default_rng(0).normal(size=(100, 200)))
    assert worth_compressing(planes) == [False] * 7 + [True]
    stream, all_of_it = deflated(planes, worth_compressing(planes)), zlib.compress(planes.tobytes(), 1)
    assert planes.size * 7 / 8 < len(stream) < len(all_of_it) * 1.05


def test_zeros_are_compressed() -> None:
    (stream,) = streams([np.zeros((100, 100))])
    assert len(stream) < 1000


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_block_without_numbers(dtype: type) -> None:
    (stream,) = streams([np.zeros((0, 3), dtype)])
    assert zlib.decompress(stream) == b""
