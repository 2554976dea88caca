"""One intervention on one set of weights, carried on until it has cost a fixed amount: what was forgotten, what was kept.

All interventions of a comparison spend the same budget: the rise of the mean NLL, in nats per token, on retain rows that are
neither trained on nor reported. So a set of weights is not called better because it was changed more.

    unlearn   an unlearning objective moves the weights of the set, step by step; the last step is taken in part
    ablate    w -> (1 - a) w for every weight of the set; a is a crossing of the budget found by bisection (the cost need not
              rise evenly with a, so another crossing may exist)
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from workbench.core.delta import Delta, applied
from workbench.core.errors import InputError, unknown
from workbench.core.mask import Mask
from workbench.core.records import Examples, Provenance
from workbench.core.registry import objective as objectives
from workbench.core.statistics import mean_estimate
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.trace.forward import row_nll as encoded_nll
from workbench.train.check import PRECISION, largest_within
from workbench.unlearn.pairs import set_nll
from workbench.unlearn.run import run as unlearn

SIDES = ("inside", "random", "outside")
INTERVENTIONS = ("unlearn", "ablate")
SLACK = 2 * PRECISION
"""A budget counts as spent from this share below it on: the search ends within PRECISION of it, in the model's own rounding."""


@runtime_checkable
class Located(Protocol):
    """Weights that somebody says matter, at any size, and their matched random choice."""

    @property
    def name(self) -> str: ...
    def inside(self, size: float) -> Mask:
        """What matters most of what it ranks, a share `size` of it: of single weights, or of whole units.

        Outside lies every weight not chosen of the parameters the mask lists. Masks of units (`attribute.LocatedUnits`) list all
        parameters of the model, so embeddings, norms and biases, which belong to no unit, lie outside too.
        """
        ...

    def random(self, size: float, *, seed: int) -> Mask:
        """As many, chosen by chance but alike in everything that is not the claim, such as the number in each tensor."""
        ...


class Parts(NamedTuple):
    """Retain rows, cut in three: trained on, those the budget is measured on, those that are reported."""

    train: Examples
    budget: Examples
    report: Examples


@dataclass(frozen=True)
class Settings:
    """What all points of a verdict share; see `judge` for the meaning of each.

    Raises: InputError or UnknownNameError naming the first that cannot be.
    """

    sizes: tuple[float, ...]
    seeds: tuple[int, ...]
    intervention: str = "unlearn"
    objective: str = "npo"
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: float = 0.05
    lr: float = 5e-4
    max_steps: int = 40
    batch_size: int = 8

    def __post_init__(self) -> None:
        for size in self.sizes:
            if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size <= 1:
                raise InputError(f"judge: sizes has {size!r}, expected shares of the weights, above 0 and at most 1.")
        for seed in self.seeds:
            if type(seed) is not int:
                raise InputError(f"judge: seeds has {seed!r}, expected whole numbers.")
        for name, values in (("sizes", self.sizes), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"judge: {name} is {list(values)}, expected at least one, and none twice.")
        if self.intervention not in INTERVENTIONS:
            raise unknown("intervention", self.intervention, INTERVENTIONS)
        objectives[self.objective].check_options(dict(self.options))
        for name in ("budget", "lr", "max_steps", "batch_size"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"judge: {name} is {value}, expected a positive number.")


@dataclass(frozen=True)
class Question:
    """One point to be measured. seed: of the training's order and of the random set; None where nothing is drawn."""

    set: str
    size: float
    side: str
    seed: int | None


