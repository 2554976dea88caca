"""What came out of all runs on one set of pairs: how far answers moved, what foretold it, and what leaving pairs out did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.errors import InputError
from workbench.core.statistics import Estimate
from workbench.study.displacement_grid import ALL, RANDOM, Bench, Point, arms
from workbench.study.displacement_numbers import Draws, Resampled, draws, means, rank_correlations, share_estimate

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
    """What an arm did to the chosen answers, in nats, and how much more than the arm that left as many pairs out by chance.

    held_out, held_out_more: of pairs trained on in no arm.   kept: of the pairs the arm was trained on.   both_more: of the pairs
    that this arm and, with the same seed, the random arm were trained on.
    """

    held_out: Estimate
    held_out_more: Estimate
    kept: Estimate
    both_more: Estimate


@dataclass(frozen=True, eq=False)
class Result:
    """All runs on one set of pairs. drop: share of the pairs that the arms left out."""

    on: Bench
    points: Sequence[Point]
    drop: float

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

    @cached_property
    def arms(self) -> dict[str, str]:
        """What was left out, in the order of the runs, the random arm last; with all scores that leave out the same."""
        run = dict.fromkeys(point.without for point in self.points if point.without != ALL)
        names = arms(self.on, self.drop)
        return {arm: " = ".join(names.get(arm, [arm])) for arm in run}

    @cached_property
    def _correlations(self) -> dict[tuple[str, bool], Mapping[str, Resampled]]:
        """What `correlations` found, by objective and per_token."""
        return {}

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
        on_train, held_out = (len({pair.prompt for pair in pairs}) for pairs in (self.on.train, self.on.held_out))
        shares = (told.astype(float) for told in (chosen < 0, chosen > rejected, margin > 0, after > 0))
        displaced, grew, ranked, ranked_after = (share_estimate(means(told, self.drawn), on_train) for told in shares)
        return Moved(
            chosen=means(chosen, self.drawn).estimate(),
            rejected=means(rejected, self.drawn).estimate(),
            displaced=displaced,
            margin=grew,
            accuracy_before=ranked,
            accuracy=ranked_after,
            held_chosen=means(held, self.held_drawn).estimate(),
            held_displaced=share_estimate(means((held < 0).astype(float), self.held_drawn), held_out),
        )

    def correlations(self, objective: str, *, per_token: bool = False) -> Mapping[str, Resampled]:
        """Rank correlation of every score with displacement, in nats or in nats per token of the chosen answer."""
        if (objective, per_token) not in self._correlations:
            displaced = -self.change(objective, "chosen")
            outcome = displaced / self.on.lengths if per_token else displaced
            self._correlations[objective, per_token] = rank_correlations(self.on.scores, outcome, self.drawn)
        return self._correlations[objective, per_token]

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
        """What leaving the highest pairs of a score out did. The differences compare the same pairs, seed by seed."""
        held, chance = (means(self.held(objective, arm), self.held_drawn) for arm in (without, RANDOM))
        kept, other = (self.change(objective, "chosen", arm) for arm in (without, RANDOM))
        return Effect(
            held_out=held.estimate(),
            held_out_more=held.minus(chance).estimate(),
            kept=means(kept, self.drawn).estimate(),
            both_more=means(kept - other, self.drawn).estimate(),  # NaN where either was not trained on the pair
        )

    def _runs(self, objective: str, without: str) -> list[Point]:
        """The runs of an arm by seed."""
        found = [point for point in self.points if (point.objective, point.without) == (objective, without)]
        if len(found) != len(self.seeds):
            raise InputError(
                f"displacement: {self.on.about.name} has {len(found)} runs of {objective} without {without or 'nothing'!r}, "
                f"expected one for each of {len(self.seeds)} seeds."
            )
        return sorted(found, key=lambda point: point.seed)
