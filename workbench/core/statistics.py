"""Intervals: every number that is reported carries one."""

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from workbench.core.errors import DataError, InputError, ShapeError

RESAMPLES = 2000
LEVEL = 0.95
LEAST = 5  # rows, or groups of rows, that can be drawn anew to some purpose
_SAME = 1e-12  # rho of resamples that differ by rounding alone
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
    within: tuple[float, float] | None = None,
) -> Estimate:
    """Bootstrap interval of a statistic of one or several independent samples.

    Examples are drawn with replacement inside each sample, all samples in every resample; the interval is the central
    `level` share of the resampled statistics, or with `within` the `reflected` one. Everything is float64.

    Args:
        statistic: maps one array a sample, each [resample example ...], to [resample]. It is called on the samples
            themselves (one resample) and on the resamples in one vectorized call.
        samples: each [example ...]; a sample's rows are drawn whole, so what belongs to one example stays together.
        seed: of NumPy's generator; the same seed gives the same interval.
        within: least and greatest value of a statistic whose resamples lean to one side, such as a distance; see `reflected`.
    Raises: DataError if a sample is empty: no data has no estimate.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    for position, array in enumerate(arrays):
        if len(array) == 0:
            raise DataError(f"bootstrap: sample {position} is empty; nothing was measured, so there is no estimate.")
    rng = np.random.default_rng(seed)
    drawn = [array[rng.integers(0, len(array), size=(resamples, len(array)))] for array in arrays]
    value = float(statistic(*(array[None] for array in arrays))[0])
    found = statistic(*drawn)
    if within is None:
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    else:
        low, high = reflected(value, found, within, level=level)
    return Estimate(value, float(low), float(high), sum(len(array) for array in arrays))


def reflected(
    value: float, drawn: Float[np.ndarray, "resample"], within: tuple[float, float], *, level: float = LEVEL
) -> tuple[float, float]:
    """Bounds of a statistic whose resamples lean to one side: those of the resamples turned about the value, cut to `within`.

    [2 value - upper, 2 value - lower], lower and upper bounding the central `level` share of the resamples (the basic bootstrap),
    but as wide as to hold the value. Resampling widens a distance of two samples as sampling widened it, so that the central share
    itself may lie above the value; turned about it, the leaning is taken off instead of put on once more.

    Args: drawn: the resampled statistics; those that are NaN are left out.   within: least and greatest value there is.
    Returns: low <= value <= high; NaN where the value is not finite or no resample has one.
    Reference: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 5.2.
    """
    found = drawn[~np.isnan(drawn)]
    if not (math.isfinite(value) and found.size):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    lower, upper = np.quantile(found, tail, method="lower"), np.quantile(found, 1 - tail, method="higher")  # may be infinite
    return max(within[0], min(value, 2 * value - float(upper))), min(within[1], max(value, 2 * value - float(lower)))


def mean_estimate(values: Sequence[float] | Float[np.ndarray, "example"], *, seed: int = 0) -> Estimate:
    """Mean of one value per example, with its bootstrap interval."""
    return bootstrap(lambda x: x.mean(axis=1), np.asarray(values, dtype=np.float64), seed=seed)


def spearman(x: Float[np.ndarray, "... row"], y: Float[np.ndarray, "... row"]) -> Float[np.ndarray, "..."]:
    """Spearman's rank correlation along the last axis: Pearson's of the average ranks; NaN where one side is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(side, axis=-1) - (side.shape[-1] + 1) / 2 for side in (x, y))
    size = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return np.divide((a * b).sum(axis=-1), size, out=np.full(size.shape, np.nan), where=size > 0)


def average_ranks(
    values: Float[np.ndarray, "row"], weights: Float[np.ndarray, "resample row"]
) -> Float[np.ndarray, "resample row"]:
    """Rank of every value in a sample where it stands `weights` times; equal values share the mean of their places.

    weight below it + (weight of its equals + 1) / 2. With weights 1 it is scipy.stats.rankdata(method="average").
    """
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(values[order]) > 0))
    mass = np.add.reduceat(weights[:, order], first, axis=1)
    places = np.empty(len(values), dtype=np.intp)
    places[order] = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(values))))
    return (mass.cumsum(1) - mass + (mass + 1) / 2)[:, places]


def standard_ranks(
    values: Float[np.ndarray, "row"], weights: Float[np.ndarray, "resample row"]
) -> Float[np.ndarray, "resample row"]:
    """`average_ranks` less their mean, over the root of their sum of squares; NaN where all drawn values are equal.

    The weighted sum of the product of two of them is Spearman's rank correlation.
    """
    ranks = average_ranks(values, weights) - (weights.sum(1, keepdims=True) + 1) / 2
    size = np.sqrt((weights * ranks**2).sum(1, keepdims=True))
    return np.divide(ranks, size, out=np.full(ranks.shape, np.nan), where=size > 0)


