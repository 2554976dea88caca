"""Whether a mask did anything: the same method in two masks, with the seed as the unit.

All rows of a run share what its seed decided, the order of training and the random mask, so rows of one run do not repeat the
experiment: with thousands of rows and two runs a difference of the two seeds alone would look certain. One number a seed does.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from workbench.core.discovery import benjamini_hochberg
from workbench.core.errors import DataError, ShapeError
from workbench.study.compare_plan import Line, twin, without
from workbench.study.compare_result import Told
from workbench.study.verdict import Interval, student_interval

LEVEL = 0.05
LEAST_P = 1e-300
"""What a p-value of 0 is written as: of seeds that differ by the same number to the last digit."""


class Paired(NamedTuple):
    """difference: mean over seeds with its Student-t interval.   p: two-sided, of the same t; NaN with one seed."""

    difference: Interval
    p: float


class Versus(NamedTuple):
    """Two masks of one method compared seed by seed.

    against: the other mask, with its method where that has another name.   random: whether it is the matched random mask, not none.
    forget: of the mean NLL of forget rows, in nats per token; above 0 the first forgot more.
    gap: of the mean |ln R - ln R of the retrained model|; below 0 the first is nearer to it.   adjusted_*: the p-values after
    Benjamini and Hochberg's procedure over all tests of the comparison.
    """

    method: str
    mask: str
    against: str
    random: bool
    forget: Paired
    gap: Paired
    adjusted_forget: float
    adjusted_gap: float


class Compared(NamedTuple):
    """tests: every pair of arms with the same seeds.   left_out: the pairs that have not, for a run failed."""

    tests: tuple[Versus, ...]
    left_out: tuple[str, ...]


def paired_seeds(a: Float[np.ndarray, "_ _"], b: Float[np.ndarray, "_ _"]) -> Paired:
    """Difference of two arms that ran with the same seeds on the same rows, both [seed row]: one number a seed, tested over seeds.

    d_s = mean_i (a_si - b_si); the estimate is the mean of d with the interval mean ± t_{0.975, S - 1} s / sqrt(S), and p that of
    t = mean / (s / sqrt(S)) with S - 1 degrees of freedom. Differences without any spread have p 1 where they are 0, else 0.

    Raises: ShapeError if a and b differ in shape; DataError without a seed or row, or for a value that is NaN or infinite.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ShapeError(f"paired_seeds: got shapes {a.shape} and {b.shape}, expected two arrays [seed row] of one shape.")
    if not a.size or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError(f"paired_seeds: the arrays of shape {a.shape} are empty, or hold a value that is NaN or infinite.")
    d = (a - b).mean(axis=1)
    found, n = student_interval(d), len(d)
    if n < 2:
        return Paired(found, float("nan"))
    error = np.std(d, ddof=1) / np.sqrt(n)
    if error == 0:
        return Paired(found, 1.0 if found.value == 0 else LEAST_P)
    return Paired(found, max(LEAST_P, float(2 * student.sf(abs(found.value) / error, n - 1))))


def tested(told: Sequence[Told], lines: Sequence[Line]) -> Compared:
    """Every mask of a method against no mask, and against its matched random one where there is one."""
    by_key = {(one.method, one.mask): one for one in told}
    pairs: list[tuple[Told, Told, bool]] = []
    left_out: list[str] = []
    for line in lines:
        for mask in line.masks:
            for other, random in ((without(lines, line, mask), False), (twin(lines, line, mask), True)):
                one, two = by_key.get((line.method.name, mask)), None if other is None else by_key.get(other)
                if one is None or two is None:
                    continue
                if [arm.seed for arm in one.arms] == [arm.seed for arm in two.arms]:
                    pairs.append((one, two, random))
                else:
                    left_out.append(f"{one.name} against {two.name}")
    both = [[paired_seeds(read(a), read(b)) for a, b, _ in pairs] for read in (_nll, _gap)]
    adjusted = _adjusted(np.array([[one.p for one in each] for each in both]))
    found = [
        Versus(a.method, a.mask, b.mask if a.method == b.method else b.name, random, f, g, float(p), float(q))
        for (a, b, random), f, g, p, q in zip(pairs, *both, *adjusted, strict=True)
    ]
    return Compared(tuple(found), tuple(left_out))


def untwinned(lines: Sequence[Line]) -> list[str]:
    """Methods in located masks that have no matched random twin to be held against."""
    located = ((line, mask) for line in lines for mask, plan in line.masks.items() if plan is not None and not plan.control)
    return [f"{line.method.name}, {mask}" for line, mask in located if twin(lines, line, mask) is None]


def _nll(one: Told) -> Float[np.ndarray, "seed row"]:
    return one.rows("nll")


def _gap(one: Told) -> Float[np.ndarray, "seed row"]:
    return np.abs(one.rows("log_ratio") - one.gold.log_ratio)


def _adjusted(p: Float[np.ndarray, "what pair"]) -> Float[np.ndarray, "what pair"]:
    """Adjusted over all that are numbers; one seed has no p-value, and none afterwards."""
    found, there = np.full(p.shape, np.nan), np.isfinite(p)
    if there.any():
        found[there] = benjamini_hochberg(p[there], level=LEVEL).adjusted
    return found


def by_kind(tests: Sequence[Versus]) -> Mapping[tuple[str, bool], list[Versus]]:
    """The tests by mask and by what it is held against."""
    found: dict[tuple[str, bool], list[Versus]] = {}
    for one in tests:
        found.setdefault((one.mask, one.random), []).append(one)
    return found
