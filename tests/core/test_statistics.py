"""The bootstrap: known coverage, determinism, pairing of what belongs together."""

import numpy as np
import pytest

from workbench.core.errors import DataError
from workbench.core.statistics import bootstrap, mean_estimate


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
