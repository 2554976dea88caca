"""Selective synaptic dampening: shrink the weights that matter much more to the forget set than to everything."""

import torch

from workbench.core.delta import Delta
from workbench.core.errors import InputError
from workbench.core.records import Examples, Provenance, check_disjoint
from workbench.core.registry import edit
from workbench.core.runtime import announce
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.trace.moments import Wanted, moments
from workbench.trace.plan import plan_pass


@edit
@torch.no_grad()
def dampen(
    model: Model,
    forget: Examples,
    retain: Examples,
    *,
    alpha: float = 10.0,
    lam: float = 1.0,
    strength: float = 1.0,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Delta:
    """Multiply each weight that carries the forget set by a factor below one.

    F_f, F_D: diagonal Fisher information of the forget set and of all data D = forget + retain, the mean over examples of
    squared per-example gradients.

        w_i <- w_i (1 - strength + strength * min(lam F_D,i / F_f,i, 1))     where F_f,i > alpha F_D,i

    Args:
        alpha: how many times more important to `forget` than to D a weight must be to be chosen. As D contains `forget`,
            alpha must lie below 1 / (forget's share of the rows).
        lam: dampening constant, >= 0; 0 sets the chosen weights to zero.
        strength: 1 is the published method, 0 changes nothing.
        batch_tokens: largest padded batch, in tokens; changes memory, not the result beyond rounding.
    Returns: a Delta over the chosen weights; the model is not changed. provenance.notes has their number.
    Raises: InputError for a bad option; DataError if the sets share rows.
    Reference: Foster et al. 2024, arXiv:2308.07707. Their code squares batch-mean gradients, so its result depends on the
        batch size; with batch size 1 the two agree. Their `lower_bound` is the upper bound 1 of the factor.
    """
    for name, value, bad in (("alpha", alpha, alpha <= 0), ("lam", lam, lam < 0), ("strength", strength, not 0 <= strength <= 1)):
        if bad:
            raise InputError(f"dampen: {name} is {value}; expected alpha > 0, lam >= 0, 0 <= strength <= 1.")
    check_disjoint(forget, retain)
    share = len(forget) / (len(forget) + len(retain))
    if alpha * share >= 1:  # F_D >= share F_f, so that alpha F_D >= F_f everywhere
        raise InputError(
            f"dampen: alpha is {alpha:g}, but forget is {share:.0%} of all rows, so no weight can qualify; "
            f"give alpha below {1 / share:.3g}, or more retain rows."
        )
    with torch.enable_grad():
        squares = frozenset({"square"})
        wanted = {"forget": Wanted(encode_all(model, forget), squares), "retain": Wanted(encode_all(model, retain), squares)}
        names = [name for name, p in model.hf.named_parameters() if p.is_floating_point()]
        every = [row for one in wanted.values() for row in one.rows]
        plan = plan_pass(
            model, every, names, sums=3, autograd=False, batch_tokens=batch_tokens, job="dampen"
        )  # two sets' squares, and the change
        announce(f"dampen: {plan}", show=show)
        found = moments(model, wanted, names, batch_tokens=batch_tokens, show=show, label="Fisher")
        important, kept = found["forget", "square"], found["retain", "square"]
    differences, chosen = {}, 0
    for name, weight in model.hf.named_parameters():
        f, everything = important[name], kept[name].mul_(1 - share).add_(important[name], alpha=share)
        hit = f > alpha * everything
        factor = torch.where(hit, (lam * everything / f).clamp_max(1.0), 1.0)
        # w (1 - strength + strength factor) - w
        differences[name] = (strength * (factor - 1.0) * weight.float()).cpu()
        chosen += int(hit.sum())
    about = Provenance(
        "dampen",
        model.fingerprint(),
        {"forget": forget.fingerprint(), "retain": retain.fingerprint()},
        {"alpha": alpha, "lam": lam, "strength": strength},
        dtype=str(model.dtype),
        reduction="mean over examples of squared per-example gradients, float32",
        notes={"chosen": chosen},
    )
    return Delta.of(differences, about)
