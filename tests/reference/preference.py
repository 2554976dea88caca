"""Preference losses of one pair from the log-probabilities of its answers' tokens, and rank statistics, with loops only."""

import math


def _margin(chosen, rejected, reference_chosen, reference_rejected):
    return (sum(chosen) - sum(reference_chosen)) - (sum(rejected) - sum(reference_rejected))


def dpo(chosen, rejected, reference_chosen, reference_rejected, beta=0.1):
    """-ln sigmoid(beta h)"""
    h = _margin(chosen, rejected, reference_chosen, reference_rejected)
    return -math.log(1 / (1 + math.exp(-beta * h)))


def ipo(chosen, rejected, reference_chosen, reference_rejected, beta=0.1):
    """(h - 1 / (2 beta))^2"""
    h = _margin(chosen, rejected, reference_chosen, reference_rejected)
    return (h - 1 / (2 * beta)) ** 2


def dpo_sft(chosen, rejected, reference_chosen, reference_rejected, beta=0.1, sft_weight=1.0):
    """DPO plus the mean NLL of the chosen answer."""
    plain = dpo(chosen, rejected, reference_chosen, reference_rejected, beta)
    return plain - sft_weight * sum(chosen) / len(chosen)


def average_ranks(values):
    """1 for the smallest; equal values share the mean of their places."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def spearman(x, y):
    """Pearson's correlation of the average ranks; NaN where one side is constant."""
    a, b = average_ranks(x), average_ranks(y)
    middle = (len(x) + 1) / 2
    cross = sum((p - middle) * (q - middle) for p, q in zip(a, b, strict=True))
    sizes = [math.sqrt(sum((p - middle) ** 2 for p in side)) for side in (a, b)]
    return cross / (sizes[0] * sizes[1]) if all(sizes) else math.nan
