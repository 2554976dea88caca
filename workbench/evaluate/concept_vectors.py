"""ConceptVectors' two questions about an edit: did it touch the value vectors that carry the concept, and did behavior change?

    intrinsic     the vectors before and after: cosine, distance, overlap of their top tokens
    behavioral    greedy answers before and after: BLEU and ROUGE-L F, on questions about the concept, on sentences about it to
                  be completed, and on unrelated questions; against what the untouched model says, not against the truth

Unlearned well, the vectors are far away, and the answers differ on the concept (low) and agree on the rest (high).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.components import Place
from workbench.core.delta import Delta, applied
from workbench.core.errors import DataError, InputError, MismatchError
from workbench.core.measurements import Measurement, Measurements
from workbench.core.numerics import check_finite
from workbench.core.statistics import Estimate, mean_estimate
from workbench.evaluate.ask import NEW_TOKENS, ask
from workbench.evaluate.bleu import bleu_of
from workbench.evaluate.rouge_l_f import rouge_l_f_of
from workbench.evaluate.tokens import BATCH_TOKENS
from workbench.load.concepts import Concept, check_model
from workbench.load.models import Model
from workbench.load.unembedding import readable, unembedding

TOP = 200  # tokens whose overlap is measured, as in the published code
SPLITS = {"qa": "lower", "completion": "lower", "unrelated_qa": "higher"}  # what is asked, and which agreement is better


class Written(NamedTuple):
    """Value vectors as they are now, copied: vectors [place d_model] float32, and the ids of their top tokens [place k]."""

    vectors: Float[Tensor, "place d_model"]
    top_ids: Int[Tensor, "place k"]


def concept_vectors(
    model: Model,
    edited: Delta | Model,
    concepts: Concept | Sequence[Concept],
    *,
    k: int = TOP,
    norm: str = "raw",
    max_new_tokens: int = NEW_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    show: bool = False,
) -> Measurements:
    """The whole protocol: `intrinsic` on the concepts' value vectors, `behavioral` on their questions.

    Args:
        model: untouched.   edited: a change of it, which is applied for as long as it is measured, or another model of its shape.
        concepts: those the edit is meant to remove; questions of several are counted together.
        k, norm: see `written`.   max_new_tokens: of a greedy answer.   seed: of the bootstrap.
    Returns: Measurements; metrics cosine, l2_distance, relative_l2 and jaccard (split "vectors"), bleu and rouge_l_f (splits qa,
        completion, unrelated_qa).
    Raises: ModelError or MismatchError for a concept of another model, or an edited model of another shape; DataError without a
        concept, or where the untouched model says nothing at all.
    Reference: Hong et al. 2024, arXiv:2406.11614. Their code measured a damaged original from the second concept on, compared token
        strings, exchanged BLEU's arguments and padded prompts on the right; this does none of it.
    """
    rows = [concepts] if isinstance(concepts, Concept) else list(concepts)
    if not rows:
        raise DataError("concept_vectors: there is no concept to measure.")
    for concept in rows:
        check_model(model, concept)
    places = list(dict.fromkeys(place for concept in rows for place in concept.places))
    options = {"max_new_tokens": max_new_tokens, "batch_tokens": batch_tokens, "show": show}
    before, said = written(model, places, k=k, norm=norm), ask(model, rows, **options)
    if isinstance(edited, Delta):
        with applied(model, edited):
            after, says = written(model, places, k=k, norm=norm), ask(model, rows, **options)
    else:
        check_same_shape(model, edited)
        after, says = written(edited, places, k=k, norm=norm), ask(edited, rows, **options)
    return Measurements([*intrinsic(before, after, seed=seed), *behavioral(says, said, seed=seed)])


def check_same_shape(model: Model, edited: Model) -> None:
    """MismatchError unless the two models have the same parameters and the same tokenizer."""
    if model.shapes() != edited.shapes() or model.text_key() != edited.text_key():
        raise MismatchError(
            f"concept_vectors: {edited.name!r} has other parameters or another tokenizer than {model.name!r}, so it is no edit."
        )


@torch.no_grad()
def written(model: Model, places: Sequence[Place], *, k: int = TOP, norm: str = "raw") -> Written:
    """Copies of value vectors, and the ids of the tokens each writes most under the model's own unembedding.

    Args:
        k: capped at the size of the vocabulary.
        norm: how the unembedding reads them, see `load.unembedding`; the published code has "raw" alone.
    Returns: float32 vectors and int64 ids on the CPU; ids by falling logit, equal ones by id.
    """
    picked = [model.sites.value_vectors(layer).view(model.hf)[index].float() for layer, index in places]
    if not picked:
        raise InputError("written: places is empty; name at least one value vector as (layer, neuron).")
    vectors = torch.stack(picked)
    check_finite("written: the value vectors", vectors)
    weight = unembedding(model)
    read = readable(model, vectors, norm=norm)
    logits = torch.cat([read @ part.to(read).T for part in weight.split(8192)], dim=1)
    top = logits.sort(dim=1, descending=True, stable=True).indices[:, : min(k, len(weight))]
    return Written(vectors.cpu(), top.cpu())


def intrinsic(before: Written, after: Written, *, seed: int = 0) -> list[Measurement]:
    """How far value vectors have moved: means over the vectors of `compare`, with intervals over the vectors.

    Lower cosine and Jaccard and a larger distance mean more erased. Each model's top tokens are those under its own unembedding.
    """
    k = before.top_ids.shape[1]
    units = {"cosine": "cosine", "l2_distance": "norm", "relative_l2": "ratio", "jaccard": "share"}
    notes = {"jaccard": f"ids of the top {k} tokens"}
    values = compare(before, after)
    return [
        Measurement.of(
            name, "vectors", _estimate(values[name], seed), unit=unit, note=_note(notes.get(name, ""), len(values[name]))
        )
        for name, unit in units.items()
    ]


def compare(before: Written, after: Written) -> dict[str, Float[np.ndarray, "place"]]:
    """By vector, float64: cosine, l2_distance ||a - b||, relative_l2 ||a - b|| / ||b|| (b before), jaccard of the top tokens' ids.

    An untouched vector has exactly 1, 0, 0 and 1. A vector that is now zero has no direction and no top tokens: cosine and jaccard
    are 0, as `torch.cosine_similarity` says.

    Raises: InputError if the two are of other places or another k; DataError for a vector that was zero before.
    """
    if before.vectors.shape != after.vectors.shape or before.top_ids.shape != after.top_ids.shape:
        raise InputError(f"compare: shapes {before.vectors.shape}, {after.vectors.shape}: not the same places and k.")
    b, a = before.vectors.double().numpy(), after.vectors.double().numpy()
    size = np.linalg.norm(b, axis=1)
    if (size == 0).any():
        raise DataError(
            f"compare: vector {int(np.flatnonzero(size == 0)[0])} was zero before the edit; there was nothing to erase."
        )
    squares = (b * b).sum(1) * (a * a).sum(1)  # sqrt(x * x) is exactly x, so an untouched vector has cosine 1
    cosine = np.divide((a * b).sum(1), np.sqrt(squares), out=np.zeros(len(b)), where=squares > 0)
    distance = np.linalg.norm(a - b, axis=1)
    gone = ~a.any(1)
    return {
        "cosine": np.clip(cosine, -1.0, 1.0),
        "l2_distance": distance,
        "relative_l2": distance / size,
        "jaccard": np.where(gone, 0.0, _jaccard(before.top_ids.numpy(), after.top_ids.numpy())),
    }


def behavioral(edited: Mapping[str, Sequence[str]], untouched: Mapping[str, Sequence[str]], *, seed: int = 0) -> list[Measurement]:
    """How alike two models' answers are: mean BLEU and ROUGE-L F by split, with intervals over questions.

    The untouched model's answer is the reference, the edited model's the hypothesis. Questions to which the untouched model says
    nothing are left out and counted in the note.

    Args: edited, untouched: answers by split, as `ask` gives them.
    Raises: DataError if the two have other splits or numbers of answers, or the untouched model is silent throughout a split.
    """
    rows = []
    for split, answers in untouched.items():
        if len(edited.get(split, ())) != len(answers):
            raise DataError(
                f"behavioral: {len(edited.get(split, ()))} answers to {split} of the edited model, {len(answers)} untouched."
            )
        used = [(said, says) for said, says in zip(answers, edited[split], strict=True) if said.split()]
        if not used:
            raise DataError(f"behavioral: the untouched model answers nothing to any question of {split}; nothing can change.")
        silent = len(answers) - len(used)
        note = "against the untouched model's answers" + (f"; it is silent on {silent} more" if silent else "")
        for name, function, unit in (("bleu", bleu_of, "BLEU"), ("rouge_l_f", rouge_l_f_of, "F")):
            values = np.array([function(reference=said, hypothesis=says) for said, says in used])
            rows.append(
                Measurement.of(
                    name, split, _estimate(values, seed), unit=unit, better=SPLITS.get(split, ""), note=_note(note, len(values))
                )
            )
    return rows


def _jaccard(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """|A and B| / |A or B| of each row's ids."""
    shared = [len(np.intersect1d(x, y)) for x, y in zip(one, other, strict=True)]
    return np.array([n / (2 * one.shape[1] - n) for n in shared])


def _estimate(values: Float[np.ndarray, "n"], seed: int) -> Estimate:
    """Mean with its interval; of a single value no interval, rather than one without a width."""
    if len(values) == 1:
        return Estimate(float(values[0]), float("nan"), float("nan"), 1)
    return mean_estimate(values, seed=seed)


def _note(note: str, n: int) -> str:
    return "; ".join(part for part in (note, "one value: no interval" if n == 1 else "") if part)
