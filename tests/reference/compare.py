"""The numbers of a comparison the slow way: loops over seeds, resamples and rows. Imports nothing from workbench."""

import numpy as np


def ks(a, b):
    """Largest difference of the two empirical distributions, tried at every value."""
    return max(abs(sum(x <= t for x in a) / len(a) - sum(x <= t for x in b) / len(b)) for t in [*a, *b])


def bands(arm, gold, second):
    return ks(arm, gold) / ks(second, gold)


def mean(values):
    return sum(values) / len(values)


def harmonic(values):
    return 0.0 if min(values) == 0 else len(values) / sum(1 / x for x in values)


def over_seeds(statistic, samples, *, resamples, seed, bound=None):
    """Mean over seeds of a statistic of several samples, and the central 95 % of its resamples; samples are [seed][row].

    bound: greatest value of a statistic from 0 on, whose interval is the resamples' turned about the value and holds it.
    """
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, len(sample[0]), size=(resamples, len(sample[0]))) for sample in samples]
    seeds = len(samples[0])
    chosen = rng.integers(0, seeds, size=(resamples, seeds))
    value = mean([statistic(*(sample[s] for sample in samples)) for s in range(seeds)])
    found = []
    for r in range(resamples):
        each = []
        for s in chosen[r]:
            each.append(statistic(*([sample[s][i] for i in drawn[r]] for sample, drawn in zip(samples, rows, strict=True))))
        found.append(mean(each))
    if bound is not None:
        ordered = sorted(found)
        low, high = ordered[int(0.025 * (resamples - 1))], ordered[-1 - int(0.025 * (resamples - 1))]
        return value, max(0.0, min(value, 2 * value - high)), min(bound, max(value, 2 * value - low))
    low, high = np.quantile(found, [0.025, 0.975])
    return value, low, high


def student(values):
    """Mean of one number a seed, its 95 % interval and two-sided p by Student's t, for two or three seeds, in closed form."""
    n = len(values)
    m = mean(values)
    error = (sum((v - m) ** 2 for v in values) / (n - 1) / n) ** 0.5
    t = abs(m) / error
    if n == 2:  # Cauchy: P(T > t) = 1/2 - arctan(t) / pi
        p, quantile = 1 - 2 * np.arctan(t) / np.pi, np.tan(np.pi * 0.475)
    else:  # P(T > t) = (1 - t / sqrt(2 + t^2)) / 2, so t = u sqrt(2 / (1 - u^2)) where P(|T| < t) = u
        p, quantile = 1 - t / (2 + t * t) ** 0.5, 0.95 * (2 / (1 - 0.95**2)) ** 0.5
    return m, m - quantile * error, m + quantile * error, p


def best_rate(trials, epoch):
    """(rate, mean validation NLL or None, steps, whether the budget was spent): the rate that is chosen, or None."""
    finite = sorted(one for one in trials if one[1] is not None)
    for eligible, key in (
        ([one for one in finite if one[3] and one[2] >= epoch], 1),
        ([one for one in finite if one[3]], 2),
        (finite, 1),
    ):
        best = None
        for one in eligible:
            if best is None or one[key] > best[key]:
                best = one
        if best is not None:
            return best[0]
    return None
