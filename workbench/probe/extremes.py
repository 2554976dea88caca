"""The k largest and the k smallest entries of every row of a matrix product that is never held.

    P = A B'        top[i] = the k largest of P[i, :], bottom[i] the k smallest; equal ones in the order of their columns

The product is made tile by tile in float32. A tile is read twice, for the largest and the smallest entry of every block of
BLOCK columns. The k-th largest of a row's block maxima, or the k-th best entry of the tiles before, is a lower bound of the
row's k-th largest entry, so only blocks that reach it are looked into, and of those only the entries that reach it: about k of
a thousand. These are kept as 64-bit keys, the order-preserving integer of the value above the column, so that one sort of a
few integers a row decides values and ties at once. On the CPU the sorts and partitions are NumPy's, which use wide registers.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.errors import InputError, ShapeError
from workbench.core.numerics import check_finite

BLOCK = 32
TILE = {"cpu": (1024, 4096), "cuda": (8192, 16384)}  # rows, columns: 16 and 512 MiB
_NONE = torch.iinfo(torch.int64).max  # the key of no entry: behind every other
_LOW = (1 << 32) - 1


class Extremes(NamedTuple):
    """By row: columns (int32) and values (float32) of the k largest entries, largest first, and the k smallest, smallest first."""

    top_ids: Int[Tensor, "row k"]
    top: Float[Tensor, "row k"]
    bottom_ids: Int[Tensor, "row k"]
    bottom: Float[Tensor, "row k"]


def extremes(rows: Float[Tensor, "row d"], columns: Float[Tensor, "column features"], *, k: int) -> Extremes:
    """The k largest and smallest entries of every row of `rows @ columns.T`, with their columns.

    Args:
        rows, columns: any float type; each tile is turned to float32 and multiplied there.
        k: 1 to the number of columns.
    Returns: exactly the float32 product's extremes, as a stable sort of each whole row would give them; on the rows' device.
    Raises: InputError for a bad k; ShapeError if the two differ in d; NumericsError if a product is not finite.
    """
    if rows.shape[1] != columns.shape[1]:
        raise ShapeError(f"extremes: rows have {rows.shape[1]} features, columns {columns.shape[1]}; expected as many.")
    if not 1 <= k <= len(columns):
        raise InputError(f"extremes: k is {k}, expected 1 to {len(columns):,}, the number of columns.")
    left = rows.float()
    tall, wide = TILE["cpu" if rows.device.type == "cpu" else "cuda"]
    keys = torch.full((2, len(rows), k), _NONE, dtype=torch.int64, device=rows.device)
    floor = torch.full((2, len(rows)), -torch.inf, device=rows.device)
    for first in range(0, len(columns), wide):
        right, real = _padded(columns[first : first + wide].float())
        tile = torch.empty(min(tall, len(rows)), len(right), device=rows.device)
        for start in range(0, len(rows), tall):
            part = left[start : start + tall]
            product = torch.mm(part, right.T, out=tile[: len(part)])
            for side, sign in enumerate((1, -1)):
                here = keys[side, start : start + tall], floor[side, start : start + tall]
                _update(*here, product, sign=sign, first=first, real=real)
    values = _values(keys)
    values[1].neg_().add_(0.0)  # 0 and not -0
    check_finite("extremes: the products", values)
    ids = (keys & _LOW).int()
    return Extremes(ids[0], values[0], ids[1], values[1])


def _padded(columns: Float[Tensor, "column d"]) -> tuple[Float[Tensor, "padded d"], int]:
    """Whole blocks of columns, the last filled up with copies of its last column, which change no block's extremes; and how many
    are real."""
    lacking = -len(columns) % BLOCK
    return (torch.cat([columns, columns[-1:].expand(lacking, -1)]) if lacking else columns), len(columns)


def _update(
    keys: Int[Tensor, "row k"],
    floor: Float[Tensor, "row"],
    product: Float[Tensor, "row padded"],
    *,
    sign: int,
    first: int,
    real: int,
) -> None:
    """Put what a tile has of the largest entries of sign * product into `keys`, in place; floor: the k-th largest so far."""
    n, k = keys.shape
    blocks = product.view(n, -1, BLOCK)
    peak = blocks.amax(2) if sign > 0 else blocks.amin(2).neg_()
    bound = torch.maximum(floor, _kth_largest(peak, k)) if peak.shape[1] >= k else floor
    most = int((peak >= bound[:, None]).sum(1).max())
    if most == 0:
        return
    chosen = _largest(peak, most)
    inside = (chosen + torch.arange(n, device=chosen.device)[:, None] * peak.shape[1]).flatten()
    entries = blocks.view(-1, BLOCK).index_select(0, inside).view(n, most * BLOCK)
    if sign < 0:
        entries.neg_()
    found = _reaching(entries, bound)
    block = torch.div(found, BLOCK, rounding_mode="floor")
    row = torch.div(block, most, rounding_mode="floor")
    column = chosen.flatten()[block] * BLOCK + found % BLOCK
    if real < product.shape[1]:
        kept = column < real
        found, row, column = found[kept], row[kept], column[kept]
    new = _keys(entries.flatten()[found], column + first)
    counts = torch.bincount(row, minlength=n)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    table = torch.full((n, k + int(counts.max())), _NONE, dtype=torch.int64, device=keys.device)
    table[:, :k] = keys
    table[row, k + rank] = new
    keys.copy_(_sorted(table)[:, :k])
    floor.copy_(torch.where(keys[:, -1] == _NONE, -torch.inf, _values(keys[:, -1])))


def _keys(values: Float[Tensor, "n"], column: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Larger values have smaller keys; of equal values (0 and -0 among them) the lower column has."""
    bits = (values + 0.0).view(torch.int32)
    return (~_monotone(bits)).long() << 32 | column


def _values(keys: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The float32 values that `_keys` packed."""
    return _monotone(~(keys >> 32).int()).view(torch.float32)


def _monotone(bits: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """From a float32's bits to an int32 of the same order, and back: the negative ones are turned round."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _kth_largest(x: Float[Tensor, "row n"], k: int) -> Float[Tensor, "row"]:
    if x.device.type == "cpu":
        return torch.from_numpy(np.partition(x.numpy(), x.shape[1] - k, axis=1)[:, x.shape[1] - k].copy())
    return x.topk(k, dim=1).values[:, -1]


def _largest(x: Float[Tensor, "row n"], k: int) -> Int[Tensor, "row k"]:
    """Where the k largest of each row stand, in any order."""
    if x.device.type == "cpu" and k < x.shape[1]:
        return torch.from_numpy(np.argpartition(x.numpy(), x.shape[1] - k, axis=1)[:, x.shape[1] - k :].copy())
    return x.topk(k, dim=1).indices


def _reaching(x: Float[Tensor, "row n"], bound: Float[Tensor, "row"]) -> Int[Tensor, "found"]:
    """Where, in the flattened x, an entry is at least its row's bound, in order."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(x.numpy() >= bound.numpy()[:, None]))
    return (x >= bound[:, None]).flatten().nonzero().squeeze(1)


def _sorted(x: Int[Tensor, "row n"]) -> Int[Tensor, "row n"]:
    return torch.from_numpy(np.sort(x.numpy(), axis=1)) if x.device.type == "cpu" else x.sort(dim=1).values
