"""What came out of a comparison: every method in every mask with all its seeds, and the models it is held against."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.comparison import Front, pareto
from workbench.core.errors import InputError
from workbench.core.ks import ks_distances
from workbench.core.statistics import Estimate
from workbench.evaluate import TokenTable
from workbench.evaluate.model_utility import UTILITY_SPLITS, components, harmonic_mean
from workbench.evaluate.rouge_l_recall import rouge_l_recall
from workbench.evaluate.truth_ratio import log_ratio
from workbench.study.compare_choice import Search
from workbench.study.compare_grid import Arm
from workbench.study.compare_numbers import distance, distance_in_bands, mean, over_seeds
from workbench.study.compare_plan import RETRAINED, RETRAINED_B, UNTOUCHED, Line

AGGREGATE = "geometric"


class Said(NamedTuple):
    """One model's numbers, a row each. Forget rows: nll in nats per token, ln of the truth ratio, ROUGE-L recall.

    retain_nll: of the reported retain rows.   utility: the three numbers of `model_utility` of the rows of each of its splits.
    """

    nll: Float[np.ndarray, "forget"]
    log_ratio: Float[np.ndarray, "forget"]
    recall: Float[np.ndarray, "forget"]
    retain_nll: Float[np.ndarray, "retain"]
    utility: tuple[Float[np.ndarray, "row 3"], ...]


def said(arm: Arm, tables: Mapping[str, TokenTable]) -> Said:
    """The numbers of an arm, from its tables and its point."""
    forget = tables["forget"].answers
    return Said(
        forget.response,
        log_ratio(forget, aggregate=AGGREGATE, truth="paraphrase"),
        rouge_l_recall(forget),
        np.array(arm.point["retain_nll"]),
        tuple(components(split, tables[split].answers, aggregate=AGGREGATE) for split in UTILITY_SPLITS),
    )


@dataclass(frozen=True, eq=False)
class Told:
    """A method in a mask, or a model as it is: its arms, one a seed, what each said, and the models it is held against.

    gold, second: the two retrained models.   start: the untouched model.
    """

    method: str
    mask: str
    arms: tuple[Arm, ...]
    said: tuple[Said, ...]
    gold: Said
    second: Said
    start: Said

    @property
    def name(self) -> str:
        """As it is shown: "npo, wagle"."""
        return f"{self.method}, {self.mask}" if self.mask else self.method

    def rows(self, what: str) -> Float[np.ndarray, "seed row"]:
        """A field of `Said` of every seed."""
        return np.stack([getattr(one, what) for one in self.said])

    def beside(self, one: Said, other: Said) -> Float[np.ndarray, "seed row 3"]:
        """ln of the truth ratio of every forget row: the arm's, and those of two other models."""
        both = np.stack([one.log_ratio, other.log_ratio], axis=1)
        return np.stack([np.concatenate([mine.log_ratio[:, None], both], axis=1) for mine in self.said])

    @cached_property
    def recall(self) -> Estimate:
        """ROUGE-L recall of the forget rows."""
        return over_seeds(mean, self.rows("recall"))

    @cached_property
    def probability(self) -> Estimate:
        """Length-normalized probability of the forget rows' true answers."""
        return over_seeds(mean, np.exp(-self.rows("nll")))

    @cached_property
    def forget_nll(self) -> Estimate:
        """Mean NLL of the forget rows' true answers, in nats per token."""
        return over_seeds(mean, self.rows("nll"))

    @cached_property
    def distance(self) -> Estimate:
        """Kolmogorov-Smirnov D between the truth ratios of the arm and of the retrained model."""
        return over_seeds(distance, self.beside(self.gold, self.second))

    @cached_property
    def bands(self) -> Estimate:
        """`distance` in units of the distance between the two retrained models."""
        return over_seeds(distance_in_bands, self.beside(self.gold, self.second))

    @cached_property
    def nearer(self) -> Estimate:
        """D of the untouched model minus D of the arm, on the same resamples; above 0 the arm is nearer to the retrained model."""
        return over_seeds(lambda x: ks_distances(x[..., [2, 1]]) - ks_distances(x[..., :2]), self.beside(self.gold, self.start))

    @cached_property
    def distance_second(self) -> Estimate:
        """Kolmogorov-Smirnov D to the second retrained model."""
        return over_seeds(distance, self.beside(self.second, self.gold))

    @cached_property
    def bands_second(self) -> Estimate:
        """`distance_second` in the same unit."""
        return over_seeds(distance_in_bands, self.beside(self.second, self.gold))

    @cached_property
    def shift(self) -> Estimate:
        """Mean difference of ln R to the retrained model, row by row; below 0 the truth is preferred more than there."""
        return over_seeds(mean, self.rows("log_ratio") - self.gold.log_ratio)

    @cached_property
    def retain_rise(self) -> Estimate:
        """Rise of the NLL of the reported retain rows, in nats per token."""
        return over_seeds(mean, self.rows("retain_nll") - self.start.retain_nll)

    @cached_property
    def utility(self) -> Estimate:
        """Model utility: the harmonic mean of nine means on three splits; see `model_utility_geometric`."""
        parts = [np.stack([one.utility[i] for one in self.said]) for i in range(len(UTILITY_SPLITS))]
        return over_seeds(lambda *drawn: harmonic_mean(np.concatenate([d.mean(axis=1) for d in drawn], axis=1)), *parts)

    def spent(self, what: str) -> list[float]:
        """A number of every run's point: used, steps, moved, part; NaN where a run has none."""
        return [math.nan if arm.point.get(what) is None else float(arm.point[what]) for arm in self.arms]

    @property
    def steps(self) -> float:
        """Mean steps of training; NaN of what is not trained."""
        return float(np.mean(self.spent("steps")))

    @property
    def reached(self) -> int:
        """How many of the runs spent the budget."""
        return sum(bool(arm.point.get("reached")) for arm in self.arms)

    @property
    def budget_spent(self) -> str:
        """By how many of the runs, such as "2 of 3"."""
        return f"{self.reached} of {len(self.arms)}"


