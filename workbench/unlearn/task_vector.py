"""Task arithmetic: learn the forget rows better, and go the opposite way."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from workbench.core.delta import Delta, applied
from workbench.core.numerics import Forward, mean_nll
from workbench.core.registry import objective
from workbench.load.models import Model
from workbench.train.check import PRECISION, largest_within
from workbench.unlearn.targets import check_alpha


class Negated(NamedTuple):
    """delta: the change.   lines: for the history, each with retain_nll and the part of alpha it was measured at.

    stopped: why it is not all of alpha, or "".   part: how much of it.
    """

    delta: Delta
    lines: list[dict[str, float]]
    stopped: str = ""
    part: float = 1.0


@objective(retain="none", procedure="negated")
def task_vector(policy: Forward, reference: Forward | None = None, *, alpha: float = 1.0) -> Float[Tensor, "batch"]:
    """Loss whose training is then negated: mean NLL of each forget example.

    theta_unlearned = theta - alpha (theta_reinforced - theta), where theta_reinforced has been trained on the forget rows. It is a
    difference of float32 masters, so nothing is lost to the model's dtype before the end.

    With a retain budget, the largest part of alpha is taken that bisection finds within it; see `negated`.

    Args:
        policy: forward pass; logprob [batch pos] in nats, mask [batch pos] true on answers.
        reference: not used.
        alpha: how far the opposite way, > 0.
    Returns: loss of each example, [batch], nats per token, >= 0.
    Raises: InputError for another alpha.
    Reference: Ilharco et al. 2022, arXiv:2212.04089. MUSE's code subtracts in bfloat16, where small differences are lost, and
        scales by 5 (its paper: about 2^9).
    """
    del reference
    check_alpha("task_vector", alpha)
    return mean_nll(policy)


def negated(
    model: Model,
    learned: Delta,
    *,
    alpha: float,
    measure: Callable[[], float] | None = None,
    limit: float = math.inf,
    start: float = math.nan,
) -> Negated:
    """-alpha times a change of weights or, with a limit, as much of it as bisection finds within.

    Args:
        measure: the value of the model as it is, that must not exceed `limit`.   start: what it is without the change.
    Returns: the change, with the part of alpha in the notes of its provenance where it is not all, and how it was found.
    """
    whole = learned.scaled(-alpha)
    whole = Delta(whole.changes, replace(whole.provenance, method=learned.provenance.method), whole.hooks)
    if measure is None:
        return Negated(whole, [])
    lines: list[dict[str, float]] = []

    def at(part: float) -> float:
        with applied(model, whole.scaled(part)):
            lines.append({"part": part, "retain_nll": measure()})
        return lines[-1]["retain_nll"]

    if at(1.0) <= limit:
        return Negated(whole, lines)
    found = largest_within(at, limit, start=start, tolerance=PRECISION * (limit - start))
    why = f"retain_nll is {lines[0]['retain_nll']:.4f} at alpha {alpha:g}, above {limit:.4f}; {found.part:.4f} of it is kept"
    kept = whole.scaled(found.part)
    about = replace(whole.provenance, notes={**whole.provenance.notes, "part": found.part})
    return Negated(Delta(kept.changes, about, kept.hooks), lines, why, found.part)
