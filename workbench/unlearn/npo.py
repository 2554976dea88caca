"""Negative preference optimization, with a reference model and without."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from workbench.core.errors import InputError, ShapeError
from workbench.core.numerics import Forward, mean_nll, sequence_logprob
from workbench.core.registry import objective


@objective(retain="nll", needs_reference=True)
def npo(policy: Forward, reference: Forward | None = None, *, beta: float = 0.1) -> Float[Tensor, "batch"]:
    """Negative preference optimization loss of each forget example.

    (2/beta) ln(1 + exp(beta (l_policy - l_reference))), where l is the answer's log-probability summed over its tokens.
    As beta -> 0 its gradient becomes that of ascent on the summed NLL.

    Args:
        policy, reference: forward passes on one batch; logprob [batch pos] in nats, mask [batch pos] true on answers.
        beta: inverse temperature, > 0, per nat.
    Returns: loss of each example, [batch]; (2/beta) ln 2 where the models agree.
    Raises: ShapeError if the two passes differ in shape or there is no reference.
    Reference: Zhang et al. 2024, arXiv:2404.05868. Sums over tokens. WAGLE's and SOUL's code put the token mean of the whole
        micro-batch inside the sigmoid, MUSE's puts raw logits of the whole vocabulary there: other losses.
    """
    check_beta("npo", beta)
    if reference is None or reference.logprob.shape != policy.logprob.shape:
        came = "none" if reference is None else str(tuple(reference.logprob.shape))
        raise ShapeError(f"npo: policy is {tuple(policy.logprob.shape)}, reference is {came}. Both must come from the same batch.")
    margin = sequence_logprob(policy) - sequence_logprob(reference)
    return (2 / beta) * softplus(beta * margin)


@objective(retain="kl", needs_reference=True)
def npo_kl(policy: Forward, reference: Forward | None = None, *, beta: float = 0.1) -> Float[Tensor, "batch"]:
    """Negative preference optimization loss of each forget example; `run` adds KL(reference || policy) on a retain example.

    Args, Returns, Raises: as `npo`.
    Reference: Zhang et al. 2024, arXiv:2404.05868, "NPO+KL". Their code averages the KL over prompt and padding too; see
        `kl_minimization`.
    """
    return npo(policy, reference, beta=beta)


@objective(retain="nll", forget_weight=0.125)
def simnpo(policy: Forward, reference: Forward | None = None, *, beta: float = 4.5, margin: float = 0.0) -> Float[Tensor, "batch"]:
    """Simple NPO loss of each forget example: length-normalized, and without a reference model.

    -(2/beta) ln sigmoid(beta (NLL - margin)), where NLL is the mean over the answer's tokens.

    Args:
        policy: forward pass on a batch; logprob [batch pos] in nats, mask [batch pos] true on answers.
        reference: not used.
        beta: inverse temperature, > 0, in tokens per nat.
        margin: nats per token. The paper's gamma stands outside beta: gamma = beta * margin. The authors' code, and this,
            have it inside.
    Returns: loss of each example, [batch], > 0.
    Reference: Fan et al. 2024, arXiv:2410.07163; defaults of their TOFU forget10 run, with the forget loss weighted 0.125.
    """
    del reference
    check_beta("simnpo", beta)
    return (2 / beta) * softplus(-beta * (mean_nll(policy) - margin))


def check_beta(name: str, beta: float) -> None:
    """InputError unless an inverse temperature is positive."""
    if not beta > 0:
        raise InputError(f"{name}: beta is {beta}, expected a positive number; beta -> 0 is gradient_ascent.")
