"""From an objective and two sets to the task of its training: the answers, what the reference says about them, and the partners."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workbench.core.delta import applied
from workbench.core.errors import InputError, NumericsError, TrainingStopped, unknown
from workbench.core.records import Examples, Provenance
from workbench.core.registry import Member
from workbench.core.store import tensor_sha256
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.trace.forward import check_predicted
from workbench.train.masters import precise_dtype
from workbench.train.task import AnswerTask
from workbench.unlearn.cache import Kept, answer_logit_rows, keep, state_rows
from workbench.unlearn.pairs import Pairing, Pairs, Side, Weighting, set_nll
from workbench.unlearn.pdu import SLACK, Dual
from workbench.unlearn.random_label import wrong_answers
from workbench.unlearn.refusals import REFUSALS, refused
from workbench.unlearn.rmu import Steered, check_reached, steered_layer, steering_vector, value_weights
from workbench.unlearn.targets import check_alpha, generic_logits
from workbench.unlearn.training import Training

RETAIN_TERMS = ("none", "nll", "kl", "states")
LIMITED = {
    "dual": (("nll",), "its constraint is on the retain NLL"),
    "negated": (("none",), "its training is negated, so what it kept would be lost"),
    "states": (("none", "states"), "it runs no layer behind the one it reads"),
}
"""The retain terms that go with a procedure, or with what is read, where not all of them do; and why."""


@dataclass(frozen=True)
class Asked:
    """What a run is asked for. options: all of the objective's, given or not."""

    member: Member
    options: Mapping[str, Any]
    weighting: Weighting
    refusals: Sequence[str] | None
    training: Training

    @property
    def reads(self) -> str:
        """What the loss is computed from."""
        return self.member.about["reads"]

    def recorded(self) -> dict[str, Any]:
        """The objective's options, ready for JSON; a vector by the hash of its values."""
        return {key: tensor_sha256(value) if isinstance(value, Tensor) else value for key, value in self.options.items()}


def weighting_of(member: Member, retain_term: str | None, forget_weight: float | None, retain_weight: float | None) -> Weighting:
    """The weights and the retain term of a run: those given, else the objective's usual ones.

    Raises: UnknownNameError for the term; InputError for one that the objective cannot have, for a weight that is negative or not
        finite, or for a retain weight without a retain term.
    """
    about = member.about
    term = retain_term or about["retain"]
    if term not in RETAIN_TERMS:
        raise unknown("retain_term", term, RETAIN_TERMS)
    possible, why = LIMITED.get(about["procedure"]) or LIMITED.get(about["reads"]) or (RETAIN_TERMS[:3], "that is rmu's")
    if term not in possible:
        raise InputError(f"unlearn: retain_term {term!r} does not go with {member.name}: {why}. Possible: {', '.join(possible)}.")
    for name, weight in (("forget_weight", forget_weight), ("retain_weight", retain_weight)):
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"unlearn: {name} is {weight}, expected a number, 0 or more.")
    if term == "none" and retain_weight:
        raise InputError(
            f"unlearn: retain_weight is {retain_weight}, but {member.name} has no retain term here that it could weigh; "
            f"leave it out, or give a retain_term (possible: {', '.join(possible)})."
        )
    return Weighting(
        about["forget_weight"] if forget_weight is None else forget_weight,
        about["retain_weight"] if retain_weight is None else retain_weight,
        term,
    )


def prepare(model: Model, forget: Examples, retain: Examples, asked: Asked) -> tuple[Pairs | Steered, Training]:
    """The task of a run, with everything the reference says already computed, and its training: rmu's may bring its own mask."""
    if asked.refusals is not None and asked.member.about["answers"] not in ("refusal", "both"):
        raise InputError(f"unlearn: refusals are given, but {asked.member.name} learns none; idk and refusal_dpo do.")
    if asked.reads == "states":
        return _steered(model, encode_all(model, forget), encode_all(model, retain), asked)
    kept = encode_all(model, retain)
    if asked.weighting.retain_term != "none":
        check_predicted(kept)
    sides = _sides(model, forget, asked)
    pairs = Pairs(
        model,
        sides,
        kept,
        objective=_bound(asked),
        weighting=asked.weighting,
        keep_logits=asked.reads == "logits",
        dual=_dual(model, kept, asked),
        seed=asked.training.seed,
    )
    if asked.weighting.retain_term == "kl":
        used = _used(pairs, asked.training.epochs)
        cure = "Use retain_term='nll', or fewer retain rows or epochs."
        pairs.known = dict(zip(used, answer_logit_rows(model, [kept[i] for i in used], normalized=True, cure=cure), strict=True))
    return pairs, asked.training


