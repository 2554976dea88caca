"""The largest mean over layers, and how far it lies above another model's."""

import numpy as np
import pytest

from workbench.evaluate.best_layer import best_layer, excess

VALUES = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])  # means 3 and 3
OTHER = np.array([[4.0, 0.0], [5.0, 0.0], [0.0, 0.0]])  # means 3 and 0


def test_by_hand():
    """Means of [1 3 5] and [2 6 4] are 3 and 4; the other's 3 and 0: 4, and 4 - 3."""
    values = VALUES.copy()
    values[2, 1] = 4.0
    assert best_layer(values).value == 4.0
    assert best_layer(values).n == 3
    assert excess(values, OTHER).value == 1.0


def test_the_layer_is_chosen_anew_in_every_resample():
    """Two layers, each best on other rows: every resample of the largest lies at or above that of either alone."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 8))
    found = best_layer(values)
    alone = [best_layer(values[:, [j]]) for j in range(8)]
    assert found.value == pytest.approx(max(one.value for one in alone))
    assert found.low > max(one.low for one in alone)
    drawn = values[np.random.default_rng(0).integers(0, 30, size=(2000, 30))].mean(1).max(-1)
    np.testing.assert_allclose(found[1:3], np.quantile(drawn, [0.025, 0.975]), rtol=1e-12)


def test_against_itself_the_excess_is_exactly_zero():
    assert excess(VALUES, VALUES)[:3] == (0.0, 0.0, 0.0)


def test_one_row_has_a_value_and_no_interval():
    found = best_layer(VALUES[:1])
    assert found.value == 2.0
    assert np.isnan([found.low, found.high]).all()
