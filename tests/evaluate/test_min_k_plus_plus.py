from math import log, sqrt

import numpy as np
import pytest

from tests.evaluate.cases import STORY
from tests.evaluate.tables import random_answers, table
from tests.reference import memorization as slow
from workbench.core.errors import InputError
from workbench.evaluate.min_k_plus_plus import FLOOR, min_k_plus_plus
from workbench.evaluate.tokens import tokens


def test_by_hand():
    # p = (3/4, 1/4): mu = 3/4 ln 3/4 + 1/4 ln 1/4 = ln 1/4 + 3/4 ln 3, sigma = sqrt(3/16) ln 3. The likely token is
    # (ln 3/4 - mu) / sigma = (1/4 ln 3) / (sqrt(3)/4 ln 3) = 1 / sqrt(3), the other one -sqrt(3).
    mean, variance = slow.moments([log(3), 0.0])
    assert mean == pytest.approx(log(1 / 4) + 3 / 4 * log(3), rel=1e-12)
    given = table(
        [[{"logprob": log(3 / 4), "mean": mean, "variance": variance}, {"logprob": log(1 / 4), "mean": mean, "variance": variance}]]
    )
    # float32 columns: 1e-6
    np.testing.assert_allclose(min_k_plus_plus(given, k=0.5), [sqrt(3)], rtol=1e-6)
    np.testing.assert_allclose(min_k_plus_plus(given, k=1), [(sqrt(3) - 1 / sqrt(3)) / 2], rtol=1e-6)


@pytest.mark.parametrize("k", [0.2, 0.4, 1])
def test_reference(k):
    every = random_answers(40)
    want = [slow.min_k_plus_plus(a, k, FLOOR) for a in every]
    np.testing.assert_allclose(min_k_plus_plus(table(every), k=k), want, rtol=1e-10)  # sums of both signs, in another order


def test_certain_and_uniform_predictions_are_at_the_mean():
    """Variance 0: ln p is its own mean up to rounding. 0 / 0 would be NaN, and a rounding of 1e-7 over a tiny sigma 1000."""
    certain = {"logprob": 0.0, "mean": 0.0, "variance": 0.0}
    uniform = {"logprob": -3.4657359, "mean": -3.465736, "variance": 3e-14}
    np.testing.assert_allclose(min_k_plus_plus(table([[certain], [uniform]])), [0, 0], atol=1e-3)
    np.testing.assert_allclose(min_k_plus_plus(table([[uniform]]), floor=1e-14), [0], atol=3)


def test_shifting_and_scaling_log_probabilities_changes_nothing():
    every = random_answers(10)
    scaled = [[{**t, "logprob": 2 * t["logprob"], "mean": 2 * t["mean"], "variance": 4 * t["variance"]} for t in a] for a in every]
    np.testing.assert_allclose(min_k_plus_plus(table(scaled)), min_k_plus_plus(table(every)), rtol=1e-12)


def test_of_a_model(stories):
    values = min_k_plus_plus(tokens(stories, STORY))
    assert np.isfinite(values).all()


def test_refused():
    with pytest.raises(InputError, match="min_k_plus_plus: floor is 0, expected a variance above 0"):
        min_k_plus_plus(table(random_answers(2)), floor=0)
    with pytest.raises(InputError, match="min_k_plus_plus: k is 2"):
        min_k_plus_plus(table(random_answers(2)), k=2)
