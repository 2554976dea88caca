"""TOFU's metrics the slow way: Python floats, one row at a time. Imports nothing from workbench."""

from itertools import combinations
from math import exp, log


def probability(nll: float) -> float:
    return exp(-nll)


def probability_options(nll: float, false: list[float]) -> float:
    return exp(-nll) / (exp(-nll) + sum(exp(-x) for x in false))


def truth_ratio(true: float, false: list[float], *, aggregate: str) -> float:
    likely = [exp(-x) for x in false]
    if aggregate == "arithmetic":
        return sum(likely) / len(likely) / exp(-true)
    product = 1.0
    for q in likely:
        product *= q
    return product ** (1 / len(likely)) / exp(-true)


def truth_ratio_score(ratio: float, *, forget: bool) -> float:
    return min(ratio, 1 / ratio) if forget else max(0.0, 1 - ratio)


def harmonic_mean(values: list[float]) -> float:
    return 0.0 if min(values) == 0 else len(values) / sum(1 / x for x in values)


def ks_distance(a: list[float], b: list[float]) -> float:
    """Largest difference of the two empirical distributions, tried at every value."""
    return max(abs(sum(x <= t for x in a) / len(a) - sum(x <= t for x in b) / len(b)) for t in a + b)


def ks_p(a: list[float], b: list[float]) -> float:
    """Share of all ways to deal the pooled values (no ties) into two hands that lie at least as far apart."""
    pooled, seen = a + b, ks_distance(a, b)
    hands = list(combinations(range(len(pooled)), len(a)))
    far = 0
    for hand in hands:
        one = [pooled[i] for i in hand]
        other = [pooled[i] for i in range(len(pooled)) if i not in hand]
        far += ks_distance(one, other) >= seen - 1e-12
    return far / len(hands)


def rouge_l_recall(truth: str, generated: str) -> float:
    """Longest common subsequence of words over the number of true words; no stemming."""
    one, two = truth.lower().split(), generated.lower().split()

    def longest(i: int, j: int) -> int:
        if i == len(one) or j == len(two):
            return 0
        if one[i] == two[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0) / len(one)


def mean_log_ratio_difference(model: list[float], reference: list[float]) -> float:
    return sum(log(x) - log(y) for x, y in zip(model, reference, strict=True)) / len(model)
