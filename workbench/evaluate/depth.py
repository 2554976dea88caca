"""The unlearning-depth score: how much of what retraining would have removed is gone, layer by layer, from the hidden states.

Every layer's hidden states of another model are put into the full model where it predicts the entity y = y_1 .. y_T, and what it
loses by that is read from its log-probability of the entity:

    D_l(other) = (1/T) sum_t [ln p_full(y_t | x, y_<t) - ln p_full(y_t | x, y_<t; h_l := h_l of the other model)]
    stage 1    the retrained model: E = {l : D_l(retrained) > threshold}, the layers that encode the knowledge
    stage 2    the unlearned model
    depth      sum_{l in E} D_l(retrained) clip(D_l(unlearned) / D_l(retrained), 0, 1) / sum_{l in E} D_l(retrained)

h_l is the residual stream behind layer l, replaced at the T positions that predict the entity's tokens (position p - 1 for token
p) and nowhere else; what other positions hold, and what these hold below layer l, is the full model's. 1: as much is lost as with
the retrained model's states. 0: nothing is lost, however the unlearned model may answer.

A state can cost the full model its answer for two reasons: it does not hold the fact, or the full model cannot read it. Two models
trained from different weights write in different bases, and a broken one in none; the published score calls all of this erased.
Rows that every model knows tell the two apart (`control`): what their states cost was not forgotten.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.core.delta import Delta
from workbench.core.errors import InputError, MismatchError
from workbench.core.numerics import mean_nll
from workbench.core.records import Examples, Provenance
from workbench.core.runtime import plan_memory, progress
from workbench.evaluate.depth_record import THRESHOLD, Depth, Lost
from workbench.evaluate.entity_spans import Entities, spans
from workbench.load.batches import Batch, Encoded, by_length, collate, encode_all
from workbench.load.models import Model
from workbench.trace.answer_states import all_or, answer_states, predicting
from workbench.trace.beside import beside
from workbench.trace.forward import check_eval, forward, row_nll
from workbench.trace.hooks import patch


def unlearning_depth(
    full: Model,
    retrained: Model | Delta | Depth,
    unlearned: Model | Delta,
    examples: Examples,
    marked: Entities,
    *,
    control: Examples | None = None,
    threshold: float = THRESHOLD,
    layers: Sequence[int] | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> Depth:
    """How much of the entities the unlearned model's states have lost, between the full model's (0) and the retrained one's (1).

    One forward pass for each layer and other model, and one of each model. Only the others' states at the entities are kept, so
    where another one is a Delta there need not be two models in memory.

    The ceiling: a second model retrained from another seed, passed as `unlearned`, shows how far below 1 a perfect answer lies.
    That needs models that were tuned from the same weights; the control says whether they still read each other's states.

    Args:
        full: the model before unlearning; its layers are the ones that are patched.
        retrained, unlearned: models of its shape and tokenizer, or changes of `full`. To compare several unlearned models, give the
            first one's Depth as `retrained`: its stage 1 is used again, which halves the time.
        examples: forget rows.   marked: their entities, see `entity_spans`.
        control: rows that all three models know, such as retain rows; their whole answers are read. None: no control.
        threshold: least loss with the retrained states at which a layer counts as encoding, nats per token, 0 or more.
        layers: which layers to patch; None for all.
        batch_tokens: largest padded batch, in tokens.   seed: of the bootstrap over rows.
    Returns: a Depth; `.measurements()` for a table, `.by_layer()` for the curves, `.frame()` for the rows.
    Raises: DataError if no row has an entity, or an entity is not in its answer; MismatchError for a model that cannot be
        compared; InputError for a bad threshold, layer or batch_tokens, or a model in training mode; NumericsError if a
        log-probability is not finite; MemoryPlanError if the states would not fit.
    Reference: github.com/gnueaj/unlearning-depth-score, compute_uds.py at a6dabd4, arguments at their defaults. Its batched path
        takes the states from HF's `output_hidden_states`, whose last one is normed already, so the last layer's is normed twice;
        here it is the stream itself. It tokenizes prompt and answer apart, and has no control.
    """
    if not threshold >= 0:
        raise InputError(f"unlearning_depth: threshold is {threshold}, expected 0 or more nats per token.")
    check_eval(full)
    asked = all_or(full, layers)
    sets = [spans(full, examples, marked), encode_all(full, control) if control is not None else []]
    n, rows = len(sets[0]), [row for one in sets for row in one]
    data = {"examples": examples.fingerprint(), "entities": marked.fingerprint()}
    data |= {} if control is None else {"control": control.fingerprint()}
    if isinstance(retrained, Depth):
        _check_known(retrained, full, data, asked)
    logprob = -row_nll(full, rows, batch_tokens=batch_tokens).numpy()

    def lost(other: Model | Delta, label: str) -> Float64[np.ndarray, "row layer"]:
        return logprob[:, None] - _patched(full, other, rows, asked, batch_tokens=batch_tokens, label=label, show=show)

    both = Lost(
        retrained.stage_1 if isinstance(retrained, Depth) else lost(retrained, "retrained states"),
        lost(unlearned, "unlearned states"),
    )
    return Depth(
        ids=tuple(row.id for row in sets[0]),
        layers=asked,
        threshold=threshold,
        logprob=logprob[:n],
        lost=Lost(*(one[:n] for one in both)),
        control=None if control is None else Lost(*(one[n:] for one in both)),
        without=len(examples) - n,
        seed=seed,
        provenance=Provenance(
            "unlearning_depth",
            full.fingerprint(),
            data,
            {"threshold": threshold, "layers": list(asked), "batch_tokens": batch_tokens},
            seed=seed,
            dtype=str(full.dtype).removeprefix("torch."),
            tokens=sum(len(row.tokens) for row in rows),
            notes={"retrained": _name(retrained), "unlearned": _name(unlearned)},
        ),
    )


def _name(other: Model | Delta | Depth) -> str:
    """What identifies the other model."""
    if isinstance(other, Depth):
        return other.provenance.notes["retrained"]
    return other.id if isinstance(other, Delta) else other.fingerprint()


def _check_known(known: Depth, full: Model, data: dict[str, str], layers: tuple[int, ...]) -> None:
    """MismatchError unless the stage 1 of an earlier Depth is that of this model, these rows and these layers."""
    asked = {"model": full.fingerprint(), "layers": layers, **data}
    held = {"model": known.provenance.model, "layers": known.layers, **known.provenance.data}
    other = [name for name in {**asked, **held} if asked.get(name) != held.get(name)]
    if other:
        raise MismatchError(
            f"unlearning_depth: the Depth given as `retrained` is of other {' and '.join(other)}, so its stage 1 cannot be used "
            "again. Give the retrained model itself."
        )


@torch.no_grad()
def _patched(
    full: Model,
    other: Model | Delta,
    rows: Sequence[Encoded],
    layers: Sequence[int],
    *,
    batch_tokens: int,
    label: str,
    show: bool,
) -> Float64[np.ndarray, "row layer"]:
    """Mean log-probability of every row's answer, or entity, under `full` with the other model's states at each layer in turn."""
    groups = list(by_length(rows, max_tokens=batch_tokens))
    batches = [collate([rows[i] for i in group], device=full.device) for group in groups]
    held = sum(len(row.tokens) - row.start for row in rows) * len(layers) * full.d_model * full.dtype.itemsize
    plan_memory("unlearning_depth: the states of one model", held, full.device, cure="Ask for fewer layers or rows.")
    with beside(full, other) as source:
        states = [answer_states(source, batch, layers).resid_post for batch in batches]
    found = np.empty((len(rows), len(layers)))
    for group, batch, kept in progress(list(zip(groups, batches, states, strict=True)), label=label, show=show):
        for j, layer in enumerate(layers):
            name = full.sites.at("resid_post", layer=layer).name
            with patch(full, {name: partial(_put, batch, kept[layer])}):
                passed = forward(full, batch)
            found[group, j] = -mean_nll(passed._replace(logprob=passed.logprob.double())).cpu().numpy()
    return found


def _put(batch: Batch, states: Float[Tensor, "token d_model"], x: Float[Tensor, "batch pos d_model"]) -> Tensor:
    """The activation with `states` where the answer is predicted."""
    new = x.clone()
    new[predicting(batch)] = states.to(x)
    return new
