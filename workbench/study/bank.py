"""A bank of retrains: what really happens to the queries when a model is trained on other rows.

Subsets of the training rows, each trained from one start with every seed through `train.fit`; of every model the losses of the
queries are kept at once, the model itself is not. The bank is the ground truth that estimates of influence are held against.

    FOLDER/points/KEY.json      losses of one retrain, complete or absent; a killed bank goes on with the first one that is absent

Everything is seeded, so a bank that was killed and went on has the numbers of one that was not.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float

from workbench.core.delta import applied
from workbench.core.errors import DataError, InputError, MismatchError, NumericsError
from workbench.core.records import Examples, Provenance
from workbench.core.runtime import progress
from workbench.core.store import load_tensors, save_tensors
from workbench.load.batches import Encoded, encode_all
from workbench.load.models import Model, wrap
from workbench.study.folder import kept, state
from workbench.study.organism import tokenizer, untrained
from workbench.trace.forward import row_nll
from workbench.train.loop import Trained, fit
from workbench.train.task import AnswerTask

BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every model of a bank is trained: the options of `train.fit`, AdamW on the mean NLL of a row's answer."""

    epochs: int = 20
    batch_size: int = 16
    lr: float = 2e-3
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0


@dataclass(frozen=True, eq=False)
class Bank:
    """What was trained on what, and how the queries fared.

    subsets: [model train], true where the model saw the row.   losses: [model seed query] float64, mean NLL of a query's answer in
    nats per token.   query, train: ids in the order of the axes.   seeds: of the order of training, in the order of the axis.

    Raises: NumericsError naming the first model, seed and query whose loss is NaN or infinite.
    """

    subsets: Bool[np.ndarray, "model train"]
    losses: Float[np.ndarray, "model seed query"]
    query: tuple[str, ...]
    train: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        for m, s, q in np.argwhere(~np.isfinite(self.losses))[:1].tolist():
            raise NumericsError(
                f"bank: model {m}, seed {self.seeds[s]}, has a loss of {self.losses[m, s, q]} on {self.query[q]!r}."
            )

    def __repr__(self) -> str:
        models, seeds, queries = self.losses.shape
        return f"Bank({models} subsets x {seeds} seeds, {queries} queries, {len(self.train)} training rows)"

    def save(self, path: str | Path) -> None:
        """Write subsets, losses, ids and seeds to one safetensors file."""
        about = {"kind": "Bank", "query": list(self.query), "train": list(self.train), "seeds": list(self.seeds)}
        save_tensors(path, {"subsets": torch.from_numpy(self.subsets), "losses": torch.from_numpy(self.losses)}, about)

    @classmethod
    def load(cls, path: str | Path) -> "Bank":
        """Read what `save` wrote."""
        tensors, about = load_tensors(path, "Bank")
        names = (tuple(about[key]) for key in ("query", "train", "seeds"))
        return cls(tensors["subsets"].numpy(), tensors["losses"].numpy(), *names)


def draw_subsets(n: int, models: int, *, share: float = 0.5, seed: int = 0) -> Bool[np.ndarray, "model train"]:
    """Random subsets of `n` rows, each of round(share * n), drawn without replacement and apart from each other.

    The first subsets of a larger bank are those of a smaller one with the same seed.

    Raises: InputError if a subset would be empty or hold every row.
    """
    size = round(share * n)
    if not 0 < size < n:
        raise InputError(f"bank: a share of {share:g} of {n} rows is {size}; expected at least 1 and fewer than all.")
    chosen = np.zeros((models, n), dtype=np.bool_)
    for m in range(models):
        chosen[m, random.Random(1_000_003 * seed + m).sample(range(n), size)] = True
    return chosen


def small_start(train: Examples, query: Examples, *, seed: int = 0) -> Model:
    """An untrained Llama of about 0.1 million weights for these texts: 2 layers, d_model 64, and a tokenizer learned from them.

    The tokenizer is learned from training and query rows, so that no query is spelled out in bytes; the weights have seen neither.
    """
    texts = [f"{row.prompt} {row.response}" for rows in (train, query) for row in rows]
    made = tokenizer(texts, vocabulary=512, template=None)
    longest = max(len(ids) for ids in made(texts)["input_ids"]) + 1
    context = max(64, 2 ** math.ceil(math.log2(longest)))
    return wrap(untrained(made, seed, n_layers=2, d_model=64, d_mlp=172, n_heads=4, context=context), made, name="untrained")