@dataclass(frozen=True, eq=False)
class Result:
    """A whole comparison. baselines: by name.   told: methods in masks, in the study's order.   lines: of the study.

    failed: arms whose loss was not finite, with what was said.   missing: arms that have not been run yet.
    """

    baselines: Mapping[str, Told]
    told: Sequence[Told]
    searches: Sequence[Search]
    lines: Sequence[Line]
    failed: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()

    @cached_property
    def front(self) -> Front | None:
        """Which arms no other one beats both in nearness to the retrained model and in retain rows kept; None without arms.

        Forget: D to the retrained model in bands, the mean over an arm's seeds.   Retain: minus the rise of the NLL of the reported
        rows, the same mean. Arms that did not spend the budget are among them, at their smaller cost.
        Resamples draw rows, not seeds.
        """
        if not self.told or not all(math.isfinite(one.bands.value) for one in self.told):
            return None
        most = max(len(one.said) for one in self.told)
        forget, retain = [], []
        for one in self.told:
            rows, n = one.rows("log_ratio"), len(one.said)
            blank = np.zeros((most - n, rows.shape[1]))  # an arm of fewer runs, such as an edit; never read
            last = np.stack([one.gold.log_ratio, one.second.log_ratio, np.full(rows.shape[1], n)])
            forget.append(np.concatenate([rows, blank, last]).T)
            retain.append((one.start.retain_nll - one.rows("retain_nll")).mean(axis=0))
        return pareto(np.stack(forget), np.stack(retain), names=[one.name for one in self.told], forget_statistic=_mean_bands)

    @property
    def band(self) -> Estimate:
        """The retrain-retrain band: D between the two retrained models."""
        return self.baselines[RETRAINED_B].distance


def gather(arms: Sequence[tuple[Arm, Said]]) -> tuple[dict[str, Told], list[Told]]:
    """The models as they are by name, and the others with the seeds of a method in a mask together, in their order.

    Raises: InputError if one of the three models that all are held against is missing.
    """
    by_name = {arm.name: one for arm, one in arms}
    absent = [name for name in (UNTOUCHED, RETRAINED, RETRAINED_B) if name not in by_name]
    if absent:
        raise InputError(f"compare: {', '.join(absent)} is not measured; every distance is to it, or in its unit.")
    start, gold, second = (by_name[name] for name in (UNTOUCHED, RETRAINED, RETRAINED_B))
    groups: dict[tuple[str, str], list[tuple[Arm, Said]]] = {}
    for arm, one in arms:
        groups.setdefault((arm.method, arm.mask), []).append((arm, one))
    told = [
        Told(method, mask, tuple(arm for arm, _ in group), tuple(one for _, one in group), gold, second, start)
        for (method, mask), group in groups.items()
    ]
    return {one.method: one for one in told if not one.mask}, [one for one in told if one.mask]


def _mean_bands(drawn: Float[np.ndarray, "resample row part"]) -> Float[np.ndarray, "resample"]:
    """Mean over an arm's seeds of the distance in bands; the last three parts are the retrained models' and how many seeds."""
    seeds = range(int(drawn[0, 0, -1]))
    return np.mean([distance_in_bands(drawn[..., [s, -3, -2]]) for s in seeds], axis=0)
