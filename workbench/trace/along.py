"""How fast each row's loss changes as the weights move along a given change: d loss_i(theta + t d) / dt at t = 0.

    forward      forward-mode derivatives: the change goes through the model beside the activations, in one pass
    difference   (loss_i(theta + eps d) - loss_i(theta - eps d)) / (2 eps), two plain passes; also for changes of activations
    backward     <g_i, d> as in `dots.py`, one forward and backward pass

All three are the same number, but that autograd gives the padding row of an `nn.Embedding` no gradient, so that backward leaves
it out. Forward and difference keep nothing for a backward pass; the difference is taken in `differences.py`. In half precision
forward and backward round every activation, where the difference works on a float32 copy: on a tiny Llama and a tiny GPT-2,
against the float64 derivative of the same weights, it was 0.0004 and 0.0016 off in bfloat16 and in float16, whatever the size of
the change; forward 0.007 to 0.09 in bfloat16 and 0.001 to 0.005 in float16.

Reference: Griewank & Walther 2008, chapter 3 (forward mode); Pearlmutter 1994, section 2, for both ways in neural networks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.autograd import forward_ad

from workbench.core.delta import Delta
from workbench.core.errors import DataError, InputError, MismatchError, NumericsError, ShapeError, unknown
from workbench.core.numerics import Forward, answer_logprobs
from workbench.core.records import Provenance
from workbench.core.runtime import progress
from workbench.load.batches import Batch, Encoded, by_length, collate
from workbench.load.models import Model
from workbench.trace.differences import difference
from workbench.trace.dots import gradient_dots
from workbench.trace.forward import check_eval
from workbench.trace.gradients import ExampleLoss, Weights, nll

Method = Literal["auto", "forward", "difference", "backward"]
METHODS = get_args(Method)


def directional_derivatives(
    model: Model,
    rows: Sequence[Encoded],
    change: Delta | Weights,
    loss: ExampleLoss = nll,
    *,
    method: Method = "auto",
    eps: float | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Float64[Tensor, "row"]:
    """Derivative of every row's loss along a change of weights, at the model's present weights; float64, on the CPU.

    Args:
        change: a Delta, or values by parameter name.
        loss: answers' log-probabilities and the rows' positions -> one loss a row.
        method: see above; "auto" is what `pick_method` says.
        eps: step of the difference in parts of the change, which may exceed 1; None for one that moves the weights it touches by
            1e-4 of their norm, see `differences.py`.
        batch_tokens: largest padded batch, in tokens.
    Returns: in units of the loss for the whole change: a Delta twice as large has derivatives twice as large.
    Raises: UnknownNameError for the method; MismatchError for a Delta of another model; InputError for forward or backward along
        a Delta with changes of activations, or for a model without forward-mode derivatives; NumericsError naming the row whose
        derivative is not finite.
    """
    if method not in METHODS:
        raise unknown("method of directional_derivatives", method, METHODS)
    if not rows:
        raise DataError("directional_derivatives: there are no rows, so there is nothing to measure.")
    if eps is not None and not (math.isfinite(eps) and eps > 0):
        raise InputError(f"directional_derivatives: eps is {eps}, expected a positive number, or None for the usual step.")
    _check_home(model, change)
    chosen = pick_method(model, rows, change) if method == "auto" else method
    if chosen == "difference":
        found = difference(model, rows, _as_delta(model, change), loss, eps=eps, batch_tokens=batch_tokens, show=show)
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
    """What "auto" means here: "forward" if it works on the shortest row, else "difference".

    Raises: MismatchError for a Delta of another model.
    """
    _check_home(model, change)
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


def _check_home(model: Model, change: Delta | Weights) -> None:
    if isinstance(change, Delta) and change.provenance.model not in (model.base_fingerprint(), model.fingerprint()):
        raise MismatchError(
            f"directional_derivatives: {change!r} belongs to model {change.provenance.model[:12]}, but this one is "
            f"{model.base_fingerprint()[:12]}. Load the checkpoint it was computed on."
        )


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
