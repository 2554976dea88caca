"""Slow truths about false discoveries: counting by loops."""

from fractions import Fraction
from itertools import product


def adjusted(p):
    """Benjamini and Hochberg's adjusted p-values by their definition: min over j >= rank of m p_(j) / j, at most 1."""
    ranked = sorted(range(len(p)), key=lambda i: p[i])
    found = [0.0] * len(p)
    for rank, i in enumerate(ranked, 1):
        found[i] = min(1.0, *(len(p) * p[ranked[j - 1]] / j for j in range(rank, len(p) + 1)))
    return found


def conformal(values, control):
    """(1 + how many controls are as high) / (1 + controls), as fractions."""
    return [Fraction(1 + sum(c >= value for c in control), 1 + len(control)) for value in values]


def sign_flip(differences):
    """Share of all sign patterns whose sum is as high as the observed one; exact for whole numbers."""
    observed = sum(differences)
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in product((1, -1), repeat=len(differences))]
    return Fraction(sum(total >= observed for total in sums), len(sums))
