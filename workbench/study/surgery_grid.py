"""Model Surgery taken apart: each part of the recipe against its control, at one strength and at one cost.

case                            direction added        to which rows
probe, chosen rows              the probe's            those it is most opposed to (the recipe)
probe, random rows              the probe's            as many others of every layer, by chance
probe, all rows                 the probe's            all
random, chosen rows             a random one           those of the first case
random, random rows             the same random one    those of the second case
random, all rows                the same random one    all
probe subtracted, aligned rows  minus the probe's      those most aligned with it
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from workbench.core.change import Change, Columns, Rows
from workbench.core.delta import Delta, applied
from workbench.core.direction import Direction
from workbench.core.errors import NumericsError
from workbench.core.names import layer_of
from workbench.core.numerics import permutation
from workbench.core.records import Examples
from workbench.core.statistics import LEVEL, RESAMPLES, Estimate
from workbench.edit import size, surgery
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.study.intervene import row_nll
from workbench.train.check import PRECISION
from workbench.unlearn.pairs import set_nll

MOST, TRIES = 64.0, 24
"""How many times the strength, and how often, is tried before a budget counts as out of reach."""


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
    factor: how many times the strength costs the budget, None where that was not found and `note` says why.   used: what was spent.
    Lists are empty where nothing could be measured.
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
    note: str

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
    """The edit of one point. All random cases of a seed share their directions, and those on random rows their rows."""
    case, seed = CASES[question.case], question.seed or 0
    along = on.directions[SITES[question.matrix]]
    shared: dict[str, Any] = {"matrix": question.matrix, "strength": case.sign * on.strength, "seed": seed}
    drawn = {one.layer: one.random(seed=1000 * (seed + 1) + one.layer) for one in along}
    if case.choose == "all":
        return surgery(on.model, list(drawn.values()) if case.random_direction else along, choose="all", **shared)
    control = "place" if case.random_rows else ""
    found = surgery(on.model, along, choose=case.choose, fraction=on.fraction, control=control, **shared)
    return _turned(found, drawn) if case.random_direction else found


def _turned(delta: Delta, drawn: Mapping[int, Direction]) -> Delta:
    """The same lines moved as far, each along the drawn direction of its layer."""
    changes: dict[str, Change] = {}
    for name, change in delta.changes.items():
        if not isinstance(change, Rows | Columns):
            raise TypeError(f"surgery moved {name} by {type(change).__name__}, not by rows or columns")
        vector = drawn[int(layer_of(name).rsplit(".", 1)[-1])].vector
        lengths = change.values.norm(dim=1 - change.dim)
        values = torch.outer(lengths, vector) if change.dim == 0 else torch.outer(vector, lengths)
        changes[name] = type(change)(change.index, values, change.shape)
    return replace(delta, changes=changes, provenance=replace(delta.provenance, method="surgery along random directions"))


def measure(on: Bench, question: Question) -> Point:
    """Carry out one edit at the study's strength, then as far as the budget allows; the model is left as it was."""
    delta = delta_of(on, question)
    forget, retain = _changes(on, delta)
    found = _within(on, delta)
    at_budget = _changes(on, delta.scaled(found.factor)) if found.factor else ([], [])
    return Point(
        **asdict(question),
        parameters=delta.n_touched,
        ratio=size(on.model, delta).ratio or 0.0,
        forget=forget,
        retain=retain,
        factor=found.factor,
        used=found.used,
        forget_at_budget=at_budget[0],
        retain_at_budget=at_budget[1],
        note=found.note,
    )


def _changes(on: Bench, delta: Delta) -> tuple[list[float], list[float]]:
    """Change of every report row's NLL; nothing where the edit breaks the model altogether."""
    with applied(on.model, delta):
        try:
            after = {"forget": row_nll(on.model, on.forget), "retain": row_nll(on.model, on.retain)}
        except NumericsError:
            return [], []
    forget, retain = ((after[split] - on.before[split]).tolist() for split in ("forget", "retain"))
    return forget, retain


class _Found(NamedTuple):
    """factor: how many times the edit costs the budget; None where that was not found, and `note` says why."""

    factor: float | None
    used: float
    note: str = ""


def _within(on: Bench, delta: Delta) -> _Found:
    """How many times `delta` costs the budget, to 2 % below it.

    The cost is taken for a power of the factor, at first its square and then what the last two tries say; where that guess leaves
    the bracket, the middle is tried.
    """
    rows, aim = encode_all(on.model, on.budget_rows), (1 - PRECISION) * on.budget

    def rise(factor: float) -> float:
        with applied(on.model, delta.scaled(factor)):
            try:
                return set_nll(on.model, rows) - on.start
            except NumericsError:  # overflow: the model is broken, which no budget allows
                return math.inf

    low, high, factor = (0.0, 0.0), math.inf, 1.0
    tried: list[tuple[float, float]] = []
    for _ in range(TRIES):
        cost = rise(factor)
        tried += [(factor, cost)] if 0 < cost < math.inf else []
        if cost > on.budget:
            high = factor
        else:
            low = (factor, cost)
            if cost >= (1 - 2 * PRECISION) * on.budget:
                return _Found(factor, cost)
            if factor >= MOST:
                return _Found(None, cost, f"it costs only {cost:.3g} at {MOST:g} times the strength")
        factor = _next(low[0], high, tried, aim)
    said = "every strength that was tried costs more" if not low[0] else f"the search ended at a cost of {low[1]:.3g}"
    return _Found(None, low[1], said)


def _next(low: float, high: float, tried: Sequence[tuple[float, float]], aim: float) -> float:
    """The next factor to try, strictly inside the bracket: where a power law through the last two (factor, cost) has the aim."""
    guess, power = 4 * low, 2.0
    if tried:
        if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
            slope = math.log(tried[-1][1] / tried[-2][1]) / math.log(tried[-1][0] / tried[-2][0])
            power = min(max(slope, 0.5), 8.0)
        guess = tried[-1][0] * (aim / tried[-1][1]) ** (1 / power)
    if high == math.inf:
        return min(MOST, max(guess, 1.02 * low))
    return guess if low < guess < high else (low + high) / 2


def mean_change(points: Sequence[Point], what: str) -> Estimate | None:
    """Mean of a case's change over its rows and seeds, with an interval that draws both; None if a seed was not measured."""
    return advantage(points, None, what)


def advantage(mine: Sequence[Point], other: Sequence[Point] | None, what: str) -> Estimate | None:
    """Mean difference between two cases, paired by row. Each resample draws rows, and of each case's seeds as many anew."""
    rng = np.random.default_rng(0)
    values, resamples, rows = 0.0, np.zeros(RESAMPLES), None
    for sign, points in ((1.0, mine), (-1.0, other or ())):
        if not points:
            continue
        lists = [getattr(point, what) for point in points]
        if not all(lists):
            return None
        table = np.array(lists)
        rows = _shares(rng, table.shape[1]) if rows is None else rows
        values += sign * float(table.mean())
        resamples += sign * np.einsum("bs,sr,br->b", _shares(rng, len(table)), table, rows)
    low, high = np.quantile(resamples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(values, float(low), float(high), 0 if rows is None else rows.shape[1])


def _shares(rng: np.random.Generator, n: int) -> np.ndarray:
    """How large a share of each resample every one of n has."""
    drawn = rng.integers(0, n, size=(RESAMPLES, n))
    return np.stack([np.bincount(one, minlength=n) for one in drawn]) / n
