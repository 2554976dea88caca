"""Rows whose forget gradient points elsewhere than their retain gradient."""

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.attribute.formula import weight_score


@weight_score("forget.gradient", "retain.gradient")
def forget_retain_cosine(
    weight: Float[Tensor, "..."], forget_gradient: Float[Tensor, "..."], retain_gradient: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Size of the forget gradient, counted the less the more its row's gradients agree: S_i = |g_f,i| (1 - c) / 2.

    c is the cosine of g_f and g_r (mean gradients of the two sets) over the weight's row, what computes one
    output; a vector is one row. A step that changes the forget loss through a row with c = 1 changes the retain loss as much as it
    can; with c = -1 the two losses want opposite things there. Where one gradient is zero, c counts as 0.

    Returns: Scores between 0 and |g_f|.
    Reference: MemFlex (Tian et al. 2024, arXiv:2407.01920) keeps regions with a small cosine and a large forget gradient, by two
        thresholds; this is one score instead of the two.
    """
    del weight
    tiny = torch.finfo(forget_gradient.dtype).tiny  # a zero row stays zero
    units = [g / g.norm(dim=-1, keepdim=True).clamp_min(tiny) for g in (forget_gradient, retain_gradient)]
    cosine = (units[0] * units[1]).sum(-1, keepdim=True)
    return forget_gradient.abs() * (1 - cosine.clamp(-1, 1)) / 2
