"""The gradient of sharpness-aware minimization, by autograd on a plain function of a list of weights."""

import torch


def sam_gradient(sharp, other, weights, rho):
    """Gradient of sharp(w + d) + other(w) with d = rho g / ||g||, g the gradient of sharp at w; d is a constant, 0 where g is.

    Args: sharp, other: functions of a list of float64 tensors giving a scalar; other may be None.   weights: such a list.
    Returns: a list of tensors, and sharp(w + d) - sharp(w).
    """
    here = [w.detach().clone().requires_grad_() for w in weights]
    at = sharp(here)
    g = torch.autograd.grad(at, here)
    norm = sum(float((one * one).sum()) for one in g) ** 0.5
    there = [(w.detach() + (rho / norm if norm else 0.0) * one).requires_grad_() for w, one in zip(here, g, strict=True)]
    beyond = sharp(there)
    found = list(torch.autograd.grad(beyond, there))
    if other is not None:
        again = [w.detach().clone().requires_grad_() for w in weights]
        rest = torch.autograd.grad(other(again), again, allow_unused=True)
        found = [a if b is None else a + b for a, b in zip(found, rest, strict=True)]
    return found, float((beyond - at).detach())