def _bound(asked: Asked) -> Any:
    """The objective with its options."""
    return lambda *passes: asked.member.function(*passes, **asked.options)


def _used(pairs: Pairing, epochs: int) -> list[int]:
    """The retain rows that will be partners."""
    return sorted({i for epoch in range(epochs) for i in pairs.partners(range(len(pairs)), epoch)})


def _sides(model: Model, forget: Examples, asked: Asked) -> list[Side]:
    """The forget rows with the answers the objective wants, and what the reference says about these."""
    about, seed = asked.member.about, asked.training.seed
    coded: list[list[Encoded]] = []
    if about["answers"] in ("own", "both"):
        coded.append(encode_all(model, forget))
    if about["answers"] in ("refusal", "both"):
        coded.append(encode_all(model, refused(forget, REFUSALS if asked.refusals is None else asked.refusals, seed=seed)))
    if about["answers"] == "random":
        coded.append(wrong_answers(model, forget, labels=asked.options["labels"], seed=seed))
    for rows in coded:
        check_predicted(rows)
    if about["procedure"] == "reinforced":
        return [Side(coded[0], _generic(model, coded[0], asked))]
    if not about["needs_reference"]:
        return [Side(rows) for rows in coded]
    return [Side(rows, keep(model, rows, with_logits=asked.reads == "logits")) for rows in coded]


def _generic(model: Model, rows: list[Encoded], asked: Asked) -> Kept:
    """The generic logits of the forget answers, in place of the reference's; see `whos_harry_potter`."""
    check_alpha(asked.member.name, asked.options["alpha"])
    own = replace(
        asked.training,
        lr=asked.options["reinforce_lr"],
        epochs=asked.options["reinforce_epochs"],
        mask=None,
        lora=None,
        sharpness=0.0,
    )
    before = keep(model, rows, with_logits=True)
    about = Provenance("reinforced", model.fingerprint(), seed=own.seed)
    try:
        stronger = own.fit(model, AnswerTask(model, rows), about).delta
    except TrainingStopped as error:  # what it kept knows the forget rows better
        raise NumericsError(f"{asked.member.name}: the training of the reinforced model stopped: {error}") from error
    with applied(model, stronger):
        reinforced = answer_logit_rows(model, rows)
    base = before.logits or []
    made = [generic_logits(b, r, alpha=asked.options["alpha"]) for b, r in zip(base, reinforced, strict=True)]
    return Kept(before.logprobs, made)


def _dual(model: Model, retain: list[Encoded], asked: Asked) -> Dual | None:
    """The multiplier of the retain constraint, for an objective that has one."""
    if asked.member.about["procedure"] != "dual":
        return None
    epsilon = asked.options["epsilon"]
    return Dual(
        set_nll(model, retain) + SLACK if epsilon is None else epsilon,
        start=asked.weighting.retain,
        rate=asked.options["dual_rate"],
        warmup=asked.options["dual_warmup"],
    )


def _steered(model: Model, forget: list[Encoded], retain: list[Encoded], asked: Asked) -> tuple[Steered, Training]:
    """The task of an objective that reads states."""
    training, options = asked.training, dict(asked.options)
    layer = steered_layer(model, options)
    check_reached(model, training.mask, training.lora, layer)
    if options["positions"] == "predicting":
        check_predicted(forget if asked.weighting.retain_term == "none" else [*forget, *retain])
    if training.mask is None and training.lora is None:
        training = replace(training, mask=value_weights(model, layer))
    site = f"blocks.{layer}.resid_post"
    length = torch.full((len(forget), 1), float(options["coefficient"]), dtype=torch.float64)
    if options["adaptive"]:
        found = state_rows(model, forget, range(len(forget)), site=site, positions=options["positions"])
        norms = [float(found[i].double().norm(dim=-1).mean()) for i in range(len(forget))]
        length = length * torch.tensor(norms, dtype=torch.float64)[:, None]
    vector = steering_vector(options["steering"], model.d_model, seed=training.seed)
    task = Steered(
        model,
        forget,
        retain,
        distance=_bound(asked),
        site=site,
        positions=options["positions"],
        targets=(length * vector).to(precise_dtype(next(model.hf.parameters()))),
        before={},
        weighting=asked.weighting,
        seed=training.seed,
    )
    task.before = state_rows(model, retain, _used(task, training.epochs), site=site, positions=options["positions"])
    return task, training
