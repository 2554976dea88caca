"""The bootstrap: known coverage, determinism, pairing of what belongs together."""

import numpy as np
import pytest
from scipy.stats import binomtest, rankdata

from tests.reference.probes import spearman
from workbench.core.errors import DataError, InputError, ShapeError
from workbench.core.statistics import (
    RESAMPLES,
    average_ranks,
    bootstrap,
    mean_estimate,
    reflected,
    spearman_estimate,
    spearman_unbounded,
    spearman_undefined,
    standard_ranks,
    wilson,
)


def test_interval_covers_the_truth_as_often_as_it_says():
    # 300 normal samples of 60: a 95 % percentile interval of the mean covers 0 in about 93.5 % (it is known to run short by
    # a factor sqrt((n-1)/n) and the normal-for-t difference); 300 draws have a standard deviation of 1.4 %
    rng = np.random.default_rng(0)
    hits = [e.low <= 0 <= e.high for e in (mean_estimate(rng.normal(size=60), seed=i) for i in range(300))]
    assert 0.89 <= np.mean(hits) <= 0.965, f"covered {np.mean(hits):.3f}, expected about 0.94"


def test_reflected_by_hand():
    # resamples 1 .. 99 of a value 20 at a level of 0.8: 10 % lie below 10.8 and above 89.2, so the bounds
    # are 10 and 90; turned about 20 they are -50 and 30
    drawn = np.arange(1.0, 100.0)
    assert reflected(20.0, drawn, (-100.0, 100.0), level=0.8) == (-50.0, 30.0)
    assert reflected(20.0, drawn, (0.0, 25.0), level=0.8) == (0.0, 25.0)
    assert reflected(0.0, drawn, (0.0, 100.0), level=0.8) == (0.0, 0.0)  # all resamples lie above: as wide as to hold the value
    assert reflected(20.0, np.append(drawn, np.nan), (-100.0, 100.0), level=0.8) == (-50.0, 30.0)
    assert reflected(20.0, np.append(drawn[:80], np.full(19, np.inf)), (0.0, np.inf), level=0.8) == (0.0, 30.0)
    for value, none in ((np.nan, drawn), (np.inf, drawn), (1.0, np.array([np.nan]))):
        assert np.isnan(reflected(float(value), none, (0.0, 1.0))).all()


def test_value_is_the_statistic_and_n_is_counted():
    found = mean_estimate([1.0, 2.0, 6.0])
    assert found.value == 3.0
    assert found.n == 3
    assert 1.0 <= found.low <= 3.0 <= found.high <= 6.0


def test_same_seed_same_interval():
    assert mean_estimate([1.0, 2.0, 6.0], seed=4) == mean_estimate([1.0, 2.0, 6.0], seed=4)
    assert mean_estimate(np.arange(50.0), seed=4) != mean_estimate(np.arange(50.0), seed=5)


def test_rows_are_drawn_whole():
    # the two columns are equal, so their difference is 0 in every resample unless they are drawn apart
    pairs = np.repeat(np.arange(20.0)[:, None], 2, axis=1)
    found = bootstrap(lambda x: (x[..., 0] - x[..., 1]).mean(axis=1), pairs)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_several_samples_are_drawn_independently():
    same = np.arange(30.0)
    found = bootstrap(lambda x, y: x.mean(axis=1) - y.mean(axis=1), same, same)
    assert found.value == 0.0
    assert found.low < -1 < 1 < found.high  # sd of a difference of two means: sqrt(2 * 74.9 / 30) = 2.2
    assert found.n == 60


def test_nothing_measured_is_an_error():
    with pytest.raises(DataError, match="empty"):
        mean_estimate([])


def test_rank_correlation_by_hand():
    # ranks 1 2 3 4 against 1 3 2 4: d = 0 1 1 0, rho = 1 - 6 * 2 / (4 * 15) = 4/5
    assert spearman_estimate([0.1, 0.2, 5.0, 9.0], [1.0, 3.0, 2.0, 4.0]).value == pytest.approx(4 / 5)
    # ties share ranks: x 1.5 1.5 3, y 1 2 3, about their mean 2: -.5 -.5 1 and -1 0 1; 1.5 / sqrt(1.5 * 2) = sqrt(3)/2
    assert spearman_estimate([7.0, 7.0, 8.0], [1.0, 2.0, 3.0]).value == pytest.approx(3**0.5 / 2)


