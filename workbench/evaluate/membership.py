"""Whether rows the model was trained on can be told from rows it never saw, by a score of each: membership inference.

    auc          P(s(other) > s(member)) + P(s(other) = s(member)) / 2 over all pairs, s a score that is higher for less of a member
    tpr at a     largest share of members below a threshold that at most a share a of the others lies below

AUC 1: every member scores as one; 0.5: the score cannot tell; 0: what it calls members are the others, as after unlearning that
went too far. This is OpenUnlearning's orientation (forget 0, holdout 1). MUSE's AUC is 1 minus it; `privleak` turns it round.
Nothing is folded: some code reports max(AUC, 1 - AUC), in which a model that avoids the members looks like one that knows them.

An AUC is about the two sets as much as about the model: where they differ in other ways than by training, a model that saw neither
has an AUC away from 0.5. That is why it is compared with the AUC of a retrained model on the same rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from workbench.core.errors import DataError, InputError, unknown
from workbench.core.measurements import Measurement, Measurements
from workbench.core.registry import metric
from workbench.core.statistics import Estimate, bootstrap, wilson
from workbench.evaluate.roc import auc, found_below
from workbench.evaluate.table import Table

FROM_TABLE = ("nll", "zlib_ratio", "min_k", "min_k_plus_plus")
WITH_REFERENCE = "reference_nll_difference"
FROM_MODEL = "gradient_norm"
CHANCE = 0.5


class Membership(NamedTuple):
    """How well a score tells members from others.

    auc: see the module.   tpr_01, tpr_05: share of members found where at most 1 % or 5 % of the others are taken for one.
    members, others: how many rows of each.   floor: the AUC of guessing, 0.5; a guess's share of members found is 1 % and 5 %.
    """

    score: str
    auc: Estimate
    tpr_01: Estimate
    tpr_05: Estimate
    members: int
    others: int
    floor: float = CHANCE


def membership(
    members: Table,
    others: Table,
    *,
    score: str = "min_k",
    options: Mapping[str, Any] | None = None,
    reference: tuple[Table, Table] | None = None,
    seed: int = 0,
) -> Membership:
    """How well a model's score of each row tells the rows of `members` from those of `others`.

    Args:
        members, others: what one model says about rows it was, and was not, trained on.
        score: nll, zlib_ratio, min_k, min_k_plus_plus or reference_nll_difference.   options: of it, such as {"k": 0.2}.
        reference: what another model says about the members and about the others, for reference_nll_difference.
        seed: of the bootstrap.
    Raises: UnknownNameError for another score or option; InputError for a missing reference; else as the score.
    """
    return membership_of(*scores(members, others, score=score, options=options, reference=reference), score=score, seed=seed)


def membership_of(
    members: Float[np.ndarray, "member"], others: Float[np.ndarray, "other"], *, score: str = "score", seed: int = 0
) -> Membership:
    """`membership` from one number a row, such as `gradient_norm`'s; higher = less of a member.

    The AUC's interval resamples both sets. Where no pair is out of order, or none in order, every resample says so too; the
    interval then is Wilson's of min(n, m) pairs that share no row. Those of the shares are Wilson's, the threshold taken as given:
    with fewer than 100 others, 1 % of them is none, and the threshold is the lowest of the others.

    Raises: DataError if a set is empty or has a value that is NaN or infinite.
    """
    sets = [_checked(score, name, values) for name, values in (("members", members), ("others", others))]
    area = bootstrap(auc, *sets, seed=seed)
    if area.value in (0.0, 1.0):
        area = wilson(area.value, min(map(len, sets)))._replace(n=area.n)
    found = (wilson(found_below(*sets, allowed=allowed), len(sets[0])) for allowed in (0.01, 0.05))
    return Membership(score, area, *found, members=len(sets[0]), others=len(sets[1]))


def memberships(
    members: Table,
    others: Table,
    *,
    reference: tuple[Table, Table] | None = None,
    gradient_norms: tuple[Float[np.ndarray, "member"], Float[np.ndarray, "other"]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    split: str = "forget",
    seed: int = 0,
) -> Measurements:
    """`membership` by every score there is data for: four from the tables, and a reference model's and gradients' where given.

    Args:
        reference: as in `membership`.   gradient_norms: `gradient_norm` of the members and of the others.
        options: of each score by its name.   split: the members' name in the result.
    Returns: Measurements auc_SCORE, tpr_01_SCORE and tpr_05_SCORE.
    Raises: UnknownNameError for options of a score that is not computed; else as `membership`.
    """
    names = [*FROM_TABLE, *([] if reference is None else [WITH_REFERENCE])]
    for name in options or {}:
        if name not in names:
            raise unknown("score of membership with options", name, names)
    found = [
        membership(members, others, score=name, options=(options or {}).get(name), reference=reference, seed=seed) for name in names
    ]
    if gradient_norms is not None:
        found.append(membership_of(*gradient_norms, score=FROM_MODEL, seed=seed))
    return Measurements(row for one in found for row in measured(one, split=split))


def measured(found: Membership, *, split: str = "forget") -> list[Measurement]:
    """The AUC and the two shares as measurements."""
    about = f"{found.members} members, {found.others} others"
    return [
        Measurement.of(f"{name}_{found.score}", split, estimate, unit=unit, better="reference", note=f"{about}; {note}")
        for name, estimate, unit, note in (
            ("auc", found.auc, "AUC", "1 = members are told from others, 0.5 = they cannot be"),
            ("tpr_01", found.tpr_01, "share of members", "guessing finds 0.01"),
            ("tpr_05", found.tpr_05, "share of members", "guessing finds 0.05"),
        )
    ]


def scores(
    members: Table,
    others: Table,
    *,
    score: str,
    options: Mapping[str, Any] | None = None,
    reference: tuple[Table, Table] | None = None,
) -> tuple[Float[np.ndarray, "member"], Float[np.ndarray, "other"]]:
    """One score of each member and of each other; higher = less of a member. Arguments and errors as of `membership`."""
    if score not in (*FROM_TABLE, WITH_REFERENCE):
        if score == FROM_MODEL:
            raise InputError("membership: gradient_norm needs the model; give its values of both sets to `membership_of`.")
        raise unknown("score of membership", score, (*FROM_TABLE, WITH_REFERENCE))
    if score == WITH_REFERENCE and reference is None:
        raise InputError(
            "membership: reference_nll_difference compares with another model; pass reference=(members, others) as that model "
            "reads them."
        )
    member = metric[score]
    given = member.check_options(dict(options or {}))
    compare: Sequence[Table | None] = reference if score == WITH_REFERENCE and reference is not None else (None, None)
    return member.function(members, compare[0], **given), member.function(others, compare[1], **given)


def _checked(score: str, name: str, values: Float[np.ndarray, "row"]) -> Float[np.ndarray, "row"]:
    made = np.asarray(values, dtype=np.float64)
    if not len(made):
        raise DataError(f"membership by {score}: there are no {name}; nothing was measured.")
    if not np.isfinite(made).all():
        raise DataError(f"membership by {score}: {int((~np.isfinite(made)).sum())} of {len(made)} {name} are NaN or infinite.")
    return made
