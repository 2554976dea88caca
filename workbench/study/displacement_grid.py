"""What a study of displacement measures: a model is tuned to some of its pairs, and ln p of all their answers is measured again.

The displacement of a pair is ln p(chosen) before minus after: positive where training to prefer an answer made it less likely.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.core.delta import applied
from workbench.core.records import PreferencePairs
from workbench.load.batches import encode_pairs
from workbench.load.models import Model
from workbench.score.ches import ches
from workbench.score.mass_shift import mass_shift
from workbench.study.displacement_pairs import split
from workbench.unlearn.prefer import pair_logprobs, prefer

# What may foretell displacement, in the order in which it is shown, and the column of `score.ches`, or of `prepare`, it stands in.
SCORES = {
    "CHES, length-normalized": "ches_mean",
    "CHES": "ches_sum",
    "last hidden states alike": "last_hidden",
    "edit distance, negated": "edit_distance",
    "equal first tokens": "starts_alike",
    "length of both": "length",
    "rejected longer by": "rejected_longer",
    "first-order prediction": "foretold",
    "ln p(chosen) before": "logprob_chosen",
    "ln p(rejected) before": "logprob_rejected",
    "random": "random",
}
DROPS = (
    "CHES, length-normalized",
    "CHES",
    "length of both",
    "rejected longer by",
    "edit distance, negated",
    "last hidden states alike",
)
RANDOM = "random"
ALL = ""


@dataclass(frozen=True)
class PairSet:
    """Pairs and the model that is tuned to them.

    pairs: a file of pairs, or "tofu:SPLIT" with a root: each row's answer against one of its false ones.   end: see `load.encode`.
    rows, held_out: how many pairs may be trained on, and how many are only measured: exactly, the pairs beyond are not used.
    lr: of the tuning.
    """

    name: str
    model: str
    pairs: str
    root: str | None = None
    end: bool = True
    rows: int = 80
    held_out: int = 40
    lr: float = 1e-4


@dataclass(frozen=True)
class Training:
    """How all runs are tuned. drop: share of the pairs that is left out in the arms that leave some out."""

    epochs: int = 1
    batch_size: int = 8
    drop: float = 0.5


@dataclass(frozen=True)
class Question:
    """One run. without: the score whose highest pairs were left out, of several the first, see `arms`; "" if none were."""

    objective: str
    seed: int
    without: str = ALL


@dataclass(frozen=True)
class Point:
    """What one run did: ln p after minus before, in nats, of the pairs it was trained on and of the held-out ones.

    trained: positions of the pairs it was trained on, among those that may be.
    """

    set: str
    objective: str
    seed: int
    without: str
    trained: list[int]
    chosen: list[float]
    rejected: list[float]
    held_chosen: list[float]
    held_rejected: list[float]

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    def table(self, what: str, n: int) -> Float[np.ndarray, "pair"]:
        """`chosen` or `rejected` of all n pairs, NaN for those it was not trained on."""
        full = np.full(n, np.nan)
        full[self.trained] = getattr(self, what)
        return full


@dataclass(frozen=True, eq=False)
class Bench:
    """A set ready to be tuned to.

    scores: of every pair that may be trained on, by name.   before, held_before: ln p of chosen and rejected.
    answers_apart: see `displacement_pairs.Split`.
    """

    about: PairSet
    model: Model
    train: PreferencePairs
    held_out: PreferencePairs
    scores: Mapping[str, Float[np.ndarray, "pair"]]
    before: Float[np.ndarray, "pair 2"]
    held_before: Float[np.ndarray, "held 2"]
    answers_apart: bool = True

    @property
    def lengths(self) -> Float[np.ndarray, "pair"]:
        """Tokens of every chosen answer that is trained on."""
        coded = encode_pairs(self.model, self.train, end=self.about.end)
        return np.array([len(pair.chosen.tokens) - pair.chosen.start for pair in coded], dtype=np.float64)


def prepare(about: PairSet, model: Model, pairs: PreferencePairs) -> Bench:
    """Split the pairs, and score and measure them before anything is trained."""
    train, held_out, answers_apart = split(pairs, about.rows, about.held_out)
    found = ches(model, train, end=about.end)
    columns = {**found.columns, RANDOM: np.random.default_rng(0).normal(size=len(train))}
    shift = mass_shift(model, train)
    foretold = dict(zip(shift.ids, (-shift.change).tolist(), strict=True))  # at the first token in which the answers differ
    columns["foretold"] = np.array([foretold.get(pair.id, 0.0) for pair in train])  # where none differs there is no step
    columns["rejected_longer"] = columns["length_rejected"] - columns["length_chosen"]  # what CHES is led by without normalization
    held = pair_logprobs(model, encode_pairs(model, held_out, end=about.end)).numpy()
    before = np.stack([columns["logprob_chosen"], columns["logprob_rejected"]], axis=1)
    scores = {name: columns[key] for name, key in SCORES.items()}
    return Bench(about, model, train, held_out, scores, before, held, answers_apart)


def questions(on: Bench, objectives: Sequence[str], seeds: Sequence[int], drop_objective: str, drop: float) -> list[Question]:
    """Every run of a set: each objective on all pairs, then one objective in each of `arms` and at random, all with every seed."""
    asked = [(name, ALL) for name in dict.fromkeys([*objectives, drop_objective])]
    asked += [(drop_objective, name) for name in (*arms(on, drop), RANDOM)]
    return [Question(objective, seed, without) for objective, without in asked for seed in seeds]


def arms(on: Bench, drop: float) -> dict[str, list[str]]:
    """Scores whose highest pairs are left out, by the first of those that leave out the same pairs and need one run.

    A score that is the same for all pairs has no highest ones, and no arm.
    """
    alike: dict[tuple[int, ...], list[str]] = {}
    for name in (name for name in DROPS if np.ptp(on.scores[name]) > 0):
        alike.setdefault(tuple(kept_pairs(on, Question("", 0, name), drop)), []).append(name)
    return {names[0]: names for names in alike.values()}


def kept_pairs(on: Bench, question: Question, drop: float) -> list[int]:
    """Positions of the pairs a run is trained on: all but the round(drop x pairs) with the highest score; ties keep the earlier.

    The random arm leaves out as many, drawn by the run's seed.
    """
    n = len(on.train)
    if question.without == ALL:
        return list(range(n))
    scores = on.scores[question.without]
    if question.without == RANDOM:
        scores = np.random.default_rng(question.seed).permutation(n)
    return sorted(np.argsort(scores, kind="stable")[: n - round(drop * n)].tolist())


def measure(on: Bench, question: Question, training: Training) -> Point:
    """Tune the model, and measure its answers again; it is left as it was."""
    trained = kept_pairs(on, question, training.drop)
    pairs, end = on.train.take(trained), on.about.end
    found = prefer(
        on.model,
        pairs,
        objective=question.objective,
        epochs=training.epochs,
        batch_size=training.batch_size,
        lr=on.about.lr,
        seed=question.seed,
        end=end,
    )
    with applied(on.model, found.delta):
        after = pair_logprobs(on.model, encode_pairs(on.model, pairs, end=end)).numpy()
        held = pair_logprobs(on.model, encode_pairs(on.model, on.held_out, end=end)).numpy()
    change, apart = after - on.before[trained], held - on.held_before
    return Point(
        on.about.name,
        **asdict(question),
        trained=trained,
        chosen=change[:, 0].tolist(),
        rejected=change[:, 1].tolist(),
        held_chosen=apart[:, 0].tolist(),
        held_rejected=apart[:, 1].tolist(),
    )
