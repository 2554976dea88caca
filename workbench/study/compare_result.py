"""What came out of a comparison: every method in every mask with all its seeds, and the models it is held against."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.comparison import Front, Paired, paired, pareto
from workbench.core.discovery import benjamini_hochberg
from workbench.core.errors import InputError
from workbench.core.ks import ks_distances
from workbench.core.statistics import Estimate
from workbench.evaluate import TokenTable
from workbench.evaluate.model_utility import UTILITY_SPLITS, components, harmonic_mean
from workbench.evaluate.rouge_l_recall import rouge_l_recall
from workbench.evaluate.truth_ratio import log_ratio
from workbench.study.compare_grid import RETRAINED, RETRAINED_B, UNTOUCHED, Arm, Search
from workbench.study.compare_numbers import distance, distance_in_bands, mean, over_seeds
from workbench.study.compare_plan import NONE
from workbench.study.config import MaskPlan

AGGREGATE = "geometric"
LEVEL = 0.05


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
    def reached(self) -> int:
        """How many of the runs spent the budget."""
        return sum(bool(arm.point.get("reached")) for arm in self.arms)


class Versus(NamedTuple):
    """Two masks of one method compared row by row.

    forget: of the NLL of forget rows, in nats per token; above 0 the first forgot more.
    gap: of |ln R - ln R of the retrained model|; below 0 the first is nearer to it.   adjusted_*: the p-values after Benjamini and
    Hochberg's procedure over all tests of the comparison.
    """

    method: str
    mask: str
    against: str
    forget: Paired
    gap: Paired
    adjusted_forget: float
    adjusted_gap: float


@dataclass(frozen=True, eq=False)
class Result:
    """A whole comparison. baselines: by name.   told: methods in masks, in the study's order.   plans: of the masks of each method.

    failed: arms whose loss was not finite, with what was said.   missing: arms that have not been run yet.
    """

    baselines: Mapping[str, Told]
    told: Sequence[Told]
    searches: Sequence[Search]
    plans: Mapping[str, Mapping[str, MaskPlan | None]]
    failed: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()

    @cached_property
    def tests(self) -> list[Versus]:
        """Every mask of a method against no mask, and against its matched random one where there is one."""
        by_key = {(one.method, one.mask): one for one in self.told}
        pairs = [
            (by_key[one.method, one.mask], by_key[one.method, other])
            for one in self.told
            for other in _against(self.plans.get(one.method, {}), one.mask)
            if (one.method, other) in by_key
        ]
        pairs = [(a, b) for a, b in pairs if [x.seed for x in a.arms] == [x.seed for x in b.arms]]
        forget = [_paired(a.rows("nll"), b.rows("nll")) for a, b in pairs]
        gap = [_paired(_gap(a), _gap(b)) for a, b in pairs]
        if not pairs:
            return []
        adjusted = benjamini_hochberg(np.array([one.p for one in (*forget, *gap)]), level=LEVEL).adjusted.reshape(2, len(pairs))
        return [
            Versus(a.method, a.mask, b.mask, f, g, float(p), float(q))
            for (a, b), f, g, p, q in zip(pairs, forget, gap, *adjusted, strict=True)
        ]

    @cached_property
    def front(self) -> Front | None:
        """Which arms no other one beats both in nearness to the retrained model and in retain rows kept; None without arms.

        Forget: D to the retrained model in bands, the mean over seeds.   Retain: minus the rise of the NLL of the reported rows.
        Resamples draw rows, not seeds.
        """
        if not self.told or not math.isfinite(self.told[0].bands.value):
            return None
        most = max(len(one.said) for one in self.told)
        forget, retain = [], []
        for one in self.told:
            every = [one.said[i % len(one.said)] for i in range(most)]  # an edit has one run; its mean is the same
            forget.append(np.stack([*(e.log_ratio for e in every), one.gold.log_ratio, one.second.log_ratio], axis=1))
            retain.append(np.stack([one.start.retain_nll - e.retain_nll for e in every], axis=1))
        return pareto(
            np.stack(forget),
            np.stack(retain),
            names=[one.name for one in self.told],
            forget_statistic=_mean_bands,
            retain_statistic=lambda x: x.mean(axis=(1, 2)),
        )

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


def _against(plans: Mapping[str, MaskPlan | None], mask: str) -> list[str]:
    """What a mask is compared with: none, and the matched random choice of the same mask."""
    plan = plans.get(mask)
    if plan is None:
        return []
    twins = [name for name, other in plans.items() if not plan.control and other == replace(plan, control="matched_random")]
    return [*([NONE] if NONE in plans else []), *twins]


def _gap(one: Told) -> Float[np.ndarray, "seed row"]:
    return np.abs(one.rows("log_ratio") - one.gold.log_ratio)


def _paired(a: Float[np.ndarray, "seed row"], b: Float[np.ndarray, "seed row"]) -> Paired:
    """Row by row and seed by seed; a row's seeds are drawn and flipped together, for they are not independent."""
    return paired(a.ravel(), b.ravel(), groups=np.tile(np.arange(a.shape[1]), a.shape[0]).tolist())


def _mean_bands(drawn: Float[np.ndarray, "resample row part"]) -> Float[np.ndarray, "resample"]:
    """Mean over seeds of the distance in bands; the last two parts are the retrained models'."""
    seeds = range(drawn.shape[2] - 2)
    return np.mean([distance_in_bands(drawn[..., [s, -2, -1]]) for s in seeds], axis=0)
