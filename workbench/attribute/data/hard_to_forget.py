"""The rows of a set that are hardest to forget: a worst-case forget set, chosen by unlearning again and again.

    upper   min over w of  sum_i w_i l_i(theta(w)) + gamma |w|^2     0 <= w_i <= 1,  sum_i w_i = size
    lower   theta(w) = the model after unlearning the rows with weights w, from the original weights, by sign descent

A sign has derivative 0, so the derivative of theta(w) vanishes and the upper step is plain: w <- Proj(w - eta (l_i + 2 gamma w_i)),
where l_i is row i's loss after unlearning, from forward passes alone. So weight gathers on rows whose loss stays low although they
are unlearned. The hard set is the `size` rows with the largest weights at the end. Fractions of rows were unlearned to find it, so
whether it is hard when it is unlearned alone is another question: `HardSet.against_random` answers it.

The lower level has two forms. "ascent", ours for language models, minimizes mean_retain l - (1/size) sum_i w_i l_i: the answers are
unlearned directly, as with gradient difference. "retrain" is the published one, of image classifiers: it goes on training on the
retain rows and on the candidates with weights 1 - w_i, and so forgets only what training on the rest overwrites.

Reference: Fan et al. 2024, arXiv:2403.07362, for image classifiers, where the loss is the classifier's. Here a loss is the mean
negative log-likelihood per answer token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.delta import applied
from workbench.core.errors import InputError, MismatchError
from workbench.core.measurements import Measurement, Measurements
from workbench.core.numerics import mean_nll, permutation
from workbench.core.records import Examples, Provenance, check_disjoint
from workbench.core.runtime import progress
from workbench.core.statistics import mean_estimate
from workbench.load.batches import Encoded, by_length, collate, encode_all
from workbench.load.models import Model
from workbench.trace.forward import forward
from workbench.train.loop import fit
from workbench.train.task import AnswerTask

if TYPE_CHECKING:
    import pandas as pd

_HALVINGS = 100  # a bracket of any float64 width is halved to nothing
LOWER = ("ascent", "retrain")


class Recipe(NamedTuple):
    """How the lower level unlearns; the same for every round and for the random sets."""

    size: int
    lower: str
    epochs: int
    lr: float
    batch_size: int
    batch_tokens: int
    seed: int


class WeightedTask:
    """The answers of some rows, each row's loss times its weight."""

    def __init__(self, model: Model, rows: Sequence[Encoded], weights: Float[np.ndarray, "row"]) -> None:
        self.plain = AnswerTask(model, rows)
        self.weights = torch.from_numpy(weights).to(model.device)

    def __len__(self) -> int:
        return len(self.plain)

    def losses(self, chosen: Sequence[int], epoch: int) -> Float[Tensor, "example"]:
        """Mean NLL of each chosen row times its weight."""
        plain = self.plain.losses(chosen, epoch)
        return plain * self.weights[list(chosen)].to(plain)

    def tokens(self, chosen: Sequence[int], epoch: int) -> int:
        """Tokens of the chosen rows."""
        return self.plain.tokens(chosen, epoch)


@dataclass(frozen=True, eq=False)
class HardSet:
    """rows: the hardest, in the candidates' order.   weights: [candidate] at the end, float64.

    losses: [round candidate] mean NLL per answer token after each round's unlearning, nats, float64.   ids: of the candidates.
    before: [candidate] the same of the model as it was found.
    """

    rows: Examples
    ids: tuple[str, ...]
    weights: Float[np.ndarray, "candidate"]
    losses: Float[np.ndarray, "round candidate"]
    before: Float[np.ndarray, "candidate"]
    recipe: Recipe
    provenance: Provenance

    def __repr__(self) -> str:
        return f"HardSet({len(self.rows)} of {len(self.ids)} rows, {len(self.losses)} rounds)"

    def frame(self) -> "pd.DataFrame":
        """A line a candidate, indexed by id: weight, whether it is in the hard set, its loss before and after the last round."""
        import pandas as pd

        hard = set(self.rows.ids)
        columns = {"weight": self.weights, "hard": [i in hard for i in self.ids], "before": self.before, "after": self.losses[-1]}
        return pd.DataFrame(columns, index=pd.Index(self.ids, name="id"))

    def against_random(
        self, model: Model, candidates: Examples, retain: Examples, *, seeds: Sequence[int] = (0, 1, 2)
    ) -> Measurements:
        """What unlearning leaves of the hard set, and of as many random candidates, each unlearned alone with the same recipe.

        Args: model, candidates, retain: those the set was found with.   seeds: one random set each.
        Returns: nll_before and nll_after (nats per answer token, mean over the set's rows with its interval) of the splits "hard",
            "random SEED" and "random", the last over the rows of all random sets. A hard set has a lower nll_after.
        Raises: InputError if there is no seed; MismatchError for another model or other rows.
        """
        if not seeds:
            raise InputError("against_random: there are no seeds, so there is nothing to compare with; give at least one.")
        made = self.provenance
        for name, came in (("candidates", candidates.fingerprint()), ("retain", retain.fingerprint())):
            if made.data[name] != came:
                raise MismatchError(f"against_random: {name} are other rows than those the hard set was found with.")
        if made.model != model.fingerprint():
            raise MismatchError(
                "against_random: another model than the one the hard set was found with; was an edit applied since?"
            )
        rows = encode_all(model, candidates), encode_all(model, retain)
        chosen = {"hard": [self.ids.index(i) for i in self.rows.ids]}
        chosen |= {f"random {seed}": sorted(permutation(len(self.ids), seed)[: self.recipe.size]) for seed in seeds}
        left = {
            name: _unlearned(model, *rows, np.isin(np.arange(len(self.ids)), found).astype(float), self.recipe)[found]
            for name, found in chosen.items()
        }
        first = {name: self.before[found] for name, found in chosen.items()}
        for values in (first, left):
            values["random"] = np.concatenate([values[name] for name in chosen if name != "hard"])
        return Measurements(
            Measurement.of(metric, name, mean_estimate(values), unit="nats per token")
            for metric, splits in (("nll_before", first), ("nll_after", left))
            for name, values in splits.items()
        )


