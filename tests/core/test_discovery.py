"""p-values and false discoveries: against counting, against scipy, by hand, and uniform where nothing happened."""

import math

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from tests.reference import discovery as slow
from workbench.core.discovery import EXACT, benjamini_hochberg, conformal_p, sign_flip_p
from workbench.core.errors import DataError, InputError


def test_benjamini_hochberg_by_hand():
    p = np.array([0.04, 0.01, 0.5, 0.03, 0.005])
    # sorted 0.005 0.01 0.03 0.04 0.5 times 5 / rank: 0.025 0.025 0.05 0.05 0.5
    found = benjamini_hochberg(p, level=0.05)
    np.testing.assert_allclose(found.adjusted, [0.05, 0.025, 0.5, 0.05, 0.025], rtol=1e-15)
    assert found.found.tolist() == [True, True, False, True, True]
    assert benjamini_hochberg(p, level=0.04).found.tolist() == [False, True, False, False, True]
    # the step goes up: 0.04 is above 0.05 * 1 / 2, but 0.05 <= 0.05 * 2 / 2 takes it along
    assert benjamini_hochberg(np.array([0.05, 0.04]), level=0.05).found.all()


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_benjamini_hochberg_is_scipys_and_the_definition(n):
    rng = np.random.default_rng(n)
    p = np.clip(np.round(rng.uniform(size=n) ** 2, 2), 0.01, 1)  # with ties
    found = benjamini_hochberg(p, level=0.2)
    np.testing.assert_allclose(found.adjusted, false_discovery_control(p), rtol=1e-14)
    np.testing.assert_allclose(found.adjusted, slow.adjusted(p.tolist()), rtol=1e-14)
    order = rng.permutation(n)
    np.testing.assert_array_equal(benjamini_hochberg(p[order], level=0.2).adjusted, found.adjusted[order])
    lower = p.copy()
    lower[0] /= 2
    assert (benjamini_hochberg(lower, level=0.2).adjusted <= found.adjusted).all()  # more evidence, no fewer discoveries


def test_false_discoveries_are_held_down():
    """30 of 100 tests have an effect; over 400 repetitions the mean share of false discoveries is at most level * 70 / 100."""
    rng, shares, power = np.random.default_rng(0), [], []
    for _ in range(400):
        p = rng.uniform(size=100)
        p[:30] **= 6
        found = benjamini_hochberg(p, level=0.2).found
        shares.append(found[30:].sum() / max(1, found.sum()))
        power.append(found[:30].mean())
    # the standard error of the mean is about 0.004; without the step-up factor m / rank the share is above 0.35
    assert 0.11 < np.mean(shares) < 0.14 + 3 * np.std(shares) / 20
    assert np.mean(power) > 0.3


def test_conformal_by_hand():
    control = np.array([0.0, 1.0, 2.0, 2.0])
    # above 3: none, (1 + 0) / 5; as high as 2: two, 3 / 5; as high as 0.5: three, 4 / 5; as high as 0: all
    np.testing.assert_allclose(conformal_p(np.array([3.0, 2.0, 0.5, 0.0]), control), [0.2, 0.6, 0.8, 1.0], rtol=1e-15)


def test_conformal_is_the_count():
    rng = np.random.default_rng(0)
    values, control = rng.integers(0, 6, 30).astype(float), rng.integers(0, 6, 17).astype(float)
    expected = [float(p) for p in slow.conformal(values.tolist(), control.tolist())]
    np.testing.assert_allclose(conformal_p(values, control), expected, rtol=1e-15)
    np.testing.assert_array_equal(conformal_p(values, control[rng.permutation(17)]), conformal_p(values, control))


def test_conformal_is_uniform_where_nothing_happened():
    rng = np.random.default_rng(0)
    p = np.concatenate([conformal_p(rng.normal(size=1), rng.normal(size=19)) for _ in range(4000)])
    # without ties it is uniform on 1/20 ... 20/20; 4,000 draws have a standard error of at most 0.008
    for u in (0.05, 0.2, 0.5, 0.9):
        assert np.mean(p <= u) == pytest.approx(u, abs=0.025)


