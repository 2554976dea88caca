"""Rounding of weights to a few bits: what a deployed model goes through, and an attack on small changes of weights."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.core.change import smallest
from workbench.core.delta import Delta
from workbench.core.errors import InputError, unknown
from workbench.core.numerics import check_finite, wide
from workbench.edit.finish import finish
from workbench.load.models import Model

BITS = (2, 8)


@torch.no_grad()
def quantize(model: Model, where: Sequence[str] | None = None, *, bits: int = 8, group: int | None = None) -> Delta:
    """Round every linear weight to the nearest of 2^bits - 1 evenly spaced values.

        q = round(w / s),   w <- s q,   s = max |w| / (2^(bits-1) - 1)

    with the maximum over the weights of one output, or over `group` neighboring inputs of one output. Symmetric: zero stays zero.
    So no weight moves by more than s / 2, and an output, or group, is left with at most 2^bits - 1 different values.

    A change of weights that is smaller than s / 2 is mostly rounded away, which can bring back what was unlearned. To attack an
    unlearned model, quantize it as it is then:

        with applied(model, unlearned):
            with applied(model, quantize(model, bits=4)):
                ...

    Args:
        where: names of the weights, as in `hf.named_parameters()`; None for those of all linear layers but the output head. One
            that is given by name may be the head's or an embedding's, whose rows are tokens.
        bits: 2 to 8.
        group: inputs that share a scale; None for all inputs of an output. A last group may be smaller.
    Returns: a Delta of s q - w, float32; provenance.notes has the largest error in units of s and the share of zeros. In a
        half-precision model s q is rounded once more.
    Raises: InputError for bits or group that cannot be, or a model without linear layers; UnknownNameError for a weight the model
        does not have; NumericsError if a weight is not finite.
    Reference: round to nearest, as in Dettmers et al. 2022, arXiv:2208.07339, without its outlier columns; as an attack Zhang et
        al. 2024, arXiv:2410.16454. NF4 of bitsandbytes has 16 unevenly spaced values and groups of 64; GPTQ and AWQ look at
        activations.
    """
    if type(bits) is not int or not BITS[0] <= bits <= BITS[1]:
        raise InputError(f"quantize: bits is {bits!r}, expected a whole number from {BITS[0]} to {BITS[1]}.")
    if group is not None and (type(group) is not int or group < 1):
        raise InputError(f"quantize: group is {group!r}, expected a whole number of inputs, at least 1, or None.")
    chosen = _weights(model, where)
    changes, zeros, worst = {}, 0, 0.0
    for name, transposed in chosen.items():
        weight = wide(model.hf.get_parameter(name).detach())
        check_finite(f"quantize: {name}", weight)
        rows = weight.T if transposed else weight
        rounded, step = round_to_grid(rows, bits=bits, group=group)
        difference = (rounded - rows).float().cpu()
        zeros += int((rounded == 0).sum())
        worst = max(worst, float(((rounded - rows).abs() / step.clamp_min(torch.finfo(step.dtype).tiny)).max()))
        changes[name] = smallest(difference.T.contiguous() if transposed else difference)
    total = sum(model.hf.get_parameter(name).numel() for name in chosen)
    return finish(
        model,
        "quantize",
        changes,
        options={"where": list(chosen), "bits": bits, "group": group},
        why="rounding is a change of weights",
        notes={"largest_error_in_steps": worst, "zeros": zeros / total},
    )


def round_to_grid(
    rows: Float[Tensor, "out in"], *, bits: int, group: int | None = None
) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out in"]]:
    """Each weight's nearest grid value s q, halves to even, and the step s it was rounded with; 0 where all of a group is zero."""
    rounded, steps = torch.empty_like(rows), torch.empty_like(rows)
    levels = 2 ** (bits - 1) - 1
    for first in range(0, rows.shape[1], group or rows.shape[1]):
        part = slice(first, first + (group or rows.shape[1]))
        largest = rows[:, part].abs().amax(dim=1, keepdim=True)
        step = largest / levels
        q = (rows[:, part] / step).round().clamp(-levels, levels)
        rounded[:, part] = torch.where(step > 0, q * step, 0.0)
        steps[:, part] = step.expand_as(q)
    return rounded, steps


def _weights(model: Model, where: Sequence[str] | None) -> dict[str, bool]:
    """Names of the weights, and whether a row of them is an input, as in GPT-2's Conv1D."""
    names = {id(p): name for name, p in model.hf.named_parameters()}
    transposed = {names[id(m.weight)]: isinstance(m, Conv1D) for m in model.hf.modules() if isinstance(m, nn.Linear | Conv1D)}
    if where is None:
        head = model.sites.parameter("unembed")
        found = {name: side for name, side in transposed.items() if name != head}
        if not found:
            raise InputError(f"quantize: {type(model.hf).__name__} has no linear layers; name its weights with where=[...].")
        return found
    if isinstance(where, str) or not where:
        raise InputError(f"quantize: where is {where!r}, expected a list of weights, at least one, or None for all linear layers.")
    matrices = {name for name, p in model.hf.named_parameters() if p.ndim == 2}
    for name in where:
        if name not in matrices:
            raise unknown("weight matrix", name, matrices)
    return {name: transposed.get(name, False) for name in where}
