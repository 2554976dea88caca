"""Arms against each other: by hand, against counting everything, and what each number does where nothing happened."""

import math

import numpy as np
import pytest

from tests.reference import comparison as slow
from workbench.core.comparison import in_bands, paired, pareto
from workbench.core.errors import DataError, InputError, ShapeError
from workbench.core.ks import ks_distances


def test_paired_by_hand():
    # differences 1 2 -1 0: mean 1/2; of 16 sign patterns |sum| >= 2 in 2 * (of +-1 +-2 +-1: sums 2 2 4, each twice for the 0) = 12
    found = paired([2, 4, 1, 3], [1, 2, 2, 3])
    assert found.difference.value == 0.5
    assert found.p == pytest.approx(12 / 16, rel=1e-12)
    assert found.win_rate.value == pytest.approx(2.5 / 4, rel=1e-12)  # two wins, a tie, a loss
    assert found.n == 4


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_paired_reference(n):
    draw = np.random.default_rng(n)
    a, b = draw.normal(0.4, 1, n).round(1), draw.normal(0, 1, n).round(1)
    found = paired(a, b)
    assert found.p == pytest.approx(slow.two_sided_p((a - b).tolist()), rel=1e-12)
    assert found.win_rate.value == pytest.approx(slow.win_rate(a.tolist(), b.tolist()), rel=1e-12)


def test_paired_turned_round_shuffled_or_with_itself():
    draw = np.random.default_rng(0)
    a, b = draw.normal(0.3, 1, 60), draw.normal(0, 1, 60)
    one, two = paired(a, b), paired(b, a)
    assert one.difference.value == pytest.approx(-two.difference.value, rel=1e-12)
    assert one.p == two.p
    assert one.win_rate.value == pytest.approx(1 - two.win_rate.value, rel=1e-12)
    order = draw.permutation(60)
    assert paired(a[order], b[order]).difference.value == pytest.approx(one.difference.value, rel=1e-12)
    same = paired(a, a)
    assert (same.difference[:3], same.p, same.win_rate.value) == ((0, 0, 0), 1.0, 0.5)


def test_paired_p_is_uniform_where_nothing_happened():
    """Of 400 comparisons of like arms a share u +- 3 standard errors has p <= u."""
    p = np.array([paired(*np.random.default_rng(seed).normal(size=(2, 25)), seed=seed).p for seed in range(400)])
    for u in (0.05, 0.2, 0.5):
        assert abs((p <= u).mean() - u) < 3 * math.sqrt(u * (1 - u) / 400)


def test_pairing_sees_what_the_spread_over_rows_hides():
    rows = np.random.default_rng(0).normal(0, 10, 40)
    found = paired(rows + 0.1, rows + np.random.default_rng(1).normal(0, 0.05, 40))
    assert found.p < 0.001
    assert 0 < found.difference.low < 0.1 < found.difference.high < 0.2


