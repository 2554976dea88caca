"""Comparing arms: two on the same rows, one with two retrained models, and many on two axes.

    paired      is one arm's number higher than another's, row by row?
    in_bands    how far is an arm from a model retrained without the forget set, in units of how far a second one is from it?
    pareto      which arms is no other at least as good as on both axes, and how often when rows are drawn anew?

Nothing is averaged over seeds: an arm's seeds are arms, or rows of one group.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from workbench.core.discovery import ROUNDING, sign_flip_p
from workbench.core.errors import DataError, InputError, ShapeError
from workbench.core.ks import ks_distances
from workbench.core.statistics import LEAST, RESAMPLES, Estimate, bootstrap, wilson

NAN = float("nan")
Statistic = Callable[[Float[np.ndarray, "resample row ..."]], Float[np.ndarray, "resample"]]


class Paired(NamedTuple):
    """difference: mean of a - b.   p: two-sided, of sign flips.   win_rate: share of rows where a is higher, ties half.
    n: rows, or groups of rows, that are independent.   note: why `difference` has no interval."""

    difference: Estimate
    p: float
    win_rate: Estimate
    n: int
    note: str = ""


class Front(NamedTuple):
    """The arms on two axes, in order. forget: lower is better.   retain: higher is better.

    on_front: [arm] whether no other arm dominates it.   dominated_by: names of those that do, of each arm.
    share: [arm] share of resamples in which it is on the front.
    """

    names: tuple[str, ...]
    forget: Float[np.ndarray, "arm"]
    retain: Float[np.ndarray, "arm"]
    on_front: Bool[np.ndarray, "arm"]
    dominated_by: tuple[tuple[str, ...], ...]
    share: Float[np.ndarray, "arm"]


def paired(
    a: Sequence[float] | Float[np.ndarray, "row"],
    b: Sequence[float] | Float[np.ndarray, "row"],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Paired:
    """Difference of two arms' numbers about the same rows.

    mean_i (a_i - b_i), with the bootstrap interval over rows. p is that of flipping the sign of each difference: all patterns up to
    13 rows, drawn ones beyond, twice the one-sided p-value and at most 1; it assumes that without an effect a difference is as
    likely d as -d. With n rows it is never below 2^(1 - n). Fewer than LEAST rows, or groups, give no interval: drawn anew, one
    row is always itself.

    Args:
        groups: of every row, such as the question where several seeds answered it: a group is drawn and flipped whole, and is one
            of the win rate's observations with the mean of its rows. None: every row is its own.
        seed: of the bootstrap and of the drawn signs.
    Raises: ShapeError if a, b or groups differ in length; DataError without rows, or for a value that is NaN or infinite.
    Reference: `core.discovery.sign_flip_p`; `core.statistics.wilson`, the win rate's interval.
    """
    one, two = _rows("paired", {"a": a, "b": b})
    if groups is not None and len(groups) != len(one):
        raise ShapeError(f"paired: there are {len(one)} rows but {len(groups)} groups; expected the group of every row.")
    d = one - two
    number: dict[Hashable, int] = {}
    place = np.arange(len(d)) if groups is None else np.array([number.setdefault(group, len(number)) for group in groups])
    count = np.bincount(place).astype(np.float64)
    total = np.bincount(place, weights=d)
    difference = bootstrap(
        lambda drawn: drawn[..., 0].sum(axis=1) / drawn[..., 1].sum(axis=1), np.stack([total, count], axis=1), seed=seed
    )
    note = ""
    if len(total) < LEAST:
        difference = difference._replace(low=NAN, high=NAN)
        what = "rows" if groups is None else "groups of rows"
        note = f"{len(total)} {what} are too few to draw anew, at least {LEAST}, so there is no interval."
    turned = total if total.sum() >= 0 else -total
    p = min(1.0, 2 * sign_flip_p(turned, seed=seed))
    won = np.bincount(place, weights=(d > 0) + 0.5 * (d == 0)) / count
    return Paired(difference, p, wilson(float(won.mean()), len(won)), len(won), note)


def in_bands(values: Float[np.ndarray, "resample row three"]) -> Float[np.ndarray, "resample"]:
    """Kolmogorov-Smirnov distance of an arm from a retrained model, in units of that of the second retrained model from it.

    D(arm, retrained) / D(retrained again, retrained), D = max_x |F(x) - G(x)|: 1 for the second retrained model, 0 for the first.
    The unit is how far apart chance alone puts two perfect answers, not an effect: where a test cannot tell the two (`core.ks.ks`),
    a multiple of it says how far an arm lies beyond that on these rows, and other rows give other multiples. Chance widens a small
    unit most, so multiples lean downward, and no interval of resamples mends that: with 80 rows and a band of .19 (.08) the
    `reflected` one held the multiple of all rows in 72 % (34 %) of simulated cases, and was nearly always too low otherwise. D
    itself is the number to trust.

    Args: values: a row has the numbers of arm, retrained, and retrained again.
    Returns: NaN where the arm and both retrained models have one distribution, infinite where the arm's alone differs.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return ks_distances(values[..., :2]) / ks_distances(values[..., 2:0:-1])


