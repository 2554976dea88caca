"""WAGLE: which weights matter for forgetting, given that the rest should stay as it is.

    S_i = theta_i g_f,i - (1/gamma) g_r,i g_f,i

theta: the weights.   g_f, g_r: mean over examples of the gradients of forget and retain loss, float32.   gamma: curvature of the
retain loss, from replacing its Hessian by gamma I in the bilevel problem "unlearn, with the retain loss re-minimized".

The first term asks how much the forget loss would change if the weight went to zero; the second asks the same of the shift that
retaining would cause. Which of the two decides the ranking is a matter of gamma, so it is measured and reported.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from workbench.attribute.gather import Gathered, Patterns, choose_parameters, gather
from workbench.core.errors import InputError, unknown
from workbench.core.numerics import generator
from workbench.core.records import Examples
from workbench.core.registry import attribution
from workbench.core.scores import Scores
from workbench.core.store import text_sha256
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.trace.gradients import ExampleLoss, curvature

NEEDS = ("forget.gradient", "retain.gradient")
FORMS = ("absolute", "signed", "weight", "retain")
PAPER_GAMMA = 1e-6
_SAMPLE = 200_000
_ALONE = 0.99  # above this rank correlation with one term, the other has no say


@attribution(needs=NEEDS)
def wagle(
    model: Model,
    forget: Examples,
    retain: Examples,
    *,
    gamma: float | Literal["curvature", "paper"] = "curvature",
    form: Literal["absolute", "signed", "weight", "retain"] = "absolute",
    curvature_rows: int = 8,
    damping: float = 0.1,
    seed: int = 0,
    forget_loss: ExampleLoss | str = "nll",
    include: Patterns = "*",
    exclude: Patterns = (),
    batch_tokens: int = 4096,
    gathered: Gathered | None = None,
    show: bool = False,
) -> Scores:
    """Weight attribution for unlearning: |theta g_f - g_r g_f / gamma| of every weight.

    Args:
        retain: all of its rows enter g_r; pass a sample to bound the cost.
        gamma: "curvature" takes, tensor by tensor, the mean diagonal Gauss-Newton entry of the retain loss; a number, in
            nats per squared weight, is used everywhere; "paper" is the published 1e-6 on sums of gradients, which on our
            means is 1e-6 / len(retain).
        form: "absolute" ranks by |S|; "signed" by S: to first order - S is what `forget_loss` gains when the weight goes to zero,
            so weights come first whose removal lowers it, which is of use with the loss that unlearning minimizes (such as
            "npo"), not with the NLL; "weight" and "retain" are the two terms alone, signed: theta g_f, and - g_r g_f / gamma.
        curvature_rows: different retain rows from which the curvature is estimated, chosen by a hash of their tokens and the
            seed, so that their order does not matter.
        damping: added to each tensor's gamma, as a share of the mean over all weights; only with "curvature".
        seed: of the random signs that estimate the curvature.
        forget_loss, include, exclude, batch_tokens, gathered, show: see `attribute.gather`.
    Returns: Scores. provenance.notes says how the ranking was decided: the Spearman correlation of |S| with each term alone
        and the share of weights where the weight term is the larger one.
    Raises: InputError if gamma is not positive.
    Reference: Jia et al. 2024, arXiv:2410.17509. Their code (`snip_advanced`) sums gradients in bfloat16 with gamma 1e-6, so
        that the second term is larger by orders of magnitude and the weights drop out of the ranking: use gamma="paper" and
        read the notes.
    """
    _check(gamma, form, curvature_rows, damping)
    names = choose_parameters(model, include, exclude)
    scale = _gammas(model, names, encode_all(model, retain), gamma, curvature_rows, damping, seed)
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
    notes = _which_term(model, found, scale, seed)

    def formula(name: str, weight: Tensor) -> Tensor:
        g_f, g_r = (found.take(need, name) for need in NEEDS)
        if form == "weight":
            return weight * g_f
        shift = g_r / -scale[name]
        if form == "retain":
            return shift.mul_(g_f)
        signed = shift.add_(weight).mul_(g_f)  # theta g_f - g_r g_f / gamma = g_f (theta - g_r / gamma)
        return signed.abs_() if form == "absolute" else signed

    options = {"gamma": gamma, "form": form, "damping": damping, "curvature_rows": curvature_rows}
    return found.scores("wagle", model, formula, options, seed=seed, notes=notes)


def _check(gamma: float | str, form: str, curvature_rows: int, damping: float) -> None:
    """InputError for an option out of range."""
    number = isinstance(gamma, int | float) and not isinstance(gamma, bool) and 0 < gamma < float("inf")
    if gamma not in ("curvature", "paper") and not number:
        raise InputError(f"wagle: gamma is {gamma!r}, expected 'curvature', 'paper' or a positive number.")
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if not isinstance(curvature_rows, int) or curvature_rows < 1 or not 0 < damping < float("inf"):
        raise InputError(
            f"wagle: curvature_rows is {curvature_rows} and damping {damping}; both must be positive, the first a whole number."
        )


def _gammas(
    model: Model,
    names: Sequence[str],
    rows: list[Encoded],
    gamma: float | str,
    n: int,
    damping: float,
    seed: int,
) -> dict[str, float]:
    """gamma of every tensor, in nats per squared weight."""
    if gamma == "paper":
        return dict.fromkeys(names, PAPER_GAMMA / len(rows))
    if gamma == "curvature":
        sizes = {name: model.hf.get_parameter(name).numel() for name in names}
        found = curvature(model, sample(rows, n, seed), names=names, seed=seed)
        mean = sum(found[name] * size for name, size in sizes.items()) / sum(sizes.values())
        if mean == 0:
            raise InputError(
                "wagle: the retain loss has no curvature at any of these parameters, so there is no gamma to take from it; "
                "give gamma a number, or other parameters."
            )
        return {name: found[name] + damping * mean for name in names}
    return dict.fromkeys(names, float(gamma))


def sample(rows: Sequence[Encoded], n: int, seed: int) -> list[Encoded]:
    """`n` different rows, drawn by a hash of seed and tokens: the same ones in whatever order, however often, the rows come."""
    different = {text_sha256([seed, row.tokens, row.start]): row for row in rows}
    return [different[key] for key in sorted(different)[:n]]


def _which_term(model: Model, found: Gathered, gamma: Mapping[str, float], seed: int) -> dict[str, float | str]:
    """How the ranking by |S| came about: on all weights, or about 200,000 drawn from all tensors in proportion to their size."""
    g_f, g_r = (found.parts[need] for need in NEEDS)
    total = sum(g.numel() for g in g_f.values())
    source = generator(seed)
    first, second = [], []
    for name, g in g_f.items():
        share = max(1, g.numel() * _SAMPLE // total)
        every = torch.arange(g.numel()) if total <= _SAMPLE else torch.randint(g.numel(), (share,), generator=source)
        flat = every.to(g.device)
        forget, weight = g.view(-1)[flat].double(), model.hf.get_parameter(name).detach()
        first.append((weight.reshape(-1)[flat].double() * forget).cpu())
        second.append((-g_r[name].view(-1)[flat].double() * forget / gamma[name]).cpu())
    weight, retain = torch.cat(first), torch.cat(second)
    score = (weight + retain).abs().numpy()
    notes: dict[str, float | str] = {
        "spearman_with_weight_term": float(np.asarray(spearmanr(score, weight.abs().numpy()))[0]),
        "spearman_with_retain_term": float(np.asarray(spearmanr(score, retain.abs().numpy()))[0]),
        "weight_term_larger": float((weight.abs() > retain.abs()).double().mean()),
    }
    said = [
        f"the {term} term is dead: the ranking is the {other} term's (Spearman {notes[f'spearman_with_{other}_term']:.4f})"
        for term, other in (("weight", "retain"), ("retain", "weight"))
        if float(notes[f"spearman_with_{other}_term"]) > _ALONE
    ]
    return notes | ({"warning": "; ".join(said)} if said else {})
