"""WAGLE: which weights matter for forgetting, given that the rest should stay as it is.

    S_i = theta_i g_f,i - (1/gamma) g_r,i g_f,i

theta: the weights.   g_f, g_r: mean over examples of the gradients of forget and retain loss, float32.   gamma: curvature of the
retain loss, from replacing its Hessian by gamma I in the bilevel problem "unlearn, with the retain loss re-minimized".

The first term asks how much the forget loss would change if the weight went to zero; the second asks the same of the shift that
retaining would cause. Which of the two decides the ranking is a matter of gamma, so it is measured and reported.
"""

from typing import Literal

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from workbench.core.errors import InputError, unknown
from workbench.core.numerics import generator
from workbench.core.records import Examples, Provenance
from workbench.core.registry import attribution
from workbench.core.weights import Scores
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.trace.gradients import ExampleLoss, curvature, mean_gradient, nll

PAPER_GAMMA = 1e-6
_SAMPLE = 200_000
_ALONE = 0.99  # above this rank correlation with one term, the other has no say


@attribution
def wagle(
    model: Model,
    forget: Examples,
    retain: Examples,
    *,
    gamma: float | Literal["curvature", "paper"] = "curvature",
    form: Literal["absolute", "signed"] = "absolute",
    forget_loss: ExampleLoss = nll,
    curvature_rows: int = 16,
    damping: float = 0.1,
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> Scores:
    """Weight attribution for unlearning: |theta g_f - g_r g_f / gamma| of every weight.

    Args:
        forget_loss: the loss that will be optimized, one value an example; mean NLL a token by default.
        retain: all of its rows enter g_r; pass a sample to bound the cost.
        gamma: "curvature" takes, tensor by tensor, the mean diagonal Gauss-Newton entry of the retain loss; a number, in
            nats per squared weight, is used everywhere; "paper" is the published 1e-6 on sums of gradients, which on our
            means is 1e-6 / len(retain).
        form: "absolute" ranks by |S|; "signed" by S, so that weights whose removal would lower the forget loss come last.
        curvature_rows: retain rows (the first ones) from which the curvature is estimated.
        damping: added to each tensor's gamma, as a share of the mean over all weights; only with "curvature".
        seed: of the labels drawn for the curvature.
    Returns: Scores over every parameter. provenance.notes says how the ranking was decided: the Spearman correlation of S
        with each term alone and the share of weights where the weight term is the larger one.
    Raises: InputError if gamma is not positive.
    Reference: Jia et al. 2024, arXiv:2410.17509. Their code (`snip_advanced`) sums gradients in bfloat16 with gamma 1e-6, so
        that the second term is larger by orders of magnitude and the weights drop out of the ranking: use gamma="paper" and
        read the notes.
    """
    _check(gamma, form, curvature_rows, damping)
    forget_rows, retain_rows = encode_all(model, forget), encode_all(model, retain)
    scale = _gammas(model, retain_rows, gamma, curvature_rows, damping, seed, batch_tokens)
    g_f = mean_gradient(model, forget_rows, forget_loss, batch_tokens=batch_tokens, show=show, label="forget gradient")
    g_r = mean_gradient(model, retain_rows, nll, batch_tokens=batch_tokens, show=show, label="retain gradient")
    weights = {name: p.detach() for name, p in model.hf.named_parameters()}
    notes = _which_term(weights, g_f, g_r, scale, seed)
    scores: dict[str, Tensor] = {}
    for name in g_f:
        # theta g_f - g_r g_f / gamma = g_f (theta - g_r / gamma), in the accumulators' own memory
        signed = g_r[name].div_(-scale[name]).add_(weights[name]).mul_(g_f[name])
        scores[name] = (signed.abs_() if form == "absolute" else signed).float().cpu()
    options = {"gamma": gamma, "form": form, "forget_loss": forget_loss.__name__, "damping": damping}
    about = Provenance(
        "wagle",
        model.fingerprint(),
        {"forget": forget.fingerprint(), "retain": retain.fingerprint()},
        options | {"curvature_rows": curvature_rows},
        seed,
        str(model.dtype),
        "mean over examples, float32",
        sum(len(row.tokens) for row in forget_rows + retain_rows),
        notes,
    )
    return Scores(scores, about)


def _check(gamma: float | str, form: str, curvature_rows: int, damping: float) -> None:
    """InputError for an option out of range."""
    if gamma not in ("curvature", "paper") and not (isinstance(gamma, int | float) and 0 < gamma < float("inf")):
        raise InputError(f"wagle: gamma is {gamma!r}, expected 'curvature', 'paper' or a positive number.")
    if form not in ("absolute", "signed"):
        raise unknown("form", form, ("absolute", "signed"))
    if curvature_rows < 1 or not 0 < damping < float("inf"):
        raise InputError(f"wagle: curvature_rows is {curvature_rows} and damping {damping}; both must be positive.")


def _gammas(
    model: Model, rows: list[Encoded], gamma: float | str, n: int, damping: float, seed: int, batch_tokens: int
) -> dict[str, float]:
    """gamma of every tensor, in nats per squared weight."""
    sizes = {name: p.numel() for name, p in model.hf.named_parameters() if p.is_floating_point()}
    if gamma == "paper":
        return dict.fromkeys(sizes, PAPER_GAMMA / len(rows))
    if gamma == "curvature":
        found = curvature(model, rows[:n], seed=seed, batch_tokens=batch_tokens)
        mean = sum(found[name] * size for name, size in sizes.items()) / sum(sizes.values())
        return {name: found[name] + damping * mean for name in sizes}
    return dict.fromkeys(sizes, float(gamma))


def _which_term(
    weights: dict[str, Tensor], g_f: dict[str, Tensor], g_r: dict[str, Tensor], gamma: dict[str, float], seed: int
) -> dict[str, float | str]:
    """How the ranking by |S| came about, on up to 200,000 weights drawn from all tensors in proportion to their size."""
    total = sum(g.numel() for g in g_f.values())
    source = generator(seed)
    first, second = [], []
    for name, g in g_f.items():
        flat = torch.randint(g.numel(), (max(1, g.numel() * min(_SAMPLE, total) // total),), generator=source).to(g.device)
        forget = g.view(-1)[flat].double()
        first.append((weights[name].reshape(-1)[flat].double() * forget).cpu())
        second.append((-g_r[name].view(-1)[flat].double() * forget / gamma[name]).cpu())
    weight, retain = torch.cat(first), torch.cat(second)
    score = (weight + retain).abs().numpy()
    notes: dict[str, float | str] = {
        "spearman_with_weight_term": float(np.asarray(spearmanr(score, weight.abs().numpy()))[0]),
        "spearman_with_retain_term": float(np.asarray(spearmanr(score, retain.abs().numpy()))[0]),
        "weight_term_larger": float((weight.abs() > retain.abs()).double().mean()),
    }
    for term, other in (("weight", "retain"), ("retain", "weight")):
        alone = notes[f"spearman_with_{other}_term"]
        if float(alone) > _ALONE:
            notes["warning"] = f"the {term} term is dead: the ranking is the {other} term's (Spearman {alone:.4f})"
    return notes