def retrain(
    model: Model,
    rows: Sequence[Encoded],
    recipe: Recipe,
    *,
    seed: int,
    data: str = "",
    snapshots: bool = False,
    moments: bool = False,
) -> Trained:
    """Train on encoded rows by the recipe; the model is left as it was found, and what was learned is in `.delta`.

    Args: data: fingerprint of the rows, for the provenance.   snapshots, moments: what else `train.fit` is to keep.
    """
    made = Provenance("bank", model.fingerprint(), {"train": data}, asdict(recipe), seed)
    return fit(model, AnswerTask(model, rows), made, **asdict(recipe), seed=seed, snapshots=snapshots, moments=moments)


def query_losses(model: Model, queries: Sequence[Encoded]) -> Float[np.ndarray, "query"]:
    """Mean NLL of every query's answer, nats per token, float64."""
    return row_nll(model, queries, batch_tokens=BATCH_TOKENS).numpy()


def _finite_losses(model: Model, queries: Sequence[Encoded]) -> Float[np.ndarray, "query"]:
    """`query_losses`; NumericsError naming the first query whose loss is NaN or infinite."""
    try:
        return query_losses(model, queries)
    except NumericsError:  # names a row of a padded batch
        for query in queries:
            try:
                query_losses(model, [query])
            except NumericsError as error:
                raise NumericsError(f"query {query.id!r}: {error}") from error
        raise


class Bench:
    """The start, the rows as tokens, and the folder where every retrain is kept: what a bank and its counterfactuals share.

    causes: JSON values, all that decides a retrain but its rows and its seed.

    Raises: MismatchError if the start has edits applied; DataError if a query is also a training row.
    """

    def __init__(self, folder: Path, model: Model, train: Examples, query: Examples, recipe: Recipe) -> None:
        if model.ledger:
            raise MismatchError(
                f"bank: {len(model.ledger)} edit(s) are applied to the start; undo them first, or export the model."
            )
        seen = {(row.prompt, row.response): row.id for row in train}
        both = [f"{row.id} = {seen[row.prompt, row.response]}" for row in query if (row.prompt, row.response) in seen]
        if both:
            raise DataError(
                f"bank: {len(both)} queries are training rows too: {', '.join(both[:5])}. Whether a row was trained on would "
                "decide its own loss; ask in other words."
            )
        self.folder, self.model, self.recipe = folder, model, recipe
        self.train, self.query = train, query
        self.rows, self.queries = encode_all(model, train), encode_all(model, query)
        self.causes = [state(model), train.fingerprint(), query.fingerprint(), asdict(recipe)]

    def losses(self, used: Bool[np.ndarray, "train"], seed: int, *, what: str = "a model") -> Float[np.ndarray, "query"]:
        """Losses of the queries after training on the rows that are `used`, from the folder or made and kept.

        Args: what: the model, as a message calls it.
        Raises: NumericsError naming model and query if a loss is NaN or infinite; nothing is kept then.
        """
        chosen = np.flatnonzero(used).tolist()

        def make() -> Mapping[str, list[float]]:
            try:
                trained = retrain(self.model, [self.rows[i] for i in chosen], self.recipe, seed=seed, data=self.train.fingerprint())
                with applied(self.model, trained.delta):
                    return {"losses": _finite_losses(self.model, self.queries).tolist()}
            except NumericsError as error:
                raise NumericsError(f"bank: {what}, trained on {len(chosen)} rows with seed {seed}: {error}") from error

        return np.asarray(kept(self.folder, [*self.causes, chosen, seed], make)["losses"])


def fill(on: Bench, subsets: Bool[np.ndarray, "model train"], seeds: Sequence[int], *, show: bool = True) -> Bank:
    """Every subset trained with every seed; what is in the folder already is read from it."""
    jobs = [(m, seed) for m in range(len(subsets)) for seed in seeds]
    found = [on.losses(subsets[m], seed, what=f"model {m}") for m, seed in progress(jobs, label="bank", show=show)]
    losses = np.stack(found).reshape(len(subsets), len(seeds), len(on.queries))
    return Bank(subsets, losses, tuple(on.query.ids), tuple(on.train.ids), tuple(seeds))
