"""Preference objectives: one loss a pair of answers to one prompt, of which one is preferred.

All of them see the pair through the margin

    h = [ln pi(y+) - ln ref(y+)] - [ln pi(y-) - ln ref(y-)],

by how much more than the reference the policy prefers y+, in nats. Its gradient is that of a difference, so h can grow while
ln pi(y+) falls: likelihood displacement (Razin et al. 2024, arXiv:2410.08847).
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from workbench.core.errors import InputError, ShapeError
from workbench.core.numerics import Forward, mean_nll, sequence_logprob
from workbench.core.registry import preference


@preference
def dpo(
    chosen: Forward,
    rejected: Forward,
    reference_chosen: Forward | None = None,
    reference_rejected: Forward | None = None,
    *,
    beta: float = 0.1,
) -> Float[Tensor, "batch"]:
    """Direct preference optimization loss of each pair.

    -ln sigmoid(beta h) = ln(1 + exp(-beta h)), with h as above from log-probabilities summed over the answers' tokens.

    Args:
        chosen, rejected: the policy's passes on either answer; logprob [batch pos] in nats, mask [batch pos] true on answers.
        reference_chosen, reference_rejected: the reference's passes on the same batches.
        beta: inverse temperature, > 0, per nat.
    Returns: loss of each pair, [batch], > 0; ln 2 where the models agree.
    Raises: InputError for another beta; ShapeError if passes do not belong together or there is no reference.
    Reference: Rafailov et al. 2023, arXiv:2305.18290. OpenUnlearning's DPO has the factor 2/beta in front, like NPO: another scale.
    """
    _check_beta("dpo", beta)
    return softplus(-beta * _margin("dpo", chosen, rejected, reference_chosen, reference_rejected))


@preference
def ipo(
    chosen: Forward,
    rejected: Forward,
    reference_chosen: Forward | None = None,
    reference_rejected: Forward | None = None,
    *,
    beta: float = 0.1,
) -> Float[Tensor, "batch"]:
    """Identity preference optimization loss of each pair.

    (h - 1/(2 beta))^2, with h as above from log-probabilities summed over the answers' tokens: h is drawn to a fixed margin, and
    back to it from beyond. beta is the paper's tau.

    Args:
        chosen, rejected, reference_chosen, reference_rejected: see `dpo`.
        beta: strength of the pull towards the reference, > 0, per nat; the margin aimed at is 1/(2 beta) nats.
    Returns: loss of each pair, [batch], nats squared; 1/(4 beta^2) where the models agree.
    Raises: as `dpo`.
    Reference: Azar et al. 2023, arXiv:2310.12036, equation 17. TRL's DPOTrainer with loss_type="ipo" averages each log-probability
        over its answer's tokens first: another loss, and another scale of beta, wherever an answer has more than one token.
    """
    _check_beta("ipo", beta)
    return (_margin("ipo", chosen, rejected, reference_chosen, reference_rejected) - 1 / (2 * beta)).square()


@preference
def dpo_sft(
    chosen: Forward,
    rejected: Forward,
    reference_chosen: Forward | None = None,
    reference_rejected: Forward | None = None,
    *,
    beta: float = 0.1,
    sft_weight: float = 1.0,
) -> Float[Tensor, "batch"]:
    """DPO loss of each pair plus the NLL of its chosen answer, which works against displacement.

    -ln sigmoid(beta h) - sft_weight * (1/|y+|) ln pi(y+)

    Args:
        chosen, rejected, reference_chosen, reference_rejected, beta: see `dpo`.
        sft_weight: of the NLL, a mean over the answer's tokens in nats per token; 0 or more, 0 is `dpo`.
    Returns: loss of each pair, [batch].
    Raises: InputError for another beta or weight; ShapeError as `dpo`.
    Reference: "DPO + SFT" in Razin et al. 2024, arXiv:2410.08847. With the sum in place of the mean, long answers would weigh more;
        a weight tuned for one form is not one for the other.
    """
    if not sft_weight >= 0:
        raise InputError(f"dpo_sft: sft_weight is {sft_weight}, expected 0 or more; to unlearn the chosen answer, use unlearn.run.")
    _check_beta("dpo_sft", beta)
    margin = _margin("dpo_sft", chosen, rejected, reference_chosen, reference_rejected)
    return softplus(-beta * margin) + sft_weight * mean_nll(chosen)


def _margin(
    name: str, chosen: Forward, rejected: Forward, reference_chosen: Forward | None, reference_rejected: Forward | None
) -> Float[Tensor, "batch"]:
    """h of each pair, in nats."""
    gains: list[Tensor] = []
    for side, policy, reference in (("chosen", chosen, reference_chosen), ("rejected", rejected, reference_rejected)):
        if reference is None or reference.logprob.shape != policy.logprob.shape:
            came = "none" if reference is None else str(tuple(reference.logprob.shape))
            raise ShapeError(
                f"{name}: {side} is {tuple(policy.logprob.shape)}, reference_{side} is {came}. Both must come from the same batch."
            )
        gains.append(sequence_logprob(policy) - sequence_logprob(reference))
    if len(gains[0]) != len(gains[1]):
        raise ShapeError(
            f"{name}: {len(gains[0])} chosen answers, but {len(gains[1])} rejected ones. Each pair has one of either; was the "
            "batch split in the middle?"
        )
    return gains[0] - gains[1]


def _check_beta(name: str, beta: float) -> None:
    if not beta > 0:
        raise InputError(f"{name}: beta is {beta}, expected a positive number.")
