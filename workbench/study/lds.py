"""The linear datamodeling score: do sums of influence over a training subset order models by the loss they end with?

    LDS_q = Spearman over models m of ( sum of influence[q, i] over the rows i that m was trained on,  -loss of q under m )

A method gets the mean over queries. The models are those of a bank (`study.bank`): random subsets of the training rows, each
trained from one start with every seed; the loss of a query is the mean over seeds. One seed's noise is a part of that loss which no
method can predict, so a score is read beside the bank's ceiling.

TRAK and kronfluence draw random halves, as the bank does by default; Bergson's default leaves out one of a hundred disjoint parts.
Their numbers are not comparable, and neither are those of two tasks.

Reference: Ilyas et al. 2022, arXiv:2202.00622 (datamodels); Park et al. 2023, arXiv:2303.14186 (the score).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from workbench.core.errors import ShapeError
from workbench.core.statistics import LEVEL, Estimate, spearman

RESAMPLES = 500


class Lds(NamedTuple):
    """How well one method predicts a bank.

    estimate: mean over queries of the Spearman correlation, with an interval that draws queries and models anew.
    per_query: [query], NaN where a correlation is not defined.   drawn: [resample], the means behind the interval; two methods on
    one bank with one seed have the same queries and models drawn, so the difference of their `drawn` is a paired one.
    note: why there is no number, or for how many queries there is none; "" otherwise.
    """

    estimate: Estimate
    per_query: Float[np.ndarray, "query"]
    drawn: Float[np.ndarray, "resample"]
    note: str


class Reliability(NamedTuple):
    """How far a bank agrees with itself.

    one_seed: mean over queries of r_q, the Spearman correlation over models of two seeds' losses, averaged over pairs of seeds.
    mean_of_seeds: mean over queries of R r / (1 + (R - 1) r) (Spearman-Brown), r = max(r_q, 0), for the mean over all R seeds.
    ceiling: mean over queries of the root of that, the score to be expected of a method that knows the expected loss exactly, with
        an interval that draws queries and models anew.
    note: why they are NaN; "" otherwise.
    """

    one_seed: float
    mean_of_seeds: float
    ceiling: Estimate
    note: str


def lds(
    influence: Float[np.ndarray, "query train"],
    subsets: Bool[np.ndarray, "model train"],
    losses: Float[np.ndarray, "model seed query"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Lds:
    """The linear datamodeling score of one method on one bank.

    Args:
        influence: higher = training on the row lowers the query's loss.   subsets: what each model was trained on.
        losses: of every query under every model and seed, nats per token.   seed: of the resampling.
    Returns: NaN, with a note, for a method whose sums are the same for all models (a constant score under subsets of one size).
    Raises: ShapeError if the three do not belong together.
    """
    if influence.shape != (losses.shape[2], subsets.shape[1]) or len(subsets) != len(losses):
        raise ShapeError(
            f"lds: influence is {influence.shape}, subsets {subsets.shape} and losses {losses.shape}; expected [query train], "
            "[model train] and [model seed query] of one bank."
        )
    predicted = _steady(influence @ subsets.T.astype(np.float64))
    truth = -losses.mean(axis=1).T
    per_query = spearman(predicted, truth)
    drawn = _resample(predicted, truth, seed, resamples)
    undefined = int(np.isnan(per_query).sum())
    n = len(per_query)
    if undefined == n:
        nothing = np.full(resamples, np.nan)
        return Lds(Estimate(np.nan, np.nan, np.nan, 0), per_query, nothing, "the same sum or loss for every model of the bank")
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    note = f"not defined for {undefined} of {n} queries: the same sum or loss for every model" if undefined else ""
    return Lds(Estimate(float(np.nanmean(per_query)), float(low), float(high), n - undefined), per_query, drawn, note)


def reliability(losses: Float[np.ndarray, "model seed query"], *, seed: int = 0, resamples: int = RESAMPLES) -> Reliability:
    """How far the seeds of a bank agree about the order of its models, and what that leaves for a method to predict.

    The ceiling follows from classical test theory: a method that knows the expected loss of a query correlates with a measured one
    as sqrt(reliability); as a score is a mean over queries of correlations, the root is taken query by query. It is exact for
    Pearson and an approximation for ranks; and r_q is itself an estimate from few models, whose noise the root bends downward. So
    a score may lie a little above it.

    Args: seed: of the resampling.
    """
    seeds = losses.shape[1]
    if seeds < 2:
        return _unknown("one seed a subset: how far seeds agree is not known; give at least two")
    each = _agreement(losses)
    if np.isnan(each).all():
        return _unknown("every query has the same loss under every model")
    r = float(np.nanmean(each))
    if r <= 0:
        return _unknown("the seeds do not agree: the bank measures noise; take more rows out or more models", r)
    rng = np.random.default_rng(seed)
    drawn = np.full(resamples, np.nan)
    for k in range(resamples):
        models, queries = (rng.integers(0, n, n) for n in (len(losses), losses.shape[2]))
        found = _agreement(losses[models][:, :, queries])
        if not np.isnan(found).all():
            drawn[k] = np.nanmean(np.sqrt(_spearman_brown(found, seeds)))
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    lengthened = _spearman_brown(each, seeds)
    ceiling = Estimate(float(np.nanmean(np.sqrt(lengthened))), float(low), float(high), int(np.isfinite(each).sum()))
    return Reliability(r, float(np.nanmean(lengthened)), ceiling, "")


def _unknown(note: str, one_seed: float = float("nan")) -> Reliability:
    nothing = float("nan")
    return Reliability(one_seed, nothing, Estimate(nothing, nothing, nothing, 0), note)


def _agreement(losses: Float[np.ndarray, "model seed query"]) -> Float[np.ndarray, "query"]:
    """Spearman correlation over models of two seeds, the mean over pairs of seeds; NaN where a seed has no order."""
    by_seed = losses.transpose(1, 2, 0)
    pairs = [spearman(by_seed[a], by_seed[b]) for a in range(len(by_seed)) for b in range(a)]
    return np.mean(pairs, axis=0)


def _spearman_brown(r: Float[np.ndarray, "query"], n: int) -> Float[np.ndarray, "query"]:
    """Reliability of a mean of n from that of one; 0 for a negative one."""
    kept = np.maximum(r, 0.0)  # NaN stays
    return n * kept / (1 + (n - 1) * kept)


def _steady(sums: Float[np.ndarray, "query model"]) -> Float[np.ndarray, "query model"]:
    """Sums rounded to 10 digits of the largest of their query: the order of addition must not break ties."""
    largest = np.abs(sums).max(axis=1, keepdims=True)
    unit = np.where(largest > 0, largest, 1.0) * 1e-10
    return np.round(sums / unit) * unit


def _resample(
    predicted: Float[np.ndarray, "query model"], truth: Float[np.ndarray, "query model"], seed: int, resamples: int
) -> Float[np.ndarray, "resample"]:
    """Mean correlation of resampled queries over resampled models; NaN where none of them is defined."""
    rng = np.random.default_rng(seed)
    queries, models = predicted.shape
    out = np.full(resamples, np.nan)
    for k in range(resamples):
        rows, columns = rng.integers(0, queries, queries), rng.integers(0, models, models)
        found = spearman(predicted[rows][:, columns], truth[rows][:, columns])
        if not np.isnan(found).all():
            out[k] = np.nanmean(found)
    return out
