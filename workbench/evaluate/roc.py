"""How well a threshold on one number tells two sets of rows apart: area under the ROC curve, and one point of it."""

import numpy as np
from jaxtyping import Float


def auc(
    members: Float[np.ndarray, "resample member"], others: Float[np.ndarray, "resample other"]
) -> Float[np.ndarray, "resample"]:
    """P(other > member) + P(other = member) / 2 over all pairs, of every resample.

    (R - m (m + 1) / 2) / (n m), R the sum of the m others' average ranks among all n + m values (Mann and Whitney's U). The ranks
    come from one sort: a run of equal values shares the mean of its places.
    """
    n, m = members.shape[1], others.shape[1]
    pooled = np.concatenate([members, others], axis=1)
    order = np.argsort(pooled, axis=1)
    ordered = np.take_along_axis(pooled, order, axis=1)
    place = np.arange(n + m)
    opens = np.ones(ordered.shape, dtype=bool)
    opens[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    closes = np.ones(ordered.shape, dtype=bool)
    closes[:, :-1] = opens[:, 1:]
    first = np.maximum.accumulate(np.where(opens, place, 0), axis=1)
    last = np.minimum.accumulate(np.where(closes, place, n + m)[:, ::-1], axis=1)[:, ::-1]
    rank = (first + last) / 2 + 1
    return (np.where(order >= n, rank, 0.0).sum(axis=1) - m * (m + 1) / 2) / (n * m)


def found_below(members: Float[np.ndarray, "member"], others: Float[np.ndarray, "other"], *, allowed: float) -> float:
    """Largest share of members below a threshold that at most floor(allowed * m) of the m others lie below, 0 <= allowed < 1.

    The threshold is the next of the others, itself not below it, so that ties count against the members. The product is nudged up
    by 1e-9 against floating point.
    """
    limit = np.sort(others)[int(np.floor(allowed * len(others) + 1e-9))]
    return float((members < limit).mean())
