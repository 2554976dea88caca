"""Every attack on one model, row by row, ready for JSON.

    extraction     share of the secret tokens among B candidates: of the output alone, and read from all layers in two ways
    prompts        the answers to the questions as they stand, in other words, and behind worked examples
    relearning     held-out forget rows while the model is trained on three kinds of rows
    quantization   the answers with weights rounded to a few bits
    probe          whether a linear probe of the hidden states tells right from false answers

Every one also has its "before": what the same measure says without the attack. A probe has none.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError
from workbench.core.records import Examples, check_disjoint
from workbench.edit.quantize import quantize
from workbench.evaluate.attacks.candidates import ATTACKS as READINGS
from workbench.evaluate.attacks.extraction import extraction
from workbench.evaluate.attacks.prompting import TEMPLATES, in_context, prompting, rephrased, worded
from workbench.evaluate.attacks.relearning import KINDS, halves, relearning
from workbench.evaluate.entity_spans import spans
from workbench.evaluate.probe_recovery import FOLDS, probe_recovery
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.study.attacks_arms import Arm, Bench
from workbench.study.folder import kept
from workbench.trace.forward import row_nll

VERSIONS = {"relearning": ("rows drawn by seed",)}
"""What a point of an attack is kept under beside its settings, where the attack once measured something else with the same ones."""
OUTPUT = "output"
"""What is extracted from the last layer alone, which is what anybody can who sees the model's probabilities."""


def attacked(on: Bench, arm: Arm, attack: str) -> dict[str, Any]:
    """What an attack found on one model, from its file where there is one."""
    make, used = MEASURES[attack]
    options = {key: getattr(on.settings, key) for key in used}
    rows = [on.forget.fingerprint(), on.parts.train.fingerprint(), on.parts.report.fingerprint(), on.unrelated.fingerprint()]
    more = [None if on.marked is None else on.marked.fingerprint(), None if on.questions is None else dict(on.questions)]

    def measured() -> Mapping[str, Any]:
        with arm.shown() as model:
            return make(on, model)

    return kept(on.folder, [attack, *VERSIONS.get(attack, ()), *arm.causes, *rows, *more, _plain(options)], measured)


def check(on: Bench) -> None:
    """Everything an attack would refuse, before the first method is trained.

    Raises: InputError for a setting these models or rows cannot have; DataError for rows an attack cannot be made with.
    """
    settings = on.settings
    if max(settings.budgets) > on.model.d_vocab or min(settings.budgets) < 1:
        raise InputError(
            f"attacks.budgets is {list(settings.budgets)}, expected 1 to {on.model.d_vocab}, the size of the vocabulary."
        )
    if settings.shots > len(on.parts.train):
        raise InputError(f"attacks.shots is {settings.shots}, but there are {len(on.parts.train)} retain rows to show.")
    check_disjoint(on.forget, on.unrelated)
    if "prompts" in settings.attacks:
        for rows in ways(on).values():
            encode_all(on.model, rows)  # refuses a prompt that leaves no room for its answer
    halves(on.forget, settings.held_out)
    if on.marked is not None:
        spans(on.model, on.forget, on.marked)
    if "probe" in settings.attacks and len(_probed(on.forget)) < 2 * FOLDS:
        raise DataError(
            f"attacks: {len(_probed(on.forget))} rows of {on.forget.name} have a paraphrase and false answers; the attack 'probe' "
            f"needs at least {2 * FOLDS}. Give such rows, or leave it out of attacks.attacks."
        )


def ways(on: Bench) -> dict[str, Examples]:
    """The forget rows with every way of asking."""
    found = {name: worded(on.forget, text) for name, text in TEMPLATES.items()}
    found["in context"] = in_context(on.forget, on.parts.train, shots=on.settings.shots)
    if on.questions is not None:
        found["paraphrase"] = rephrased(on.forget, on.questions)
    return found


