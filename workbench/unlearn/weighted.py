"""Ascent with a weight on every token: how sure the model is of it decides how hard it is pushed away."""

from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import InputError
from workbench.core.numerics import Forward, answer_length
from workbench.core.registry import objective


@objective(retain="nll")
def wga(policy: Forward, reference: Forward | None = None, *, beta: float = 1.0) -> Float[Tensor, "batch"]:
    """Weighted gradient ascent: minus each forget example's mean NLL, tokens weighted by their own probability.

    (1/|y|) sum_t w_t ln p_t,   w_t = p_t^beta, without a gradient of its own.

    Args:
        policy: forward pass; logprob [batch pos] in nats, mask [batch pos] true on answers.
        reference: not used.
        beta: 0 or more; 0 is `gradient_ascent`.
    Returns: loss of each example, [batch], nats per token, <= 0.
    Raises: InputError for a negative beta.
    Reference: Wang et al. 2025, arXiv:2502.19301, whose code has 5; 1 is the default of OpenUnlearning, which averages over
        all tokens of the micro-batch and holds a frozen second model that it never uses.
    """
    del reference
    return -_weighted_nll("wga", policy, {"beta": beta}, beta, 0.0)


@objective(retain="nll", retain_weight=0.1)
def satimp(policy: Forward, reference: Forward | None = None, *, beta1: float = 5.0, beta2: float = 1.0) -> Float[Tensor, "batch"]:
    """Ascent weighted by saturation and importance: tokens the model is sure of, but not those it cannot be surer of.

    (1/|y|) sum_t w_t ln p_t,   w_t = p_t^beta1 (1 - p_t)^beta2, without a gradient of its own.

    Args:
        policy: forward pass; logprob [batch pos] in nats, mask [batch pos] true on answers.
        reference: not used.
        beta1, beta2: 0 or more; 0 and 0 are `gradient_ascent`.
    Returns: loss of each example, [batch], nats per token, <= 0.
    Raises: InputError for a negative beta.
    Reference: Yang et al. 2025, arXiv:2505.11953, with the forget loss weighted 1 and the retain loss 0.1, as its README and
        the class in OpenUnlearning have it; OpenUnlearning's configuration file has them the other way round, 0.1 and 1.
    """
    del reference
    return -_weighted_nll("satimp", policy, {"beta1": beta1, "beta2": beta2}, beta1, beta2)


def _weighted_nll(name: str, policy: Forward, given: dict[str, float], sure: float, unsure: float) -> Float[Tensor, "batch"]:
    """-(1/|y|) sum_t p_t^sure (1 - p_t)^unsure ln p_t, with the gradient of ln p_t alone."""
    for key, value in given.items():
        if not value >= 0:
            raise InputError(f"{name}: {key} is {value}, expected 0 or more.")
    fixed = policy.logprob.detach()
    weight = (sure * fixed).exp() * (-fixed.expm1()).clamp_min(0.0) ** unsure
    return -(weight * policy.logprob).sum(-1) / answer_length(policy.mask)
