"""Hidden states at the positions that predict an answer's tokens: token p of the answer is predicted from position p - 1."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.errors import InputError
from workbench.core.numerics import Forward
from workbench.load.batches import Batch
from workbench.load.models import Model
from workbench.trace.forward import forward
from workbench.trace.hooks import capture


class AnswerStates(NamedTuple):
    """One pass over a batch.

    resid_post: by layer, the residual stream behind it where an answer token is predicted, rows in order, the model's dtype.
    passed: the model's own log-probabilities of the answers, from the same pass.
    """

    resid_post: dict[int, Float[Tensor, "token d_model"]]
    passed: Forward


def predicting(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """True at the positions whose logits predict an answer token: the answer mask, one to the left."""
    return torch.cat([batch.answer[:, 1:], torch.zeros_like(batch.answer[:, :1])], dim=1)


def all_or(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers that were asked for, all of them for None.

    Raises: InputError for none, one twice, or one the model does not have.
    """
    asked = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    if not asked or len(set(asked)) != len(asked) or not set(asked) <= set(range(model.n_layers)):
        raise InputError(
            f"layers is {list(asked)}, expected different numbers from 0 to {model.n_layers - 1}, or None for all layers."
        )
    return asked


@torch.no_grad()
def answer_states(model: Model, batch: Batch, layers: Sequence[int]) -> AnswerStates:
    """What every layer holds where the batch's answers are predicted.

    The stream behind the last layer is taken before the final norm. HF's `output_hidden_states` gives it normed.

    Raises: InputError if the model is in training mode; ShapeError if an answer starts at position 0.
    """
    names = {layer: model.sites.at("resid_post", layer=layer).name for layer in layers}
    with capture(model, names.values()) as kept:
        passed = forward(model, batch)
    where = predicting(batch)
    return AnswerStates({layer: kept[name][where] for layer, name in names.items()}, passed)
