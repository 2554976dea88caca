"""Products of one module's per-example gradients, from its input x and the gradient s of its output, without those gradients.

    linear map   y = W x       <G_e, Q> = sum_t s_et . (Q x_et)          ||G_e||^2 = sum_{t,t'} (x_t . x_t') (s_t . s_t')
    lookup       y = E[id]     <G_e, Q> = sum_t s_et . Q[id_et]          ||G_e||^2 = sum_{t,t': id_t = id_t'} s_t . s_t'
    the rest     norms: the module's own backward pass, once more, for all rows at once

G_e = sum_t s_et x_et' is put together, a few examples at a time, where that is cheaper: for several directions, and for norms of
rows longer than in * out / (in + out) tokens. Factors in half precision are multiplied in float32.

Reference: Goodfellow 2015, arXiv:1510.01799 (norms of one token's gradient); Li et al. 2022, arXiv:2110.05679, section 4 (ghost
norms of sequences); Wang et al. 2024, arXiv:2406.11011 (products between examples).
"""

import copy
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.core.numerics import wide
from workbench.trace.by_module import product
from workbench.trace.watch import Unsupported

_PIECE = 1 << 20  # per-example gradients held at a time, in weights


def each_linear(
    x: Float[Tensor, "row pos in_features"], s: Float[Tensor, "row pos out_features"], *, turned: bool = False
) -> Iterator[tuple[slice, Float[Tensor, "some _ _"]]]:
    """The gradients of W, example by example, a few at a time: which rows, and [row out in], or [row in out] if `turned`."""
    left, right = (x, s) if turned else (s, x)
    step = max(1, _PIECE // (left.shape[-1] * right.shape[-1]))
    for first in range(0, len(x), step):
        rows = slice(first, min(first + step, len(x)))
        yield rows, product(left[rows].transpose(1, 2), right[rows])


def dots_linear(
    x: Float[Tensor, "row pos in_features"],
    s: Float[Tensor, "row pos out_features"],
    directions: Float[Tensor, "direction _ _"],
    *,
    turned: bool = False,
) -> Float[Tensor, "row direction"]:
    """<G_e, Q_k> of the weight of a linear map, float64.

    One direction: (s Q) . x, 2 T in out multiplications. For k of them that would be k times as much, where G_e costs as much as
    one and its products k in out; so from two directions on G_e is formed.

    Args: turned: W, and so every direction, is stored [in out].
    """
    if len(directions) == 1:
        q = directions[0].T if turned else directions[0]
        return (product(wide(s).flatten(0, 1), q).view(*s.shape[:2], -1) * wide(x)).sum((1, 2))[:, None].double()
    return both_linear(x, s, directions, turned=turned, norms=False).dots


class Both(NamedTuple):
    """dots: <G_e, Q_k>.   squares: ||G_e||^2, or None.   float64."""

    dots: Float[Tensor, "row direction"]
    squares: Float[Tensor, "row"] | None


def both_linear(
    x: Float[Tensor, "row pos in_features"],
    s: Float[Tensor, "row pos out_features"],
    directions: Float[Tensor, "direction _ _"],
    *,
    turned: bool = False,
    norms: bool = True,
) -> Both:
    """Products with several directions from G_e itself, a few rows at a time, and with `norms` ||G_e||^2 for next to nothing."""
    flat = directions.flatten(1)
    dots = torch.empty(len(x), len(directions), dtype=torch.float64, device=x.device)
    squares = torch.empty(len(x), dtype=torch.float64, device=x.device) if norms else None
    for rows, each in each_linear(x, s, turned=turned):
        dots[rows] = (each.flatten(1) @ flat.T).double()
        if squares is not None:
            squares[rows] = torch.linalg.vector_norm(each, dim=(1, 2)).double().square()
    return Both(dots, squares)


def square_linear(x: Float[Tensor, "row pos in_features"], s: Float[Tensor, "row pos out_features"]) -> Float[Tensor, "row"]:
    """||G_e||^2 of the weight of a linear map, float64: by products of tokens where that is cheaper, else by G_e itself.

    2 T^2 (in + out) against 2 T in out multiplications. The sum over pairs of tokens is not a sum of squares: rounding can make it
    negative where the gradient is all but zero, and it is taken as zero then.
    """
    length, inside, outside = x.shape[1], x.shape[2], s.shape[2]
    if length * (inside + outside) < inside * outside:
        gram = product(x, x.transpose(1, 2)) * product(s, s.transpose(1, 2))
        return gram.sum((1, 2), dtype=torch.float64).clamp_min(0)
    pieces = [each.square_().sum((1, 2), dtype=torch.float64) for _, each in each_linear(x, s)]
    return torch.cat(pieces)


def dots_lookup(
    ids: Int[Tensor, "row pos"], s: Float[Tensor, "row pos features"], directions: Float[Tensor, "direction d_vocab features"]
) -> Float[Tensor, "row direction"]:
    """<G_e, Q_k> of an embedding, float64; s is zero at the padding id."""
    return torch.stack([(wide(s) * q[ids]).sum((1, 2)).double() for q in directions], 1)


def square_lookup(ids: Int[Tensor, "row pos"], s: Float[Tensor, "row pos features"]) -> Float[Tensor, "row"]:
    """||G_e||^2 of an embedding, float64: positions with one id meet in one row of the matrix."""
    meet = ids[:, :, None] == ids[:, None, :]
    return (product(s, s.transpose(1, 2)) * meet).sum((1, 2), dtype=torch.float64).clamp_min(0)


def cross_tied(
    ids: Int[Tensor, "row pos"],
    embedded: Float[Tensor, "row pos features"],
    x: Float[Tensor, "row pos features"],
    s: Float[Tensor, "row pos d_vocab"],
) -> Float[Tensor, "row"]:
    """<A_e, B_e> of a matrix that embeds and unembeds, float64: its gradients as an unembedding, A, and as an embedding, B.

    sum_{t,t'} s_t'[id_t] (x_t' . b_t), for row v of A is sum_t' s_t'[v] x_t' and B has b_t in row id_t.

    Args: embedded: b, the gradient of the embedding's output.   x, s: input and output's gradient of the unembedding.
    """
    at = torch.stack([one[:, tokens] for one, tokens in zip(s, ids, strict=True)])  # [row t' t]
    return (wide(at) * product(x, embedded.transpose(1, 2))).sum((1, 2), dtype=torch.float64)


def each_small(
    module: nn.Module, keys: Collection[str], x: Tensor, s: Float[Tensor, "row *outer"]
) -> dict[str, Float[Tensor, "row ..."]]:
    """Every example's gradient of a small module's parameters, by attribute: its backward pass again, for all rows at once.

    Raises: Unsupported if the module cannot be run on one row at a time.
    """
    leaves = {key: getattr(module, key).detach() for key in keys}

    def run(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        twin = copy.copy(module)  # `functional_call` would run the module's hooks again
        twin._parameters = {**module._parameters, **parameters}  # pyright: ignore[reportAttributeAccessIssue]
        return twin.forward(row[None])[0]

    def back(row: Tensor, given: Tensor) -> dict[str, Tensor]:
        return torch.func.vjp(lambda parameters: run(parameters, row), leaves)[1](given)[0]

    try:
        with torch.enable_grad():
            found = torch.func.vmap(back)(x, s)
    except RuntimeError as error:
        raise Unsupported(f"a {type(module).__name__} cannot be run on one row at a time: {error}") from error
    return {key: wide(value.detach()) for key, value in found.items()}
