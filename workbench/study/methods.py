"""A method that makes a model forget, carried out until it has cost a fixed amount: what all comparisons at equal budget share.

    unlearn   an objective trains the weights of a mask, step by step; the last step is taken in part
    edit      a Delta computed without training is taken in part: the largest share of it, up to all, found within the budget

The cost is the rise of the mean NLL, in nats per token, on retain rows that are neither trained on nor reported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.core.delta import Delta, applied
from workbench.core.errors import StudyError
from workbench.core.mask import Mask
from workbench.core.records import Examples
from workbench.core.registry import Member
from workbench.core.registry import objective as objectives
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.study.file import mapping
from workbench.study.locate import make_edit, read_edit
from workbench.train.check import PRECISION, largest_within
from workbench.unlearn.budget import check_budget, nll_or_infinite
from workbench.unlearn.pairs import set_nll
from workbench.unlearn.run import run

FIXED = ("mask", "seed", "show", "epochs", "lr", "schedule", "retain_budget", "budget_rows", "budget_every", "batch_size")
"""Options of `unlearn.run` that a comparison sets itself, alike for all its methods."""


@dataclass(frozen=True)
class Method:
    """One line of a comparison, checked. kind: "unlearn" or "edit".

    called: the registered objective or edit.   options: of `unlearn.run` (without FIXED, and without effect on what is called), or
    of the edit.
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

    def epoch(self, rows: int) -> int:
        """Steps in which each of so many forget rows is met once."""
        return math.ceil(rows / self.batch_size)

    def epochs(self, rows: int) -> int:
        """The most epochs of a run on so many forget rows; its most steps are `epochs` times `epoch`."""
        return math.ceil(self.max_steps / self.epoch(rows))


@dataclass(frozen=True, eq=False)
class Spent:
    """What a method came to. used: of the budget, in nats per token.   reached: whether the budget was spent, or crossed and gone
    back from.   steps: of training, the part of the last one included; None for an edit.   part: share that was taken of an edit,
    or of a change that is negated as a whole, as by task_vector; else None.
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
    for name, body in mapping(f"{where}.edits", edits).items():
        called, options = read_edit(f"{where}.edits.{name}", str(name), mapping(f"{where}.edits.{name}", body or {}))
        found.append(Method(str(name), "edit", called, options))
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
        train: retain rows that are trained on, or that an edit, and the search for what it needs, may look at.
        budget_rows: those the cost is measured on.
        mask: where an objective may write; an edit chooses for itself, so it takes none.
        lr: at a constant rate, for all weights; inside a mask with a share s of them lr / sqrt(s), so that steps of AdamW have
            about one norm.
    Raises: StudyError for a mask with an edit; DataError if the budget rows are also in `forget` or `train`; as `unlearn.run` or
        the edit.
    """
    check_budget(forget, train, training.budget, budget_rows, 1)
    rows = encode_all(model, budget_rows)
    start = set_nll(model, rows)
    if method.kind == "edit":
        if mask is not None:
            raise StudyError(f"{method.name}: an edit chooses its weights itself, so it takes no mask.")
        whole = make_edit(model, method.called, method.options, forget, train)
        return _edited(model, whole, rows, start, training.budget)
    share = 1.0 if mask is None else mask.count / sum(p.numel() for p in model.hf.parameters())
    found = run(
        model,
        forget,
        train,
        mask=mask,
        epochs=training.epochs(len(forget)),
        batch_size=training.batch_size,
        lr=lr / math.sqrt(share),
        schedule="constant",
        retain_budget=training.budget,
        budget_rows=budget_rows,
        budget_every=1,
        seed=seed,
        **{**method.options, "objective": method.called},
    )
    with applied(model, found.delta):
        used = set_nll(model, rows) - start
    reached, audit = bool(found.audit.stopped), found.audit
    if objectives[method.called].about["procedure"] == "negated":  # all steps are taken, and then a part of what they came to
        return Spent(found.delta, used, reached, found.moved, steps=float(audit.steps), part=audit.part)
    return Spent(found.delta, used, reached, found.moved, steps=audit.steps - (1 - audit.part))


def _edited(model: Model, whole: Delta, rows: Sequence[Encoded], start: float, budget: float) -> Spent:
    """As much of an edit as the budget allows."""

    def rise(part: float) -> float:
        with applied(model, whole.scaled(part)):
            return nll_or_infinite(model, rows) - start

    used = rise(1.0)
    if used <= budget:
        return Spent(whole, used, False, whole.moved(model), part=1.0)
    found = largest_within(rise, budget, start=0.0, tolerance=PRECISION * budget)
    delta = whole.scaled(found.part)
    return Spent(delta, found.value, True, delta.moved(model), part=found.part)
