"""The linear datamodeling score with loops and exact sums; slow, nothing from workbench."""

import math
from fractions import Fraction


def ranks(values):
    """Average ranks, 1 for the smallest: how many are smaller, plus the middle of those that are equal."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def spearman(x, y):
    a, b = ranks(x), ranks(y)
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    top = sum((p - ma) * (q - mb) for p, q in zip(a, b, strict=True))
    return top / math.sqrt(sum((p - ma) ** 2 for p in a) * sum((q - mb) ** 2 for q in b))


def lds(influence, subsets, losses):
    """Mean over queries; influence[q][i], subsets[m][i], losses[m][s][q]."""
    found = []
    for q, row in enumerate(influence):
        predicted = [sum(Fraction(str(value)) for value, used in zip(row, subset, strict=True) if used) for subset in subsets]
        truth = [-sum(seed[q] for seed in model) / len(model) for model in losses]
        found.append(spearman(predicted, truth))
    return sum(found) / len(found), found
