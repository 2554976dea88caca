"""What a model loses without some value vectors: how far the log-probability of answers drops.

    removed              mlp.out - sum_j m_j v_j          the same as zeroing these columns of the down-projection
    matched control      mlp.out - sum_j m_j r_j          r_j a random direction, ||r_j|| = ||v_j||, the same m_j

    drop_i = (1/|y_i|) sum_t [ln p(y_it) - ln p_removed(y_it)]        nats per token, one value a row; positive: it was needed

Done by hooks, so no weight is touched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.components import Place
from workbench.core.errors import DataError, InputError
from workbench.core.numerics import generator, wide
from workbench.core.runtime import progress
from workbench.load.batches import Encoded
from workbench.load.models import Model
from workbench.trace.forward import check_eval, row_nll
from workbench.trace.hooks import patch


@contextmanager
def without(model: Model, places: Sequence[Place], instead: Float[Tensor, "place d_model"] | None = None) -> Iterator[None]:
    """The model without these value vectors; with `instead`, its outputs lose m_j instead[j] in place of m_j v_j.

    Raises: InputError for a vector the model lacks, or none; during the pass ModelError where mlp.post cannot be hooked (OPT).
    """
    by_layer = _grouped(model, places)
    patches = {}
    for layer, at in by_layer.items():
        index = torch.tensor([places[j].index for j in at], device=model.device)
        if instead is None:
            patches[f"blocks.{layer}.mlp.post"] = _zero(index)
        else:
            swap = _Swap(index, instead[at].to(model.device))
            patches[f"blocks.{layer}.mlp.post"] = swap.read
            patches[f"blocks.{layer}.mlp.out"] = swap.subtract
    with patch(model, patches):
        yield


def _grouped(model: Model, places: Sequence[Place]) -> dict[int, list[int]]:
    """Positions in `places` by layer."""
    if not places:
        raise InputError("without: places is empty; name at least one value vector as (layer, neuron).")
    by_layer: dict[int, list[int]] = {}
    for j, (layer, index) in enumerate(places):
        if not (0 <= layer < model.n_layers and 0 <= index < model.d_mlp):
            raise InputError(
                f"without: there is no value vector ({layer}, {index}); layers are 0 to {model.n_layers - 1}, neurons 0 to "
                f"{model.d_mlp - 1}. Each is named (layer, neuron)."
            )
        by_layer.setdefault(layer, []).append(j)
    if len(set(places)) < len(places):
        raise InputError("without: a value vector is named twice.")
    return by_layer


def _zero(index: Tensor) -> Callable[[Tensor], Tensor]:
    def change(post: Tensor) -> Tensor:
        return post.index_fill(-1, index, 0.0)

    return change


class _Swap:
    """Remembers the coefficients on their way into the down-projection and takes m_j r_j off what comes out."""

    def __init__(self, index: Tensor, vectors: Tensor) -> None:
        self.index, self.vectors, self.seen = index, wide(vectors), torch.empty(0)

    def read(self, post: Tensor) -> None:
        self.seen = wide(post[..., self.index])

    def subtract(self, out: Tensor) -> Tensor:
        return wide(out) - self.seen @ self.vectors.to(self.seen)


def random_vectors(model: Model, places: Sequence[Place], *, seed: int) -> Float[Tensor, "place d_model"]:
    """A random direction for every value vector, uniform on the sphere, with the vector's own norm; float32."""
    drawn = torch.randn(len(places), model.d_model, generator=generator(seed))
    norms = [float(wide(model.sites.value_vectors(p.layer).view(model.hf)[p.index]).norm()) for p in places]
    return drawn / drawn.norm(dim=1, keepdim=True) * torch.tensor(norms)[:, None]


@torch.no_grad()
def drops(
    model: Model,
    sets: Sequence[Sequence[Place]],
    rows: Sequence[Encoded],
    *,
    seeds: Sequence[int] | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
    label: str = "without value vectors",
) -> Float[np.ndarray, "set draw row"]:
    """How many nats per answer token every row loses without every set of value vectors.

    Args:
        sets: each a set of (layer, neuron) that is taken out at once.
        rows: answers from `start` on.
        seeds: take random vectors of the same norms out instead, one draw a seed; None for the value vectors themselves (one
            draw).
        batch_tokens: largest padded batch, in tokens.
    Returns: float64, in the order of sets, seeds and rows.
    Raises: DataError for no rows; InputError for a vector the model lacks; NumericsError for a NaN log-probability.
    """
    check_eval(model)
    if not rows:
        raise DataError("drops: there is no row to measure on.")
    draws: list[int | None] = [None] if seeds is None else list(seeds)
    lost = np.empty((len(sets), len(draws), len(rows)))
    whole = row_nll(model, rows, batch_tokens=batch_tokens)
    for s, places in enumerate(progress(sets, label=label, show=show)):
        for d, seed in enumerate(draws):
            instead = None if seed is None else random_vectors(model, places, seed=seed)
            with without(model, places, instead):
                lost[s, d] = (row_nll(model, rows, batch_tokens=batch_tokens) - whole).numpy()
    return lost
