"""Intervals: every number that is reported carries one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError

RESAMPLES = 2000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A value with its bootstrap interval and the number of examples behind it."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    statistic: Callable[..., Float[np.ndarray, "resample"]],
    *samples: Float[np.ndarray, "..."],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Percentile bootstrap interval of a statistic of one or several independent samples.

    Examples are drawn with replacement inside each sample, all samples in every resample; the interval is the central
    `level` share of the resampled statistics. Everything is float64.

    Args:
        statistic: maps one array a sample, each [resample example ...], to [resample]. It is called on the samples
            themselves (one resample) and on the resamples in one vectorized call.
        samples: each [example ...]; a sample's rows are drawn whole, so what belongs to one example stays together.
        seed: of NumPy's generator; the same seed gives the same interval.
    Raises: DataError if a sample is empty: no data has no estimate.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    for position, array in enumerate(arrays):
        if len(array) == 0:
            raise DataError(f"bootstrap: sample {position} is empty; nothing was measured, so there is no estimate.")
    rng = np.random.default_rng(seed)
    drawn = [array[rng.integers(0, len(array), size=(resamples, len(array)))] for array in arrays]
    value = float(statistic(*(array[None] for array in arrays))[0])
    low, high = np.quantile(statistic(*drawn), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), sum(len(array) for array in arrays))


def mean_estimate(values: Sequence[float] | Float[np.ndarray, "example"], *, seed: int = 0) -> Estimate:
    """Mean of one value per example, with its bootstrap interval."""
    return bootstrap(lambda x: x.mean(axis=1), np.asarray(values, dtype=np.float64), seed=seed)
