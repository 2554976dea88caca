"""Leaving a row out of ridge softmax regression: by refitting to the optimum, and by the influence function.

A row is (x [token d], y [token]): the states before its answer's tokens, and those tokens. Weights W [v, d], p = softmax(W x):
    loss_i = mean_token -log p[y],      F(W) = mean_i loss_i + penalty ||W||^2 / 2,      g_i = mean_token (p - e_y) x',
    H = mean_i mean_token (diag p - p p') kron x x',
which is the Fisher information too, since the logits are linear in W. All in float64; nothing from workbench.
"""

import numpy as np


def probabilities(w, x):
    """[token v]."""
    z = x @ w.T
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def losses(w, rows):
    """Mean -log p of every row's answer, [row]."""
    return np.array([-np.log(probabilities(w, x)[np.arange(len(y)), y]).mean() for x, y in rows])


def gradients(w, rows):
    """Of every row's loss, [row v*d], without the penalty."""
    out = []
    for x, y in rows:
        slope = probabilities(w, x)
        slope[np.arange(len(y)), y] -= 1
        out.append((slope.T @ x / len(y)).ravel())
    return np.stack(out)


def hessian(w, rows):
    """Of the mean loss, [v*d v*d], without the penalty."""
    total = 0.0
    for x, _ in rows:
        p = probabilities(w, x)
        curved = np.stack([np.diag(one) - np.outer(one, one) for one in p])
        total = total + np.einsum("tab,ti,tj->aibj", curved, x, x) / len(x)
    return total.reshape(w.size, w.size) / len(rows)


def fit(rows, n_labels, penalty, *, of=None, start=None):
    """W at the minimum of sum_i loss_i / of + penalty ||W||^2 / 2, by Newton; `of` is the number of rows unless given."""
    w = np.zeros((n_labels, rows[0][0].shape[1])) if start is None else start.copy()
    share = len(rows) / (of or len(rows))
    for _ in range(30):
        slope = share * gradients(w, rows).mean(0) + penalty * w.ravel()
        if np.abs(slope).max() < 1e-13:
            return w
        w -= np.linalg.solve(share * hessian(w, rows) + penalty * np.eye(w.size), slope).reshape(w.shape)
    raise ArithmeticError(f"Newton stopped where the gradient is {np.abs(slope).max()}")


def leave_one_out(rows, queries, n_labels, penalty):
    """[query row]: loss of the query after refitting without the row, minus its loss with it. The others keep their weight 1/n."""
    full = fit(rows, n_labels, penalty)
    found = []
    for i in range(len(rows)):
        rest = [row for j, row in enumerate(rows) if j != i]
        found.append(losses(fit(rest, n_labels, penalty, of=len(rows), start=full), queries) - losses(full, queries))
    return np.stack(found, 1)


def influence(w, rows, queries, penalty):
    """[query row]: g_q' (H + penalty)^-1 g_i / n, the first order of leaving the row out at the optimum."""
    solved = np.linalg.solve(hessian(w, rows) + penalty * np.eye(w.size), gradients(w, rows).T)
    return gradients(w, queries) @ solved / len(rows)
