"""A method that makes a model forget, carried out until it has cost a fixed amount: what all comparisons at equal budget share.

    unlearn   an objective trains the weights of a mask, step by step; the last step is taken in part
    edit      a Delta computed without training is taken in part: the largest share of it, up to all, found within the budget

The cost is the rise of the mean NLL, in nats per token, on retain rows that are neither trained on nor reported.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.core.delta import Delta, applied
from workbench.core.errors import StudyError
from workbench.core.mask import Mask
from workbench.core.records import Examples
from workbench.core.registry import Member, edit
from workbench.core.registry import objective as objectives
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.study.file import known, mapping
from workbench.train.check import PRECISION, largest_within
from workbench.unlearn.pairs import set_nll
from workbench.unlearn.run import run

FIXED = ("mask", "seed", "show", "epochs", "lr", "schedule", "retain_budget", "budget_rows", "budget_every", "batch_size")
"""Options of `unlearn.run` that a comparison sets itself, alike for all its methods."""


@dataclass(frozen=True)
class Method:
    """One line of a comparison, checked. kind: "unlearn" or "edit".

    called: the registered objective or edit.   options: of `unlearn.run` (without FIXED), or of the edit.
    """

    name: str
    kind: str
    called: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What all trained methods of a comparison share. max_steps is rounded up to whole epochs."""

    budget: float = 0.05
    max_steps: int = 40
    batch_size: int = 8


@dataclass(frozen=True, eq=False)
class Spent:
    """What a method came to. used: of the budget, in nats per token.   reached: whether the budget was spent, or crossed and gone
    back from.   steps: of training, the part of the last one included; None for an edit.   part: share of the edit that was taken.
    """

    delta: Delta
    used: float
    reached: bool
    moved: float
    steps: float | None = None
    part: float | None = None


def read_methods(where: str, unlearn: Mapping[str, Any], edits: Mapping[str, Any]) -> list[Method]:
    """The methods of a study file: {name: options of unlearn.run}, {name: {method: ..., options of the edit}}.

    A name that is a registered objective, or edit, needs no further word: {npo: {}, kinder: {objective: npo, retain_weight: 2}}.

    Args: where: named in messages.
    Raises: StudyError or UnknownNameError, with the nearest name, for a method or option nobody knows.
    """
    found: list[Method] = []
    for name, body in mapping(f"{where}.unlearn", unlearn).items():
        given = dict(mapping(f"{where}.unlearn.{name}", body or {}))
        member = objectives[str(given.get("objective", name))]
        fixed = [key for key in FIXED if key in given]
        if fixed:
            raise StudyError(f"{where}.unlearn.{name}: {', '.join(fixed)} is set by the study for all methods alike.")
        Member(f"{where}.unlearn.{name}", run).check_options(given)
        member.check_options(dict(given.get("options") or {}))
        found.append(Method(str(name), "unlearn", member.name, given | {"objective": member.name}))
    usable = [member.name for member in edit if member.about["where"] == "sets"]
    for name, body in mapping(f"{where}.edits", edits).items():
        given = dict(mapping(f"{where}.edits.{name}", body or {}))
        called = str(given.pop("method", name)).replace("-", "_")
        known(f"edit of {where} that takes a forget and a retain set", {called: {}}, usable)
        found.append(Method(str(name), "edit", called, edit[called].check_options(given)))
    names = [one.name for one in found]
    if not found or len(set(names)) < len(names):
        raise StudyError(f"{where}: the methods are {names}, expected at least one, each with a name of its own.")
    return found


def at_budget(
    model: Model,
    forget: Examples,
    train: Examples,
    budget_rows: Examples,
    method: Method,
    training: Training,
    *,
    mask: Mask | None = None,
    lr: float = 5e-4,
    seed: int = 0,
) -> Spent:
    """Carry a method out until the budget is spent; the model is left as it was.

    Args:
        train: retain rows that are trained on, or that an edit may look at.   budget_rows: those the cost is measured on.
        mask: where an objective may write; an edit chooses for itself, so it takes none.
        lr: at a constant rate, for all weights; inside a mask with a share s of them lr / sqrt(s), so that steps of AdamW have
            about one norm.
    Raises: StudyError for a mask with an edit; as `unlearn.run` or the edit.
    """
    rows = encode_all(model, budget_rows)
    start = set_nll(model, rows)
    if method.kind == "edit":
        if mask is not None:
            raise StudyError(f"{method.name}: an edit chooses its weights itself, so it takes no mask.")
        return _edited(
            model, edit[method.called].function(model, forget, train, **method.options), rows_nll(model, rows), start, training
        )
    share = 1.0 if mask is None else mask.count / sum(p.numel() for p in model.hf.parameters())
    found = run(
        model,
        forget,
        train,
        mask=mask,
        epochs=math.ceil(training.max_steps / math.ceil(len(forget) / training.batch_size)),
        batch_size=training.batch_size,
        lr=lr / math.sqrt(share),
        schedule="constant",
        retain_budget=training.budget,
        budget_rows=budget_rows,
        budget_every=1,
        seed=seed,
        **method.options,
    )
    with applied(model, found.delta):
        used = set_nll(model, rows) - start
    steps = found.audit.steps - (1 - found.audit.part)
    return Spent(found.delta, used, bool(found.audit.stopped), found.moved, steps=steps)


def rows_nll(model: Model, rows: Any) -> Callable[[], float]:
    """The present mean NLL of rows, as a measurement."""
    return lambda: set_nll(model, rows)


def _edited(model: Model, whole: Delta, measure: Callable[[], float], start: float, training: Training) -> Spent:
    """As much of an edit as the budget allows."""

    def rise(part: float) -> float:
        with applied(model, whole.scaled(part)):
            return measure() - start

    used = rise(1.0)
    if used <= training.budget:
        return Spent(whole, used, False, whole.moved(model), part=1.0)
    found = largest_within(rise, training.budget, start=0.0, tolerance=PRECISION * training.budget)
    delta = whole.scaled(found.part)
    return Spent(delta, found.value, True, delta.moved(model), part=found.part)
