"""What competes with what when the highest-scored weights are chosen: all, a layer, a tensor, a row, or every M in a row."""

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from workbench.core.bits import pack
from workbench.core.errors import InputError, unknown
from workbench.core.names import layer_of
from workbench.core.topk import CHUNK, check_no_nan, choose_each, order_key

SCOPES = ("global", "layer", "tensor", "row")


def pattern(scope: str) -> tuple[int, int] | None:
    """(N, M) of a scope "N:M", such as "2:4"; None for one of SCOPES.

    Raises: UnknownNameError for any other word; InputError unless 1 <= N <= M.
    """
    if scope in SCOPES:
        return None
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", scope)
    if found is None:
        raise unknown("scope", scope, (*SCOPES, "2:4"))
    n, m = int(found[1]), int(found[2])
    if not 1 <= n <= m:
        raise InputError(f"scope is {scope!r}, expected N:M with 1 <= N <= M: N of every M consecutive weights of a row.")
    return n, m


def quota(sizes: Sequence[int], wanted: int) -> list[int]:
    """Split `wanted` over groups: each gets size * wanted // total, and the remainder goes, one each, to the first groups.

    Args: sizes: of the groups.   wanted: 0 to sum(sizes).
    Returns: one share a group; they sum to `wanted` and none is above its size.
    """
    total = sum(sizes)
    shares = [size * wanted // max(total, 1) for size in sizes]
    left = wanted - sum(shares)
    for position, size in enumerate(sizes):
        given = min(1, left, size - shares[position])
        shares[position] += given
        left -= given
    return shares


def select(
    tensors: Mapping[str, Tensor], wanted: Sequence[int], *, scope: str, transposed: frozenset[str] = frozenset()
) -> list[dict[str, UInt8[Tensor, "bytes"]]]:
    """For each number wanted: packed bits by name, set for the highest scores of every group, exactly so many in all.

    Args:
        tensors: scores by name.
        wanted: how many to choose in all, each 0 to the number of scores.
        scope: one of SCOPES: the groups, which share a number out by `quota`.
        transposed: matrices stored [in, out], whose rows are the stored columns.
    """
    if scope == "row":
        return [_row_select(tensors, k, transposed) for k in wanted]
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key = {"global": "", "layer": layer_of(name), "tensor": name}[scope]
        groups.setdefault(key, {})[name] = tensor
    sizes = [sum(t.numel() for t in group.values()) for group in groups.values()]
    shares = [quota(sizes, k) for k in wanted]
    out: list[dict[str, Tensor]] = [{} for _ in wanted]
    for position, group in enumerate(groups.values()):
        for whole, part in zip(out, choose_each(group, [share[position] for share in shares]), strict=True):
            whole.update(part)
    return [{name: whole[name] for name in tensors} for whole in out]  # a layer's tensors need not be neighbors


def select_pattern(
    tensors: Mapping[str, Tensor], n: int, m: int, *, transposed: frozenset[str] = frozenset()
) -> dict[str, UInt8[Tensor, "bytes"]]:
    """Packed bits by name: the `n` highest of every `m` consecutive scores along a row.

    A row's last group, where m does not divide the row's length, has r < m scores and gives n * r // m of them.
    Sparse tensor cores take 2:4 along the inputs of a linear map, which is this.
    """
    chosen = {}
    for name, tensor in tensors.items():
        bits = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
        for scores, out in _row_blocks(name, tensor, bits, transposed):
            whole = scores.shape[1] // m * m
            groups = highest(scores[:, :whole].reshape(-1, m), n)
            out[:, :whole] = groups.view(len(scores), whole)
            out[:, whole:] = highest(scores[:, whole:], n * (scores.shape[1] - whole) // m)
        chosen[name] = pack(bits)
    return chosen


def highest(scores: Tensor, k: int) -> Bool[Tensor, "row column"]:
    """True for the k highest scores of each row of [row, column], exactly k of them; ties go to the lower column."""
    key = order_key(scores).view(scores.shape)
    if k == 0 or key.numel() == 0:
        return torch.zeros(key.shape, dtype=torch.bool, device=key.device)
    cut = key.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above = key > cut
    tied = key == cut
    wanted = k - above.sum(1, keepdim=True)
    return above | (tied & (tied.cumsum(1, dtype=torch.int32) <= wanted))


def _row_select(tensors: Mapping[str, Tensor], wanted: int, transposed: frozenset[str]) -> dict[str, Tensor]:
    shapes = {name: _rows(name, tensor, transposed).shape for name, tensor in tensors.items()}
    total = sum(rows * length for rows, length in shapes.values())
    share = {name: length * wanted // max(total, 1) for name, (_, length) in shapes.items()}
    left = wanted - sum(rows * share[name] for name, (rows, _) in shapes.items())
    able = sum(rows for name, (rows, length) in shapes.items() if length > share[name])
    chosen, before = {}, 0
    for name, tensor in tensors.items():
        bits = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
        for scores, out in _row_blocks(name, tensor, bits, transposed):
            more = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
            if scores.shape[1] > share[name]:  # the remainder is spread evenly over all rows, first layer to last
                place = torch.arange(before, before + len(scores), device=scores.device)
                more = (place + 1) * left // able > place * left // able
                before += len(scores)
            out[more] = highest(scores[more], share[name] + 1)
            out[~more] = highest(scores[~more], share[name])
        chosen[name] = pack(bits)
    return chosen


def _rows(name: str, tensor: Tensor, transposed: frozenset[str]) -> Tensor:
    """`tensor` as [row, column]: one row an output of the linear map, a vector as one row."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    return tensor.T if name in transposed else tensor.flatten(0, -2)


def _row_blocks(name: str, tensor: Tensor, bits: Tensor, transposed: frozenset[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows of the scores and the same rows of `bits` (a view, to write to), about CHUNK scores at a time."""
    check_no_nan(name, tensor)
    scores, out = _rows(name, tensor, transposed), _rows(name, bits, transposed)
    step = max(1, CHUNK // max(1, scores.shape[1]))
    yield from zip(scores.split(step), out.split(step), strict=True)
