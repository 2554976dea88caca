"""AdamW (Loshchilov and Hutter 2019) on one flat vector in float64, as written in the paper."""

import numpy as np


def adamw(weight, gradients, rates, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """The vector after one step for each gradient."""
    w = np.array(weight, dtype=np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        w = w * (1 - lr * weight_decay)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        w = w - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


def moments(gradients, *, betas=(0.9, 0.999)):
    """Adam's two averages after these gradients, not corrected for starting at zero."""
    m, v = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    for g in gradients:
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
    return m, v


def sign_descent(weight, gradients, rates, *, weight_decay=0.0):
    """The vector after one step of signSGD (Bernstein et al. 2018) for each gradient, with decoupled weight decay."""
    w = np.array(weight, dtype=np.float64)
    for g, lr in zip(gradients, rates, strict=True):
        w = w * (1 - lr * weight_decay) - lr * np.sign(g)
    return w