def hard_to_forget(
    model: Model,
    candidates: Examples,
    retain: Examples,
    *,
    size: int,
    lower: str = "ascent",
    rounds: int = 10,
    epochs: int = 5,
    lr: float = 1e-4,
    weight_lr: float = 0.01,
    gamma: float = 0.0,
    batch_size: int = 16,
    batch_tokens: int = 4096,
    seed: int = 0,
    show: bool = False,
) -> HardSet:
    """The `size` candidates that are hardest to forget while the retain rows are kept; see the module for the formula.

    Every round unlearns from the original model, so it costs `epochs` of training on candidates and retain rows together.

    Args:
        lower: how a round unlearns, "ascent" or "retrain".
        rounds: upper steps.   epochs, lr, batch_size: of the lower level; every weight moves by lr in every step.
        weight_lr: of the upper step, per nat. 0.01 is the published value: large ones swing, for rows without weight are not
            unlearned and keep a low loss.
        gamma: pull towards equal weights, in nats.
        batch_tokens: largest padded batch of the forward passes.   seed: of the order of the training rows.
    Raises: InputError for a bad option, or a size that is not below the number of candidates; DataError if candidates and retain
        share rows; NumericsError if unlearning runs to infinity, where a lower lr helps.
    """
    if not 1 <= size < len(candidates):
        raise InputError(f"hard_to_forget: size is {size}, expected 1 to {len(candidates) - 1}: fewer than the candidates.")
    if lower not in LOWER:
        raise InputError(f"hard_to_forget: lower is {lower!r}, expected one of {', '.join(LOWER)}.")
    if rounds < 1 or not weight_lr > 0 or not gamma >= 0:
        given = f"rounds is {rounds}, weight_lr {weight_lr}, gamma {gamma}"
        raise InputError(f"hard_to_forget: {given}; expected rounds >= 1, weight_lr > 0, gamma >= 0.")
    check_disjoint(candidates, retain)
    recipe = Recipe(size, lower, epochs, lr, batch_size, batch_tokens, seed)
    rows, kept = encode_all(model, candidates), encode_all(model, retain)
    before = _losses(model, rows, batch_tokens)
    weights, seen = np.full(len(rows), size / len(rows)), []
    for _ in progress(range(rounds), label="hard to forget", show=show):
        seen.append(_unlearned(model, rows, kept, weights, recipe))
        weights = project(weights - weight_lr * (seen[-1] + 2 * gamma * weights), size)
    hardest = sorted(np.argsort(-weights, kind="stable")[:size].tolist())
    provenance = Provenance(
        method="hard_to_forget",
        model=model.fingerprint(),
        data={"candidates": candidates.fingerprint(), "retain": retain.fingerprint()},
        options={**recipe._asdict(), "rounds": rounds, "weight_lr": weight_lr, "gamma": gamma},
        seed=seed,
        dtype=str(model.dtype).removeprefix("torch."),
    )
    return HardSet(candidates.take(hardest), tuple(candidates.ids), weights, np.stack(seen), before, recipe, provenance)


def project(values: Float[np.ndarray, "row"], size: float) -> Float[np.ndarray, "row"]:
    """The nearest point of {0 <= w <= 1, sum w = size}: clip(values - shift, 0, 1), the shift found by bisection.

    The sum falls with the shift, from n at min(values) - 1 to 0 at max(values).

    Raises: InputError unless 0 <= size <= number of values.
    """
    if not 0 <= size <= len(values):
        raise InputError(f"project: size is {size}, expected 0 to {len(values)}, the number of values.")
    low, high = float(values.min()) - 1, float(values.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if np.clip(values - middle, 0, 1).sum() > size:
            low = middle
        else:
            high = middle
    return np.clip(values - (low + high) / 2, 0, 1)


def _unlearned(
    model: Model, rows: list[Encoded], kept: list[Encoded], weights: Float[np.ndarray, "candidate"], recipe: Recipe
) -> Float[np.ndarray, "candidate"]:
    """Every candidate's loss after unlearning the weighted candidates from the model as it is."""
    n = len(rows) + len(kept)
    if recipe.lower == "ascent":  # the loop averages over n examples: both halves are means of their own
        forget, keep = -weights * n / recipe.size, n / len(kept)
    else:
        forget, keep = 1 - weights, 1.0
    task = WeightedTask(model, rows + kept, np.concatenate([forget, np.full(len(kept), keep)]))
    trained = fit(
        model,
        task,
        Provenance("hard_to_forget", model.fingerprint()),
        optimizer="sign",
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        schedule="constant",
        clip_norm=None,
        seed=recipe.seed,
    )
    with applied(model, trained.delta):
        return _losses(model, rows, recipe.batch_tokens)


@torch.no_grad()
def _losses(model: Model, rows: list[Encoded], batch_tokens: int) -> Float[np.ndarray, "row"]:
    """Mean NLL per answer token of every row, nats, float64."""
    values = np.empty(len(rows))
    for chosen in by_length(rows, max_tokens=batch_tokens):
        values[chosen] = mean_nll(forward(model, collate([rows[i] for i in chosen], device=model.device))).double().cpu().numpy()
    return values
