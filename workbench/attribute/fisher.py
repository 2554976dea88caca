"""Scores from squared gradients, of one example at a time: Fisher information, and its ratio between the sets."""

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.attribute.formula import weight_score
from workbench.attribute.gather import Gathered, Patterns, gather
from workbench.core.errors import InputError
from workbench.core.records import Examples
from workbench.core.registry import attribution
from workbench.core.scores import Scores
from workbench.load.models import Model
from workbench.trace.gradients import ExampleLoss

NEEDS = ("forget.square", "retain.square")


@weight_score("forget.square")
def fisher(weight: Float[Tensor, "..."], forget_square: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Diagonal empirical Fisher information of the forget set: F_i = (1/n) sum_e g_e,i^2.

    g_e is the gradient of one example's `forget_loss`. The retain rows are not looked at.

    Reference: Kirkpatrick et al. 2017, arXiv:1612.00796. The square of a batch's mean gradient, which much code calls Fisher,
        is another number: its expectation is F/B + (1 - 1/B) g^2 and depends on the batch size B.
    """
    del weight
    return forget_square


@attribution(needs=NEEDS)
def fisher_ratio(
    model: Model,
    forget: Examples,
    retain: Examples,
    *,
    damping: float = 1e-3,
    forget_loss: ExampleLoss | str = "nll",
    include: Patterns = "*",
    exclude: Patterns = (),
    batch_tokens: int = 4096,
    gathered: Gathered | None = None,
    show: bool = False,
) -> Scores:
    """How much more a weight matters to the forget set than to the retain set: S_i = F_f,i / (F_r,i + epsilon).

    F_f, F_r: diagonal empirical Fisher information, the mean over examples of squared per-example gradients.
    epsilon: `damping` times the mean of F_r over all scored weights, so that the scale of the loss does not matter.

    Args:
        damping: > 0. Where F_r lies below epsilon the ranking is that of F_f; notes["damped"] is the share of such weights.
        forget_loss, include, exclude, batch_tokens, gathered, show: see `attribute.gather`.
    Returns: Scores >= 0, without unit.
    Raises: InputError if damping is not positive, or the retain rows have no gradient at all.
    Reference: the selection rule of Foster et al. 2024 (SSD), arXiv:2308.07707, whose denominator is the Fisher information of all
        data, forget rows included, and whose code squares batch means (`edit.dampen` applies the published rule).
    """
    if not 0 < damping < float("inf"):
        raise InputError(f"fisher_ratio: damping is {damping}, expected a positive number.")
    found = gather(
        model,
        forget,
        retain,
        NEEDS,
        forget_loss=forget_loss,
        include=include,
        exclude=exclude,
        batch_tokens=batch_tokens,
        gathered=gathered,
        shared=False,
        show=show,
    )
    squares = found.parts["retain.square"]
    weights = sum(square.numel() for square in squares.values())
    epsilon = damping * sum(float(square.sum(dtype=torch.float64)) for square in squares.values()) / weights
    if epsilon == 0:
        raise InputError(
            "fisher_ratio: the retain rows have no gradient at any of these parameters; there is nothing to divide by."
        )
    damped = sum(int((square < epsilon).sum()) for square in squares.values()) / weights
    return found.scores(
        "fisher_ratio",
        model,
        lambda name, _: found.take("forget.square", name) / (found.take("retain.square", name) + epsilon),
        {"damping": damping},
        notes={"epsilon": epsilon, "damped": damped},
    )
