"""Run an unlearning objective on the one training loop: sets and an objective in, a Delta with its history and audit out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from workbench.core.errors import NumericsError, TrainingStopped
from workbench.core.mask import Mask
from workbench.core.records import Examples, Provenance, check_disjoint
from workbench.core.registry import objective as objectives
from workbench.load.models import Model
from workbench.train.check import Check
from workbench.train.lora import Lora
from workbench.train.task import Task
from workbench.unlearn.budget import budget_check, check_budget
from workbench.unlearn.prepare import Asked, prepare, weighting_of
from workbench.unlearn.task_vector import negated
from workbench.unlearn.training import Training, Unlearned, read_lora

PROBE_ROWS = 64


def run(
    model: Model,
    forget: Examples,
    retain: Examples,
    *,
    objective: str = "npo",
    options: Mapping[str, Any] | None = None,
    retain_term: Literal["none", "nll", "kl", "states"] | None = None,
    forget_weight: float | None = None,
    retain_weight: float | None = None,
    refusals: Sequence[str] | None = None,
    mask: Mask | None = None,
    lora: Lora | Mapping[str, Any] | None = None,
    epochs: int = 5,
    batch_size: int = 16,
    micro_batch: int | None = None,
    lr: float = 1e-4,
    schedule: str = "linear",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    sharpness: float = 0.0,
    retain_budget: float | None = None,
    budget_rows: Examples | None = None,
    budget_every: int | None = None,
    seed: int = 0,
    show: bool = False,
) -> Unlearned:
    """Unlearn `forget` while keeping `retain`; the model is left as it was, the result is a Delta.

    Args:
        objective: a registered objective, such as gradient_difference, npo, simnpo, idk, undial, rmu; `workbench methods` has all.
        options: the objective's own options, such as {"beta": 0.1}.
        retain_term: "none", "nll" (mean NLL of the retain answer), "kl" (mean over its answer tokens of
            KL(reference || policy), over the full vocabulary), "states" (rmu's) or None for the objective's usual one.
        forget_weight, retain_weight: None for the objective's usual ones (1 and 1; simnpo: 0.125 and 1; satimp: 1 and 0.1).
        refusals: what idk and refusal_dpo answer with, one of them a row; None for TOFU's 100 sentences.
        mask: only these weights can move; the others keep their bits.   lora: train low-rank adapters in place of the weights.
        sharpness: radius of sharpness-aware minimization of the forget half, in the space of the weights; 0 for none.
        retain_budget: stop before the mean NLL on `budget_rows` has risen by more than this, in nats per token; the last epoch
            within the budget is returned.
        budget_rows: rows that are neither in `forget` nor in `retain`; None for the first 64 retain rows.
        budget_every: steps between two looks at the budget; the stretch that goes beyond it is then taken in part, so that the
            run ends at the budget. None looks once an epoch and keeps whole epochs. task_vector looks at the end alone.
        lora, sharpness, epochs, batch_size, micro_batch, lr, schedule, warmup, weight_decay, clip_norm, seed: see `train.fit`. An
            epoch goes once through the forget rows; retain rows are drawn without replacement in an order fixed by the seed.
    Raises: UnknownNameError for the objective or an option; DataError if the sets share rows; TooLongError for a row that does not
        fit the context, or whose answer nothing predicts, naming it; InputError for a budget that cannot be, options of a budget
        without one, mask and lora together, or a retain term or weight that the objective cannot have; MismatchError for another
        model's mask; TrainingStopped if a loss is not finite, with the last good state, or a plain NumericsError where what was
        trained until then is the opposite of forgetting (task_vector, the reinforced model of whos_harry_potter); MemoryPlanError
        if what is kept of the reference would not fit.
    """
    member = objectives[objective]
    given = member.check_options(dict(options or {}))
    weighting = weighting_of(member, retain_term, forget_weight, retain_weight)
    check_disjoint(forget, retain)
    check_budget(forget, retain, retain_budget, budget_rows, budget_every)
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        micro_batch=micro_batch,
        lr=lr,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        sharpness=sharpness,
        lora=read_lora(lora),
        mask=mask,
        seed=seed,
        show=show,
    )
    asked = Asked(member, member.options | given, weighting, refusals, training)
    check = budget_check(model, retain[:PROBE_ROWS] if budget_rows is None else budget_rows, retain_budget, budget_every)
    task, training = prepare(model, forget, retain, asked)
    sets = {"forget": forget, "retain": retain} | ({} if budget_rows is None else {"budget": budget_rows})
    about = _provenance(
        model, sets, replace(asked, training=training), {"retain_budget": retain_budget, "budget_every": budget_every}
    )
    if member.about["procedure"] == "negated":
        return _opposite(model, task, asked, about, check, retain_budget)
    trained = training.fit(model, task, about, check=check)
    return Unlearned(trained.delta, trained.history, trained.audit, trained.delta.by_layer(model))


def _provenance(model: Model, sets: Mapping[str, Examples], asked: Asked, budget: Mapping[str, Any]) -> Provenance:
    weighting, refusals, training = asked.weighting, asked.refusals, asked.training
    return Provenance(
        asked.member.name,
        model.fingerprint(),
        {role: rows.fingerprint() for role, rows in sets.items()},
        {"objective": asked.recorded(), "retain_term": weighting.retain_term}
        | {"forget_weight": weighting.forget, "retain_weight": weighting.retain, "refusals": refusals and list(refusals)}
        | training.recorded()
        | dict(budget),
        training.seed,
        str(model.dtype),
        "mean over forget-retain pairs",
    )


def _opposite(model: Model, task: Task, asked: Asked, about: Provenance, check: Check | None, budget: float | None) -> Unlearned:
    """The way back from what is learned, as far as the budget allows; see `task_vector`."""
    try:
        trained = asked.training.fit(model, task, about)
    except TrainingStopped as error:  # what it kept is the opposite of forgetting
        raise NumericsError(f"{asked.member.name}: the training that is then negated stopped: {error}") from error
    alpha = asked.options["alpha"]
    if check is None or budget is None:
        found = negated(model, trained.delta, alpha=alpha)
    else:
        start = check.limit - budget
        found = negated(model, trained.delta, alpha=alpha, measure=check.measure, limit=check.limit, start=start)
    moved = found.delta.moved(model)
    of_trainable = trained.audit.moved_of_trainable * moved / trained.audit.moved if trained.audit.moved else 0.0
    audit = replace(trained.audit, moved=moved, moved_of_trainable=of_trainable, stopped=found.stopped, part=found.part)
    return Unlearned(found.delta, [*trained.history, *found.lines], audit, found.delta.by_layer(model))