def test_sign_flip_by_hand():
    # sums of (3, 1): 4, 2, -2, -4; one of four is as high as 4
    assert sign_flip_p(np.array([3.0, 1.0])) == 0.25
    assert sign_flip_p(np.array([3.0, -1.0])) == 0.5
    assert sign_flip_p(np.array([-3.0, -1.0])) == 1.0
    assert sign_flip_p(np.array([0.0, 0.0])) == 1.0
    assert sign_flip_p(np.array([0.0] * 20)) == 1.0  # drawn, too


def test_sign_flip_is_the_count():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        d = rng.integers(-3, 5, size=n)
        assert sign_flip_p(d.astype(float)) == float(slow.sign_flip(d.tolist()))
    # ties in the last bit are ties: 0.1 + 0.2 and 0.3 differ in float64, so the sums of these do, added in another order
    assert sign_flip_p(np.array([0.1, 0.2, -0.3])) == float(slow.sign_flip([1, 2, -3]))


def test_drawn_signs_come_near_to_all_signs():
    d = np.random.default_rng(3).normal(0.4, 1.0, size=EXACT + 1)
    exact = float(slow.sign_flip(d.tolist()))
    drawn = sign_flip_p(d)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9999))  # four standard errors
    assert sign_flip_p(d) == drawn != sign_flip_p(d, seed=1)
    assert sign_flip_p(np.full(60, 1.0)) == 1 / 10_000  # never 0
    assert sign_flip_p(np.full(60, 1.0), draws=99) == 1 / 100


@pytest.mark.parametrize("n", [6, EXACT + 2])
def test_sign_flip_is_valid_where_nothing_happened(n):
    rng = np.random.default_rng(0)
    p = np.array([sign_flip_p(rng.normal(size=n), draws=199, seed=i) for i in range(1000)])
    for u in (0.05, 0.25, 0.5):
        assert np.mean(p <= u) == pytest.approx(u, abs=0.05)  # three standard errors at 0.5


def test_more_rise_is_more_evidence():
    d = np.random.default_rng(0).normal(size=10)
    p = [sign_flip_p(d + shift) for shift in (-1.0, 0.0, 0.5, 1.0, 3.0)]
    assert p == sorted(p, reverse=True)
    assert p[-1] == 2**-10


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (InputError, "p has 0.0, expected numbers above 0", lambda: benjamini_hochberg(np.array([0.0, 0.5]))),
        (InputError, "p has nan", lambda: benjamini_hochberg(np.array([0.1, np.nan]))),
        (InputError, "level is 1", lambda: benjamini_hochberg(np.array([0.1]), level=1.0)),
        (DataError, "there is no p-value", lambda: benjamini_hochberg(np.array([]))),
        (DataError, "no control rows", lambda: conformal_p(np.array([1.0]), np.array([]))),
        (InputError, "control has a number that is NaN", lambda: conformal_p(np.array([1.0]), np.array([np.nan]))),
        (DataError, "there is no difference", lambda: sign_flip_p(np.array([]))),
        (InputError, "NaN or infinite", lambda: sign_flip_p(np.array([np.inf]))),
        (InputError, "draws is 0", lambda: sign_flip_p(np.array([1.0]), draws=0)),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_a_tie_at_the_level_is_found():
    # 19 controls, none as high: p = 1/20 for each of 3 rows; adjusted 3 x (1/20) / 3 = 1/20, which is the level, but in float64
    # 0.05000000000000001
    found = benjamini_hochberg(np.full(3, 1 / 20), level=0.05)
    assert found.found.all()
    np.testing.assert_allclose(found.adjusted, 0.05)


def test_no_adjusted_value_is_below_its_own_p():
    p = np.random.default_rng(0).uniform(1e-3, 1, (200, 12))
    assert all((benjamini_hochberg(row).adjusted >= row).all() for row in p)  # m p / m alone falls one bit short of p in some
