"""Bits packed eight a byte, lowest bit first: pack, unpack, count, invert.

The bits of the last byte that stand for nothing (the padding) are 0 in everything written here, so that equal bits are
equal bytes and a count of the set bits is a count of the bytes' bits.
"""

from math import prod

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor


def n_bytes(bits: int) -> int:
    """Bytes that hold `bits` bits."""
    return (bits + 7) // 8


def pack(bits: Bool[Tensor, "..."]) -> UInt8[Tensor, "bytes"]:
    """Eight bits a byte, lowest bit first, flattened, on the CPU; the last byte is filled with zeros."""
    return torch.from_numpy(np.packbits(bits.detach().reshape(-1).cpu().numpy(), bitorder="little"))


def unpack(packed: UInt8[Tensor, "bytes"], shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """The inverse of `pack`."""
    flat = np.unpackbits(packed.numpy(), count=prod(shape), bitorder="little")
    return torch.from_numpy(flat.view(np.bool_)).view(shape)


def popcount(packed: UInt8[Tensor, "bytes"]) -> int:
    """How many bits are set."""
    return int(np.bitwise_count(packed.numpy()).sum(dtype=np.int64))


def padding(bits: int) -> int:
    """The last byte of `bits` packed bits with only its padding set: 0 where the bits fill it."""
    return 0xFF & (0xFF << bits % 8) if bits % 8 else 0


def invert(packed: UInt8[Tensor, "bytes"], bits: int) -> UInt8[Tensor, "bytes"]:
    """Every one of the `bits` bits flipped; the padding stays 0."""
    flipped = ~packed
    if len(flipped):
        flipped[-1] &= 0xFF ^ padding(bits)
    return flipped
