"""Slow truths for influence: one autograd pass a row, float64, and linear models whose retraining has a closed form.

A row is (tokens, start), as in `attribution.py` beside this file. Nothing of the package is imported.
"""

import math

import torch

from tests.reference.attribution import example_gradients, row_loss


def dots(hf, rows, directions):
    """<g_i, Q_k> by a loop over rows, directions and parameters."""
    each = example_gradients(hf, rows)
    return torch.tensor([[sum(float((g[n] * q[n]).sum()) for n in q) for q in directions] for g in each], dtype=torch.float64)


def norms(hf, rows, names=None):
    """||g_i|| by a loop over rows and parameters."""
    each = example_gradients(hf, rows)
    squares = [sum(float((v**2).sum()) for n, v in g.items() if names is None or n in names) for g in each]
    return torch.tensor(squares, dtype=torch.float64).sqrt()


def along(hf, rows, change, *, eps=1e-6):
    """d loss_i / dt at the weights plus t times `change`, by a central difference in float64."""

    def at(t):
        with torch.no_grad():
            before = {n: p.clone() for n, p in hf.named_parameters()}
            for n, p in hf.named_parameters():
                if n in change:
                    p.add_(change[n], alpha=t)
            values = torch.stack([row_loss(hf, row) for row in rows])
            for n, p in hf.named_parameters():
                p.copy_(before[n])
        return values

    return (at(eps) - at(-eps)) / (2 * eps)


def adam_direction(gradient, first, second, *, beta1=0.9, beta2=0.999, eps=1e-8):
    """LESS: m' / sqrt(v' + eps), entry by entry, with m' and v' one step on and not bias-corrected."""
    out = torch.zeros_like(gradient).flatten()
    for j, (g, m, v) in enumerate(zip(gradient.flatten(), first.flatten(), second.flatten(), strict=True)):
        m_new = beta1 * float(m) + (1 - beta1) * float(g)
        v_new = beta2 * float(v) + (1 - beta2) * float(g) ** 2
        out[j] = m_new / math.sqrt(v_new + eps)
    return out.reshape(gradient.shape)


def cosine(a, b):
    """Of two dicts of tensors."""
    inner = sum(float((a[n] * b[n]).sum()) for n in a)
    lengths = [math.sqrt(sum(float((x**2).sum()) for x in one.values())) for one in (a, b)]
    return inner / (lengths[0] * lengths[1])


def bm25(query, documents, *, k1, b):
    """Okapi BM25 of one bag of words against each document, term by term.

    Sum over the query's words, repeated ones repeatedly, of idf tf (k1 + 1) / (tf + k1 (1 - b + b L/mean L)),
    idf = ln(1 + (n - df + 0.5)/(df + 0.5)).
    """
    mean = sum(len(d) for d in documents) / len(documents)
    scores = []
    for document in documents:
        total = 0.0
        for word in query:
            df = sum(1 for d in documents if word in d)
            tf = sum(1 for w in document if w == word)
            weight = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            if tf:
                total += weight * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(document) / mean))
        scores.append(total)
    return scores


def ridge_influence(x, y, query, target, *, penalty):
    """What each training row is worth to a query on ridge regression: g_q' H^-1 g_i, and the exact change of leaving it out.

    Loss of row i: (x_i . w - y_i)^2 / 2; the sum over rows plus penalty ||w||^2 / 2 is minimized.

    Returns: (influence, loss of the query without the row minus its loss with it), one each a row. For a row with leverage
        h_i = x_i' H^-1 x_i, the weights without it differ by -H^-1 x_i r_i / (1 - h_i) with r_i = y_i - x_i . w.
    """
    hessian = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(hessian, x.T @ y)
    g_query = query * (query @ weights - target)
    values, exact = [], []
    for i in range(len(x)):
        g = x[i] * (x[i] @ weights - y[i])
        values.append(float(g_query @ torch.linalg.solve(hessian, g)))
        keep = [j for j in range(len(x)) if j != i]
        rest = x[keep].T @ x[keep] + penalty * torch.eye(x.shape[1], dtype=x.dtype)
        without = torch.linalg.solve(rest, x[keep].T @ y[keep])
        exact.append(float((query @ without - target) ** 2 / 2 - (query @ weights - target) ** 2 / 2))
    return torch.tensor(values, dtype=torch.float64), torch.tensor(exact, dtype=torch.float64)
