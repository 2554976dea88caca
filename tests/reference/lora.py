"""Low-rank adapters written out: the loss of a linear model with them, its gradient by hand, and the change they make."""

import numpy as np


def forward(weight, down, up, scaling, x):
    """y = W x + scaling B (A x) for x [in], W [out, in], A [rank, in], B [out, rank]."""
    return weight @ x + scaling * (up @ (down @ x))


def gradients(weight, down, up, scaling, inputs, targets):
    """Gradients in A and B of the mean over examples of 1/2 ||y - target||^2.

    With r = y - target:  dL/dB = scaling r (A x)^T,   dL/dA = scaling B^T r x^T.
    """
    in_down, in_up = np.zeros_like(down), np.zeros_like(up)
    for x, target in zip(inputs, targets, strict=True):
        residual = forward(weight, down, up, scaling, x) - target
        in_up += scaling * np.outer(residual, down @ x) / len(inputs)
        in_down += scaling * np.outer(up.T @ residual, x) / len(inputs)
    return in_down, in_up


def change(down, up, scaling):
    """What the adapter adds to W, entry by entry: scaling sum_r B[i, r] A[r, j]."""
    out = np.zeros((up.shape[0], down.shape[1]))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = scaling * sum(up[i, r] * down[r, j] for r in range(down.shape[0]))
    return out
