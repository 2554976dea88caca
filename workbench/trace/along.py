"""How fast each row's loss changes as the weights move along a given change: d loss_i(theta + t d) / dt at t = 0.

    forward      forward-mode derivatives: the change goes through the model beside the activations, in one pass
    difference   (loss_i(theta + eps d) - loss_i(theta - eps d)) / (2 eps), two plain passes; also for changes of activations
    backward     <g_i, d> as in `dots.py`, one forward and backward pass

All three are the same number, but that autograd gives the padding row of an `nn.Embedding` no gradient, so that backward leaves
it out. Forward and difference keep nothing for a backward pass. The difference has an error of order eps^2
and loses digits to rounding as eps falls: of a loss of 1 nat, float32 leaves about 1e-7 / eps.

Reference: Griewank & Walther 2008, chapter 3 (forward mode); Pearlmutter 1994, section 2, for both ways in neural networks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.autograd import forward_ad

from workbench.core.delta import Delta, applied
from workbench.core.errors import DataError, InputError, NumericsError, ShapeError, unknown
from workbench.core.numerics import Forward, answer_logprobs
from workbench.core.records import Provenance
from workbench.core.runtime import progress
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.dots import gradient_dots
from workbench.trace.forward import check_eval, forward
from workbench.trace.gradients import ExampleLoss, Weights, nll

Method = Literal["auto", "forward", "difference", "backward"]


def directional_derivatives(
    model: Model,
    rows: Sequence[Encoded],
    change: Delta | Weights,
    loss: ExampleLoss = nll,
    *,
    method: Method = "auto",
    eps: float = 1e-3,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Float64[Tensor, "row"]:
    """Derivative of every row's loss along a change of weights, at the model's present weights; float64, on the CPU.

    Args:
        change: a Delta, or values by parameter name.
        loss: answers' log-probabilities and the rows' positions -> one loss a row.
        method: see above; "auto" is what `pick_method` says.
        eps: of the difference, as a share of the change.   batch_tokens: largest padded batch, in tokens.
    Returns: in units of the loss for the whole change: a Delta twice as large has derivatives twice as large.
    Raises: InputError for forward or backward along a Delta with changes of activations, or for a model without forward-mode
        derivatives; NumericsError naming the row whose derivative is not finite.
    """
    if not rows:
        raise DataError("directional_derivatives: there are no rows, so there is nothing to measure.")
    if not eps > 0:
        raise InputError(f"directional_derivatives: eps is {eps}, expected a positive number.")
    chosen = pick_method(model, rows, change) if method == "auto" else method
    if chosen == "difference":
        found = _difference(model, rows, _as_delta(model, change), loss, eps, batch_tokens, show)
    else:
        weights = _dense(model, change, chosen)
        if not weights:
            found = torch.zeros(len(rows), dtype=torch.float64)
        elif chosen == "forward":
            found = _forward(model, rows, weights, loss, batch_tokens, show)
        else:
            found = gradient_dots(model, rows, [weights], loss, batch_tokens=batch_tokens, show=show)[:, 0]
    for i in (~torch.isfinite(found)).nonzero().flatten().tolist():
        raise NumericsError(f"directional_derivatives: that of row {rows[i].id!r} is NaN or infinite; try dtype='float32'.")
    return found


def pick_method(model: Model, rows: Sequence[Encoded], change: Delta | Weights) -> Literal["forward", "difference"]:
    """What "auto" means here: "forward" if it works on the shortest row, else "difference"."""
    if isinstance(change, Delta) and change.hooks:
        return "difference"
    weights = _dense(model, change, "forward")
    try:
        _forward(model, [min(rows, key=lambda row: len(row.tokens))], weights, nll, 1, False)
    except _NoForward:
        return "difference"
    return "forward"


class _NoForward(InputError):
    """Some operation of the model has no forward-mode derivative."""


@torch.no_grad()
def _forward(
    model: Model, rows: Sequence[Encoded], weights: Weights, loss: ExampleLoss, batch_tokens: int, show: bool
) -> Float64[Tensor, "row"]:
    """Forward mode. The weights that change are given a tangent; tied ones share it."""
    check_eval(model)
    out = torch.zeros(len(rows), dtype=torch.float64)
    parameters = dict(model.hf.named_parameters())
    with eager(model), forward_ad.dual_level():
        duals = {
            name: forward_ad.make_dual(parameters[name].detach(), value.to(parameters[name])) for name, value in weights.items()
        }
        for chosen in progress(list(by_length(rows, max_tokens=batch_tokens)), label="along", show=show):
            batch = collate([rows[i] for i in chosen], device=model.device)
            try:
                losses = loss(_forward_with(model, duals, batch), chosen)
            except (NotImplementedError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise _NoForward(
                    f"directional_derivatives: {type(model.hf).__name__} has no forward-mode derivative here "
                    f"({str(error).splitlines()[0]}); take method='difference' or 'backward'."
                ) from error
            tangent = forward_ad.unpack_dual(losses).tangent
            if tangent is not None:  # None: the loss does not depend on these weights
                out[chosen] = tangent.double().cpu()
    return out


def _forward_with(model: Model, duals: Mapping[str, Tensor], batch: Batch) -> Forward:
    inputs = {"input_ids": batch.tokens, "attention_mask": batch.attention.long(), "use_cache": False}
    if model.takes_positions:
        inputs["position_ids"] = batch.positions
    out = torch.func.functional_call(model.hf, dict(duals), kwargs=inputs)
    return Forward(answer_logprobs(out.logits, batch.tokens, batch.answer), batch.answer)


@contextmanager
def eager(model: Model) -> Iterator[None]:
    """Attention written out, which has forward-mode derivatives on every device; the model's own on exit."""
    before = model.hf.config._attn_implementation or "eager"
    try:
        if before != "eager":
            model.hf.set_attn_implementation("eager")
        yield
    finally:
        if before != "eager":
            model.hf.set_attn_implementation(before)


