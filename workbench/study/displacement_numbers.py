"""The two statistics of a study of displacement, each with an interval that draws prompts and seeds anew.

rank_correlations   of several scores of the pairs with what several runs did to them, all on the same resamples
means               of what several runs did to the pairs, where a run may have missed some

Pairs that share a prompt are drawn together: they are not independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, ShapeError
from workbench.core.statistics import LEVEL, RESAMPLES, Estimate, standard_ranks, wilson


@dataclass(frozen=True, eq=False)
class Draws:
    """How often every pair and every seed stands in each resample; the first line is the sample itself, each once.

    pairs: [resample pair].   seeds: [resample seed].
    """

    pairs: Float[np.ndarray, "resample pair"]
    seeds: Float[np.ndarray, "resample seed"]


@dataclass(frozen=True, eq=False)
class Resampled:
    """A statistic of the sample and of every resample, NaN where it is not defined.

    values: [resample], that of the sample itself first.   n: pairs behind it.
    """

    values: Float[np.ndarray, "resample"]
    n: int

    def minus(self, other: "Resampled") -> "Resampled":
        """The difference, resample by resample: paired, if both are on the same draws."""
        return Resampled(self.values - other.values, self.n)

    def estimate(self) -> Estimate:
        """The value with the central 95 % of its resamples; those in which it is not defined are left out."""
        found = self.values[1:][np.isfinite(self.values[1:])]
        if not np.isfinite(self.values[0]) or not found.size:
            return Estimate(float("nan"), float("nan"), float("nan"), self.n)
        low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(float(self.values[0]), float(low), float(high), self.n)


def share_estimate(found: Resampled, observations: int) -> Estimate:
    """A share with the central 95 % of its resamples, or with its Wilson interval where all pairs agree.

    If all pairs did, or none, every resample says so, and an interval without width would claim certainty.

    Args: observations: that are independent: the number of prompts.
    """
    made = found.estimate()
    return wilson(made.value, observations) if made.value in (0, 1) and made.low == made.high else made


def draws(prompts: Sequence[str], seeds: int, *, seed: int = 0) -> Draws:
    """Resamples of the pairs, by prompt with replacement, and of the seeds.

    Args: prompts: of every pair.   seeds: how many there are.   seed: of NumPy's generator; the same seed draws the same.
    """
    if not prompts or seeds < 1:
        raise DataError(f"draws: there are {len(prompts)} pairs and {seeds} seeds; nothing was measured, so there is no estimate.")
    rng = np.random.default_rng(seed)
    place = np.unique(list(prompts), return_inverse=True)[1]
    groups = int(place.max()) + 1
    counts = [rng.multinomial(k, np.full(k, 1 / k), size=RESAMPLES).astype(float) for k in (groups, seeds)]
    by_group, by_seed = (np.vstack([np.ones(count.shape[1]), count]) for count in counts)
    return Draws(by_group[:, place], by_seed)


def rank_correlations(
    scores: Mapping[str, Float[np.ndarray, "pair"]], outcome: Float[np.ndarray, "seed pair"], drawn: Draws
) -> dict[str, Resampled]:
    """Spearman's correlation of every score with the outcome of a run, as a mean over the drawn runs.

    rho = cov(rank score, rank outcome) / (sd sd), pairs ranked anew in every resample. It is the correlation with one run's
    outcome, averaged; with the outcome averaged over runs it would be higher the more runs there are. A score that is the same for
    all pairs has none: NaN.
    """
    if outcome.shape != (drawn.seeds.shape[1], drawn.pairs.shape[1]):
        raise ShapeError(
            f"rank_correlations: outcome is {outcome.shape}, expected one row for each of {drawn.seeds.shape[1]} seeds and one "
            f"column for each of {drawn.pairs.shape[1]} pairs."
        )
    runs = [standard_ranks(run, drawn.pairs) for run in outcome]
    found: dict[str, Resampled] = {}
    for name, values in scores.items():
        score = standard_ranks(values, drawn.pairs)
        rho = np.stack([(drawn.pairs * score * run).sum(1) for run in runs], axis=1)
        found[name] = Resampled(_over(rho, drawn.seeds), outcome.shape[1])
    return found


def means(outcome: Float[np.ndarray, "seed pair"], drawn: Draws) -> Resampled:
    """Mean over the pairs a run speaks of (those that are not NaN), as a mean over the drawn runs."""
    known = np.isfinite(outcome)
    weight = drawn.pairs @ known.T.astype(float)
    total = drawn.pairs @ np.where(known, outcome, 0.0).T
    each = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
    return Resampled(_over(each, drawn.seeds), int(known.any(0).sum()))


def _over(each: Float[np.ndarray, "resample seed"], seeds: Float[np.ndarray, "resample seed"]) -> Float[np.ndarray, "resample"]:
    """Mean over the drawn seeds; NaN if one of them has no value."""
    drawn = seeds > 0
    value = (np.where(drawn, each, 0.0) * seeds).sum(1) / seeds.sum(1)
    return np.where((np.isfinite(each) | ~drawn).all(1), value, np.nan)