def test_rank_correlation_is_the_slow_one_with_ties():
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
    found = spearman_estimate(x, y)
    assert found.value == pytest.approx(spearman(x.tolist(), y.tolist()), rel=1e-9)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found == spearman_estimate(x, y)
    assert found.n == 40
    assert spearman_estimate(np.exp(y), -y).value == pytest.approx(-1.0)  # monotone maps change no rank


def test_interval_of_a_rank_correlation_covers_the_truth():
    # normal pairs of correlation 1/2 have rho = 6/pi asin(1/4) = .483; 95 % nominal, 100 draws have a sd of 2.5 %
    rng = np.random.default_rng(0)
    hits = []
    for seed in range(100):
        x = rng.normal(size=60)
        found = spearman_estimate(x, 0.5 * x + 0.75**0.5 * rng.normal(size=60), seed=seed)
        hits.append(found.low <= 6 / np.pi * np.arcsin(0.25) <= found.high)
    assert 0.86 <= np.mean(hits) <= 1.0, f"covered {np.mean(hits):.2f}, expected about 0.94"


def test_the_same_draws_as_row_by_row():
    # what is drawn by counting is the mean over the sample as it stands
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 5, 12).astype(float), rng.normal(size=12)
    drawn = np.random.default_rng(7).integers(0, 12, (RESAMPLES, 12))
    each = np.array([pearson_of_ranks(x[index], y[index]) for index in drawn])
    found = spearman_estimate(x, y, seed=7)
    np.testing.assert_allclose(found[1:3], np.quantile(each, [0.025, 0.975]), rtol=1e-9)  # float64 on both sides


def pearson_of_ranks(x, y):
    return np.corrcoef(rankdata(x), rankdata(y))[0, 1]


def test_interval_over_groups_by_the_loop():
    rng = np.random.default_rng(6)
    groups = ["a", "b", "a", "c", "d", "e", "b", "b", "f", "c"]
    x, y = rng.normal(size=10), rng.normal(size=10)
    names = ["a", "b", "c", "d", "e", "f"]  # as they first come
    members = {name: [i for i, one in enumerate(groups) if one == name] for name in names}
    drawn = np.random.default_rng(2).integers(0, 6, (RESAMPLES, 6))
    index = [[i for group in row for i in members[names[group]]] for row in drawn]
    each = np.array([pearson_of_ranks(x[one], y[one]) if len(set(one)) > 1 else np.nan for one in index])
    found = spearman_estimate(x, y, groups=groups, seed=2)
    np.testing.assert_allclose(found[1:3], np.nanquantile(each, [0.025, 0.975]), rtol=1e-9)  # float64 on both sides
    assert found.n == 10
    with pytest.raises(ShapeError, match="there are 10 rows but 3 groups"):
        spearman_estimate(x, y, groups=["a", "b", "c"])


def test_interval_over_groups_covers_and_the_one_over_rows_does_not():
    # 40 groups of 4 rows that share most of x and of y, which have nothing to do with each other: rho = 0. The rows say the same
    # thing four times, so an interval over rows is about half as wide as it should be; 100 draws have a sd of 2 %, or 5 %
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 4).tolist()
    hits = []
    for seed in range(100):
        x, y = (rng.normal(size=40)[groups] + 0.2 * rng.normal(size=160) for _ in range(2))
        over = (spearman_estimate(x, y, groups=groups, seed=seed), spearman_estimate(x, y, seed=seed))
        hits.append([found.low <= 0 <= found.high for found in over])
    whole, rows = np.mean(hits, axis=0)
    assert whole >= 0.86, f"covered {whole:.2f}, expected about 0.94"
    assert rows <= 0.8, f"covered {rows:.2f}, expected about 0.67: 2 sd of half the width"


