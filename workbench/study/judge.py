"""Judge located weights by intervention: inside the set, in a matched random set, and outside it, all at one budget.

A set of weights matters for a behavior if changing it takes more of the behavior away than changing as many weights chosen by
chance does, at the same cost elsewhere. The cost is fixed: every intervention goes on until the mean NLL on retain rows, which
are neither trained on nor reported, has risen by `budget`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from workbench.core.errors import DataError, InputError
from workbench.core.mask import Mask
from workbench.core.numerics import permutation
from workbench.core.records import Examples, check_disjoint
from workbench.core.runtime import progress
from workbench.core.scores import Scores
from workbench.load.models import Model
from workbench.study.intervene import SIDES, Located, Parts, Point, Question, Settings, bench, measure
from workbench.study.verdict import Verdict


@dataclass(frozen=True, eq=False)
class Ranked:
    """The highest-scored weights, against as many in every tensor chosen uniformly.

    scope: what competes with what; see `Scores.mask`.
    """

    name: str
    scores: Scores
    scope: str = "global"

    def inside(self, size: float) -> Mask:
        """The share `size` of the weights with the highest scores."""
        return self.scores.mask(size, scope=self.scope)

    def random(self, size: float, *, seed: int) -> Mask:
        """As many weights in every tensor as `inside` has."""
        return self.inside(size).matched_random(seed=seed)


def judge(
    model: Model,
    located: Sequence[Located],
    forget: Examples,
    retain: Examples,
    *,
    sizes: Sequence[float] = (0.01, 0.05, 0.2),
    seeds: Sequence[int] = (0, 1, 2),
    intervention: Literal["unlearn", "ablate"] = "unlearn",
    objective: str = "npo",
    options: Mapping[str, Any] | None = None,
    budget: float = 0.05,
    lr: float = 5e-4,
    max_steps: int = 40,
    batch_size: int = 8,
    budget_rows: int = 48,
    report_rows: int = 100,
    show: bool = False,
) -> Verdict:
    """Whether changing each located set forgets more, at one budget, than changing a matched random set does.

    Args:
        located: the sets, each at any size; `Ranked(name, scores)` makes one of weight scores. They should have been found
            without the budget and the report rows of `retain` (`split_retain` says which those are).
        sizes: shares of the weights a set speaks of (those with a score), above 0 and at most 1; outside are the others of these.
        seeds: each draws a random set and an order of training; inside and random are compared seed by seed.
        intervention: "unlearn" trains with `objective` at a constant rate; "ablate" is w -> (1 - a) w.
        objective, options: see `unlearn.run`.
        budget: rise of the mean NLL on the budget rows at which every intervention stops, in nats per token.
        lr: rate for all weights; a set with a share s of them gets lr / sqrt(s), so that steps have about one norm.
        max_steps: of unlearning, rounded up to whole epochs; a set that has not spent the budget by then is left out.
        budget_rows, report_rows: retain rows set aside; see `split_retain`.
    Returns: the points, and from them one number a set; see `Verdict.areas`. The model is left as it was.
    Raises: InputError for an option that cannot be; DataError for rows that stand in two sets, or too few.
    """
    given = dict(options or {})
    numbers = {"budget": budget, "lr": lr, "max_steps": max_steps, "batch_size": batch_size}
    settings = Settings(tuple(sizes), tuple(seeds), intervention, objective, given, **numbers)
    by_name = named(located)
    parts = split_retain(forget, retain, budget_rows=budget_rows, report_rows=report_rows)
    on = bench(model, forget, parts, settings)
    asked = questions(list(by_name), settings)
    points = [measure(on, by_name[one.set], one) for one in progress(asked, label="judge", show=show)]
    return verdict(points, settings)


def named(located: Sequence[Located]) -> dict[str, Located]:
    """The sets by name.

    Raises: InputError if there is none, or if two have one name.
    """
    found = {one.name: one for one in located}
    if not found or len(found) < len(located):
        names = [one.name for one in located]
        raise InputError(f"judge: located is {names}, expected at least one set, each with a name of its own.")
    return found


def split_retain(forget: Examples, retain: Examples, *, budget_rows: int = 48, report_rows: int = 100) -> Parts:
    """Cut the retain rows into those trained on, those the budget is measured on, and those that are reported.

    The cut follows a permutation that depends on the number of rows alone, so that neighbors (one author's rows, in TOFU) fall
    into all parts. The budget part has `budget_rows`; the report part at most `report_rows` and at most half of the others.

    Raises: DataError if a row stands in both sets, or twice in `retain`, or if there are fewer than budget_rows + 2.
    """
    for name, value in (("budget_rows", budget_rows), ("report_rows", report_rows)):
        if value < 1:
            raise InputError(f"judge: {name} is {value}, expected at least 1.")
    check_disjoint(forget, retain)
    seen: dict[tuple[str, str], str] = {}
    for row in retain:
        if (row.prompt, row.response) in seen:
            raise DataError(
                f"judge: retain ({retain.name}) has one row twice, as {seen[row.prompt, row.response]!r} and {row.id!r}; its "
                "copies could be trained on and reported. Take one of them out."
            )
        seen[row.prompt, row.response] = row.id
    others = len(retain) - budget_rows
    if others < 2:
        raise DataError(
            f"judge: retain ({retain.name}) has {len(retain)} rows, but {budget_rows} are set aside to measure the budget and at "
            "least two more are needed, to train on and to report. Give more rows, or lower budget_rows."
        )
    order = permutation(len(retain), 0)
    reported = budget_rows + min(report_rows, others // 2)
    cuts = (order[reported:], order[:budget_rows], order[budget_rows:reported])
    return Parts(*(retain.take(sorted(cut)) for cut in cuts))


def questions(names: Sequence[str], settings: Settings) -> list[Question]:
    """Every point of a verdict, set by set and size by size. An ablation draws nothing but its random set."""
    drawn = {side: settings.intervention == "unlearn" or side == "random" for side in SIDES}
    return [
        Question(name, float(size), side, seed)
        for name in names
        for size in sorted(settings.sizes)
        for side in SIDES
        for seed in (settings.seeds if drawn[side] else (None,))
    ]


def verdict(points: Sequence[Point], settings: Settings) -> Verdict:
    """The points as a frame, with nullable whole numbers for the seeds."""
    frame = pd.DataFrame([point.as_dict() for point in points])
    absent = {name: "float64" for name in frame if frame[name].dtype == object and name not in ("set", "side", "note")}
    return Verdict(frame.astype(absent | {"seed": "Int64"}), settings.seeds)
