"""How far two edits that should be one are apart: the same logits, or a number that says how different."""

import torch

from workbench.core.delta import Delta, applied
from workbench.load.batches import Batch
from workbench.load.models import Model
from workbench.trace.forward import logits

_TOKENS = 8


@torch.no_grad()
def logit_gap(model: Model, one: Delta, other: Delta) -> float:
    """Largest difference of any logit between the model with `one` and with `other`, in standard deviations of the logits.

    Measured on a row of eight token ids spread over the vocabulary, which need not make sense: an identity holds for any tokens.
    The model's bits are as before afterwards.
    """
    ids = torch.linspace(0, model.d_vocab - 1, min(_TOKENS, model.context)).long()[None].to(model.device)
    there = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(ids, there, ~there, torch.arange(ids.shape[1], device=model.device)[None])
    found = []
    for delta in (one, other):
        with applied(model, delta):
            found.append(logits(model, batch).double())
    return float((found[0] - found[1]).abs().max() / found[0].std())


def rounding(dtype: torch.dtype) -> float:
    """The gap that rounding alone may make: the root of the dtype's relative precision, a change being float32 at best."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