def _extraction(on: Bench, model: Model) -> dict[str, Any]:
    """By reading: share of each row's secret tokens that are in the candidate set, [budget][row]; and the ids of the rows."""
    budgets, last = on.settings.budgets, [model.n_layers - 1]
    ways = {OUTPUT: ("head_projection", last), **{name: (name, None) for name in READINGS}}
    found = {
        name: extraction(model, on.forget, attack=attack, budget=budgets, layers=layers, marked=on.marked)
        for name, (attack, layers) in ways.items()
    }
    shares = {name: [one.token_share(budget).tolist() for budget in one.budgets] for name, one in found.items()}
    control = found[OUTPUT].random()
    shares["random"] = [control.token_share(budget).tolist() for budget in control.budgets]
    return {"ids": list(control.ids), "budgets": list(control.budgets), "shares": shares}


def _prompts(on: Bench, model: Model) -> dict[str, Any]:
    """Recall of the greedy answer and probability of the true one, [prompt][row]; the direct question is the first prompt."""
    found = prompting(model, on.forget, variants=ways(on), generate=on.settings.generate)
    return {
        "ids": list(found.ids),
        "prompts": list(found.prompts),
        "recall": found.rouge_l_recall.tolist(),
        "probability": found.probability.tolist(),
    }


def _relearning(on: Bench, model: Model) -> dict[str, Any]:
    """By what is trained on: NLL of the held-out rows, [seed][point][row]; and the steps of the points."""
    others = {"forget_subset": None, "retain_only": on.parts.train, "unrelated": on.unrelated}
    settings = on.settings
    found = {
        kind: relearning(
            model,
            on.forget,
            others[kind],
            kind=kind,
            steps=settings.relearn_steps,
            every=settings.relearn_every,
            lr=settings.relearn_lr,
            batch_size=settings.batch_size,
            seeds=settings.relearn_seeds,
            held_out=settings.held_out,
        )
        for kind in KINDS
    }
    one = next(iter(found.values()))
    return {"ids": list(one.ids), "steps": list(one.steps), "nll": {kind: run.nll.tolist() for kind, run in found.items()}}


def _quantization(on: Bench, model: Model) -> dict[str, Any]:
    """Probability of the true answers to forget and to reported retain rows, by bits; "before" with all bits."""
    found = {"before": _likely(on, model)}
    for bits in on.settings.bits:
        with applied(model, quantize(model, bits=bits)):
            found[str(bits)] = _likely(on, model)
    return {"ids": list(on.forget.ids), "probability": found}


def _likely(on: Bench, model: Model) -> dict[str, list[float]]:
    return {name: _probability(model, rows).tolist() for name, rows in (("forget", on.forget), ("retain", on.parts.report))}


def _probability(model: Model, rows: Examples) -> Float[np.ndarray, "row"]:
    """exp(-NLL) per token of every answer."""
    return np.exp(-row_nll(model, encode_all(model, rows)).numpy())


def _probe(on: Bench, model: Model) -> dict[str, Any]:
    """AUC of held-out questions, [row][layer], and of probes with shuffled labels, [control][row][layer]."""
    found = probe_recovery(model, on.forget.take(_probed(on.forget)))
    return {"ids": list(found.ids), "auc": found.auc.tolist(), "shuffled": found.shuffled.tolist()}


def _probed(forget: Examples) -> list[int]:
    """Positions of the rows that have a right and a false answer in like words."""
    return [i for i, row in enumerate(forget) if row.perturbed and row.paraphrase]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}


MEASURES: dict[str, tuple[Callable[[Bench, Model], dict[str, Any]], tuple[str, ...]]] = {
    "extraction": (_extraction, ("budgets",)),
    "prompts": (_prompts, ("generate", "shots")),
    "relearning": (
        _relearning,
        ("relearn_steps", "relearn_every", "relearn_lr", "relearn_seeds", "held_out", "batch_size"),
    ),
    "quantization": (_quantization, ("bits",)),
    "probe": (_probe, ()),
}
"""By attack: the function that measures it, and the settings that decide its result."""
