"""Run an unlearning objective on the one training loop: sets and an objective in, a Delta with its history and audit out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from workbench.core.delta import Delta
from workbench.core.errors import DataError, InputError, unknown
from workbench.core.mask import Mask
from workbench.core.records import Examples, Provenance, check_disjoint
from workbench.core.registry import objective as objectives
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.train.loop import Audit, Check, fit
from workbench.unlearn.pairs import Pairs, Weighting, answer_distributions, answer_logprob_rows, set_nll

RETAIN_TERMS = ("none", "nll", "kl")
PROBE_ROWS = 64


@dataclass(frozen=True, eq=False)
class Unlearned:
    """delta: what to add to the weights.   history: one dict a step and a check.   audit: what the run really did.

    layers: per layer ||Delta||, ||W|| and their ratio.
    """

    delta: Delta
    history: list[dict[str, float]]
    audit: Audit
    layers: list[dict[str, Any]]

    @property
    def moved(self) -> float:
        """Share of all the model's weights whose bits, in its own dtype, the run changed."""
        return self.audit.moved

    def _repr_html_(self) -> str:
        shown = [(row["layer"], "not defined" if row["ratio"] is None else f"{row['ratio']:.3g}") for row in self.layers]
        rows = "".join(f"<tr><td>{escape(layer)}</td><td>{ratio}</td></tr>" for layer, ratio in shown)
        head = f"<p>{escape(repr(self.delta))}: {self.moved:.2%} of all weights moved in {self.audit.steps} steps"
        stopped = f"; {escape(self.audit.stopped)}" if self.audit.stopped else ""
        return f"{head}{stopped}</p><table><tr><th>layer</th><th>||Delta||/||W||</th></tr>{rows}</table>"


def run(
    model: Model,
    forget: Examples,
    retain: Examples,
    *,
    objective: str = "npo",
    options: Mapping[str, Any] | None = None,
    retain_term: Literal["none", "nll", "kl"] | None = None,
    forget_weight: float | None = None,
    retain_weight: float = 1.0,
    mask: Mask | None = None,
    epochs: int = 5,
    batch_size: int = 16,
    micro_batch: int | None = None,
    lr: float = 1e-4,
    schedule: str = "linear",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    retain_budget: float | None = None,
    budget_rows: Examples | None = None,
    budget_every: int | None = None,
    seed: int = 0,
    show: bool = False,
) -> Unlearned:
    """Unlearn `forget` while keeping `retain`; the model is left as it was, the result is a Delta.

    Args:
        objective: a registered objective: gradient_ascent, gradient_difference, npo, simnpo.
        options: the objective's own options, such as {"beta": 0.1}.
        retain_term: "none", "nll" (mean NLL of the retain answer), "kl" (mean over its answer tokens of
            KL(reference || policy), over the full vocabulary) or None for the objective's usual one.
        forget_weight: None for the objective's usual one (1; 0.125 for simnpo).
        mask: only these weights can move; the others keep their bits.
        retain_budget: stop before the mean NLL on `budget_rows` has risen by more than this, in nats per token; the last epoch
            within the budget is returned.
        budget_rows: rows that are neither in `forget` nor in `retain`; None for the first 64 retain rows.
        budget_every: steps between two looks at the budget; the stretch that goes beyond it is then taken in part, so that the
            run ends at the budget. None looks once an epoch and keeps whole epochs.
        epochs, batch_size, micro_batch, lr, schedule, warmup, weight_decay, clip_norm, seed: see `train.fit`. An epoch goes
            once through the forget rows; retain rows are drawn without replacement in an order fixed by the seed.
    Raises: UnknownNameError for the objective or an option; DataError if the sets share rows; InputError for a budget that cannot
        be, or options of a budget without one; MismatchError for another
        model's mask; NumericsError if a loss is not finite; MemoryPlanError if the KL cache would not fit.
    """
    member = objectives[objective]
    given = member.check_options(dict(options or {}))
    term = retain_term or member.about["retain"]
    if term not in RETAIN_TERMS:
        raise unknown("retain_term", term, RETAIN_TERMS)
    weight = member.about["forget_weight"] if forget_weight is None else forget_weight
    check_disjoint(forget, retain)
    _check_budget(forget, retain, retain_budget, budget_rows, budget_every)
    forget_rows, retain_rows = encode_all(model, forget), encode_all(model, retain)
    probe = None if budget_rows is None else encode_all(model, budget_rows)
    pairs = Pairs(
        model,
        forget_rows,
        retain_rows,
        objective=lambda policy, reference: member.function(policy, reference, **given),
        weighting=Weighting(weight, retain_weight, term),
        references=answer_logprob_rows(model, forget_rows) if member.about["needs_reference"] else None,
        seed=seed,
    )
    if term == "kl":
        used = sorted({pairs.partner(i, epoch) for epoch in range(epochs) for i in range(len(pairs))})
        pairs.known = answer_distributions(model, retain_rows, used)
    about = Provenance(
        member.name,
        model.fingerprint(),
        {"forget": forget.fingerprint(), "retain": retain.fingerprint()}
        | ({} if budget_rows is None else {"budget": budget_rows.fingerprint()}),
        {"objective": member.options | given, "retain_term": term, "forget_weight": weight, "retain_weight": retain_weight}
        | {"epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule, "warmup": warmup}
        | {"weight_decay": weight_decay, "clip_norm": clip_norm, "retain_budget": retain_budget, "budget_every": budget_every}
        | {"mask": None if mask is None else mask.provenance.as_dict()},
        seed,
        str(model.dtype),
        "mean over forget-retain pairs",
    )
    trained = fit(
        model,
        pairs,
        about,
        mask=mask,
        epochs=epochs,
        batch_size=batch_size,
        micro_batch=micro_batch,
        lr=lr,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        seed=seed,
        check=_budget(model, retain_rows[:PROBE_ROWS] if probe is None else probe, retain_budget, budget_every),
        show=show,
    )
    return Unlearned(trained.delta, trained.history, trained.audit, trained.delta.by_layer(model))


def _check_budget(forget: Examples, retain: Examples, budget: float | None, rows: Examples | None, every: int | None) -> None:
    """InputError or DataError for a budget that cannot be kept, or rows that would measure it wrongly."""
    if budget is None:
        for name, value in (("budget_rows", rows), ("budget_every", every)):
            if value is not None:
                raise InputError(f"unlearn: {name} is given without retain_budget, so there is no budget to look at. Give both.")
        return
    if not (math.isfinite(budget) and budget >= 0):
        raise InputError(f"unlearn: retain_budget is {budget}, expected a rise, 0 or more, of the mean NLL in nats per token.")
    if every is not None and every < 1:
        raise InputError(f"unlearn: budget_every is {every}, expected a number of steps, at least 1.")
    if rows is None:
        return
    found = {(row.prompt, row.response): row.id for row in rows}
    for name, others in (("forget", forget), ("retain", retain)):
        shared = [found[row.prompt, row.response] for row in others if (row.prompt, row.response) in found]
        if shared:
            raise DataError(
                f"unlearn: budget_rows ({rows.name}) and {name} ({others.name}) share {len(shared)} rows, such as {shared[0]!r}. "
                "Rows that are trained on do not measure what is kept; take them out of one of the sets."
            )


def _budget(model: Model, rows: list[Encoded], budget: float | None, every: int | None) -> Check | None:
    """Stop when the mean NLL of `rows` has risen by more than `budget`."""
    if budget is None:
        return None
    limit = set_nll(model, rows) + budget
    return Check(lambda: set_nll(model, rows), limit, "retain_nll", every, partial=every is not None)
