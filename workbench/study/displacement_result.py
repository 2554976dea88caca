"""What came out of all runs on one set of pairs: how far answers moved, what foretold it, and what leaving pairs out did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.errors import InputError
from workbench.core.statistics import Estimate
from workbench.study.displacement_grid import ALL, RANDOM, Bench, Point
from workbench.study.displacement_numbers import Draws, Resampled, draws, means, rank_correlations

MAIN = "CHES, length-normalized"
FREE = ("ln p(chosen) before", "ln p(rejected) before", "length of both")
"""Scores that claim no direction; the others claim that more of them means more displacement."""


class Moved(NamedTuple):
    """What tuning did to the pairs trained on, and to the held-out ones.

    chosen, rejected: change of ln p.   displaced: share of the pairs whose chosen answer lost probability.   margin: share of them
    whose margin ln p(chosen) - ln p(rejected) grew.   accuracy: share with ln p(chosen) > ln p(rejected).
    """

    chosen: Estimate
    rejected: Estimate
    displaced: Estimate
    margin: Estimate
    accuracy_before: Estimate
    accuracy: Estimate
    held_chosen: Estimate
    held_displaced: Estimate


class Effect(NamedTuple):
    """What an arm did to the chosen answers, in nats, with its difference to the arm that left as many pairs out by chance.

    held_out: of pairs trained on in no arm.   kept: of the pairs that were trained on.   relief: of those, against training on all
    pairs; this compares the same pairs, `kept` does not.
    """

    held_out: Estimate
    held_out_more: Estimate
    kept: Estimate
    kept_more: Estimate
    relief: Estimate
    relief_more: Estimate


@dataclass(frozen=True, eq=False)
class Result:
    """All runs on one set of pairs."""

    on: Bench
    points: Sequence[Point]

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted({point.seed for point in self.points})

    @cached_property
    def drawn(self) -> Draws:
        """Resamples of the pairs that may be trained on."""
        return draws([pair.prompt for pair in self.on.train], len(self.seeds))

    @cached_property
    def held_drawn(self) -> Draws:
        """Resamples of the held-out pairs; they draw the same seeds as `drawn`."""
        held = draws([pair.prompt for pair in self.on.held_out], len(self.seeds))
        return Draws(held.pairs, self.drawn.seeds)

    @property
    def arms(self) -> list[str]:
        """What was left out, in the order of the runs; the random arm last."""
        return list(dict.fromkeys(point.without for point in self.points if point.without != ALL))

    def change(self, objective: str, what: str, without: str = ALL) -> Float[np.ndarray, "seed pair"]:
        """Change of ln p of the "chosen" or "rejected" answers, NaN where a run was not trained on the pair."""
        return np.stack([point.table(what, len(self.on.train)) for point in self._runs(objective, without)])

    def held(self, objective: str, without: str = ALL) -> Float[np.ndarray, "seed held"]:
        """Change of ln p of the held-out chosen answers."""
        return np.array([point.held_chosen for point in self._runs(objective, without)])

    def moved(self, objective: str) -> Moved:
        """What tuning to all pairs did."""
        chosen, rejected, held = self.change(objective, "chosen"), self.change(objective, "rejected"), self.held(objective)
        margin = np.broadcast_to(self.on.before[:, 0] - self.on.before[:, 1], chosen.shape)
        after = margin + chosen - rejected
        trained = (chosen, rejected, chosen < 0, chosen > rejected, margin > 0, after > 0)
        found = [means(values.astype(float), self.drawn).estimate() for values in trained]
        return Moved(*found, *(means(values.astype(float), self.held_drawn).estimate() for values in (held, held < 0)))

    def correlations(self, objective: str, *, per_token: bool = False) -> Mapping[str, Resampled]:
        """Rank correlation of every score with displacement, in nats or in nats per token of the chosen answer."""
        displaced = -self.change(objective, "chosen")
        return rank_correlations(self.on.scores, displaced / self.on.lengths if per_token else displaced, self.drawn)

    def versus(self, objective: str, control: str) -> Resampled:
        """Rank correlation of length-normalized CHES with displacement minus that of a control, on the same resamples.

        A control that claims no direction is taken in the one in which its correlation on the pairs is positive.
        """
        found = self.correlations(objective)
        other = found[control]
        direction = np.sign(other.values[0]) if control in FREE else 1.0
        return found[MAIN].minus(Resampled(direction * other.values, other.n))

    def given(self, objective: str, control: str) -> Resampled:
        """Partial rank correlation of length-normalized CHES with displacement, the ranks of a control held constant.

        (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)) of CHES x, displacement y and control z, with r_xy and r_yz means over
        runs; NaN where the control is the same for all pairs.
        """
        with_outcome = self.correlations(objective)
        across = np.broadcast_to(self.on.scores[control], (len(self.seeds), len(self.on.train)))
        xz = rank_correlations({MAIN: self.on.scores[MAIN]}, across, self.drawn)[MAIN].values
        xy, yz = with_outcome[MAIN].values, with_outcome[control].values
        rest = (1 - xz**2) * (1 - yz**2)
        value = np.divide(xy - xz * yz, np.sqrt(np.clip(rest, 0, None)), out=np.full(xy.shape, np.nan), where=rest > 1e-12)
        return Resampled(value, len(self.on.train))

    def effect(self, objective: str, without: str) -> Effect:
        """What leaving the highest pairs of a score out did."""
        mine, chance = ([*self._means(objective, arm)] for arm in (without, RANDOM))
        pairs = zip(mine, chance, strict=True)
        return Effect(*(each.estimate() for own, other in pairs for each in (own, own.minus(other))))

    def _means(self, objective: str, without: str) -> tuple[Resampled, Resampled, Resampled]:
        held = means(self.held(objective, without), self.held_drawn)
        kept = self.change(objective, "chosen", without)
        return held, means(kept, self.drawn), means(kept - self.change(objective, "chosen"), self.drawn)

    def _runs(self, objective: str, without: str) -> list[Point]:
        """The runs of an arm by seed."""
        found = [point for point in self.points if (point.objective, point.without) == (objective, without)]
        if len(found) != len(self.seeds):
            raise InputError(
                f"displacement: {self.on.about.name} has {len(found)} runs of {objective} without {without or 'nothing'!r}, "
                f"expected one for each of {len(self.seeds)} seeds."
            )
        return sorted(found, key=lambda point: point.seed)
