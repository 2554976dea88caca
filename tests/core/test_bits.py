"""Packed bits: against a loop, by hand, the padding."""

import pytest
import torch

from tests.reference import selection
from workbench.core.bits import invert, n_bytes, pack, padding, popcount, unpack

SIZES = [1, 7, 8, 9, 64, 65]


def some(n):
    return torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5


@pytest.mark.parametrize("n", SIZES)
def test_eight_bits_a_byte(n):
    bits = some(n)
    packed = pack(bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == n_bytes(n) == -(-n // 8)
    assert packed.tolist() == selection.pack(bits.tolist())
    assert torch.equal(unpack(packed, (n,)), bits)


def test_pack_by_hand():
    # lowest bit first: 1 + 4 + 128 = 133, then 2
    assert pack(torch.tensor([1, 0, 1, 0, 0, 0, 0, 1, 0, 1], dtype=torch.bool)).tolist() == [133, 2]


def test_shapes_come_back():
    bits = some(30).view(5, 3, 2)
    assert torch.equal(unpack(pack(bits), (5, 3, 2)), bits)
    assert torch.equal(unpack(pack(bits.transpose(0, 2)), (2, 3, 5)), bits.transpose(0, 2))
    assert unpack(pack(torch.zeros(0, 4, dtype=torch.bool)), (0, 4)).shape == (0, 4)
    assert bool(unpack(pack(torch.tensor(True)), ()))


def test_unpacked_bits_can_be_written():
    bits = unpack(pack(some(9)), (9,))
    bits[:] = True
    assert int(bits.sum()) == 9


@pytest.mark.parametrize("n", SIZES)
def test_popcount_and_invert(n):
    bits = some(n)
    assert popcount(pack(bits)) == int(bits.sum())
    flipped = invert(pack(bits), n)
    assert torch.equal(unpack(flipped, (n,)), ~bits)
    assert popcount(flipped) == n - int(bits.sum())  # more if the padding were set


def test_padding_by_hand():
    # 10 bits: two of the second byte are used (1 + 2), 252 = 255 - 3 is padding; 8 and 16 bits fill their bytes
    assert [padding(10), padding(8), padding(16), padding(1)] == [252, 0, 0, 254]
    assert invert(torch.tensor([133, 2], dtype=torch.uint8), 10).tolist() == [122, 1]
    assert invert(pack(torch.zeros(0, dtype=torch.bool)), 0).tolist() == []
