"""Which training rows explain the forgetting? By an influence method, at both ends of the change.

    blame_j = -mean_q influence(j -> q)    rows that were learned: a step on j raises the loss of q
    blame_j = +mean_q influence(j -> q)    rows that were unlearned, by ascent: a step on j would lower it

q runs over the forgotten rows. Influence is a statement about one point, and training went along a path; blame is therefore the
mean of its values at the model before and at the model after. With {"kind": "dot"} that is the trapezoid of the first-order change
of the loss; the cosine, the default, is how far the gradients point against each other, whatever their lengths, and has no unit:
`workbench validate-data` found it to tell better what retraining would do. A method that brings its own checkpoints already goes
along the path and is asked once, at the model before.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.delta import Delta, applied
from workbench.core.errors import InputError
from workbench.core.influence import Influence
from workbench.core.records import Examples
from workbench.core.registry import Member, influence
from workbench.core.statistics import spearman
from workbench.load.models import Model

if TYPE_CHECKING:
    import pandas as pd

WORDS = "text_match"  # the influence that only reads: what any other has to beat


class Agreement(NamedTuple):
    """How far blame agrees with shared words. spearman: rank correlation over all rows.

    common: of the `top` most blamed rows, how many are among the `top` nearest in words.   chance: how many would be by chance.
    """

    spearman: float
    common: int
    top: int
    chance: float


def method_of(name: str, options: Mapping[str, Any] | None) -> tuple[Member, dict[str, Any]]:
    """A registered influence and its options, checked.

    Raises: UnknownNameError, with the nearest, for a name or an option; InputError for an option of another type.
    """
    member = influence[name]
    return member, member.check_options(dict(options or {}))


def blame(
    model: Model,
    delta: Delta,
    forgotten: Examples,
    sets: Mapping[str, Examples],
    *,
    method: str = "gradient_similarity",
    options: Mapping[str, Any] | None = None,
) -> "pd.DataFrame":
    """How far training on each row went against the forgotten rows, most blamed first.

    Args: sets: training rows by what was done with them, "learned" or "unlearned".
    Returns: one line a row: id, source, blame, at_before, at_after (NaN where the method was asked once), text_match (mean likeness
        in words to the forgotten rows, by BM25), asked (the very prompt is one of the forgotten rows'), text. Blame is in the
        method's own unit, so it is compared inside one column only.
    Raises: InputError if there are no training rows.
    """
    import pandas as pd

    if not sets:
        raise InputError("diagnose: there are no training rows to blame; give train= or unlearned=.")
    member, given = method_of(method, options)
    once = given.get("checkpoints") is not None
    asked, frames = {row.prompt for row in forgotten}, []
    for source, rows in sets.items():
        sign = -1.0 if source == "learned" else 1.0
        first = sign * _mean(member.function(model, forgotten, rows, **given))
        last = np.full(len(rows), np.nan)
        if not once:
            with applied(model, delta):
                last = sign * _mean(member.function(model, forgotten, rows, **given))
        columns = {
            "id": rows.ids,
            "source": source,
            "blame": first if once else (first + last) / 2,
            "at_before": first,
            "at_after": last,
            "text_match": _mean(influence[WORDS].function(model, forgotten, rows)),
            "asked": [row.prompt in asked for row in rows],
            "text": [f"{row.prompt} {row.response}" for row in rows],
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames).sort_values("blame", ascending=False, kind="stable").reset_index(drop=True)


def _mean(found: Influence) -> Float[np.ndarray, "train"]:
    """Mean over queries."""
    return found.values.mean(axis=0)


def agreement(found: "pd.DataFrame", top: int) -> Agreement:
    """Blame against likeness in words, over the training rows.

    Spearman's coefficient is NaN where one of the two has no ranks, all its values being equal.
    """
    ranked = float(spearman(found["blame"].to_numpy(), found["text_match"].to_numpy()))
    common = len(set(highest(found, "blame", top)) & set(highest(found, "text_match", top)))
    return Agreement(ranked, common, top, top * top / len(found))


def highest(found: "pd.DataFrame", by: str, top: int) -> list[tuple[str, str]]:
    """Source and id of the `top` rows with the highest value, the earlier row where two are equal."""
    order = np.argsort(-found[by].to_numpy(dtype=np.float64), kind="stable")[:top]
    return [(str(found["source"].iloc[i]), str(found["id"].iloc[i])) for i in order]


def correlation(a: Float[np.ndarray, "row"], b: Float[np.ndarray, "row"]) -> float:
    """Pearson's coefficient; NaN where one of the two does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