@dataclass(frozen=True)
class Point:
    """What one intervention did. Changes are after minus before, NLL in nats per token, probability exp(-NLL) of an answer,
    each a mean over rows with its 95 % bootstrap interval; None where nothing could be measured, and `note` says why.

    weights: how many the set has.   budget_used: rise of the mean NLL on the budget rows, in nats per token.
    reached: whether the limit was crossed and the search went back to it, however near the rounding of the weights let it
        come (see budget_used); if not, the point stands at another budget than the others.
    steps: optimization steps, the last one in part; None for an ablation.   removed: a of (1 - a) w; None for unlearning.
    """

    set: str
    size: float
    side: str
    seed: int | None
    weights: int
    reached: bool
    budget_used: float | None = None
    steps: float | None = None
    removed: float | None = None
    lr: float | None = None
    forget_change: float | None = None
    forget_low: float | None = None
    forget_high: float | None = None
    retain_change: float | None = None
    retain_low: float | None = None
    retain_high: float | None = None
    forget_probability_change: float | None = None
    forget_probability_low: float | None = None
    forget_probability_high: float | None = None
    retain_probability_change: float | None = None
    retain_probability_low: float | None = None
    retain_probability_high: float | None = None
    n_forget: int = 0
    n_retain: int = 0
    seconds: float = 0.0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


class _Change(NamedTuple):
    """crossed: whether the budget was exceeded on the way, so that both of its sides are known."""

    delta: Delta
    crossed: bool
    steps: float | None = None
    removed: float | None = None
    lr: float | None = None


@dataclass(frozen=True, eq=False)
class Bench:
    """What every point is measured against: the model as it is, the rows, and their NLLs before anything is done.

    before: mean NLL per answer token of each row, in nats, of "forget" and "retain" (the report part).
    start: mean of the same over the budget rows.
    """

    model: Model
    forget: Examples
    parts: Parts
    settings: Settings
    before: Mapping[str, Float[np.ndarray, "row"]]
    start: float


def bench(model: Model, forget: Examples, parts: Parts, settings: Settings) -> Bench:
    """Measure the model before anything is done to it."""
    before = {"forget": row_nll(model, forget), "retain": row_nll(model, parts.report)}
    return Bench(model, forget, parts, settings, before, set_nll(model, encode_all(model, parts.budget)))


def check(on: Bench, sets: Mapping[str, Located], sizes: Mapping[str, Sequence[float]]) -> None:
    """Refuse what would stop a comparison half way: every set is made at each of its sizes, and the objective used once.

    Raises: InputError if a set chooses no weight at a size, or for an option of the objective; MismatchError for another model.
    """
    mask: Mask | None = None
    for name, located in sets.items():
        for size in sizes[name]:
            mask = _mask(located, Question(name, size, "inside", None))
            _check_mask(on, located, size, mask)
    if on.settings.intervention == "unlearn":
        forget, retain = (rows.take([0]) for rows in (on.forget, on.parts.train))
        given = {"objective": on.settings.objective, "options": on.settings.options}
        unlearn(on.model, forget, retain, mask=mask, epochs=1, batch_size=1, lr=on.settings.lr, **given)


def row_nll(model: Model, rows: Examples) -> Float[np.ndarray, "row"]:
    """Mean NLL per answer token of each row, in nats, float64."""
    return encoded_nll(model, encode_all(model, rows)).numpy()


def measure(on: Bench, located: Located, question: Question) -> Point:
    """Carry out one intervention up to the budget and measure it; the model is left as it was.

    Args: question: its `set` must be the name of `located`.
    Raises: InputError if the set chooses no weight at this size; MismatchError if it is of another model.
    """
    begin = time.perf_counter()
    mask = _mask(located, question)
    plain: dict[str, Any] = asdict(question) | {"weights": mask.count}
    if mask.count == 0 and question.side == "outside":
        return Point(**plain, reached=False, note="the set is all there is: nothing lies outside it")
    _check_mask(on, located, question.size, mask)
    change = _unlearn(on, mask, question.seed or 0) if on.settings.intervention == "unlearn" else _ablate(on, mask)
    with applied(on.model, change.delta):
        after = {"forget": row_nll(on.model, on.forget), "retain": row_nll(on.model, on.parts.report)}
        used = set_nll(on.model, encode_all(on.model, on.parts.budget)) - on.start
    near = used >= (1 - SLACK) * on.settings.budget
    return Point(
        **plain,
        reached=near or change.crossed,
        budget_used=used,
        steps=change.steps,
        removed=change.removed,
        lr=change.lr,
        **_changes(on.before, after),
        n_forget=len(on.forget),
        n_retain=len(on.parts.report),
        seconds=time.perf_counter() - begin,
        note="" if near else _why(on, change, used),
    )


