"""Can the logit lens read the entity from a layer, whatever the model then says?

    z_l = f(W_U norm(h_l)),   p_l = softmax(z_l),   of a row: (1/T) sum_t ln p_l(y_t | x, y_<t)

h_l is the residual stream behind layer l where an entity's token y_t is predicted, norm, W_U and f the model's own final norm,
unembedding and last step. At the last layer this is what the model says. A model that knows an answer and only turns away from it
at the end has an earlier layer that says it: the recovery is that of the layer that says it best.

The best of several layers is above chance by being the best. The floor is therefore the same number of a retrained model, which
never saw the rows (`reference`), not the uniform guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from workbench.core.errors import InputError, MismatchError, ModelError
from workbench.core.measurements import Measurement, Measurements
from workbench.core.numerics import check_finite, wide
from workbench.core.records import Examples, Provenance
from workbench.core.runtime import progress
from workbench.core.statistics import Estimate, mean_estimate
from workbench.evaluate.best_layer import best_layer, excess
from workbench.evaluate.entity_spans import Entities, spans
from workbench.load.batches import Batch, by_length, collate
from workbench.load.models import Model
from workbench.trace.answer_states import all_or, answer_states

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = 32  # units in the last place of the largest logit: how far two passes over the same numbers may be apart


@dataclass(frozen=True, eq=False)
class LensRecovery:
    """What the lens reads at every layer, row by row, float64.

    ids: of the rows with an entity.   layers: numbers from 0.   k: how many tokens count as found.
    logprob: mean ln p of the entity's tokens, nats per token.   within: share of them among the k most likely.
    d_vocab: a uniform guess has logprob -ln d_vocab and within k / d_vocab.   reference: the same of a retrained model, or None.
    """

    ids: tuple[str, ...]
    layers: tuple[int, ...]
    k: int
    d_vocab: int
    logprob: Float64[np.ndarray, "row layer"]
    within: Float64[np.ndarray, "row layer"]
    reference: "LensRecovery | None"
    seed: int
    provenance: Provenance

    def best(self, values: str = "logprob") -> Estimate:
        """Mean over the rows at the layer where it is largest, see `best_layer`.

        Args: values: "logprob" or "within".
        """
        return best_layer(getattr(self, values), seed=self.seed)

    def excess(self, values: str = "logprob") -> Estimate | None:
        """`best` less the reference's, rows drawn in pairs; None without a reference."""
        return None if self.reference is None else excess(getattr(self, values), getattr(self.reference, values), seed=self.seed)

    def frame(self) -> "pd.DataFrame":
        """One line a row and layer: id, layer, logprob, within."""
        import pandas as pd

        n, layers = self.logprob.shape
        places = {"id": np.repeat(self.ids, layers), "layer": list(self.layers) * n}
        return pd.DataFrame(places | {"logprob": self.logprob.ravel(), "within": self.within.ravel()})

    def by_layer(self) -> "pd.DataFrame":
        """One line a layer: means over the rows with their 95 % intervals, and the reference's means."""
        import pandas as pd

        lines = []
        for j, layer in enumerate(self.layers):
            line: dict[str, float] = {"layer": layer}
            for name in ("logprob", "within"):
                found = mean_estimate(getattr(self, name)[:, j], seed=self.seed)
                line |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
                if self.reference is not None:
                    line[f"{name}_reference"] = float(getattr(self.reference, name)[:, j].mean())
            lines.append(line)
        return pd.DataFrame(lines)

    def measurements(self, split: str = "forget") -> Measurements:
        """lens_logprob and lens_within_k of the best layer; with a reference each one's excess over it."""
        guess = {"logprob": f"{-np.log(self.d_vocab):.2f}", "within": f"{self.k / self.d_vocab:.2g}"}
        names = {"logprob": "lens_logprob", "within": f"lens_within_{self.k}"}
        units = {"logprob": "nats_per_token", "within": "share"}
        rows = []
        for values, name in names.items():
            best = self.layers[int(getattr(self, values).mean(0).argmax())]
            kept = {"unit": units[values], "better": "lower"}
            note = f"best of {len(self.layers)} layers, {best}; a uniform guess has {guess[values]}"
            note += "; one row: no interval" if len(self.ids) == 1 else ""
            rows.append(Measurement.of(name, split, self.best(values), **kept, note=note))
            over = self.excess(values)
            if self.reference is not None and over is not None:
                note = f"over the retrained model's best layer, {self.reference.best(values).value:.4g}; paired; 0 is the goal"
                rows.append(Measurement.of(f"{name}_excess", split, over, **kept, note=note))
        return Measurements(rows)

    def __repr__(self) -> str:
        found, over = self.best(), self.excess()
        more = "" if over is None else f"; {over.value:+.3f} over the reference"
        return f"LensRecovery(ln p {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] over {found.n} rows{more})"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>" + self.by_layer().to_html(index=False, float_format="%.4g")


