"""Gradient ascent on the forget set, alone and balanced on the retain set by descent or by closeness to the reference."""

from jaxtyping import Float
from torch import Tensor

from workbench.core.numerics import Forward, mean_nll
from workbench.core.registry import objective


@objective(retain="none")
def gradient_ascent(policy: Forward, reference: Forward | None = None) -> Float[Tensor, "batch"]:
    """Gradient ascent on each forget example: minus its mean NLL.

    (1/|y|) sum_t ln p(y_t | x, y_<t). Unbounded below: it stops when told to, not by itself.

    Args:
        policy: forward pass; logprob [batch pos] in nats, mask [batch pos] true on answers.
        reference: not used.
    Returns: loss of each example, [batch], nats per token, <= 0.
    Reference: Jang et al. 2023, arXiv:2210.01504. OpenUnlearning averages over all tokens of the micro-batch, so that long
        answers weigh more; here each example weighs the same.
    """
    del reference
    return -mean_nll(policy)


@objective(retain="nll")
def gradient_difference(policy: Forward, reference: Forward | None = None) -> Float[Tensor, "batch"]:
    """Forget half of gradient difference: ascent on the forget example; `run` adds descent on a retain example.

    -NLL(forget) + retain_weight * NLL(retain), both mean NLL per token of an example.

    Args, Returns: as `gradient_ascent`.
    Reference: Liu et al. 2022, arXiv:2203.12817; Maini et al. 2024, arXiv:2401.06121 (weights 1 and 1).
    """
    return gradient_ascent(policy, reference)


@objective(retain="kl")
def kl_minimization(policy: Forward, reference: Forward | None = None) -> Float[Tensor, "batch"]:
    """Forget half of KL minimization: ascent on the forget example; `run` adds KL(reference || policy) on a retain example.

    -NLL(forget) + retain_weight * (1/|y|) sum_t sum_v q_t(v) ln(q_t(v) / p_t(v))   over the retain answer's tokens,

    with q the reference's and p the policy's distribution. The KL term is 0 at the reference and positive elsewhere.

    Args, Returns: as `gradient_ascent`.
    Reference: Maini et al. 2024, arXiv:2401.06121. TOFU's and OpenUnlearning's code average over all positions of the padded batch,
        prompt and padding included (and OpenUnlearning forwards the retain rows twice). WAGLE's and SOUL's is -sum_v p ln q: the
        other direction and without p's entropy, so that all mass on the reference's arg max is best. MUSE's takes raw logits for
        log-probabilities. The retain term here is `retain_term="kl"` of `run`.
    """
    return gradient_ascent(policy, reference)
