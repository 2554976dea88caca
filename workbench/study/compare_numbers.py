"""One number of an arm that was run with several seeds, with an interval that draws rows and seeds anew."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from workbench.core.comparison import in_bands
from workbench.core.errors import DataError
from workbench.core.ks import ks_distances
from workbench.core.statistics import LEVEL, RESAMPLES, Estimate, reflected

Statistic = Callable[..., Float[np.ndarray, "resample"]]


def over_seeds(statistic: Statistic, *samples: Float[np.ndarray, "seed ..."], seed: int = 0) -> Estimate:
    """Mean over seeds of a statistic of rows.

    (1/S) sum_s statistic(rows of seed s). Each resample draws rows, the same ones for all seeds, and as many seeds, with
    replacement; the interval is the central 95 % of the resampled means, or for a statistic in RANGES the `reflected` one. One seed
    is drawn again each time, so the interval of an arm with one is over rows alone. The same `seed` draws the same rows for every
    arm.

    Args:
        statistic: maps one array a sample, [resample row ...], to [resample].
        samples: what every seed's run said of the rows of each sample; samples are drawn independently of each other.
    Returns: n: rows of all samples, whatever the number of seeds.
    Raises: DataError if there is no seed or a sample has no row.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if not arrays or any(0 in array.shape[:2] for array in arrays):
        raise DataError(
            f"over_seeds: the samples have shapes {[a.shape for a in arrays]}, expected at least one seed and one row each."
        )
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, array.shape[1], size=(RESAMPLES, array.shape[1])) for array in arrays]
    seeds = arrays[0].shape[0]
    chosen = rng.integers(0, seeds, size=(RESAMPLES, seeds))
    value = np.mean([statistic(*(array[s][None] for array in arrays))[0] for s in range(seeds)])
    each = np.stack(
        [statistic(*(array[s][drawn] for array, drawn in zip(arrays, rows, strict=True))) for s in range(seeds)], axis=1
    )
    found = np.take_along_axis(each, chosen, axis=1).mean(axis=1)
    if statistic in RANGES:
        low, high = reflected(float(value), found, RANGES[statistic])
    else:
        low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), sum(array.shape[1] for array in arrays))


def mean(values: Float[np.ndarray, "resample row"]) -> Float[np.ndarray, "resample"]:
    """The mean of every resample."""
    return values.mean(axis=1)


def distance(values: Float[np.ndarray, "resample row three"]) -> Float[np.ndarray, "resample"]:
    """Kolmogorov-Smirnov D of an arm to the retrained model; a row has the numbers of arm, retrained, and retrained again."""
    return ks_distances(values[..., :2])


def distance_in_bands(values: Float[np.ndarray, "resample row three"]) -> Float[np.ndarray, "resample"]:
    """D(arm, retrained) / D(retrained again, retrained); see `core.comparison.in_bands`."""
    return in_bands(values)


RANGES: dict[Statistic, tuple[float, float]] = {distance: (0.0, 1.0), distance_in_bands: (0.0, math.inf)}
"""Least and greatest value of the statistics whose resamples lean upward; see `core.statistics.reflected`."""
