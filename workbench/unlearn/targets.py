"""Learning a distribution in place of each answer token: cross entropy against targets made from a model's own logits.

(1/|y|) sum_t sum_v -q_t(v) ln p_t(v),   over the answer's tokens y_t and the vocabulary v
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.errors import InputError, ShapeError
from workbench.core.numerics import Forward, token_mean
from workbench.core.registry import objective


class Logits(NamedTuple):
    """The parts of a pass that the objectives here read. values: [answer_token d_vocab]; those that predict each answer token."""

    values: Float[Tensor, "answer_token d_vocab"]
    target: Tensor


def logits_of(name: str, passed: Forward | None) -> Logits:
    """The logits of a pass and the ids of the tokens they predict.

    Raises: ShapeError if the pass was made without them.
    """
    if passed is None or passed.logits is None or passed.target is None:
        raise ShapeError(f"{name}: a forward pass comes without logits; make it with keep_logits=True, see `trace.forward`.")
    return Logits(passed.logits, passed.target)


@objective(retain="none", needs_reference=True, reads="logits")
def undial(policy: Forward, reference: Forward | None = None, *, beta: float = 10.0) -> Float[Tensor, "batch"]:
    """Self-distillation with adjusted logits: cross entropy with the reference, its logit of each true token lowered by beta.

    (1/|y|) sum_t CE(softmax(z_ref,t - beta 1[y_t]), softmax(z_t)), over the answer's tokens.

    Args:
        policy, reference: forward passes on one batch, with logits.
        beta: how far the true token's logit is lowered, >= 0; 0 is distillation of the reference itself.
    Returns: loss of each example, [batch], nats per token; at least the entropy of the adjusted reference.
    Raises: ShapeError if the passes are not of one batch or lack logits; InputError for a negative beta.
    Reference: Dong et al. 2024, arXiv:2402.10052, which trains LoRA of rank 8 at 1e-4. OpenUnlearning's code averages over all
        positions of the padded batch: it teaches prompt and padding as well, where its label -100 lowers the logit of the token
        with the id d_vocab - 100.
    """
    if not beta >= 0:
        raise InputError(f"undial: beta is {beta}, expected 0 or more.")
    now, before = logits_of("undial", policy), logits_of("undial", reference)
    if now.values.shape != before.values.shape:
        raise ShapeError(
            f"undial: policy has logits {tuple(now.values.shape)}, reference {tuple(before.values.shape)}. Both must come from the "
            "same batch."
        )
    lowered = before.values.scatter_add(-1, now.target[:, None], torch.full_like(before.values[:, :1], -beta))
    return token_mean(_cross_entropy(lowered.softmax(-1), now.values), policy.mask)


@objective(retain="none", reads="logits")
def ceu(policy: Forward, reference: Forward | None = None, *, skip: int = 1) -> Float[Tensor, "batch"]:
    """Cross-entropy unlearning: each answer token is to be what the model would say if that token did not exist.

    (1/|T|) sum_{t in T} CE(softmax(z_t with z_t(y_t) = -inf), softmax(z_t)), with a target that has no gradient of its own.

    T are the answer's tokens but the first `skip`, or the last one alone of an answer that has no more than `skip`: no example is
    left without a token.

    Args:
        policy: forward pass with logits.
        reference: not used.
        skip: answer tokens left out at the start, >= 0.
    Returns: loss of each example, [batch], nats per token, >= 0.
    Raises: ShapeError if the pass lacks logits; InputError for a negative skip.
    Reference: Yang 2025, arXiv:2503.01224. OpenUnlearning averages over all remaining tokens of the micro-batch, so that an answer
        of one token counts for nothing and long ones for more.
    """
    del reference
    if skip < 0:
        raise InputError(f"ceu: skip is {skip}, expected 0 or more answer tokens.")
    now = logits_of("ceu", policy)
    target = now.values.detach().scatter(-1, now.target[:, None], -torch.inf).softmax(-1)
    used = _behind(policy.mask, skip)
    return token_mean(_cross_entropy(target, now.values)[used[policy.mask]], used)


@objective(retain="none", needs_reference=True, reads="logits", procedure="reinforced")
def whos_harry_potter(
    policy: Forward,
    reference: Forward | None = None,
    *,
    alpha: float = 5.0,
    target: Literal["argmax", "softmax"] = "argmax",
    reinforce_lr: float = 1e-4,
    reinforce_epochs: int = 3,
) -> Float[Tensor, "batch"]:
    """Learning generic answers: cross entropy with what a model says that knows each answer less well.

    (1/|y|) sum_t CE(generic_t, softmax(z_t)), over the answer's tokens; see `generic_logits`. `run` trains the reinforced model
    on the forget rows first, keeps the generic logits of their answers, and drops it: it is in memory once, for one pass.

    Args:
        policy: forward pass with logits.   reference: the same batch with the generic logits in place of a model's.
        alpha: how strongly what the reinforced model prefers is pushed down, > 0, see `generic_logits`. Of answers known by heart
            the reinforced model thinks much as the baseline does, and alpha must be large (MUSE: 4 and 256).
        target: "argmax" learns the likeliest generic token, as published; "softmax" the whole generic distribution.
        reinforce_lr, reinforce_epochs: training of all weights of the reinforced model.
    Returns: loss of each example, [batch], nats per token, >= 0.
    Raises: ShapeError if the passes are not of one batch or lack logits; InputError for another target or alpha.
    Reference: Eldan and Russinovich 2023, arXiv:2310.02238, who also replace names by generic ones before they ask the
        baseline; that needs a dictionary of the text and is not done here. MUSE's "WHP" runs both models at inference and changes
        no weight; its paper describes probabilities p_b - alpha (p_r - p_b) without ReLU, its code has this rule.
    """
    del alpha, reinforce_lr, reinforce_epochs  # they make the reference
    if target not in ("argmax", "softmax"):
        raise InputError(f"whos_harry_potter: target is {target!r}, expected 'argmax' or 'softmax'.")
    now, generic = logits_of("whos_harry_potter", policy), logits_of("whos_harry_potter", reference)
    if now.values.shape != generic.values.shape:
        raise ShapeError(
            f"whos_harry_potter: policy has logits {tuple(now.values.shape)}, the generic ones are {tuple(generic.values.shape)}. "
            "Both must come from the same batch."
        )
    if target == "argmax":
        likeliest = generic.values.argmax(-1, keepdim=True)
        each = -now.values.log_softmax(-1).gather(-1, likeliest).squeeze(-1)
    else:
        each = _cross_entropy(generic.values.softmax(-1), now.values)
    return token_mean(each, policy.mask)


def check_alpha(name: str, alpha: float) -> None:
    """InputError for a factor that is not a positive number."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"{name}: alpha is {alpha}, expected a number above 0.")


def generic_logits(
    base: Float[Tensor, "*any d_vocab"], reinforced: Float[Tensor, "*any d_vocab"], *, alpha: float
) -> Float[Tensor, "*any d_vocab"]:
    """z_b - alpha ReLU(z_r - z_b): what knowing more makes likelier becomes less likely.

    These are raw logits: the rule, as published, changes if a constant is added to those of one model.

    Reference: Eldan and Russinovich 2023, arXiv:2310.02238, equation 1.
    """
    return base - alpha * (reinforced - base).relu()


def _cross_entropy(target: Float[Tensor, "token d_vocab"], logits: Float[Tensor, "token d_vocab"]) -> Float[Tensor, "token"]:
    """-sum_v q ln p = ln sum_v exp(z) - sum_v q z, in nats."""
    return logits.logsumexp(-1) - (target * logits).sum(-1)


def _behind(mask: Bool[Tensor, "batch pos"], skip: int) -> Bool[Tensor, "batch pos"]:
    """The answer tokens without the first `skip`; of an answer that has no more than `skip` the last."""
    count = mask.long().cumsum(-1)
    return mask & (count > (count[:, -1:] - 1).clamp_max(skip))