def test_paired_groups_are_one_observation():
    """Three copies of each row say what one row says: same interval, same p-value, and not three times the evidence."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(0.3, 1, 30), draw.normal(0, 1, 30)
    one = paired(a, b)
    three = paired(np.tile(a, 3), np.tile(b, 3), groups=list(range(30)) * 3)
    np.testing.assert_allclose(three.difference[:3], one.difference[:3], rtol=1e-12)
    assert (three.p, three.n) == (one.p, 30)
    np.testing.assert_allclose(three.win_rate, one.win_rate, rtol=1e-12)
    assert paired(np.tile(a, 3), np.tile(b, 3)).p < one.p
    # groups of unequal size: the mean is over rows. d = 3 | 0 0 0 -> 3/4, wins 1 | 1/2
    uneven = paired([3, 0, 0, 0], [0, 0, 0, 0], groups=["a", "b", "b", "b"])
    assert (uneven.difference.value, uneven.win_rate.value, uneven.n) == (0.75, 0.75, 2)


def test_few_rows_have_no_interval():
    """Drawn anew, one row is always itself: no width would say that the difference is certain."""
    for n in (1, 4):
        found = paired([1.0] * n, [0.0] * n)
        assert (found.difference.value, found.n) == (1.0, n)
        assert np.isnan(found.difference[1:3]).all()
        assert found.note == f"{n} rows are too few to draw anew, at least 5, so there is no interval."
    assert "1 groups of rows are too few" in paired([1.0] * 9, [0.0] * 9, groups=["a"] * 9).note
    assert paired([1.0] * 5, [0.0] * 5).note == ""


def test_in_bands():
    # D(arm, gold) = 1, D(second, gold) = 1/4: 1 2 3 4 against 2 3 4 5
    gold, second = [1.0, 2, 3, 4], [2.0, 3, 4, 5]
    for arm, want in (([10.0, 11, 12, 13], 4.0), (second, 1.0), (gold, 0.0)):
        assert in_bands(np.array([arm, gold, second]).T[None])[0] == want
    draw = np.random.default_rng(0).normal(size=(3, 40)) + np.array([[1.5], [0], [0.3]])
    want = slow.ks(list(draw[0]), list(draw[1])) / slow.ks(list(draw[2]), list(draw[1]))
    assert in_bands(draw.T[None])[0] == pytest.approx(want, rel=1e-12)
    np.testing.assert_array_equal(in_bands(np.exp(draw).T[None]), in_bands(draw.T[None]))  # any monotone map
    assert np.isnan(in_bands(np.array([gold, gold, gold]).T[None])[0])
    assert np.isinf(in_bands(np.array([second, gold, gold]).T[None])[0])


NAMES = ["a", "b", "c", "d", "e"]
FORGET = np.array([1.0, 2, 2, 3, 1])
RETAIN = np.array([5.0, 9, 8, 8, 5])


def test_pareto_by_hand():
    # b is as low as c and higher; b is lower and higher than d, c lower and as high; a and e are the same point
    found = pareto(FORGET[:, None], RETAIN[:, None], names=NAMES)
    assert found.on_front.tolist() == [True, True, False, False, True]
    assert found.dominated_by == ((), (), ("b",), ("b", "c"), ())
    np.testing.assert_array_equal(found.share, [1, 1, 0, 0, 1])  # one row each: nothing to draw
    assert found.names == tuple(NAMES)


@pytest.mark.parametrize("seed", range(5))
def test_pareto_reference(seed):
    draw = np.random.default_rng(seed)
    forget, retain = draw.integers(0, 5, size=(12, 1)).astype(float), draw.integers(0, 5, size=(12, 1)).astype(float)
    names = [f"arm{i}" for i in range(12)]
    found = pareto(forget, retain, names=names)
    want = slow.dominated_by(forget[:, 0].tolist(), retain[:, 0].tolist(), names)
    assert [list(one) for one in found.dominated_by] == want
    assert found.on_front.tolist() == [not one for one in want]
    order = draw.permutation(12)
    again = pareto(forget[order], retain[order], names=[names[i] for i in order])
    np.testing.assert_array_equal(again.on_front, found.on_front[order])
    np.testing.assert_array_equal(again.share, found.share[order])


def test_rounding_is_no_difference():
    low = 0.1 + 0.2  # 0.30000000000000004
    found = pareto([[0.3], [low]], [[1.0], [1.0]], names=["a", "b"])
    assert found.on_front.all()


def test_share_of_resamples():
    """An arm that is better by much on both axes is always on the front, two like arms share it; row counts may differ."""
    draw = np.random.default_rng(0)
    rows, other = draw.normal(size=30), draw.normal(size=50)
    clear = pareto(np.stack([rows, rows + 3]), np.stack([other + 3, other]), names=["good", "bad"])
    np.testing.assert_array_equal(clear.share, [1, 0])
    like = pareto(draw.normal(size=(2, 30)), np.stack([other, other]), names=["one", "two"])
    assert 0.02 < like.share.min() < 0.98
    assert like.share.sum() == pytest.approx(1, abs=0.02)  # retain is equal, so one of the two dominates unless they tie
    assert pareto(draw.normal(size=(2, 30)), np.stack([other, other]), names=["one", "two"], seed=1).share.shape == (2,)


def test_a_statistic_of_several_numbers_a_row():
    """KS distance to a retrained model: [arm row (arm's value, retrained model's)]."""
    gold = np.random.default_rng(0).normal(size=40)
    forget = np.stack([np.stack([gold + shift, gold], axis=1) for shift in (0.0, 1.0, 3.0)])
    found = pareto(forget, np.ones((3, 5)), names=NAMES[:3], forget_statistic=ks_distances)
    np.testing.assert_allclose(found.forget, [slow.ks(list(gold + s), list(gold)) for s in (0.0, 1.0, 3.0)], rtol=1e-12)
    assert found.on_front.tolist() == [True, False, False]
    np.testing.assert_array_equal(found.share, [1, 0, 0])


def test_statistics_without_a_value_or_without_bound():
    """1 / 0 is worse than all others and 0 / 0 leaves the resample out; neither decides for the other arms."""

    def ratio(x):
        with np.errstate(divide="ignore", invalid="ignore"):
            return x[..., 0].sum(axis=1) / x[..., 1].sum(axis=1)

    # drawn from two rows, (1, 0) and (1, 1): a quarter of the resamples has 2 / 0 = inf for "a", and for "b" always 1
    forget = np.array([[[1.0, 0.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    found = pareto(forget, np.ones((2, 2)), names=["a", "b"], forget_statistic=ratio)
    assert found.share[1] == 1
    assert found.share[0] == pytest.approx(0.25, abs=0.04)  # both rows (1, 1): the same point
    # (0, 0) and (1, 1): 0 / 0 in a quarter, left out; 1 in the others, as "b"
    found = pareto(forget * [[[0], [1]], [[1], [1]]], np.ones((2, 2)), names=["a", "b"], forget_statistic=ratio)
    np.testing.assert_array_equal(found.share, [1, 1])
    with pytest.raises(DataError, match="pareto: 'a' is at .*nan.*; a statistic has no value there"):
        pareto(np.zeros((1, 2, 2)), np.ones((1, 2)), names=["a"], forget_statistic=ratio)


def test_refused():
    with pytest.raises(
        ShapeError, match="paired: got shapes {'a': \\(2,\\), 'b': \\(3,\\)}, expected one number of each for every row"
    ):
        paired([1, 2], [1, 2, 3])
    with pytest.raises(ShapeError, match="there are 2 rows but 1 groups"):
        paired([1, 2], [1, 2], groups=["a"])
    with pytest.raises(DataError, match="paired: a has no rows"):
        paired([], [])
    with pytest.raises(DataError, match="paired: b is NaN or infinite in 1 of 2 rows"):
        paired([1, 2], [1, float("nan")])
    with pytest.raises(InputError, match="a name stands twice among npo, npo; seeds of one arm need names of their own"):
        pareto([[1.0], [2.0]], [[1.0], [2.0]], names=["npo", "npo"])
    with pytest.raises(ShapeError, match="retain has shape \\(1, 1\\), expected \\[arm row\\] with 2 arms"):
        pareto([[1.0], [2.0]], [[1.0]], names=["a", "b"])
    with pytest.raises(DataError, match="forget of 'b' has a number that is NaN or infinite"):
        pareto([[1.0], [float("inf")]], [[1.0], [2.0]], names=["a", "b"])
    with pytest.raises(DataError, match="without arms or rows there is no front"):
        pareto(np.zeros((2, 0)), np.zeros((2, 3)), names=["a", "b"])
