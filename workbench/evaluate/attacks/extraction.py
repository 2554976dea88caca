"""White-box extraction: is the answer among a few candidates that an attacker reads from the hidden states?

At each token t of the answer, or of the marked part of it, the model gets the prompt and the true answer before t. Every layer's
residual stream h_l at the position that predicts t is read by the logit lens, D^l = softmax(W_U norm(h_l)), and `candidates` makes
a set C of exactly B tokens of it. The token is extracted if it is in C.

    token_share    share of the answer's tokens that are in their sets
    extracted      1 if all of them are
    first_token    1 if the first one is: the published attack, whose answers are one token long

A set of B tokens chosen by chance holds a token with probability B / |V|. Beyond the first token the attack is given the true
beginning, which an attacker does not know, and from which a model that never saw the answer guesses well too: compare with one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.core.errors import InputError, unknown
from workbench.core.measurements import Measurement, Measurements
from workbench.core.numerics import check_finite, wide
from workbench.core.records import Examples, Provenance
from workbench.core.runtime import progress
from workbench.core.statistics import Estimate, mean_estimate, wilson
from workbench.evaluate.attacks.candidates import ATTACKS, needed
from workbench.evaluate.entity_spans import Entities, spans
from workbench.load.batches import Batch, by_length, collate, encode
from workbench.load.models import Model
from workbench.trace.answer_states import all_or, answer_states
from workbench.trace.forward import check_predicted

if TYPE_CHECKING:
    import pandas as pd

RANDOM = "random"
MEASURES = ("token_share", "extracted", "first_token")
_AT_ONCE = 1 << 25  # logits of all layers held at a time


@dataclass(frozen=True, eq=False)
class Extraction:
    """How small a candidate set already held each token of each answer.

    attack: "head_projection", "probability_delta", or "random".   name, ids: of the examples.   layers: that were read.
    budgets: sizes B that are reported.   d_vocab: size of the vocabulary.
    row: [token] int64, which example a token belongs to, in order.   needed: [token] float64, the smallest B whose set holds the
    token; infinite where that is more than the largest budget.
    """

    attack: str
    name: str
    ids: tuple[str, ...]
    layers: tuple[int, ...]
    budgets: tuple[int, ...]
    d_vocab: int
    row: Int[np.ndarray, "token"]
    needed: Float[np.ndarray, "token"]
    provenance: Provenance

    def __repr__(self) -> str:
        shown = ", ".join(f"{self.token_share(b).mean():.1%} at B={b}" for b in self.budgets)
        return f"Extraction({self.attack!r}, {len(self.ids)} examples, {len(self.row):,} tokens; extracted tokens: {shown})"

    def _repr_html_(self) -> str:
        return self.measurements()._repr_html_()

    def token_share(self, budget: int) -> Float[np.ndarray, "example"]:
        """Share of each answer's tokens that are in their candidate sets of `budget` tokens."""
        return np.bincount(self.row, weights=self._hit(budget)) / np.bincount(self.row)

    def extracted(self, budget: int) -> Float[np.ndarray, "example"]:
        """1 for each answer whose tokens are all in their candidate sets, else 0."""
        return (self.token_share(budget) == 1).astype(np.float64)

    def first_token(self, budget: int) -> Float[np.ndarray, "example"]:
        """1 for each answer whose first token is in its candidate set, else 0."""
        return self._hit(budget)[np.unique(self.row, return_index=True)[1]].astype(np.float64)

    def floor(self, budget: int) -> float:
        """Probability that `budget` different tokens chosen by chance hold a given one: B / |V|."""
        return min(budget, self.d_vocab) / self.d_vocab

    def random(self, *, seed: int = 0) -> "Extraction":
        """The control: the same answers and budgets, with candidates drawn by chance without repeats.

        A token's place in a random order of the vocabulary is uniform on 1 to |V|, so that is drawn.
        """
        place = np.random.default_rng(seed).integers(1, self.d_vocab + 1, size=len(self.row)).astype(np.float64)
        within = np.where(place <= max(self.budgets), place, math.inf)
        return replace(self, attack=RANDOM, needed=within, provenance=replace(self.provenance, method=RANDOM, seed=seed))

    def frame(self) -> "pd.DataFrame":
        """A line for each example and budget: id, budget, tokens, token_share, extracted, first_token."""
        import pandas as pd

        columns: dict[str, object] = {"id": self.ids, "tokens": np.bincount(self.row)}
        parts = [
            pd.DataFrame({**columns, "budget": budget, **{name: getattr(self, name)(budget) for name in MEASURES}})
            for budget in self.budgets
        ]
        return pd.concat(parts, ignore_index=True)

    def measurements(self, split: str = "forget", *, seed: int = 0) -> Measurements:
        """Means over examples of the three measures at every budget, as metrics such as "head_projection_token_share@20"."""
        rows = []
        for budget in self.budgets:
            note = f"|C| = {min(budget, self.d_vocab)}; by chance {self.floor(budget):.2g} a token"
            for name in MEASURES:
                values = getattr(self, name)(budget)
                found = mean_estimate(values, seed=seed) if name == "token_share" else _share(values, seed)
                rows.append(Measurement.of(f"{self.attack}_{name}@{budget}", split, found, unit="share", better="lower", note=note))
        return Measurements(rows)

    def _hit(self, budget: int) -> Bool[np.ndarray, "token"]:
        if not 1 <= budget <= max(self.budgets):
            raise InputError(
                f"Extraction: budget is {budget}, expected 1 to {max(self.budgets)}, the largest the attack was run with."
            )
        return self.needed <= budget


