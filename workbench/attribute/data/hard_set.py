"""A set of rows that is claimed to be hard to forget, how rows are unlearned to find it, and the sets it is held against.

Rows with a low loss are likely to keep a low one, whatever is done to them: so the claim is held not only against random rows but
against the rows whose loss was lowest before anything was unlearned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.delta import applied
from workbench.core.errors import InputError, MismatchError
from workbench.core.measurements import Measurement, Measurements
from workbench.core.numerics import permutation
from workbench.core.records import Examples, Provenance
from workbench.core.statistics import LEVEL, RESAMPLES, Estimate
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model
from workbench.trace.forward import row_nll
from workbench.train.loop import fit
from workbench.train.task import AnswerTask

if TYPE_CHECKING:
    import pandas as pd

HARD, LOWEST, RANDOM = "hard", "lowest before", "random"


class Recipe(NamedTuple):
    """How the lower level unlearns; the same for every round and for every set the hard one is held against."""

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


def unlearned(
    model: Model, rows: list[Encoded], kept: list[Encoded], weights: Float[np.ndarray, "candidate"], recipe: Recipe
) -> Float[np.ndarray, "candidate"]:
    """Every candidate's mean NLL per answer token, in nats, after unlearning the weighted candidates from the model as it is.

    Args: rows, kept: candidates and retain rows.   weights: of the candidates, each 0 to 1.
    """
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
        return row_nll(model, rows, batch_tokens=recipe.batch_tokens).numpy()


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
        """What unlearning leaves of the hard set, of as many rows with the lowest loss before it, and of as many random ones.

        Each set is unlearned alone with the same recipe. For the intervals see `compared`.

        Args: model, candidates, retain: those the set was found with.   seeds: one random set each.
        Returns: nll_before and nll_after, nats per answer token, of the splits "hard", "lowest before" and "random SEED" (mean over
            the set's rows; n is how many), "random" (mean over the random sets; n is how many sets), "hard - random" (n as
            "random") and "hard - lowest before" (n as "hard"). A set that is harder to forget than the other has a difference of
            nll_after below 0.
        Raises: InputError if there is no seed or one stands twice; MismatchError for another model or other rows.
        """
        if not seeds or len(set(seeds)) < len(seeds):
            came = f"{list(seeds)} name a set twice" if seeds else "there are no seeds, so there is nothing to compare with"
            raise InputError(f"against_random: {came}; give one or more different seeds.")
        self._check(model, candidates, retain)
        rows, kept = encode_all(model, candidates), encode_all(model, retain)
        n, size = len(self.ids), self.recipe.size
        chosen = {HARD: [self.ids.index(i) for i in self.rows.ids]}
        chosen[LOWEST] = np.argsort(self.before, kind="stable")[:size].tolist()
        chosen |= {f"{RANDOM} {seed}": permutation(n, seed)[:size] for seed in seeds}
        members = {name: np.isin(np.arange(n), found) for name, found in chosen.items()}
        after = {name: unlearned(model, rows, kept, member.astype(float), self.recipe) for name, member in members.items()}
        note = "" if len(seeds) > 1 else "one random set: the interval is over its rows alone"
        return Measurements(
            Measurement.of(metric, split, estimate, unit="nats per token", note=note if split.endswith(RANDOM) else "")
            for metric, values in (("nll_before", dict.fromkeys(chosen, self.before)), ("nll_after", after))
            for split, estimate in compared(values, members).items()
        )

    def _check(self, model: Model, candidates: Examples, retain: Examples) -> None:
        made = self.provenance
        for name, came in (("candidates", candidates.fingerprint()), ("retain", retain.fingerprint())):
            if made.data[name] != came:
                raise MismatchError(f"against_random: {name} are other rows than those the hard set was found with.")
        if made.model != model.fingerprint():
            raise MismatchError(
                "against_random: another model than the one the hard set was found with; was an edit applied since?"
            )


def compared(
    values: Mapping[str, Float[np.ndarray, "candidate"]], members: Mapping[str, Bool[np.ndarray, "candidate"]], *, seed: int = 0
) -> dict[str, Estimate]:
    """Mean over the members of every set, over the random sets together, and the hard set less the others, with intervals.

    mean_s = sum_c w_c member_sc value_sc / sum_c w_c member_sc        w = 1 for the value, drawn for the interval

    Sets overlap, so their rows are not independent. In every resample each candidate has one weight, w_c ~ Exp(1), in all sets that
    it is a member of, and the random sets are drawn with replacement: the central 95 % of the resampled statistics.

    Args: values, members: by set, first the hard one, then the lowest before, then one or more random ones.
    Reference: Rubin 1981, the Bayesian bootstrap, for the rows; no weight is 0, so a small set never comes out empty.
    """
    names = list(members)
    inside = np.stack([members[name] for name in names]).astype(np.float64)
    summed = inside * np.stack([values[name] for name in names])
    rng = np.random.default_rng(seed)
    weights = np.concatenate([np.ones((1, inside.shape[1])), rng.standard_exponential((RESAMPLES, inside.shape[1]))])
    means = (weights @ summed.T) / (weights @ inside.T)  # [1 + resample, set], the first is the value
    drawn = rng.integers(2, len(names), size=(1 + RESAMPLES, len(names) - 2))
    drawn[0] = np.arange(2, len(names))
    together = np.take_along_axis(means, drawn, axis=1).mean(1)
    rows, sets = int(inside[0].sum()), len(names) - 2
    found = {name: (means[:, s], rows) for s, name in enumerate(names)} | {RANDOM: (together, sets)}
    found |= {f"{HARD} - {RANDOM}": (means[:, 0] - together, sets), f"{HARD} - {LOWEST}": (means[:, 0] - means[:, 1], rows)}
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = (dict(zip(found, row, strict=True)) for row in np.quantile([x[1:] for x, _ in found.values()], ends, axis=1))
    return {name: Estimate(float(x[0]), float(low[name]), float(high[name]), n) for name, (x, n) in found.items()}
