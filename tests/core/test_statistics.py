"""The bootstrap: known coverage, determinism, pairing of what belongs together."""

import numpy as np
import pytest

from tests.reference.probes import spearman
from workbench.core.errors import DataError, ShapeError
from workbench.core.statistics import bootstrap, mean_estimate, spearman_estimate, spearman_undefined


def test_interval_covers_the_truth_as_often_as_it_says():
    # 300 normal samples of 60: a 95 % percentile interval of the mean covers 0 in about 93.5 % (it is known to run short by
    # a factor sqrt((n-1)/n) and the normal-for-t difference); 300 draws have a standard deviation of 1.4 %
    rng = np.random.default_rng(0)
    hits = [e.low <= 0 <= e.high for e in (mean_estimate(rng.normal(size=60), seed=i) for i in range(300))]
    assert 0.89 <= np.mean(hits) <= 0.965, f"covered {np.mean(hits):.3f}, expected about 0.94"


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
