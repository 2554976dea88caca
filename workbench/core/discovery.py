"""Which of many tests found something: p-values that assume little, and control of the share of false discoveries.

    p value                 assumes of a row that nothing happened to
    conformal_p             its value is exchangeable with those of control rows to which nothing happened
    sign_flip_p             the differences of its parts (tokens) are independent, and each is as likely d as -d

Either is at most u with a probability of at most u where nothing happened. `benjamini_hochberg` turns many of them into a list of
discoveries of which, in expectation, at most a share `level` is false.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from workbench.core.errors import DataError, InputError

EXACT = 13
"""Up to so many differences all sign patterns are counted, 8,192 of them; beyond, they are drawn."""
ROUNDING = 1e-12
"""Two sums of the same numbers, added in another order, differ by less than this share of the sum of their sizes."""


class Discoveries(NamedTuple):
    """found: [test], true where a test is a discovery.   adjusted: [test] the smallest level that makes it one, at most 1."""

    found: Bool[np.ndarray, "test"]
    adjusted: Float[np.ndarray, "test"]


def benjamini_hochberg(p: Float[np.ndarray, "test"], *, level: float = 0.05) -> Discoveries:
    """Discoveries whose expected share of false ones is at most `level`.

    With p_(1) <= ... <= p_(m), the k smallest are discoveries for the largest k with p_(k) <= level * k / m. Adjusted values are
    min over j >= rank of m p_(j) / j. The promise holds for independent p-values, and for positively dependent ones (Benjamini and
    Yekutieli 2001), to which conformal p-values of one control set belong.

    Args: p: one a test, each in (0, 1].   level: in (0, 1).
    Raises: DataError without a test; InputError for a p-value or level out of range.
    Reference: Benjamini and Hochberg 1995; the numbers are those of `scipy.stats.false_discovery_control`, which returns the
        adjusted ones alone.
    """
    if not 0 < level < 1:
        raise InputError(f"benjamini_hochberg: level is {level}, expected a share above 0 and below 1, such as 0.05.")
    if len(p) == 0:
        raise DataError("benjamini_hochberg: there is no p-value.")
    if not bool(((p > 0) & (p <= 1)).all()):  # false for NaN too
        wrong = p[~((p > 0) & (p <= 1))][0]
        raise InputError(
            f"benjamini_hochberg: p has {wrong}, expected numbers above 0 and at most 1; a p-value of 0 was never drawn."
        )
    order = np.argsort(p, kind="stable")
    scaled = p[order].astype(np.float64) * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(p[order], 1.0)  # m p / m may round below p
    return Discoveries(adjusted <= level * (1 + ROUNDING), adjusted)  # 3 x (1/20) / 3 is 1/20, but not in float64


def conformal_p(values: Float[np.ndarray, "row"], control: Float[np.ndarray, "control"]) -> Float[np.ndarray, "row"]:
    """One-sided conformal p-value of each row: how often a control row lies as high.

    p_i = (1 + #{j : control_j >= value_i}) / (1 + n_control)

    Where nothing happened to a row, its value is exchangeable with the controls' and p_i <= u has probability at most u. All rows
    share one control set; their p-values depend on each other, in the way that Benjamini and Hochberg's procedure allows. None is
    below 1 / (1 + n_control).

    Raises: DataError without control rows; InputError for a value that is not finite.
    Reference: Bates et al. 2023, arXiv:2104.08279. Ties count against the row, so p-values are conservative; their randomized
        variant breaks ties by chance.
    """
    if len(control) == 0:
        raise DataError("conformal_p: there are no control rows to compare with.")
    for name, given in (("values", values), ("control", control)):
        if not bool(np.isfinite(given).all()):
            raise InputError(f"conformal_p: {name} has a number that is NaN or infinite.")
    below = np.searchsorted(np.sort(control), values, side="left")
    return (1.0 + (len(control) - below)) / (1.0 + len(control))


def sign_flip_p(differences: Float[np.ndarray, "part"], *, draws: int = 9999, seed: int = 0) -> float:
    """One-sided p-value that a sum of differences is as high as it is by the chance of their signs.

    T(s) = sum_t s_t d_t;  p = share of the sign patterns s in {-1, 1}^n with T(s) >= T(1)                n <= EXACT
                           p = (1 + #{drawn s with T(s) >= T(1)}) / (1 + draws)                           otherwise

    It assumes that, where nothing happened, each difference is as likely d as -d, independently of the others. Tokens of one answer
    are not independent, so p is then too small; it needs no control rows. With n differences no p-value is below 2^-n.

    Args: seed: of the drawn signs; the same number of differences gets the same signs, so the order of rows does not matter.
    Raises: DataError without a difference; InputError for one that is not finite, or draws below 1.
    Reference: Fisher 1935, The Design of Experiments, section 21; the added 1 is Phipson and Smyth's (2010), without which a
        drawn p-value could be 0. `scipy.stats.permutation_test(permutation_type="samples")` computes the same.
    """
    if len(differences) == 0:
        raise DataError("sign_flip_p: there is no difference.")
    if not bool(np.isfinite(differences).all()):
        raise InputError("sign_flip_p: a difference is NaN or infinite.")
    if draws < 1:
        raise InputError(f"sign_flip_p: draws is {draws}, expected at least 1.")
    d = differences.astype(np.float64)
    least = d.sum() - ROUNDING * np.abs(d).sum()
    if len(d) <= EXACT:
        every = np.array(list(product((1.0, -1.0), repeat=len(d))))
        return float((every @ d >= least).mean())
    drawn = 2.0 * np.random.default_rng(seed).integers(0, 2, size=(draws, len(d)), dtype=np.int8) - 1.0
    return float((1 + (drawn @ d >= least).sum()) / (1 + draws))