def test_no_interval_where_resamples_cannot_tell():
    up = np.arange(12.0)
    few = spearman_estimate(up[:4], up[:4])
    assert few.value == pytest.approx(1)
    assert np.isnan(few[1:3]).all()
    assert "4 rows are too few to draw anew, at least 5" in spearman_unbounded(few)
    grouped = spearman_estimate(up, -up, groups=[0, 1, 2] * 4)
    assert "3 groups of 12 rows are too few" in spearman_unbounded(grouped, groups=[0, 1, 2] * 4)
    perfect = spearman_estimate(up, 2 * up)
    assert perfect.value == pytest.approx(1)
    assert np.isnan(perfect[1:3]).all()
    assert "all resamples have the same rho" in spearman_unbounded(perfect)
    assert spearman_unbounded(spearman_estimate(up, up % 5)) == ""
    assert spearman_unbounded(spearman_estimate(up, 0 * up)) == ""  # undefined, which `spearman_undefined` says


def test_ranks_are_of_the_sample_as_it_is_drawn():
    values = np.array([3.0, 1.0, 3.0, 2.0])
    # drawn: 1 twice, 2 three times, each 3 once: places 1-2, 3-5, 6-7
    assert average_ranks(values, np.array([[1.0, 2.0, 1.0, 3.0]])).tolist() == [[6.5, 1.5, 6.5, 4.0]]
    score = np.random.default_rng(0).integers(0, 4, 12).astype(float)
    times = np.random.default_rng(1).integers(0, 4, (5, len(score))).astype(float)
    for weights, found in zip(times, average_ranks(score, times), strict=True):
        drawn = np.repeat(np.arange(len(score)), weights.astype(int))
        np.testing.assert_allclose(found[drawn], rankdata(score[drawn]), rtol=1e-12)  # halves are exact


def test_standard_ranks_by_hand():
    # 5 once and 9 three times: ranks 1 and 3, about their mean 2.5: -1.5 and .5, over sqrt(2.25 + 3 * .25) = sqrt(3)
    found = standard_ranks(np.array([9.0, 5.0]), np.array([[3.0, 1.0], [2.0, 0.0]]))
    np.testing.assert_allclose(found[0], [0.5 / 3**0.5, -1.5 / 3**0.5], rtol=1e-12)
    assert np.isnan(found[1]).all()  # only nines are drawn


def test_wilson_interval():
    # 10 of 10: low = n / (n + z^2) = 10 / 13.8415 = .72247, high 1; none of 10: mirrored
    assert wilson(1.0, 10)[:3] == pytest.approx((1.0, 0.722467, 1.0), abs=1e-6)
    assert wilson(0.0, 10)[:3] == pytest.approx((0.0, 0.0, 1 - 0.722467), abs=1e-6)
    for hits, n in ((3, 7), (10, 10), (0, 25), (12, 40)):
        low, high = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert wilson(hits / n, n)[1:] == pytest.approx((low, high, n), rel=1e-9, abs=1e-12)  # scipy's own
    with pytest.raises(DataError, match="wilson: n is 0"):
        wilson(0.5, 0)
    with pytest.raises(InputError, match="share is 1.5, expected a number from 0 to 1"):
        wilson(1.5, 3)


def test_a_constant_side_has_no_rank_correlation():
    found = spearman_estimate([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert np.isnan(found[:3]).all()
    assert found.n == 3
    assert "x has the same value 1 in all 3 rows" in spearman_undefined([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert spearman_undefined([1.0, 2.0], [2.0, 1.0]) == ""


@pytest.mark.parametrize(
    ("x", "y", "error", "match"),
    [
        ([1.0, 2.0], [1.0], ShapeError, "x is .2,. and y .1,."),
        ([], [], DataError, "no rows"),
        ([1.0, float("nan")], [1.0, 2.0], DataError, "NaN or infinite in 1 of 2"),
    ],
)
def test_what_has_no_ranks_is_refused(x, y, error, match):
    with pytest.raises(error, match=match):
        spearman_estimate(x, y)
