"""How well held-out scores tell the labels: statistics of weighted rows, so that one call does all bootstrap resamples.

A resample is a weight a row, how often the row was drawn; `weights` is [resample row], and its first line is all ones, the rows
themselves. Every probe, baseline and control is measured on the same resamples, which makes their differences paired.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from workbench.core.statistics import LEVEL, RESAMPLES, Estimate

BLOCK = 1 << 22  # weights looked at together
MOST_UNDEFINED = 0.05  # share of the resamples in which a class is missing, above which there is no interval
BINS = 10


def resamples(
    strata: Int[np.ndarray, "n"], groups: Int[np.ndarray, "n"], *, seed: int, count: int = RESAMPLES
) -> Float[np.ndarray, "resample n"]:
    """Weights of the rows themselves, then of `count` bootstrap resamples; float32 whole numbers.

    Groups are drawn whole, with replacement. Where no group has rows of two strata they are drawn within their stratum, so that
    every resample has every class; otherwise among all, and a resample may lack a class: it then has no AUC (`estimate`).
    Where a stratum is one group, all weights of the resamples are 0 and nothing is defined: one group does not say how groups vary.
    For groups of one row and two strata the resamples are those of `core.statistics.bootstrap` with the strata as its samples.
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(groups, return_inverse=True)
    kind = np.zeros(len(names), dtype=np.int64)
    kind[member] = strata
    if (kind[member] != strata).any():
        kind[:] = 0
    times = np.zeros((count, len(names)), dtype=np.float32)
    for stratum in np.unique(kind):
        mine = np.flatnonzero(kind == stratum)
        drawn = rng.integers(0, len(mine), size=(count, len(mine)))
        times[:, mine] = np.stack([np.bincount(line, minlength=len(mine)) for line in drawn])
    if 1 in np.unique(kind, return_counts=True)[1]:
        times[:] = 0
    return np.vstack([np.ones((1, len(groups)), dtype=np.float32), times[:, member]])


def spread(
    statistic: Callable[[Float[np.ndarray, "resample n"]], Float[np.ndarray, "resample"]], weights: Float[np.ndarray, "resample n"]
) -> Float64[np.ndarray, "resample"]:
    """A statistic of the rows (first) and of every resample, float64; NaN where it is undefined."""
    parts = np.array_split(weights, max(1, -(-weights.size // BLOCK)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([statistic(part.astype(np.float64)) for part in parts])


def estimate(values: Float64[np.ndarray, "resample"], n: int) -> Estimate:
    """The first value, with the central 95 % of the others; no interval (NaN) where more than 5 % of those are undefined."""
    drawn = values[1:][np.isfinite(values[1:])]
    if len(drawn) < (1 - MOST_UNDEFINED) * len(values[1:]) or not len(drawn):
        return Estimate(float(values[0]), np.nan, np.nan, n)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values[0]), float(low), float(high), n)


def auc(
    scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], weights: Float[np.ndarray, "resample n"]
) -> Float[np.ndarray, "resample"]:
    """Area under the ROC curve: the chance that a positive row scores above a negative one, ties counting half.

    NaN in a resample without a positive or without a negative row.
    """
    starts, order = _ties(scores)
    drawn = weights[:, order]
    up = np.add.reduceat(drawn * positive[order], starts, axis=1)
    down = np.add.reduceat(drawn * ~positive[order], starts, axis=1)
    below = down.cumsum(axis=1) - down / 2
    return (up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))


def macro_auc(
    scores: Float[np.ndarray, "n class"], codes: Int[np.ndarray, "n"], weights: Float[np.ndarray, "resample n"]
) -> Float[np.ndarray, "resample"]:
    """Mean over the classes of the AUC of one class's score against all other rows; each class counts the same."""
    return np.mean([auc(scores[:, c], codes == c, weights) for c in range(scores.shape[1])], axis=0)


def accuracy(right: Bool[np.ndarray, "n"], weights: Float[np.ndarray, "resample n"]) -> Float[np.ndarray, "resample"]:
    """Share of the rows that were told right."""
    return weights @ right / weights.sum(axis=1)


