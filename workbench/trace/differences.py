"""The central difference of every row's loss along a Delta, with a step that float32 can carry.

    (loss_i(theta + eps d) - loss_i(theta - eps d)) / (2 eps)

Its error grows as eps^2 with the bend of the loss and as 1 / eps with rounding, so the step is counted in parts of what is moved:
    eps = min(1e-4 ||W|| / ||d||, 1e-3 ||x|| / ||v||)
with W the entries of the weights that d touches, and x the activations at a site to which d adds v. The best step depends on the
direction: on the bundled stories260K and slm4096 in float32, the relative error over 8 rows against float64 was

    step                            1e-2          1e-3          1e-4
    random directions               0.008-0.013   0.0002-0.0004 0.001-0.004
    the mean gradient of 4 rows     0.56-0.91     0.04-0.17     0.0004-0.002
    its part in one MLP             0.08-0.22     0.001-0.003   0.0001

so that 1e-4 is the step with the smallest of largest errors; for a vector added at one site of a tiny Llama 1e-3 was 0.0004 off and
1e-4 0.005. A weight below float32 cannot hold such a step: there a float32 copy
of the model is moved, and the derivative is that of the rounded weights, in exact arithmetic but for float32.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from workbench.core.activation import attach, detach_copies, hook_tensor
from workbench.core.change import touched
from workbench.core.delta import Delta, applied
from workbench.core.errors import InputError
from workbench.core.runtime import plan_memory, progress
from workbench.load.batches import Encoded, by_length, collate
from workbench.load.models import Model, wrap
from workbench.trace.forward import forward, logits
from workbench.trace.gradients import ExampleLoss

STEP, AT_SITE = 1e-4, 1e-3  # of the norm of the weights, and of the activations at a site


@torch.no_grad()
def difference(
    model: Model,
    rows: Sequence[Encoded],
    delta: Delta,
    loss: ExampleLoss,
    *,
    eps: float | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Float64[Tensor, "row"]:
    """Central difference of every row's loss along a Delta of this model, for the whole Delta.

    Args: eps: in parts of the Delta; None for `usual_step`.
    Raises: InputError for a quantized or spread-out model below float32, which cannot be copied, or a Delta that sets or removes
        activations, which has no half; MemoryPlanError if the copy would not fit.
    """
    precise, delta = _float32(model, delta)
    step = usual_step(precise, rows, delta) if eps is None else eps
    out = torch.zeros(len(rows), dtype=torch.float64)
    if delta.is_empty:
        return out
    for sign in (1, -1):
        with applied(precise, delta.scaled(sign * step)):
            for chosen in progress(list(by_length(rows, max_tokens=batch_tokens)), label="along", show=show):
                values = loss(forward(precise, collate([rows[i] for i in chosen], device=precise.device)), chosen)
                out[chosen] += sign * values.double().cpu()
    return out / (2 * step)


@torch.no_grad()
def usual_step(model: Model, rows: Sequence[Encoded], delta: Delta) -> float:
    """The eps of the module: a share of the norm of what the Delta moves, weights and activations, whichever allows less.

    Weights that are all zero count as 1 in root mean square. Activations are those of the shortest row.
    """
    found: list[float] = []
    moved = sum(change.norm() ** 2 for change in delta.changes.values())
    if moved:
        parts = [touched(change, model.hf.get_parameter(name)) for name, change in delta.changes.items()]
        held = sum(float(part.double().square().sum()) for part in parts) or sum(part.numel() for part in parts)
        found.append(STEP * math.sqrt(held / moved))
    adding = [hook for hook in delta.hooks if hook.kind == "add" and bool(hook.values.any())]
    if adding:
        norms = _norms(model, min(rows, key=lambda row: len(row.tokens)), delta)
        found += [AT_SITE * norm / float(hook.values.double().norm()) for hook, norm in zip(adding, norms, strict=True)]
    return min(found, default=STEP)


def _norms(model: Model, row: Encoded, delta: Delta) -> list[float]:
    """Root mean square over a row's tokens of the norm of each activation that the Delta adds to."""
    modules, found = dict(model.hf.named_modules()), {}
    handles = []
    for k, hook in enumerate(delta.hooks):
        if hook.kind != "add" or not bool(hook.values.any()):
            continue

        def note(x: Tensor, k: int = k, part: tuple[int, int, int] | None = hook.part) -> None:
            seen = (x if part is None else x[..., slice(*part)]).double()
            found[k] = float(seen.square().sum(-1).mean().sqrt()) or 1.0

        handles.append(hook_tensor(modules[hook.module], hook.side, note, hook.site))
    try:
        logits(model, collate([row], device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    return [found[k] for k in sorted(found)]


def _float32(model: Model, delta: Delta) -> tuple[Model, Delta]:
    """Model and Delta as they are if every weight is at least float32; else a float32 copy, and the Delta as one of it."""
    hf: Any = model.hf
    if all(p.dtype in (torch.float32, torch.float64) for p in hf.parameters()):
        return model, delta
    if getattr(hf, "is_quantized", False) or len({p.device for p in hf.parameters()}) > 1 or hasattr(hf, "hf_device_map"):
        raise InputError(
            f"directional_derivatives: a difference in {model.dtype} would be rounding, and a model that is quantized or spread "
            "over devices cannot be copied to float32. Load it with dtype='float32', or take method='forward' or 'backward'."
        )
    plan_memory(
        "the float32 copy for a difference",
        4 * sum(p.numel() for p in hf.parameters()),
        model.device,
        cure="Take method='forward' or 'backward', or a machine with more memory.",
    )
    copied: Any = copy.deepcopy(hf)
    detach_copies(copied)
    modules = dict(copied.named_modules())
    for line in model.ledger:
        for hook in line.delta.hooks:  # activations that are changed now stay so
            attach(modules[hook.module], hook)
    precise = wrap(copied.float(), model.tokenizer, name=model.name)
    return precise, replace(delta, provenance=replace(delta.provenance, model=precise.fingerprint()))
