"""Depth by patching, the logit lens, unbiased HSIC and answer probes, one row, layer and index at a time, in float64."""

from itertools import permutations
from math import exp, log

import numpy as np
import torch


def stream(hf, tokens):
    """Residual stream behind every layer of a Llama for one row without padding: [layer pos d_model]."""
    kept = []
    hooks = [
        layer.register_forward_hook(lambda m, a, out: kept.append(first_of(out).detach().clone())) for layer in hf.model.layers
    ]
    with torch.no_grad():
        hf(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    return [state[0].numpy() for state in kept]


def first_of(out):
    """A layer's output tensor, whatever the version wraps it in."""
    return out[0] if isinstance(out, tuple) else out


def span_logprob(hf, tokens, first, last, layer=None, states=None):
    """Mean ln p of tokens[first:last], with the stream behind `layer` replaced by `states` where they are predicted."""

    def put(module, arguments, out):
        new = first_of(out).clone()
        for p in range(first - 1, last - 1):
            new[0, p] = torch.tensor(states[p])
        return (new, *out[1:]) if isinstance(out, tuple) else new

    hook = None if layer is None else hf.model.layers[layer].register_forward_hook(put)
    with torch.no_grad():
        logits = hf(torch.tensor([tokens])).logits[0].numpy()
    if hook is not None:
        hook.remove()
    return sum(logprob(logits[p - 1], tokens[p]) for p in range(first, last)) / (last - first)


def logprob(logits, token):
    """ln softmax(logits)[token]."""
    top = max(logits)
    return logits[token] - top - log(sum(exp(z - top) for z in logits))


def depth(retrained, unlearned, threshold):
    """The score of one row, as it is published: NaN without an encoding layer."""
    upper, lower = 0.0, 0.0
    for d1, d2 in zip(retrained, unlearned, strict=True):
        if d1 > threshold:
            upper += d1 * min(max(d2 / d1, 0.0), 1.0)
            lower += d1
    return upper / lower if lower else float("nan")


def lens(hf, state, token):
    """ln p and rank of a token read from one residual vector: RMSNorm with gain, then the unembedding."""
    gain = hf.model.norm.weight.detach().double().numpy()
    normed = state / np.sqrt((state * state).mean() + hf.config.rms_norm_eps) * gain
    logits = [float(row @ normed) for row in hf.lm_head.weight.detach().double().numpy()]
    return logprob(logits, token), 1 + sum(z > logits[token] for z in logits)


def hsic(k, l):  # noqa: E741
    """Song et al. 2012, equation 4: the mean over ordered quadruples of different rows of k_ij (l_ij + l_qr - 2 l_iq)."""
    values = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in permutations(range(len(k)), 4)]
    return sum(values) / len(values)


def cka(x, y):
    """Unbiased linear CKA of two lists of vectors."""
    k, l = (np.array([[float(np.dot(a, b)) for b in side] for a in side]) for side in (x, y))  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def jackknife(x, y):
    """Standard error of `cka` from leaving out one row at a time."""
    n = len(x)
    left = [cka(np.delete(x, i, axis=0), np.delete(y, i, axis=0)) for i in range(n)]
    return np.sqrt((n - 1) / n * sum((value - sum(left) / n) ** 2 for value in left))


def within_auc(right, false):
    """Share of the false answers below the right one, ties half."""
    return sum(1.0 if f < right else 0.5 if f == right else 0.0 for f in false) / len(false)


def probe(x, truth, C):
    """f(x) = w x + b that minimizes |v|^2 / 2 + C sum_i w_i ln(1 + exp(-y_i f_i)) by Newton's method, v in units of the spread."""
    mean, std = x.mean(0), x.std(0)
    z = np.column_stack([(x - mean) / std, np.ones(len(x))])
    weight = np.where(truth, 1 / truth.sum(), 1 / (~truth).sum()) * len(x) / 2
    penalty = np.diag([1.0] * x.shape[1] + [0.0])
    v = np.zeros(z.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-z @ v))
        slope = C * z.T @ (weight * (p - truth)) + penalty @ v
        v = v - np.linalg.solve(C * z.T @ (z * (weight * p * (1 - p))[:, None]) + penalty, slope)
    return lambda new: (new - mean) / std @ v[:-1] + v[-1]