def spearman_estimate(
    x: Sequence[float] | Float[np.ndarray, "row"],
    y: Sequence[float] | Float[np.ndarray, "row"],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """Spearman's rank correlation of two numbers about the same rows, with its bootstrap interval over rows or groups of rows.

    rho = cov(rank x, rank y) / (sd(rank x) sd(rank y)), equal values sharing the mean of their ranks. Rows are drawn whole and
    ranked anew in every resample; resamples in which one side is constant have no rho and are left out of the interval. The
    textbook's 1 - 6 sum d^2 / (n (n^2 - 1)) is the same without ties and another number with them.

    Args:
        groups: of every row, such as its prompt: the rows of a group are not independent, so groups are drawn whole, as many as
            there are. None: every row is its own.
        seed: of NumPy's generator.
    Returns: n counts rows. NaN in value, low and high where one side is constant, never 0: `spearman_undefined` says why in words.
        NaN in low and high alone where resamples cannot tell: `spearman_unbounded` says why.
    Raises: ShapeError if the sides, or the groups, differ in length; DataError if there are no rows or a value is NaN or infinite.
    """
    both = _sides(x, y)
    n = len(both[0])
    if groups is not None and len(groups) != n:
        raise ShapeError(f"spearman: there are {n} rows but {len(groups)} groups; expected the group of every row.")
    if spearman_undefined(x, y):
        return Estimate(float("nan"), float("nan"), float("nan"), n)
    value = float(spearman(*both))
    names = list(range(n)) if groups is None else list(dict.fromkeys(groups))
    index = {name: i for i, name in enumerate(names)}
    place = np.arange(n) if groups is None else np.array([index[one] for one in groups])
    if len(names) < LEAST:
        return Estimate(value, float("nan"), float("nan"), n)
    drawn = np.random.default_rng(seed).integers(0, len(names), size=(RESAMPLES, len(names)))
    pieces = np.array_split(drawn, max(1, RESAMPLES * n // _AT_ONCE))
    resampled = np.concatenate([_resampled(*both, _counts(piece, len(names))[:, place]) for piece in pieces])
    defined = resampled[np.isfinite(resampled)]
    if not defined.size or np.ptp(defined) < _SAME:
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


def spearman_unbounded(found: Estimate, *, groups: Sequence[Hashable] | None = None) -> str:
    """Why what `spearman_estimate` found has a value but no interval, or "" where it has one, or has no value either.

    Args: groups: those that were given to `spearman_estimate`.
    """
    if not math.isfinite(found.value) or math.isfinite(found.low):
        return ""
    n, what = (found.n, "rows") if groups is None else (len(set(groups)), f"groups of {found.n} rows")
    if n < LEAST:
        return f"{n} {what} are too few to draw anew, at least {LEAST}, so there is no interval."
    return "all resamples have the same rho, which does not mean that it is certain, so there is no interval."


def wilson(share: float, n: int) -> Estimate:
    """A share of n independent observations with its Wilson score interval, which has a width at 0 and at 1, unlike a bootstrap.

    (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.96 the normal quantile of 95 %. With p = 1 the
    lower bound is n / (n + z^2).

    Args: n: observations that are independent; where several share a prompt, the number of prompts.
    Raises: DataError if n is 0; InputError if `share` is outside [0, 1].
    Reference: Wilson 1927, Journal of the American Statistical Association 22, 209-212; Brown, Cai and DasGupta 2001, Statistical
        Science 16, 101-133, equation 4.
    """
    if n < 1:
        raise DataError(f"wilson: n is {n}; nothing was measured, so there is no estimate.")
    if not 0 <= share <= 1:
        raise InputError(f"wilson: share is {share}, expected a number from 0 to 1.")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + turn * half) / (1 + z**2 / n) for turn in (-1, 1))
    return Estimate(share, max(low, 0.0), min(high, 1.0), n)


def _counts(drawn: Int[np.ndarray, "resample draw"], n: int) -> Float[np.ndarray, "resample group"]:
    """How often each of n was drawn."""
    flat = (drawn + n * np.arange(len(drawn))[:, None]).ravel()
    return np.bincount(flat, minlength=n * len(drawn)).reshape(len(drawn), n).astype(np.float64)


def _resampled(
    x: Float[np.ndarray, "row"], y: Float[np.ndarray, "row"], weights: Float[np.ndarray, "resample row"]
) -> Float[np.ndarray, "resample"]:
    return (weights * standard_ranks(x, weights) * standard_ranks(y, weights)).sum(1)


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