def balanced_accuracy(
    right: Bool[np.ndarray, "n"], codes: Int[np.ndarray, "n"], weights: Float[np.ndarray, "resample n"]
) -> Float[np.ndarray, "resample"]:
    """Mean over the classes of the share told right."""
    return np.mean([accuracy(right[codes == c], weights[:, codes == c]) for c in range(int(codes.max()) + 1)], axis=0)


def spearman(
    scores: Float[np.ndarray, "n"], targets: Float[np.ndarray, "n"], weights: Float[np.ndarray, "resample n"]
) -> Float[np.ndarray, "resample"]:
    """Rank correlation, ties at their mean rank; ranks are those within the resample."""
    x, y = _ranks(scores, weights), _ranks(targets, weights)
    total = weights.sum(axis=1, keepdims=True)
    x, y = (r - (weights * r).sum(axis=1, keepdims=True) / total for r in (x, y))
    return (weights * x * y).sum(axis=1) / np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))


def r_squared(
    predicted: Float[np.ndarray, "n"], targets: Float[np.ndarray, "n"], weights: Float[np.ndarray, "resample n"]
) -> Float[np.ndarray, "resample"]:
    """1 - sum (y - f)^2 / sum (y - mean y)^2 over held-out rows, whose own mean is the reference; may be below 0."""
    mean = weights @ targets / weights.sum(axis=1)
    return 1 - weights @ (targets - predicted) ** 2 / (weights * (targets - mean[:, None]) ** 2).sum(axis=1)


def reliability(
    confidence: Float[np.ndarray, "n"], right: Float[np.ndarray, "n"], *, bins: int = BINS
) -> Float64[np.ndarray, "bin column"]:
    """Rows sorted by confidence, in `bins` groups as equal in size as can be: [mean confidence, share right, rows]."""
    parts = _bins(confidence, bins)
    return np.array([[confidence[part].mean(), right[part].mean(), len(part)] for part in parts], dtype=np.float64)


def calibration_error(table: Float[np.ndarray, "bin column"]) -> float:
    """Expected calibration error of a `reliability` table: the mean over rows of their bin's |confidence - share right|.

    Bins hold equally many rows; the common variant with bins of equal width leaves most of them nearly empty. Even a perfectly
    calibrated probe has an error above 0 on finitely many rows: `calibration_noise` says how much.
    """
    return float((table[:, 2] * np.abs(table[:, 0] - table[:, 1])).sum() / table[:, 2].sum())


def calibration_noise(confidence: Float[np.ndarray, "n"], *, seed: int, bins: int = BINS, count: int = 500) -> Estimate:
    """The calibration error these confidences would have if they were true: mean, and central 95 %, over drawn outcomes.

    Reference: consistency resampling, Bröcker and Smith 2007, Weather and Forecasting 22.
    """
    drawn = np.random.default_rng(seed).random((count, len(confidence))) < confidence
    parts = _bins(confidence, bins)
    errors = sum(np.abs(confidence[part].sum() - drawn[:, part].sum(axis=1)) for part in parts) / len(confidence)
    low, high = np.quantile(errors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(np.mean(errors)), float(low), float(high), len(confidence))


def _bins(confidence: Float[np.ndarray, "n"], bins: int) -> list[Int[np.ndarray, "rows"]]:
    """Positions of the rows in each bin, least confident first."""
    return np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))


def _ties(values: Float[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "distinct"], Int[np.ndarray, "n"]]:
    """Where each distinct value begins in the sorted order, and that order."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])), order


def _ranks(values: Float[np.ndarray, "n"], weights: Float[np.ndarray, "resample n"]) -> Float[np.ndarray, "resample n"]:
    """Mean rank of every row's value within each resample, less 1/2, which no correlation sees."""
    starts, order = _ties(values)
    drawn = np.add.reduceat(weights[:, order], starts, axis=1)
    rank = drawn.cumsum(axis=1) - drawn / 2
    which = np.empty(len(values), dtype=np.int64)
    which[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(values)]))
    return rank[:, which]
