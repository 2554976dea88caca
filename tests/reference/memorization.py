"""Metrics over answer tokens the slow way: Python floats, one token at a time. Imports nothing from workbench.

An answer is a list of tokens, each a dict with token, top, logprob, mean, variance, in order.
"""

from math import exp, floor, log, sqrt
from zlib import compress


def exact_memorization(answer: list[dict]) -> float:
    return sum(t["top"] == t["token"] for t in answer) / len(answer)


def extraction_strength(answer: list[dict]) -> float:
    """Every number k of tokens that are told, from none on, until the rest is right."""
    n = len(answer)
    for k in range(n):
        if all(t["top"] == t["token"] for t in answer[k:]):
            return 1 - k / n
    return 0.0


def nll(answer: list[dict]) -> float:
    return -sum(t["logprob"] for t in answer) / len(answer)


def zlib_ratio(answer: list[dict], text: str) -> float:
    return nll(answer) / len(compress(text.encode()))


def lowest(values: list[float], share: float) -> float:
    m = max(1, floor(share * len(values) + 1e-9))
    return sum(sorted(values)[:m]) / m


def min_k(answer: list[dict], share: float) -> float:
    return -lowest([t["logprob"] for t in answer], share)


def min_k_plus_plus(answer: list[dict], share: float, least: float) -> float:
    return -lowest([(t["logprob"] - t["mean"]) / sqrt(max(t["variance"], least)) for t in answer], share)


def perplexity(answers: list[list[dict]]) -> float:
    tokens = [t["logprob"] for answer in answers for t in answer]
    return exp(-sum(tokens) / len(tokens))


def moments(logits: list[float]) -> tuple[float, float]:
    """Mean and variance of ln p under p."""
    total = sum(exp(x) for x in logits)
    p = [exp(x) / total for x in logits]
    mean = sum(q * log(q) for q in p)
    return mean, sum(q * (log(q) - mean) ** 2 for q in p)


def repeats(text: str, run: int) -> float:
    """Share of the runs of characters that stood in the text before; the text has small letters and single spaces."""
    runs = [text[i : i + run] for i in range(len(text) - run + 1)]
    return sum(one in runs[:i] for i, one in enumerate(runs)) / len(runs) if runs else 0.0