def pareto(
    forget: Sequence[Sequence[float]] | Float[np.ndarray, "arm row ..."],
    retain: Sequence[Sequence[float]] | Float[np.ndarray, "arm other ..."],
    *,
    names: Sequence[str],
    forget_statistic: Statistic | None = None,
    retain_statistic: Statistic | None = None,
    seed: int = 0,
) -> Front:
    """Arms that no other arm dominates: none is as low on `forget` and as high on `retain`, and better on one of the two.

    Arms at the same point do not dominate each other. `share` draws the forget rows and the retain rows anew, the same ones for all
    arms, and counts how often an arm is on the front: near 1 it is there for certain, near 1/2 the rows do not decide. Resamples in
    which a statistic of an arm has no value (NaN) are left out; an infinite one is worse, or better, than all others.

    Args:
        forget: every arm's numbers about the forget rows, lower is better; [arm row], or [arm row part] for a statistic of several
            numbers a row, such as `ks_distances` of an arm's and the retrained model's.
        retain: the same about the retain rows, higher is better.
        names: of the arms.
        forget_statistic, retain_statistic: map [resample row ...] to [resample]; the mean over rows without.
        seed: of the resamples.
    Raises: ShapeError if names, forget and retain differ in their number of arms; InputError for a name that stands twice;
        DataError without arms or rows, or naming an arm with a number that is NaN or infinite or a statistic that is NaN.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (forget, retain)]
    _check_arms(names, *sides)
    rng = np.random.default_rng(seed)
    points: list[np.ndarray] = []
    drawn: list[np.ndarray] = []
    for side, statistic in zip(sides, (forget_statistic, retain_statistic), strict=True):
        of = statistic or (lambda x: x.mean(axis=1))
        draws = rng.integers(0, side.shape[1], size=(RESAMPLES, side.shape[1]))
        points.append(np.array([of(arm[None])[0] for arm in side]))
        drawn.append(np.stack([of(arm[draws]) for arm in side], axis=1))
    for name, *point in zip(names, *points, strict=True):
        if np.isnan(point).any():
            raise DataError(f"pareto: {name!r} is at {point}; a statistic has no value there. Leave that arm out and say so.")
    over = _dominates(points[0][None], points[1][None])[0]
    told = ~(np.isnan(drawn[0]) | np.isnan(drawn[1])).any(axis=1)
    on = ~_dominates(drawn[0][told], drawn[1][told]).any(axis=2)
    return Front(
        tuple(names),
        points[0],
        points[1],
        ~over.any(axis=1),
        tuple(tuple(names[int(j)] for j in np.flatnonzero(row)) for row in over),
        on.mean(axis=0) if told.any() else np.full(len(names), NAN),
    )


def _dominates(
    forget: Float[np.ndarray, "resample arm"], retain: Float[np.ndarray, "resample arm"]
) -> Bool[np.ndarray, "resample arm arm"]:
    """Whether arm j (last axis) dominates arm i; numbers that differ by rounding alone are the same."""
    lower, higher = (side[:, None, :] for side in (forget, retain))  # of arm j
    f, r = (side[:, :, None] for side in (forget, retain))  # of arm i
    nil = [ROUNDING * np.where(np.isfinite(side), np.abs(side), 0.0).max(axis=1)[:, None, None] for side in (forget, retain)]
    return (lower <= f + nil[0]) & (higher >= r - nil[1]) & ((lower < f - nil[0]) | (higher > r + nil[1]))


def _rows(name: str, sides: Mapping[str, Sequence[float] | np.ndarray]) -> list[Float[np.ndarray, "row"]]:
    made = {key: np.asarray(side, dtype=np.float64) for key, side in sides.items()}
    shapes = {key: side.shape for key, side in made.items()}
    if len(set(shapes.values())) > 1 or any(side.ndim != 1 for side in made.values()):
        raise ShapeError(f"{name}: got shapes {shapes}, expected one number of each for every row, rows in the same order.")
    for key, side in made.items():
        if not len(side):
            raise DataError(f"{name}: {key} has no rows; nothing was measured, so there is nothing to compare.")
        if not np.isfinite(side).all():
            raise DataError(f"{name}: {key} is NaN or infinite in {int((~np.isfinite(side)).sum())} of {len(side)} rows.")
    return list(made.values())


def _check_arms(names: Sequence[str], forget: np.ndarray, retain: np.ndarray) -> None:
    if len(set(names)) != len(names):
        raise InputError(f"pareto: a name stands twice among {', '.join(names)}; seeds of one arm need names of their own.")
    for key, side in (("forget", forget), ("retain", retain)):
        if side.ndim < 2 or len(side) != len(names):
            raise ShapeError(f"pareto: {key} has shape {side.shape}, expected [arm row] with {len(names)} arms, one a name.")
        if not side.size:
            raise DataError(f"pareto: {key} has shape {side.shape}: without arms or rows there is no front.")
        for name, arm in zip(names, side, strict=True):
            if not np.isfinite(arm).all():
                raise DataError(f"pareto: {key} of {name!r} has a number that is NaN or infinite; leave that arm out and say so.")
