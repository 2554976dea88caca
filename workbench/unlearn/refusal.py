"""Learning to refuse: the likelihood of a refusal in place of the answer, and the preference for it over the answer."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from workbench.core.errors import ShapeError
from workbench.core.numerics import Forward, mean_nll, sequence_logprob
from workbench.core.registry import objective
from workbench.unlearn.npo import check_beta


@objective(answers="refusal")
def idk(policy: Forward, reference: Forward | None = None) -> Float[Tensor, "batch"]:
    """Preference for not knowing, by likelihood: mean NLL of a refusal in place of each forget example's answer.

    -(1/|y'|) sum_t ln p(y'_t | x, y'_<t) + retain_weight * NLL(retain), with y' a refusal; see `run`'s `refusals`.

    Args:
        policy: forward pass on the forget prompts with a refusal as answer; logprob [batch pos] in nats, mask [batch pos].
        reference: not used.
    Returns: loss of each example, [batch], nats per token, >= 0.
    Reference: Maini et al. 2024, arXiv:2401.06121, "preference optimization". Their code takes one mean over the tokens of
        refusals and retain answers together, so that token counts set the weights: a refusal has about a quarter of a retain
        answer's tokens. WAGLE's takes two means, but keeps the original answer's attention mask on the refusal; here the mask is
        that of the row with the refusal.
    """
    del reference
    return mean_nll(policy)


@objective(answers="both", needs_reference=True)
def refusal_dpo(
    policy: Forward,
    reference: Forward | None = None,
    refused: Forward | None = None,
    reference_refused: Forward | None = None,
    *,
    beta: float = 0.1,
) -> Float[Tensor, "batch"]:
    """Direct preference optimization of a refusal over each forget example's answer.

    -(2/beta) ln sigmoid(beta h),   h = [ln pi(y') - ln ref(y')] - [ln pi(y) - ln ref(y)],

    with y the answer, y' the refusal, and log-probabilities summed over their tokens. `run` adds the NLL of a retain example.

    Args:
        policy, reference: forward passes on one batch of forget answers; logprob [batch pos] in nats, mask [batch pos].
        refused, reference_refused: forward passes on the same prompts with refusals.
        beta: inverse temperature, > 0, per nat.
    Returns: loss of each example, [batch], > 0; (2/beta) ln 2 where the models agree.
    Raises: ShapeError if a pass is missing or passes do not belong together; InputError for another beta.
    Reference: Rafailov et al. 2023, arXiv:2305.18290; scale and retain term of OpenUnlearning's DPO. TOFU's `dpo` has no factor
        2/beta (20 times less at beta 0.1) and no retain term, and stops with a NameError. `dpo` is the plain form, for pairs.
    """
    check_beta("refusal_dpo", beta)
    gains: list[Tensor] = []
    for name, now, before in (("policy", policy, reference), ("refused", refused, reference_refused)):
        if now is None or before is None or now.logprob.shape != before.logprob.shape:
            came = " and ".join("none" if x is None else str(tuple(x.logprob.shape)) for x in (now, before))
            raise ShapeError(f"refusal_dpo: {name} and its reference are {came}. Both must come from the same batch.")
        gains.append(sequence_logprob(now) - sequence_logprob(before))
    if len(gains[0]) != len(gains[1]):
        raise ShapeError(f"refusal_dpo: {len(gains[0])} answers, but {len(gains[1])} refusals; was the batch split in the middle?")
    return (2 / beta) * softplus(-beta * (gains[1] - gains[0]))
