"""What unlearning and ablation do to the value vectors of a concept, and to the answers about it: one arm at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from workbench.core.components import Place
from workbench.core.delta import applied
from workbench.core.errors import DataError
from workbench.core.numerics import permutation
from workbench.core.records import Examples
from workbench.edit import ablate_value_vectors
from workbench.evaluate.ask import ask
from workbench.evaluate.bleu import bleu_of
from workbench.evaluate.concept_vectors import Written, check_same_shape, compare, written
from workbench.evaluate.rouge_l_f import rouge_l_f_of
from workbench.load.concepts import Concept
from workbench.load.models import Model, load
from workbench.probe.concept import Concepts
from workbench.study.intervene import row_nll
from workbench.unlearn.run import run as unlearn


@dataclass(frozen=True)
class Arm:
    """One line of the result; one of unlearn, ablate, model, or nothing for the untouched model.

    unlearn: options of `unlearn.run`.   ablate: options of `edit.ablate_value_vectors`, and `vectors`, how many of each concept.
    """

    name: str
    unlearn: Mapping[str, Any] = field(default_factory=dict)
    ablate: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True)
class Point:
    """What one arm did. Each list has a value a vector, a row or a question.

    vectors, others: cosine, relative_l2, jaccard of the concepts' value vectors and of as many others, before and after.
    nll: rise of the mean NLL of "concept" and "unrelated" rows, nats per token.
    bleu, rouge_l_f: of "qa" and "unrelated_qa" answers against the untouched model's.
    """

    arm: str
    vectors: dict[str, list[float]]
    others: dict[str, list[float]]
    nll: dict[str, list[float]]
    bleu: dict[str, list[float]]
    rouge_l_f: dict[str, list[float]]
    samples: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every arm is measured against.

    forget: all rows of the concepts, which unlearning trains on.   train: the retain rows it trains on.
    held_out: the concepts' rows that did not select vectors.   unrelated: retain rows that nothing has looked at.
    found: each concept's vectors.   places: all vectors of all concepts that are compared; others: as many of every layer
    that were no candidates.
    """

    model: Model
    forget: Examples
    train: Examples
    held_out: Examples
    unrelated: Examples
    found: Sequence[Concepts]
    concepts: Sequence[Concept]
    places: Sequence[Place]
    others: Sequence[Place]
    before: Mapping[str, Written]
    nll: Mapping[str, np.ndarray]
    said: Mapping[str, Sequence[str]]
    tokens: int


def measure(on: Bench, arm: Arm) -> Point:
    """Carry out one arm and measure it; the model is left as it was."""
    if arm.model:
        other = load(arm.model, device=str(on.model.device), dtype=on.model.dtype)
        check_same_shape(on.model, other)
        return _point(on, arm, other)
    if arm.unlearn:
        delta = unlearn(on.model, on.forget, on.train, **arm.unlearn).delta
    elif arm.ablate:
        options = {key: value for key, value in arm.ablate.items() if key != "vectors"}
        delta = ablate_value_vectors(on.model, chosen(on.found, int(arm.ablate["vectors"])), **options)
    else:
        return _point(on, arm, on.model)
    with applied(on.model, delta):
        return _point(on, arm, on.model)


def chosen(found: Sequence[Concepts], n: int) -> list[Place]:
    """The n best vectors of every concept, each vector once."""
    return list(dict.fromkeys(place for one in found for place in one.top(n)))


def as_many_others(model: Model, places: Sequence[Place], taken: Sequence[Place]) -> list[Place]:
    """Value vectors that nobody has named, as many of every layer as `places` has.

    The choice is a permutation that depends on the layer's number and size alone.

    Args: taken: those that are not to be chosen.
    Raises: DataError if a layer has too few.
    """
    found: list[Place] = []
    for layer in sorted({place.layer for place in places}):
        wanted = sum(place.layer == layer for place in places)
        named = {place.index for place in taken if place.layer == layer}
        free = [index for index in permutation(model.d_mlp, layer) if index not in named]
        if len(free) < wanted:
            raise DataError(
                f"concepts: layer {layer} has {len(free)} vectors that are no candidates, but {wanted} are compared with."
            )
        found += [Place(layer, index) for index in free[:wanted]]
    return found


def _point(on: Bench, arm: Arm, model: Model) -> Point:
    after = {name: written(model, getattr(on, name)) for name in ("places", "others")}
    moved = {name: {k: v.tolist() for k, v in compare(on.before[name], after[name]).items()} for name in after}
    rows = {"concept": on.held_out, "unrelated": on.unrelated}
    says = ask(model, on.concepts, max_new_tokens=on.tokens)
    alike = {
        name: {
            split: [function(reference=said, hypothesis=now) for said, now in zip(on.said[split], says[split], strict=True)]
            for split in on.said
        }
        for name, function in (("bleu", bleu_of), ("rouge_l_f", rouge_l_f_of))
    }
    return Point(
        arm.name,
        moved["places"],
        moved["others"],
        {name: (row_nll(model, some) - on.nll[name]).tolist() for name, some in rows.items()},
        alike["bleu"],
        alike["rouge_l_f"],
        _samples(on, says),
    )


def _samples(on: Bench, says: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Two answers of each kind, before and after."""
    asked = {
        "qa": [question for concept in on.concepts for question in concept.qa],
        "unrelated_qa": [question for concept in on.concepts for question in concept.unrelated_qa],
    }
    return [
        {"split": split, "question": asked[split][i], "before": on.said[split][i], "after": says[split][i]}
        for split in asked
        for i in (0, len(asked[split]) // 2)
    ]