@torch.no_grad()
def _difference(
    model: Model, rows: Sequence[Encoded], delta: Delta, loss: ExampleLoss, eps: float, batch_tokens: int, show: bool
) -> Float64[Tensor, "row"]:
    out = torch.zeros(len(rows), dtype=torch.float64)
    for sign in (1, -1):
        with applied(model, delta.scaled(sign * eps)):
            for chosen in progress(list(by_length(rows, max_tokens=batch_tokens)), label="along", show=show):
                values = loss(forward(model, collate([rows[i] for i in chosen], device=model.device)), chosen)
                out[chosen] += sign * values.double().cpu()
    return out / (2 * eps)


def _as_delta(model: Model, change: Delta | Weights) -> Delta:
    if isinstance(change, Delta):
        return change
    _check(model, change)
    return Delta.of({name: value.detach().cpu() for name, value in change.items()}, Provenance("direction", model.fingerprint()))


def _dense(model: Model, change: Delta | Weights, method: str) -> Weights:
    """The change by parameter name, checked against the model."""
    if not isinstance(change, Delta):
        _check(model, change)
        return change
    if change.hooks:
        raise InputError(
            f"directional_derivatives: {change!r} changes {change.hooks[0].site} by a hook, which method={method!r} cannot follow; "
            "take method='difference'."
        )
    weights = {name: one.dense() for name, one in change.changes.items()}
    _check(model, weights)
    return weights


def _check(model: Model, weights: Weights) -> None:
    shapes = model.shapes()
    for name, value in weights.items():
        if name not in shapes:
            raise unknown("parameter in the change", name, shapes)
        if tuple(value.shape) != shapes[name]:
            raise ShapeError(
                f"directional_derivatives: the change of {name} is {tuple(value.shape)}, the parameter {shapes[name]}."
            )
