"""Model Surgery taken apart: each part of the recipe against its control, at one strength and at one cost.

case                            direction added        to which rows
probe, chosen rows              the probe's            those it is most opposed to (the published recipe)
probe, random rows              the probe's            as many of every layer, by chance
probe, all rows                 the probe's            all
random, chosen rows             a random one           as in the first case
random, random rows             a random one           by chance
random, all rows                a random one           all
probe subtracted, aligned rows  minus the probe's      those most aligned with it
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from workbench.core.delta import Delta, applied
from workbench.core.direction import Direction
from workbench.core.errors import NumericsError
from workbench.core.numerics import permutation
from workbench.core.records import Examples
from workbench.core.statistics import Estimate, mean_estimate
from workbench.edit import size, surgery
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.study.intervene import row_nll
from workbench.train.check import PRECISION, largest_within
from workbench.unlearn.pairs import set_nll

MOST = 64.0
"""How many times the strength is tried before a budget counts as out of reach."""


class Case(NamedTuple):
    """A line of the table above. drawn: whether it has a random part, so that it is repeated with every seed."""

    choose: str
    sign: float
    random_rows: bool
    random_direction: bool

    @property
    def drawn(self) -> bool:
        return self.random_rows or self.random_direction


CASES = {
    "probe, chosen rows": Case("bottom", 1.0, False, False),
    "probe, random rows": Case("bottom", 1.0, True, False),
    "probe, all rows": Case("all", 1.0, False, False),
    "random, chosen rows": Case("bottom", 1.0, False, True),
    "random, random rows": Case("bottom", 1.0, True, True),
    "random, all rows": Case("all", 1.0, False, True),
    "probe subtracted, aligned rows": Case("top", -1.0, False, False),
}
# What the rows of a matrix read, or its columns write: the site whose direction is added to them.
SITES = {
    **dict.fromkeys(("gate", "up", "in"), "mlp_in"),
    **dict.fromkeys(("q", "k", "v"), "ln1"),
    "o": "attn_out",
    "out": "mlp_out",
    "down": "mlp_out",
}


@dataclass(frozen=True)
class Question:
    """One point. seed: of what is drawn; None where nothing is."""

    matrix: str
    case: str
    seed: int | None


@dataclass(frozen=True)
class Point:
    """What one edit did, at the study's strength and at its budget.

    forget, retain: change of every report row's mean NLL, in nats per token.   ratio: ||Delta|| / ||W|| of the touched tensors.
    factor: how many times the strength the budget allows; None if it is not spent even at MOST times.   used: what was spent.
    """

    matrix: str
    case: str
    seed: int | None
    parameters: int
    ratio: float
    forget: list[float]
    retain: list[float]
    factor: float | None
    used: float
    forget_at_budget: list[float]
    retain_at_budget: list[float]

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every point is measured on, and the NLLs before: of "forget" and "retain" row by row, `start` of the budget rows."""

    model: Model
    forget: Examples
    retain: Examples
    budget_rows: Examples
    directions: Mapping[str, Sequence[Direction]]
    before: Mapping[str, np.ndarray]
    start: float
    fraction: float
    strength: float
    budget: float


def questions(matrices: Sequence[str], seeds: Sequence[int]) -> list[Question]:
    """Every point: each case of each matrix, the drawn ones with each seed."""
    return [
        Question(matrix, name, seed)
        for matrix in matrices
        for name, case in CASES.items()
        for seed in (seeds if case.drawn else (None,))
    ]


def halves(rows: Examples) -> tuple[Examples, Examples]:
    """Rows to fit on and rows to report, half each, by a permutation that depends on their number alone."""
    order = permutation(len(rows), 0)
    cut = len(rows) // 2
    return rows.take(sorted(order[:cut])), rows.take(sorted(order[cut:]))


def delta_of(on: Bench, question: Question) -> Delta:
    """The edit of one point."""
    case, seed = CASES[question.case], question.seed or 0
    along = on.directions[SITES[question.matrix]]
    shared: dict[str, Any] = {"matrix": question.matrix, "strength": case.sign * on.strength, "seed": seed}
    if case.choose != "all":
        shared |= {"fraction": on.fraction}
    if case.random_direction and (case.random_rows or case.choose == "all"):
        drawn = [one.random(seed=seed + one.layer * 1000) for one in along]
        return surgery(on.model, drawn, choose="all" if case.choose == "all" else "random", **shared)
    control = "change" if case.random_direction else "place" if case.random_rows else ""
    return surgery(on.model, along, choose=case.choose, control=control, **shared)


def measure(on: Bench, question: Question) -> Point:
    """Carry out one edit at the study's strength, then as far as the budget allows; the model is left as it was."""
    delta = delta_of(on, question)
    forget, retain = _changes(on, delta)
    factor, used = _within(on, delta)
    at_budget = _changes(on, delta.scaled(factor)) if factor else ([], [])
    return Point(
        **asdict(question),
        parameters=delta.n_touched,
        ratio=size(on.model, delta).ratio or 0.0,
        forget=forget,
        retain=retain,
        factor=factor,
        used=used,
        forget_at_budget=at_budget[0],
        retain_at_budget=at_budget[1],
    )


def _changes(on: Bench, delta: Delta) -> tuple[list[float], list[float]]:
    with applied(on.model, delta):
        after = {"forget": row_nll(on.model, on.forget), "retain": row_nll(on.model, on.retain)}
    forget, retain = ((after[split] - on.before[split]).tolist() for split in ("forget", "retain"))
    return forget, retain


def _within(on: Bench, delta: Delta) -> tuple[float | None, float]:
    """How many times `delta` costs the budget, and what it then costs: doubled until it costs more, then by bisection."""
    rows = encode_all(on.model, on.budget_rows)

    def rise(factor: float) -> float:
        with applied(on.model, delta.scaled(factor)):
            try:
                return set_nll(on.model, rows) - on.start
            except NumericsError:  # overflow: the model is broken, which no budget allows
                return math.inf

    high = 1.0
    while (cost := rise(high)) <= on.budget:
        if high >= MOST:
            return None, cost
        high *= 2
    found = largest_within(lambda part: rise(part * high), on.budget, start=0.0, tolerance=PRECISION * on.budget)
    return found.part * high or None, found.value


def over_seeds(points: Sequence[Point], what: str) -> np.ndarray | None:
    """One value a row, the mean over the seeds of a case; None if one of them was not measured."""
    values = [getattr(point, what) for point in points]
    return np.mean(values, axis=0) if all(values) else None


def mean_change(points: Sequence[Point], what: str) -> Estimate | None:
    """Mean over rows of a case's change, its interval by the bootstrap over rows; seeds are averaged before."""
    values = over_seeds(points, what)
    return None if values is None else mean_estimate(values)


def advantage(mine: Sequence[Point], other: Sequence[Point], what: str) -> Estimate | None:
    """Mean over rows of the difference between two cases, paired by row."""
    values = over_seeds(mine, what), over_seeds(other, what)
    return None if values[0] is None or values[1] is None else mean_estimate(values[0] - values[1])
