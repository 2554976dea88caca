"""Candidate sets: the tokens an attacker would try, in the order in which they are tried.

Every layer gives lists of tokens, the most suspicious first. The lists are merged rank by rank (the first of every list, the
second of every list, ...), a token that came before is skipped, and the first B distinct tokens are the candidate set C. So |C| = B
exactly, whatever the number of lists, and a larger B keeps all candidates of a smaller one.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.errors import InputError

Logits = Float[Tensor, "layer token d_vocab"]
Lists = list[Int[Tensor, "token k"]]


def head_projection(logits: Logits, k: int) -> Lists:
    """The k most likely tokens of every layer's logit lens, the last layer's list first.

    Reference: Patil et al. 2024, arXiv:2309.17410, section 4.1. Their C is the union of the top k of every layer, so that |C| is at
        most k times the number of layers and depends on how far the lists agree.
    """
    return [_first(layer, k) for layer in reversed(logits.unbind())]


def probability_delta(logits: Logits, k: int) -> Lists:
    """The k tokens that gain, and the k that lose, most probability from one of the given layers to the next, the last pair first.

    D^(l+1) - D^l with D = softmax of the layer's logit lens; a pair's gains come before its losses.

    Raises: InputError unless there are at least two layers.
    Reference: Patil et al. 2024, arXiv:2309.17410, section 4.1; their code takes differences between the layers that were
        chosen, as this does.
    """
    if len(logits) < 2:
        raise InputError(f"extraction: probability_delta needs at least two layers to compare, got {len(logits)}.")
    steps = logits.softmax(-1).diff(dim=0)
    return [found for step in reversed(steps.unbind()) for found in (_first(step, k), _first(-step, k))]


ATTACKS: dict[str, Callable[[Logits, int], Lists]] = {"head_projection": head_projection, "probability_delta": probability_delta}


def needed(lists: Sequence[Int[Tensor, "token k"]], target: Int[Tensor, "token"]) -> Float[np.ndarray, "token"]:
    """Size of the smallest candidate set that holds each target: its place in the merged order, from 1.

    Args: lists: [token k] of every source, best first.
    Returns: float64; infinite where no set of at most k tokens holds the target.
    """
    k = lists[0].shape[1]
    found = np.full(len(target), math.inf)
    merged = np.stack([one.cpu().numpy() for one in lists], axis=2).reshape(len(target), -1)  # rank by rank
    for i, (order, wanted) in enumerate(zip(merged, target.cpu().tolist(), strict=True)):
        candidates = list(dict.fromkeys(order.tolist()))[:k]
        if wanted in candidates:
            found[i] = candidates.index(wanted) + 1
    return found


def _first(values: Float[Tensor, "token d_vocab"], k: int) -> Int[Tensor, "token k"]:
    """Ids of the k largest values, falling; of equal ones the lower id first, so that no batch size changes a list."""
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :k]
