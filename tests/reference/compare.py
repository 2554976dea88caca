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


def over_seeds(statistic, samples, *, resamples, seed):
    """Mean over seeds of a statistic of several samples, and the central 95 % of its resamples; samples are [seed][row]."""
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
    low, high = np.quantile(found, [0.025, 0.975])
    return value, low, high


def best_rate(trials):
    """(rate, mean validation NLL or None): the rate with the highest; of equal ones the smallest."""
    best = None
    for rate, nll in sorted(trials):
        if nll is not None and (best is None or nll > best[1]):
            best = (rate, nll)
    return None if best is None else best[0]
