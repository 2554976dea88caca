"""Comparisons the slow way: every sign pattern, every pair of arms, every threshold. Imports nothing from workbench."""

from itertools import product


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def two_sided_p(differences: list[float]) -> float:
    """Share of all sign patterns whose sum is as far from 0 as that of the differences."""
    seen = abs(sum(differences))
    patterns = list(product((1, -1), repeat=len(differences)))
    far = sum(abs(sum(s * d for s, d in zip(pattern, differences, strict=True))) >= seen - 1e-9 for pattern in patterns)
    return far / len(patterns)


def win_rate(a: list[float], b: list[float]) -> float:
    return mean([1.0 if x > y else 0.5 if x == y else 0.0 for x, y in zip(a, b, strict=True)])


def ks(a: list[float], b: list[float]) -> float:
    return max(abs(sum(x <= t for x in a) / len(a) - sum(x <= t for x in b) / len(b)) for t in a + b)


def dominated_by(forget: list[float], retain: list[float], names: list[str]) -> list[list[str]]:
    """Names of the arms that are as good on both axes and better on one, of every arm."""
    found = []
    for f, r in zip(forget, retain, strict=True):
        found.append([n for n, g, s in zip(names, forget, retain, strict=True) if g <= f and s >= r and (g < f or s > r)])
    return found
