"""Exact top-k over any number of scores, tensor by tensor, without a sort and without one big buffer.

Every score is mapped to an integer key in the order of the floats (fp32 bits, with the sign handled so that the order of
the integers is the order of the numbers). Pass 1 counts the high 16 bits of all keys, which finds the bin in which the k-th
largest lies; pass 2 counts the low 16 bits inside that bin, which finds the key itself. Both passes need one histogram of
65,536 counts, whatever the number of scores. Ties at the threshold are broken by position (the earlier tensor, then the lower
flat index, wins), so exactly k scores are chosen and the choice never depends on the machine.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Int32
from torch import Tensor

from workbench.core.errors import InputError, NumericsError

_CHUNK = 1 << 22
_BINS = 1 << 16


class Threshold(NamedTuple):
    """Where a top-k choice ends: take every key above `key`, and the first `ties` that equal it."""

    key: int
    ties: int


def order_key(scores: Tensor) -> Int32[Tensor, "n"]:
    """Order-preserving int32 key of each score, flattened: a < b as floats iff key(a) < key(b); -0.0 counts as 0.0.

    Args: scores: any shape, float32, bfloat16 or float16 (the halves convert to float32 exactly).
    """
    bits = (scores.reshape(-1).float() + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _keys(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    for tensor in tensors:
        for chunk in tensor.reshape(-1).split(_CHUNK):
            yield order_key(chunk)


def _histogram(index: Tensor) -> Tensor:
    return torch.bincount(index, minlength=_BINS)


def _descend(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest, and how many are still wanted inside it."""
    above = counts.flip(0).cumsum(0).flip(0)  # above[b] = number of keys in bins >= b
    found = int((above >= k).nonzero()[-1])
    return found, k - int(above[found] - counts[found])


def high_histogram(tensors: Iterable[Tensor]) -> Tensor:
    """Pass 1: counts of the high 16 bits of all keys, [65536] int64. One histogram serves every k.

    Raises: NumericsError on NaN, whose place in an order is undefined.
    """
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for tensor in tensors:
        if bool(torch.isnan(tensor).any()):
            raise NumericsError("top-k: the scores hold NaN.")
        for key in _keys([tensor]):
            counts += _histogram((key >> 16).add_(_BINS // 2)).cpu()
    return counts


def threshold(tensors: Mapping[str, Tensor], k: int, *, high: Tensor | None = None) -> Threshold:
    """Key of the k-th largest of all scores together, and how many of its ties belong to the top k.

    Args:
        tensors: scores by name, any shapes.
        k: how many to keep, 1 <= k <= number of scores.
        high: `high_histogram(tensors.values())` if already known (several k share it).
    """
    high = high_histogram(tensors.values()) if high is None else high
    total = int(high.sum())
    if not 1 <= k <= total:
        raise InputError(f"top-k: k is {k:,}, but there are {total:,} scores; expected 1 <= k <= {total:,}.")
    top, wanted = _descend(high, k)
    low = torch.zeros(_BINS, dtype=torch.int64)
    for key in _keys(tensors.values()):
        inside = key[(key >> 16) == top - _BINS // 2]
        low += _histogram((inside & 0xFFFF).long()).cpu()
    bottom, ties = _descend(low, wanted)
    return Threshold(((top - _BINS // 2) << 16) | bottom, ties)


def choose(tensors: Mapping[str, Tensor], k: int, *, high: Tensor | None = None) -> Iterable[tuple[str, Tensor]]:
    """Yield (name, bool tensor of the same shape): the k largest of all scores together, exactly k of them.

    Ties at the threshold go to the earlier tensor in the mapping's order, then to the lower flat index.
    """
    if k == 0:
        for name, tensor in tensors.items():
            yield name, torch.zeros(tensor.shape, dtype=torch.bool)
        return
    cut = threshold(tensors, k, high=high)
    ties = cut.ties
    for name, tensor in tensors.items():
        key = order_key(tensor)
        chosen = key > cut.key
        tied = (key == cut.key).nonzero().squeeze(-1)[:ties]
        chosen[tied] = True
        ties -= len(tied)
        yield name, chosen.view(tensor.shape)
