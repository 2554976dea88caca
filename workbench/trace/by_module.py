"""Gradients of one module's parameters, example by example, from what it received (x) and the gradient of what it gave (s).

    linear map   y = W x       G_e = sum_t s_et x_et'     [out in]
    lookup       y = E[id]     row v of G_e = sum of s_et over the positions t with id v
    the rest     norms, biases: the module's own backward pass, once more

Each function adds sum_e G_e to a `gradient` and sum_e G_e^2 to a `square`, where asked for. Squares are of one example's gradient,
never of a batch's. Products of half-precision factors are accumulated and kept in float32.
"""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.core.numerics import wide

_PIECE = 1 << 20  # per-example gradients held at a time, in weights


class Sums(NamedTuple):
    """Where a parameter's sums over examples go, each of its shape and at least float32; None for what nobody asked for."""

    gradient: Tensor | None
    square: Tensor | None


def product(a: Float[Tensor, "*n i k"], b: Float[Tensor, "*n k j"]) -> Float[Tensor, "*n i j"]:
    """a b, accumulated and returned in at least float32."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.device.type == "cuda":
        return torch.bmm(a, b, out_dtype=torch.float32) if a.ndim == 3 else torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def linear(
    sums: Sums,
    x: Float[Tensor, "row pos in_features"],
    s: Float[Tensor, "row pos out_features"],
    *,
    turned: bool = False,
    ids: Int[Tensor, "row pos"] | None = None,
) -> list[Tensor]:
    """Add the gradients of W in y = W x.

    Args:
        turned: W is stored [in out] (GPT-2's Conv1D).
        ids: token ids, if W is the embedding too.
    Returns: with `ids` and squares asked for, each example's gradient at its own tokens' rows, for `lookup`; else nothing.
    """
    left, right = (x, s) if turned else (s, x)
    if sums.square is None:
        if sums.gradient is not None:
            a, b = left.reshape(-1, left.shape[-1]).T, right.reshape(-1, right.shape[-1])
            if a.dtype == sums.gradient.dtype:
                sums.gradient.addmm_(a, b)
            else:
                sums.gradient.add_(product(a, b))
        return []
    crossed: list[Tensor] = []
    step = max(1, _PIECE // sums.square.numel())
    for first in range(0, len(x), step):
        each = product(left[first : first + step].transpose(1, 2), right[first : first + step])
        if sums.gradient is not None:
            sums.gradient.add_(_total(each))
        if ids is not None:
            crossed += [one[ids[first + k].unique()] for k, one in enumerate(each)]
        sums.square.add_(_total(each.square_()))
    return crossed


def _total(each: Float[Tensor, "row i j"]) -> Float[Tensor, "i j"]:
    """Sum over rows; one large row is not copied."""
    return each[0] if len(each) == 1 else each.sum(0)


def lookup(
    sums: Sums,
    ids: Int[Tensor, "row pos"],
    s: Float[Tensor, "row pos features"],
    *,
    padding: int | None = None,
    crossed: list[Tensor] | None = None,
) -> None:
    """Add the gradients of an embedding.

    Args:
        padding: the id whose row has no gradient (`nn.Embedding.padding_idx`).
        crossed: what `linear` returned, if the matrix unembeds too: with a the gradient there and b the one here,
            (a + b)^2 = a^2 + 2ab + b^2, and b is zero off the example's own tokens.
    """
    s = wide(s)
    if padding is not None:
        s = s * (ids != padding)[..., None]
    if sums.gradient is not None:
        sums.gradient.index_add_(0, ids.reshape(-1), s.reshape(-1, s.shape[-1]))
    if sums.square is not None:
        for k in range(len(ids)):
            tokens, place = ids[k].unique(return_inverse=True)
            b = torch.zeros(len(tokens), s.shape[-1], dtype=s.dtype, device=s.device).index_add_(0, place, s[k])
            sums.square.index_add_(0, tokens, b.square() + (2 * b * crossed[k] if crossed else 0))


def rerun(module: nn.Module, sums: Mapping[str, Sums], x: Tensor, s: Tensor) -> None:
    """Add the gradients of a small module's parameters (by attribute) by running it and its backward pass again.

    All rows at once for the gradient alone, row by row where squares are asked for.
    """
    alone = any(one.square is not None for one in sums.values())
    for rows in [slice(i, i + 1) for i in range(len(x))] if alone else [slice(None)]:
        with torch.enable_grad():
            leaves = {key: nn.Parameter(getattr(module, key).detach()) for key in sums}
            twin = copy.copy(module)  # `functional_call` would run the module's hooks again
            twin._parameters = {**module._parameters, **leaves}
            grads = torch.autograd.grad(twin.forward(x[rows]), list(leaves.values()), s[rows])
        for key, grad in zip(leaves, grads, strict=True):
            for total, value in zip(sums[key], (wide(grad), wide(grad).square()), strict=True):
                if total is not None:
                    total.add_(value)