@torch.no_grad()
def lens_recovery(
    model: Model,
    examples: Examples,
    marked: Entities,
    *,
    reference: LensRecovery | None = None,
    k: int = 10,
    layers: Sequence[int] | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> LensRecovery:
    """How well the lens reads the entities at every layer, from one forward pass over the rows.

    Args:
        model: as it stands, with the edits that are applied to it.
        examples: forget rows.   marked: their entities, see `entity_spans`.
        reference: what this function found for a retrained model on the same rows and layers.
        k: how many of the most likely tokens count as found.
        layers: numbers from 0, None for all.   batch_tokens: largest padded batch.   seed: of the bootstrap over rows.
    Raises: DataError if no row has an entity; InputError for a bad k, layer or batch_tokens, or a model in training mode;
        MismatchError for a reference on other rows, layers or k; ModelError if the last layer's lens is not the model's own output;
        NumericsError if a logit is not finite.
    Reference: nostalgebraist 2020, "interpreting GPT: the logit lens". The unlearning-depth score's baseline of this name reads all
        models with the full model's norm and unembedding; here each is read with its own.
    """
    if not 1 <= k <= model.d_vocab:
        raise InputError(f"lens_recovery: k is {k}, expected 1 to {model.d_vocab}, the size of the vocabulary.")
    asked = all_or(model, layers)
    rows = spans(model, examples, marked)
    _check_reference(reference, tuple(row.id for row in rows), asked, k)
    logprob, within = np.empty((len(rows), len(asked))), np.empty((len(rows), len(asked)))
    groups = list(by_length(rows, max_tokens=batch_tokens))
    for group in progress(groups, label="lens_recovery", show=show):
        batch = collate([rows[i] for i in group], device=model.device)
        last = model.n_layers - 1
        states, passed = answer_states(model, batch, sorted({*asked, last}))
        check_last(model, states[last], batch, passed.logprob)
        for j, layer in enumerate(asked):
            value, rank = read(model, states[layer], batch.tokens[batch.answer])
            check_finite(f"lens_recovery: the logits of layer {layer}", value)
            logprob[group, j] = _row_means(value, batch)
            within[group, j] = _row_means(rank <= k, batch)
    options = {"k": k, "layers": list(asked), "batch_tokens": batch_tokens}
    return LensRecovery(
        ids=tuple(row.id for row in rows),
        layers=asked,
        k=k,
        d_vocab=model.d_vocab,
        logprob=logprob,
        within=within,
        reference=reference,
        seed=seed,
        provenance=Provenance(
            "lens_recovery",
            model.fingerprint(),
            {"examples": examples.fingerprint(), "entities": marked.fingerprint()},
            options,
            seed=seed,
            dtype=str(model.dtype).removeprefix("torch."),
            tokens=sum(len(row.tokens) for row in rows),
        ),
    )


def read(
    model: Model, states: Float[Tensor, "token d_model"], target: Int[Tensor, "token"]
) -> tuple[Float[Tensor, "token"], Int[Tensor, "token"]]:
    """ln p of each target under the lens, at least float32, and its rank: 1 + the tokens with a strictly larger logit."""
    logits = wide(model.sites.logits(states))
    mine = logits.gather(-1, target[:, None])
    return (mine - logits.logsumexp(-1, keepdim=True))[:, 0], 1 + (logits > mine).sum(-1)


def check_last(model: Model, states: Float[Tensor, "token d_model"], batch: Batch, logprob: Float[Tensor, "batch pos"]) -> None:
    """ModelError if the lens of the last layer misses the model's own log-probabilities by more than rounding."""
    largest = float(wide(model.sites.logits(states)).abs().max())
    error = float((read(model, states, batch.tokens[batch.answer])[0] - logprob[batch.answer]).abs().max())
    if not error <= ROUNDING * torch.finfo(model.dtype).eps * max(largest, 1.0):
        raise ModelError(
            f"lens_recovery: at the last layer the lens misses what {type(model.hf).__name__} says by {error:.1e} nats. The model "
            "does something behind its last layer that is not its final norm and unembedding, so no layer can be read."
        )


def _row_means(values: Tensor, batch: Batch) -> Float64[np.ndarray, "batch"]:
    """Mean over each row's answer tokens of values that stand in row order."""
    length = batch.answer.sum(1)
    total = torch.zeros(len(length), dtype=torch.float64, device=values.device)
    total.index_add_(0, batch.answer.nonzero()[:, 0], values.double())
    return (total / length).cpu().numpy()


def _check_reference(reference: LensRecovery | None, ids: tuple[str, ...], layers: tuple[int, ...], k: int) -> None:
    if reference is not None and (reference.ids, reference.layers, reference.k) != (ids, layers, k):
        raise MismatchError(
            f"lens_recovery: the reference has {len(reference.ids)} rows, layers {list(reference.layers)} and k {reference.k}, the "
            f"model {len(ids)} rows, layers {list(layers)} and k {k}; rows, layers and k must be the same, in one order."
        )
