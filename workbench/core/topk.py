"""Exact top-k over any number of scores, without a sort and without one big buffer.

Every score is mapped to an integer key in the order of the floats (fp32 bits, with the sign handled so that the order of
the integers is the order of the numbers). Pass 1 counts the high 16 bits of all keys, which finds the bin in which the k-th
largest lies; pass 2 counts the low 16 bits inside that bin, which finds the key itself; pass 3 writes one bit a score.
All passes go chunk by chunk, so beside the scores there are the bits chosen (an eighth of a byte a score), a histogram of
65,536 counts, and one chunk's keys. Several k share every reading of the scores. Ties at the threshold are broken by
position (the earlier tensor, then the lower flat index, wins), so exactly k are chosen, the same ones on every machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from workbench.core.bits import n_bytes, pack
from workbench.core.errors import InputError, NumericsError

CHUNK = 1 << 20  # scores at a time, a multiple of 8 so that a chunk fills whole bytes; its keys stay in the cache
_BINS = 1 << 16
_ABOVE_ALL = 0x7FFFFFFF  # no number has this key; only NaN, which is refused


class Threshold(NamedTuple):
    """Where a top-k choice ends: take every key above `key`, and the first `ties` that equal it."""

    key: int
    ties: int


def order_key(scores: Tensor) -> Int32[Tensor, "n"]:
    """Order-preserving int32 key of each score, flattened: a < b as floats iff key(a) < key(b); -0.0 counts as 0.0.

    Args: scores: any shape, float32, bfloat16 or float16 (the halves convert to float32 exactly).
    """
    bits = (scores.reshape(-1).float() + 0.0).view(torch.int32)
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def _keys(tensor: Tensor) -> Iterator[Tensor]:
    return (order_key(chunk) for chunk in tensor.reshape(-1).split(CHUNK))


def _descend(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest, and how many are still wanted inside it."""
    above = counts.flip(0).cumsum(0).flip(0)  # above[b] = number of keys in bins >= b
    found = int((above >= k).nonzero()[-1])
    return found, k - int(above[found] - counts[found])


def check_no_nan(name: str, scores: Tensor) -> None:
    """NumericsError naming `name` and the first position if a score is NaN, whose place in an order is undefined."""
    for number, chunk in enumerate(scores.reshape(-1).split(CHUNK)):
        if len(chunk) and bool(chunk.max().isnan()):  # the maximum of numbers and a NaN is NaN
            first = number * CHUNK + int(chunk.isnan().nonzero()[0])
            raise NumericsError(f"top-k: the scores of {name} hold NaN, first at flat position {first:,}.")


def high_histogram(tensors: Mapping[str, Tensor]) -> Int64[Tensor, "bins"]:
    """Pass 1: counts of the high 16 bits of all keys, [65536]. One histogram serves every k.

    Args: tensors: scores by name, any shapes, on any device.
    Raises: NumericsError on NaN.
    """
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for name, tensor in tensors.items():
        check_no_nan(name, tensor)
        for key in _keys(tensor):
            counts += torch.bincount((key >> 16).add_(_BINS // 2), minlength=_BINS).cpu()
    return counts


def thresholds(tensors: Mapping[str, Tensor], ks: Sequence[int], *, high: Int64[Tensor, "bins"] | None = None) -> list[Threshold]:
    """For each k: the key of the k-th largest of all scores together, and how many of its ties belong to the top k.

    Args:
        tensors: scores by name, any shapes.
        ks: how many to keep, each 0 <= k <= number of scores; in any order.
        high: `high_histogram(tensors)` if already known.
    Raises: InputError for a k out of range; NumericsError on NaN.
    """
    high = high_histogram(tensors) if high is None else high
    total = int(high.sum())
    for k in ks:
        if not 0 <= k <= total:
            raise InputError(f"top-k: k is {k:,}, but there are {total:,} scores; expected 0 <= k <= {total:,}.")
    inside = {k: _descend(high, k) for k in ks if k > 0}
    low = {top: torch.zeros(_BINS, dtype=torch.int64) for top, _ in inside.values()}
    for tensor in tensors.values() if low else ():
        for key in _keys(tensor):
            bins = key >> 16
            for top, counts in low.items():
                found = key[bins == top - _BINS // 2]
                counts += torch.bincount(found.bitwise_and_(0xFFFF), minlength=_BINS).cpu()
    cuts = {0: Threshold(_ABOVE_ALL, 0)}
    for k, (top, wanted) in inside.items():
        bottom, ties = _descend(low[top], wanted)
        cuts[k] = Threshold(((top - _BINS // 2) << 16) | bottom, ties)
    return [cuts[k] for k in ks]


def choose_each(
    tensors: Mapping[str, Tensor], ks: Sequence[int], *, high: Int64[Tensor, "bins"] | None = None
) -> list[dict[str, UInt8[Tensor, "bytes"]]]:
    """For each k: packed bits by name (`bits.pack`), set for the k largest of all scores together, exactly k of them.

    Ties at the threshold go to the earlier tensor in the mapping's order, then to the lower flat index.

    Args: as for `thresholds`.
    Raises: as for `thresholds`.
    """
    cuts = thresholds(tensors, ks, high=high)
    left = [cut.ties for cut in cuts]
    out: list[dict[str, Tensor]] = [{} for _ in cuts]
    for name, tensor in tensors.items():
        for chosen in out:
            chosen[name] = torch.zeros(n_bytes(tensor.numel()), dtype=torch.uint8)
        for number, key in enumerate(_keys(tensor)):
            start = number * CHUNK // 8
            for position, cut in enumerate(cuts):
                bits = key > cut.key
                if left[position]:
                    tied = (key == cut.key).nonzero().squeeze(-1)[: left[position]]
                    bits[tied] = True
                    left[position] -= len(tied)
                packed = pack(bits)
                out[position][name][start : start + len(packed)] = packed
    return out


def choose(tensors: Mapping[str, Tensor], k: int) -> dict[str, UInt8[Tensor, "bytes"]]:
    """`choose_each` for one k."""
    return choose_each(tensors, [k])[0]
