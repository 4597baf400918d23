import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parp_cli.errors import MaskError
from parp_cli.storage.bits import pack, unpack

SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@given(SHAPES, st.integers(0, 2**16))
def test_there_and_back(shape: tuple[int, ...], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(mask.numel() / 8),)
    assert torch.equal(unpack(packed, shape), mask)


def test_the_first_entry_is_the_highest_bit_and_the_rest_is_zero() -> None:
    assert pack(torch.tensor([[True, False, False], [False, True, True]])).tolist() == [0b1000_1100]
    assert pack(torch.ones(9, dtype=torch.bool)).tolist() == [0b1111_1111, 0b1000_0000]


def test_order_in_memory_does_not_matter() -> None:
    mask = torch.tensor(numpy.arange(15).reshape(3, 5) % 4 == 0)
    assert torch.equal(pack(mask.T), pack(mask.T.contiguous()))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_bytes_that_do_not_fit_are_refused(count: int) -> None:
    with pytest.raises(MaskError, match=rf"{count} bytes does not fit shape \(3, 5\)"):
        unpack(torch.zeros(count, dtype=torch.uint8), (3, 5))


def test_only_bytes_are_unpacked() -> None:
    with pytest.raises(MaskError):
        unpack(torch.zeros(2, dtype=torch.int32), (3, 5))
