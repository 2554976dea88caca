import numpy as np
import pytest
from scipy.stats import ks_2samp

from tests.reference import comparison as slow
from workbench.core.errors import DataError
from workbench.core.ks import ks, ks_distances


def test_by_hand():
    # 1 2 3 against 4 5 6: D = 1; of the C(6, 3) = 20 ways to deal six values two are as far apart
    assert ks(np.array([1.0, 2, 3]), np.array([4.0, 5, 6])) == (1.0, pytest.approx(2 / 20, rel=1e-12), 3, 3)
    # unequal sizes: 1 3 against 2 4 6 8: after 1 and 3 F is 1 and G 1/4
    assert ks(np.array([1.0, 3]), np.array([2.0, 4, 6, 8])).distance == pytest.approx(3 / 4, rel=1e-12)


def test_reference_with_ties_and_scipy():
    drawn = np.random.default_rng(0).integers(0, 6, size=(40, 9, 2)).astype(float)
    want = [slow.ks(list(x[:, 0]), list(x[:, 1])) for x in drawn]
    np.testing.assert_allclose(ks_distances(drawn), want, atol=1e-12)
    for one, distance in zip(drawn, want, strict=True):
        found = ks(one[:, 0], one[:, 1])
        assert found.distance == pytest.approx(distance, abs=1e-12)
        assert found.p == ks_2samp(one[:, 0], one[:, 1], method="exact").pvalue


def test_itself_and_refused():
    x = np.arange(5.0)
    assert ks(x, x[::-1]) == (0.0, 1.0, 5, 5)
    with pytest.raises(DataError, match="ks: b is empty"):
        ks(x, x[:0])
    with pytest.raises(DataError, match="ks: a has 1 values that are NaN or infinite"):
        ks(np.array([1.0, float("nan")]), x)
