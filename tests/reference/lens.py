"""Slow float64 truths about lenses: norms, the unembedding and a distribution's numbers, one position at a time."""

import numpy as np


def rms_norm(x, gain, eps):
    """gain * x / sqrt(mean(x^2) + eps)."""
    return gain * x / np.sqrt((x**2).mean() + eps)


def layer_norm(x, gain, bias, eps):
    """gain * (x - mean) / sqrt(var + eps) + bias."""
    centered = x - x.mean()
    return gain * centered / np.sqrt((centered**2).mean() + eps) + bias


def softcap(logits, cap):
    """cap * tanh(logits / cap)."""
    return cap * np.tanh(logits / cap)


def log_softmax(logits):
    """z - ln sum exp z, the largest taken out first."""
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def rank(logits, token):
    """1 + how many logits are strictly larger."""
    count = 1
    for other in range(len(logits)):
        if logits[other] > logits[token]:
            count += 1
    return count


def top(logits, k):
    """The k tokens of largest logit; of equal ones the lower id first."""
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:k]


def entropy(logits):
    """-sum p ln p, nats."""
    logprob = log_softmax(logits)
    return -sum(np.exp(a) * a for a in logprob)


def kl(own, read):
    """sum p (ln p - ln q), with p of `own` and q of `read`."""
    p, q = log_softmax(own), log_softmax(read)
    return sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def tuned(h, target, ridge):
    """A, b of min sum |A h + b - target|^2 + n * ridge * s * |A - I|^2, by the normal equations of one stacked system.

    s: mean variance of the features of h. The intercept is not penalized.
    """
    n, d = h.shape
    centered, wanted = h - h.mean(0), (target - h) - (target - h).mean(0)
    scale = (centered**2).mean()
    design = np.vstack([centered, np.sqrt(n * ridge * scale) * np.eye(d)])
    change = np.linalg.lstsq(design, np.vstack([wanted, np.zeros((d, d))]), rcond=None)[0].T
    matrix = np.eye(d) + change
    return matrix, target.mean(0) - matrix @ h.mean(0)
