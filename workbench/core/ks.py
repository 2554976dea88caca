"""The Kolmogorov-Smirnov distance of two samples: with its p-value, and of many resamples at once."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError


class KS(NamedTuple):
    """distance: D = max_x |F(x) - G(x)| in [0, 1].   p: two-sided.   n, m: values of either sample."""

    distance: float
    p: float
    n: int
    m: int


def ks(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "m"]) -> KS:
    """Two-sample Kolmogorov-Smirnov test: largest difference of the two empirical distributions, and how often chance gives one.

    p is exact up to 10,000 values a side and asymptotic beyond (scipy's ks_2samp). It depends on n and m, so D is what can be
    compared between studies. It takes the two samples as independent: for two models on the same questions, `paired` sees more.

    Raises: DataError if a sample is empty or has a value that is NaN or infinite.
    """
    from scipy.stats import ks_2samp

    for name, values in (("a", a), ("b", b)):
        if not len(values):
            raise DataError(f"ks: {name} is empty; nothing was measured, so there is no distance.")
        if not np.isfinite(values).all():
            raise DataError(f"ks: {name} has {int((~np.isfinite(values)).sum())} values that are NaN or infinite.")
    test: Any = ks_2samp(a, b, method="auto")
    return KS(float(test.statistic), float(test.pvalue), len(a), len(b))


def ks_distances(paired: Float[np.ndarray, "resample row side"]) -> Float[np.ndarray, "resample"]:
    """D of every resample of rows with two values each, [resample].

    The 2n values of a resample are sorted together; each step of the walk is +1 for one side and -1 for the other, and
    D = max |walk| / n at the ends of runs of equal values.
    """
    n = paired.shape[1]
    pooled = np.concatenate([paired[..., 0], paired[..., 1]], axis=1)
    order = np.argsort(pooled, axis=1)
    walk = np.where(order < n, 1, -1).cumsum(axis=1)
    ordered = np.take_along_axis(pooled, order, axis=1)
    end = np.ones(ordered.shape, dtype=bool)
    end[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    return np.where(end, np.abs(walk), 0).max(axis=1) / n
