"""Intervals: every number that is reported carries one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, ShapeError

RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 1 << 20  # numbers ranked at once


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


def spearman(x: Float[np.ndarray, "... row"], y: Float[np.ndarray, "... row"]) -> Float[np.ndarray, "..."]:
    """Spearman's rank correlation along the last axis: Pearson's of the average ranks; NaN where one side is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(side, axis=-1) - (side.shape[-1] + 1) / 2 for side in (x, y))
    size = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return np.divide((a * b).sum(axis=-1), size, out=np.full(size.shape, np.nan), where=size > 0)


def spearman_estimate(
    x: Sequence[float] | Float[np.ndarray, "row"], y: Sequence[float] | Float[np.ndarray, "row"], *, seed: int = 0
) -> Estimate:
    """Spearman's rank correlation of two numbers about the same rows, with its bootstrap interval over rows.

    rho = cov(rank x, rank y) / (sd(rank x) sd(rank y)), equal values sharing the mean of their ranks. Rows are drawn whole and
    ranked anew in every resample; resamples in which one side is constant have no rho and are left out of the interval. The
    textbook's 1 - 6 sum d^2 / (n (n^2 - 1)) is the same without ties and another number with them.

    Args: seed: of NumPy's generator.
    Returns: NaN in value, low and high where one side is constant, never 0; `spearman_undefined` says why in words.
    Raises: ShapeError if the sides differ in length; DataError if there are no rows or a value is NaN or infinite.
    """
    both = np.stack(_sides(x, y))
    n = both.shape[1]
    if spearman_undefined(x, y):
        return Estimate(float("nan"), float("nan"), float("nan"), n)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, n, size=(RESAMPLES, n))
    pieces = np.array_split(drawn, max(1, drawn.size // _AT_ONCE))
    resampled = np.concatenate([spearman(both[0, piece], both[1, piece]) for piece in pieces])
    value = float(spearman(both[:1], both[1:])[0])
    defined = resampled[np.isfinite(resampled)]
    if not defined.size:
        return Estimate(value, float("nan"), float("nan"), n)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)


def spearman_undefined(x: Sequence[float] | Float[np.ndarray, "row"], y: Sequence[float] | Float[np.ndarray, "row"]) -> str:
    """Why two numbers about the same rows have no rank correlation, or "" where they have one.

    Raises: as `spearman_estimate`.
    """
    for name, values in zip("xy", _sides(x, y), strict=True):
        if (values == values[0]).all():
            return f"{name} has the same value {values[0]:.4g} in all {len(values)} rows, so there is no order to compare."
    return ""


def _sides(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sides = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if sides[0].shape != sides[1].shape or sides[0].ndim != 1:
        raise ShapeError(f"spearman: x is {sides[0].shape} and y {sides[1].shape}; expected one number of each for every row.")
    for name, values in zip("xy", sides, strict=True):
        if not values.size:
            raise DataError("spearman: there are no rows; nothing was measured, so there is no estimate.")
        if not np.isfinite(values).all():
            raise DataError(f"spearman: {name} is NaN or infinite in {int((~np.isfinite(values)).sum())} of {values.size} rows.")
    return sides
