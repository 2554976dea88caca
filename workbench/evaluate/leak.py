"""An AUC of membership beside that of a retrained model: MUSE's PrivLeak, and UDS' s_MIA.

Both take AUCs as `membership` gives them, 1 = the members are told from others.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.core.errors import DataError, InputError
from workbench.core.statistics import Estimate, bootstrap
from workbench.evaluate.membership import scores
from workbench.evaluate.roc import auc as area
from workbench.evaluate.table import Table, answers


def privleak(auc: float, auc_retrained: float) -> float:
    """MUSE's PrivLeak, percent: how far an AUC lies from that of a retrained model, as a share of the latter.

    100 * (A - A_retrained) / A_retrained, A = 1 - auc: MUSE's AUC is the probability that a member scores as less of one. A model
    that knows the members has A near 0 and about -100; one like the retrained has 0; above 0 the members are avoided. Near -100 and
    far above 0 are both bad; MUSE calls [-5, 5] good. OpenUnlearning puts 0.5 for a missing retrained model.

    Args: auc, auc_retrained: in [0, 1], 1 = members are told from others.
    Raises: InputError for an AUC out of range; DataError where A_retrained is 0: a share of nothing has no value.
    Reference: Shi et al. 2025 (MUSE), arXiv:2407.06460.
    """
    _check("privleak", auc, auc_retrained)
    if auc_retrained == 1:
        raise DataError(
            "privleak: the retrained model's AUC is 1 (0 in MUSE's orientation), and no share of it can be taken. The two sets "
            "differ in other ways than by training; choose others that are like the members."
        )
    return 100 * (auc_retrained - auc) / (1 - auc_retrained)


def s_mia(auc: float, auc_retrained: float) -> float:
    """How like a retrained model's an AUC is, in [0, 1], 1 = the same.

    clip(1 - |auc - auc_retrained| / auc_retrained, 0, 1). Not symmetric in its two sides, and of this orientation of the AUC only.

    Raises: InputError for an AUC out of range; DataError where the retrained AUC is 0.
    Reference: the code of the Unlearning Depth Score, uds/privacy_eval.py; OpenUnlearning's paper names s_MIA without a formula.
    """
    _check("s_mia", auc, auc_retrained)
    if auc_retrained == 0:
        raise DataError("s_mia: the retrained model's AUC is 0, and no share of it can be taken.")
    return min(1.0, max(0.0, 1 - abs(auc - auc_retrained) / auc_retrained))


def privleak_estimate(
    members: Table,
    others: Table,
    retrained_members: Table,
    retrained_others: Table,
    *,
    score: str = "min_k",
    options: Mapping[str, Any] | None = None,
    reference: tuple[Table, Table] | None = None,
    seed: int = 0,
) -> Estimate:
    """`privleak` of a model with its interval, which resamples members and others, each row with both models' scores.

    Args:
        members, others: as the model reads them.   retrained_members, retrained_others: the same rows as the retrained one does.
        score, options, reference: as in `membership`, of both models.   seed: of the bootstrap.
    Returns: Estimate, percent; low and high are NaN where the retrained model's AUC is 1 in some resample. n: rows of both sets.
        Where the model's own scores do not overlap, every resample has -100 and the interval no width; that is not certainty.
    Raises: DataError if the two models were asked about different rows; else as `privleak` and `membership`.
    """
    sides = []
    mine = scores(members, others, score=score, options=options, reference=reference)
    theirs = scores(retrained_members, retrained_others, score=score, options=options, reference=reference)
    for table, retrained, a, b in zip((members, others), (retrained_members, retrained_others), mine, theirs, strict=True):
        given, other = answers(table), answers(retrained)
        given.aligned(other)  # refuses other rows
        where = {id: i for i, id in enumerate(other.ids)}
        sides.append(np.stack([a, b[[where[id] for id in given.ids]]], axis=1))
    value = privleak(*(float(area(*(side[None, :, k] for side in sides))[0]) for k in (0, 1)))
    return bootstrap(_leaks, *sides, seed=seed)._replace(value=value)


def _leaks(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """PrivLeak of every resample; each row holds the model's and the retrained model's score."""
    model, retrained = (area(members[..., k], others[..., k]) for k in (0, 1))
    room = 1 - retrained
    return np.divide(100 * (retrained - model), room, out=np.full(len(room), np.nan), where=room > 0)


def _check(name: str, auc: float, auc_retrained: float) -> None:
    for what, value in (("auc", auc), ("auc_retrained", auc_retrained)):
        if not 0 <= value <= 1:
            raise InputError(f"{name}: {what} is {value}, expected an AUC from 0 to 1; pass .auc.value of a Membership.")
