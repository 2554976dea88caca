"""Integrated gradients over weights: which weights account for the difference between two models."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from workbench.attribute.gather import Patterns, choose_parameters, coverage, find_loss, listed
from workbench.core.delta import Delta, applied
from workbench.core.errors import InputError, MismatchError, unknown
from workbench.core.numerics import wide
from workbench.core.records import Examples, Provenance, check_disjoint
from workbench.core.registry import attribution, objective
from workbench.core.runtime import announce, progress
from workbench.core.scores import Scores
from workbench.load.batches import Encoded, by_length, collate, encode_all
from workbench.load.models import Model
from workbench.load.weights import transposed
from workbench.trace.forward import forward
from workbench.trace.gradients import ExampleLoss, Weights, mean_gradient
from workbench.trace.plan import plan_pass


@attribution
def integrated_gradients(
    model: Model,
    forget: Examples,
    retain: Examples,
    *,
    reference: Model | None = None,
    steps: int = 8,
    form: Literal["signed", "absolute"] = "signed",
    forget_loss: ExampleLoss | str = "nll",
    include: Patterns = "*",
    exclude: Patterns = (),
    batch_tokens: int = 4096,
    show: bool = False,
) -> Scores:
    """How much of the forget loss's rise from here to the reference each weight accounts for.

    S_i = (theta'_i - theta_i) int_0^1 dL_f/dtheta_i (theta + a (theta' - theta)) da

    theta: the model's weights, theta': the reference's.   L_f: mean of `forget_loss`.   The scores sum to
    L_f(theta') - L_f(theta), up to the error of the quadrature (Gauss-Legendre on `steps` points), which is measured:
    notes["rise"] is the difference, notes["sum"] the sum.

    Args:
        retain: checked for shared rows, otherwise not used; every attribution has the same signature.
        reference: a model of the same shape, such as one retrained without the forget rows; None for all weights zero.
        steps: points on the path, >= 1; each costs one pass over the forget rows.
        form: "signed" puts weights first whose move raises the forget loss most; "absolute" ranks by |S|.
        forget_loss, include, exclude, batch_tokens, show: see `attribute.gather`. Parameters that are left out stay at theta.
    Returns: Scores in nats; the model is left as it was.
    Raises: MismatchError if the reference's parameters have other names or shapes; InputError if steps < 1.
    Reference: Sundararajan et al. 2017, arXiv:1703.01365, with weights in place of inputs.
    """
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"integrated_gradients: steps is {steps}, expected a whole number of at least 1.")
    if isinstance(forget_loss, str) and forget_loss != "nll" and objective[forget_loss].about["needs_reference"]:
        raise InputError(
            f"integrated_gradients: forget_loss {forget_loss!r} compares with the model it starts from, which every point of the "
            "path would be anew; take 'nll', or an objective without a reference."
        )
    check_disjoint(forget, retain)
    if form not in ("signed", "absolute"):
        raise unknown("form", form, ("signed", "absolute"))
    if reference is not None and reference.shapes() != model.shapes():
        raise MismatchError("integrated_gradients: the reference's parameters have other names or shapes than the model's.")
    names, loss, rows = choose_parameters(model, include, exclude), find_loss(forget_loss), encode_all(model, forget)
    # at the peak: path, Delta, its scaled copy, the overwritten weights, gradient and total
    plan = plan_pass(model, rows, names, sums=6, autograd=True, batch_tokens=batch_tokens, job="integrated gradients")
    announce(f"integrated gradients: {plan}", show=show)
    path = {name: _target(reference, name, weight) - wide(weight) for name, weight in _weights(model, names).items()}
    about = Provenance(
        "integrated_gradients",
        model.fingerprint(),
        {"forget": forget.fingerprint()},
        {"reference": "zero" if reference is None else reference.fingerprint(), "steps": steps, "form": form}
        | {"forget_loss": loss.__name__, "include": listed(include), "exclude": listed(exclude)},
        dtype=str(model.dtype),
        reduction="mean over examples, float32",
        tokens=(steps + 2) * sum(len(row.tokens) for row in rows),
    )
    whole = Delta.of({name: move.float().cpu() for name, move in path.items()}, about)
    total = _mean_on_the_way(model, rows, loss, names, whole, steps=steps, batch_tokens=batch_tokens, show=show)
    for name in names:
        total[name].mul_(path[name])
    with applied(model, whole):
        end = _loss(model, rows, loss, batch_tokens)
    notes: dict[str, Any] = {
        "rise": end - _loss(model, rows, loss, batch_tokens),
        "sum": sum(float(value.sum(dtype=torch.float64)) for value in total.values()),
        "coverage": coverage(model, names),
    }
    if abs(notes["sum"] - notes["rise"]) > 0.05 * abs(notes["rise"]):
        notes["warning"] = "the scores do not sum to the loss's rise: take more steps, or a model in float32"
    about.notes.update(notes)
    return Scores(
        {name: (value.abs() if form == "absolute" else value).float().cpu() for name, value in total.items()},
        about,
        transposed(model.hf, total),
    )


def _mean_on_the_way(
    model: Model,
    rows: list[Encoded],
    loss: ExampleLoss,
    names: list[str],
    whole: Delta,
    *,
    steps: int,
    batch_tokens: int,
    show: bool,
) -> Weights:
    """int_0^1 of the mean gradient at theta + a Delta da, by Gauss-Legendre quadrature on `steps` points."""
    total: Weights = {}
    points, shares = np.polynomial.legendre.leggauss(steps)  # on [-1, 1], where the shares sum to 2
    for point, share in progress(list(zip(points, shares, strict=True)), label="integrated gradients", show=show):
        with applied(model, whole.scaled(float(point + 1) / 2)):
            there = mean_gradient(model, rows, loss, names=names, batch_tokens=batch_tokens)
        for name in names:
            weighted = there.pop(name).mul_(float(share) / 2)
            total[name] = total[name].add_(weighted) if name in total else weighted
    return total


def _weights(model: Model, names: list[str]) -> dict[str, Tensor]:
    return {name: model.hf.get_parameter(name).detach() for name in names}


def _target(reference: Model | None, name: str, weight: Tensor) -> Tensor:
    """Where the path ends."""
    return (
        torch.zeros_like(wide(weight)) if reference is None else wide(reference.hf.get_parameter(name).detach()).to(weight.device)
    )


@torch.no_grad()
def _loss(model: Model, rows: list[Encoded], loss: ExampleLoss, batch_tokens: int) -> float:
    """Mean over rows, float64."""
    total = 0.0
    for chosen in by_length(rows, max_tokens=batch_tokens):
        total += float(loss(forward(model, collate([rows[i] for i in chosen], device=model.device)), chosen).double().sum())
    return total / len(rows)