def _mask(located: Located, question: Question) -> Mask:
    if question.side not in SIDES:
        raise unknown("side", question.side, SIDES)
    if question.side == "random":
        return located.random(question.size, seed=question.seed or 0)
    inside = located.inside(question.size)
    return inside if question.side == "inside" else ~inside


def _check_mask(on: Bench, located: Located, size: float, mask: Mask) -> None:
    mask.check(on.model.fingerprint(), on.model.shapes())
    if mask.count == 0:
        raise InputError(f"judge: {located.name} at size {size:g} chooses no weight at all; take a larger size.")


def _unlearn(on: Bench, mask: Mask, seed: int) -> _Change:
    """Unlearn inside the mask at a constant rate of lr / sqrt(share of the model's weights).

    A step of AdamW moves every weight by about its rate, so the norm of a step is about rate * sqrt(weights): with this rate it
    is that of a step of all weights at `lr`, whatever the size of the set.
    """
    chosen = on.settings
    share = mask.count / sum(p.numel() for p in on.model.hf.parameters())
    found = unlearn(
        on.model,
        on.forget,
        on.parts.train,
        objective=chosen.objective,
        options=chosen.options,
        mask=mask,
        epochs=math.ceil(chosen.max_steps / math.ceil(len(on.forget) / chosen.batch_size)),
        batch_size=chosen.batch_size,
        lr=chosen.lr / math.sqrt(share),
        schedule="constant",
        retain_budget=chosen.budget,
        budget_rows=on.parts.budget,
        budget_every=1,
        seed=seed,
    )
    steps = found.audit.steps - 1 + found.audit.part
    return _Change(found.delta, bool(found.audit.stopped), steps=steps, lr=chosen.lr / math.sqrt(share))


def _ablate(on: Bench, mask: Mask) -> _Change:
    """Take as much of the weights in the mask away as costs the budget; all of them if that costs no more.

    The share is a crossing of the budget found by bisection: where the cost crosses it more than once, one of the crossings.
    """
    taken = {n: torch.where(mask[n], -p.detach().float().cpu(), 0.0) for n, p in on.model.hf.named_parameters() if n in mask}
    whole = Delta.of(taken, Provenance("ablate", on.model.fingerprint(), options={"mask": mask.provenance.as_dict()}))
    rows = encode_all(on.model, on.parts.budget)

    def rise(part: float) -> float:
        with applied(on.model, whole.scaled(part)):
            return set_nll(on.model, rows) - on.start

    budget = on.settings.budget
    if rise(1.0) <= budget:
        return _Change(whole, False, removed=1.0)
    part = largest_within(rise, budget, start=0.0, tolerance=PRECISION * budget).part
    return _Change(whole.scaled(part), True, removed=part)


def _changes(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The four mean changes with their intervals, by the names Point has for them."""
    found: dict[str, Any] = {}
    for split in ("forget", "retain"):
        nll = mean_estimate(after[split] - before[split])
        probability = mean_estimate(np.exp(-after[split]) - np.exp(-before[split]))
        for name, estimate in ((split, nll), (f"{split}_probability", probability)):
            found |= {f"{name}_change": estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return found


def _why(on: Bench, change: _Change, used: float) -> str:
    """Why less than the budget was spent: everything was done and cost less, or no state in between could be had."""
    budget = f"of the budget of {on.settings.budget:g} nats per token"
    if change.crossed:
        return f"the search ended at {used:.3g} {budget}: it could not come closer in {str(on.model.dtype).removeprefix('torch.')}"
    done = "taking the weights away altogether" if change.steps is None else f"{change.steps:g} steps"
    return f"{done} cost {used:.4f} {budget}"