@torch.no_grad()
def extraction(
    model: Model,
    examples: Examples,
    *,
    attack: str = "head_projection",
    budget: int | Sequence[int] = 20,
    layers: Sequence[int] | None = None,
    marked: Entities | None = None,
    batch_tokens: int = 4096,
    show: bool = False,
) -> Extraction:
    """Look for every token of every answer among the tokens that the hidden states suggest.

    Args:
        attack: "head_projection": tokens most likely at any layer. "probability_delta": tokens whose probability rises or falls
            most from one layer to the next.
        budget: the size B of the candidate set, or several; success never falls as B grows.
        layers: whose residual streams are read, from 0; None for all. The last layer alone is the model's own output, so
            `layers=[n_layers - 1]` says what is extracted without looking inside.
        marked: the part of each response that is secret; rows without one are left out. None for all of every response but its
            end-of-text token.
        batch_tokens: most tokens in one padded batch; changes memory, not the result.
    Returns: an Extraction; its `random()` is the control.
    Raises: UnknownNameError for another attack; InputError for a budget larger than the vocabulary, layers the model does not have,
        or a model in training mode; DataError for an answer at position 0, or as `entity_spans.spans`.
    Reference: Patil et al. 2024, arXiv:2309.17410. Their code reads the last prompt position alone, counts a hit in the top *or the
        bottom* k of a layer for both attacks, and keeps only facts that the model knew.
    """
    if attack not in ATTACKS:
        raise unknown("extraction attack", attack, ATTACKS)
    budgets = _budgets(model, budget)
    read = tuple(sorted(all_or(model, layers)))
    if marked is None:
        rows = [encode(model, row.prompt, row.response, id=row.id, end=False) for row in examples]
    else:
        rows = spans(model, examples, marked)
    check_predicted(rows)
    found: dict[int, np.ndarray] = {}
    for group in progress(list(by_length(rows, max_tokens=batch_tokens)), label=attack, show=show):
        batch = collate([rows[i] for i in group], device=model.device)
        found |= zip(group, _needed(model, batch, attack, read, max(budgets)), strict=True)
    data = {"examples": examples.fingerprint()} | ({} if marked is None else {"marked": marked.fingerprint()})
    return Extraction(
        attack,
        examples.name,
        tuple(row.id for row in rows),
        read,
        budgets,
        model.d_vocab,
        np.repeat(np.arange(len(rows)), [len(row.tokens) - row.start for row in rows]),
        np.concatenate([found[i] for i in range(len(rows))]),
        Provenance(
            attack,
            model.fingerprint(),
            data,
            {"budget": list(budgets), "layers": list(read)},
            dtype=str(model.dtype).removeprefix("torch."),
            reduction="none",
        ),
    )


def _needed(model: Model, batch: Batch, attack: str, layers: Sequence[int], k: int) -> list[Float[np.ndarray, "_"]]:
    """For each row of the batch, the smallest candidate set that holds each of its answer tokens."""
    held = answer_states(model, batch, layers).resid_post
    states, target = torch.stack([held[layer] for layer in layers]), batch.tokens[batch.answer]
    step = max(1, _AT_ONCE // (len(layers) * model.d_vocab))
    parts = [
        needed(ATTACKS[attack](_lens(model, some), k), wanted)
        for some, wanted in zip(states.split(step, 1), target.split(step), strict=True)
    ]
    return np.split(np.concatenate(parts), batch.answer.sum(1).cumsum(0)[:-1].tolist())


def _lens(model: Model, states: Float[Tensor, "layer token d_model"]) -> Float[Tensor, "layer token d_vocab"]:
    """The logit lens of every layer, at least float32."""
    found = wide(model.sites.logits(states))
    check_finite("extraction: the logit lens", found)
    return found


def _budgets(model: Model, budget: int | Sequence[int]) -> tuple[int, ...]:
    asked = [budget] if isinstance(budget, int) else list(budget)
    if not asked or not all(type(b) is int and 1 <= b <= model.d_vocab for b in asked):
        raise InputError(f"extraction: budget is {budget!r}, expected whole numbers from 1 to {model.d_vocab}, the vocabulary.")
    return tuple(sorted(set(asked)))


def _share(values: Float[np.ndarray, "example"], seed: int) -> Estimate:
    """Mean of zeros and ones; where all agree, Wilson's interval, for the bootstrap would have no width."""
    found = mean_estimate(values, seed=seed)
    return wilson(found.value, found.n) if found.value in (0, 1) else found
