"""One counterfactual for every claim: put the blamed modules back, train without the blamed rows, and see what is forgotten then.

Each is compared with as much drawn by chance (modules that together changed as much, as many rows), and with the plainest rule: the
modules that changed most, the rows nearest in words. The modules are chosen on one half of the forgotten rows and judged on the
other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.core.delta import Delta
from workbench.core.errors import InputError
from workbench.core.numerics import permutation
from workbench.core.records import Examples, Provenance
from workbench.core.registry import Member
from workbench.core.runtime import progress
from workbench.core.statistics import Estimate, mean_estimate
from workbench.load.batches import encode_all
from workbench.load.models import Model
from workbench.study.diagnose_data import correlation, highest
from workbench.study.diagnose_weights import Bench, Effects, blamed, matched, share, without
from workbench.train.loop import fit
from workbench.train.task import AnswerTask

if TYPE_CHECKING:
    import pandas as pd

HALVED = 8  # forgotten rows from which on half of them choose the modules and the others judge them
GROUP = 8  # rows forwarded together in training
FIXED = ("mask", "check", "show", "snapshots", "moments")  # of train.fit: what a recipe does not say


@dataclass(frozen=True)
class Counterfactual:
    """One thing that was done otherwise, and the forgetting that went. Shares are of 1, changes in nats per token.

    about: "modules" that were put back, or training "rows" that were left out.   case: which.   seed: of what was drawn.
    n: how many.   gone: share of the forgotten rows' forgetting that went, with its interval over the rows.
    others: change of the mean NLL of other rows by it; above 0 is a cost.   size: modules: share of ||Delta||^2 put back.
    """

    about: str
    case: str
    seed: int | None
    n: int
    gone: float
    gone_low: float
    gone_high: float
    others: float
    others_low: float
    others_high: float
    size: float
    names: tuple[str, ...]


@dataclass(frozen=True)
class Replay:
    """Whether the recipe gives the change back. reproduced: its forgetting as a share of the real one, on the forgotten rows.

    correlation: of the changes of all judged rows, real and replayed (Pearson); NaN where one does not vary.
    """

    reproduced: Estimate
    correlation: float


def halves(n: int) -> tuple[list[int], list[int]]:
    """Positions of the rows that choose and of those that judge; all of them for both where there are few."""
    order = permutation(n, 0)
    return (sorted(order[: n // 2]), sorted(order[n // 2 :])) if n >= HALVED else (list(range(n)), list(range(n)))


def put_back(
    on: Bench, others: Bench | None, cut: Mapping[str, Delta], found: Effects, *, seeds: Sequence[int], show: bool = False
) -> list[Counterfactual]:
    """Put the blamed modules back together; as many that changed most; and others, drawn, that together changed as much.

    Args: on: the forgotten rows.   others: rows that were not forgotten, for the cost.   found: the single effects on `on`.
    Returns: nothing where fewer than three modules changed: there is no choice to make then.
    """
    names = list(cut)
    if len(names) < 3:
        return []
    choosing, judging = halves(len(on.rows))
    whole = on.after - on.before
    chosen = blamed(names, found.undone[:, choosing], whole[choosing])
    squares = found.modules["delta_norm"].to_numpy() ** 2
    largest = [names[i] for i in np.argsort(-squares, kind="stable")[: len(chosen)]]
    cases: list[tuple[str, int | None, list[str]]] = [("blamed", None, chosen), ("largest change", None, largest)]
    cases += [("random", seed, matched(names, squares, chosen, seed)) for seed in seeds]
    judged = on.take(judging)
    lines = []
    for case, seed, gone in progress(cases, label="put back", show=show):
        left = without(cut, gone, on.delta)
        removed = judged.after - judged.under(left)
        cost = np.zeros(0) if others is None else others.under(left) - others.after
        size = float(squares[[names.index(name) for name in gone]].sum() / squares.sum()) if squares.sum() else float("nan")
        lines.append(_line("modules", case, seed, gone, share(removed, whole[judging]), cost, size))
    return lines


def _line(
    about: str, case: str, seed: int | None, names: Sequence[str], gone: Estimate, cost: Float[np.ndarray, "row"], size: float
) -> Counterfactual:
    nan = float("nan")
    others = mean_estimate(cost) if len(cost) else Estimate(nan, nan, nan, 0)
    return Counterfactual(about, case, seed, len(names), *gone[:3], *others[:3], size, tuple(names))


def check_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `train.fit` that a recipe gives.

    Raises: UnknownNameError for one that it has not; InputError for one of another type, or one that no recipe decides.
    """
    for key in recipe:
        if key in FIXED:
            raise InputError(f"diagnose: recipe has {key!r}, which a plain fine-tuning does not need; leave it out.")
    return Member("recipe", fit).check_options(dict(recipe))


def how_many(top: float, n: int) -> int:
    """`top` rows of n, at least one and at most all: below 1 it is a share, a whole number of at least 1 a count.

    Raises: InputError for any other number.
    """
    if isinstance(top, bool) or not (0 < top < 1 or (top >= 1 and float(top).is_integer())):
        raise InputError(f"diagnose: top is {top!r}, expected a share of the training rows below 1, or how many.")
    return min(n, max(1, round(top * n)) if top < 1 else int(top))


def retrain(
    on: Bench,
    others: Bench | None,
    train: Examples,
    blame: "pd.DataFrame",
    *,
    recipe: Mapping[str, Any],
    top: int,
    seeds: Sequence[int],
    show: bool = False,
) -> tuple[Replay, list[Counterfactual]]:
    """Train the model before again by the recipe: on all rows, then without `top` of them: the most blamed, the nearest in words,
    and as many by chance.

    The share that goes is of the forgetting that the replay on all rows gives, not of the real change's: so what the recipe does
    not reproduce is not taken for an effect of the rows left out.

    Args: blame: of `train`, from `diagnose_data.blame`.   top: how many rows are left out.
    """
    replayed = _fitted(on.model, train, recipe)
    forgetting = on.under(replayed) - on.before
    real = on.after - on.before
    elsewhere = None if others is None else others.under(replayed)
    there, here = real, forgetting
    if others is not None and elsewhere is not None:
        there = np.concatenate([real, others.after - others.before])
        here = np.concatenate([forgetting, elsewhere - others.before])
    replay = Replay(share(forgetting, real), correlation(there, here))
    ids = train.ids
    cases: list[tuple[str, int | None, list[str]]] = [
        ("blamed", None, [id for _, id in highest(blame, "blame", top)]),
        ("nearest in words", None, [id for _, id in highest(blame, "text_match", top)]),
    ]
    cases += [("random", seed, [ids[i] for i in permutation(len(ids), seed)[:top]]) for seed in seeds]
    lines = []
    for case, seed, gone in progress(cases, label="retrain", show=show):
        left = set(gone)
        again = _fitted(on.model, train.take(i for i, one in enumerate(ids) if one not in left), recipe)
        removed = forgetting - (on.under(again) - on.before)
        cost = np.zeros(0) if others is None or elsewhere is None else others.under(again) - elsewhere
        lines.append(_line("rows", case, seed, gone, share(removed, forgetting), cost, float("nan")))
    return replay, lines


def _fitted(model: Model, rows: Examples, recipe: Mapping[str, Any]) -> Delta:
    """What plain fine-tuning of the model on some rows changes."""
    about = Provenance("fine-tuning", model.fingerprint(), {"train": rows.fingerprint()}, dict(recipe), dtype=str(model.dtype))
    return fit(model, AnswerTask(model, encode_all(model, rows), group=GROUP), about, **recipe).delta
