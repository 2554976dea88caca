from math import exp, log

import numpy as np
import pytest

from tests.evaluate.tables import random_answers, table
from tests.reference import memorization as slow
from workbench.evaluate.nll import nll
from workbench.evaluate.perplexity import perplexity


def test_by_hand():
    # tokens of 1/2, 1/2 and 1/16 pooled: (2 * 2 * 16)^(1/3) = 4; the mean of the two answers' own would be (2 + 16) / 2
    given = table([[{"logprob": log(1 / 2)}] * 2, [{"logprob": log(1 / 16)}]])
    assert perplexity(given).value == pytest.approx(4, rel=1e-6)  # float32 columns
    assert exp(nll(given).mean()) == pytest.approx(32**0.5, rel=1e-6)  # the third definition


def test_reference_interval_and_order():
    every = random_answers(30)
    found = perplexity(table(every))
    assert found.value == pytest.approx(slow.perplexity(every), rel=1e-12)
    assert found.low < found.value < found.high
    assert found.n == 30
    assert perplexity(table(every)) == found
    assert perplexity(table(every[::-1])).value == pytest.approx(found.value, rel=1e-12)


def test_uniform_model_has_that_of_its_vocabulary():
    found = perplexity(table([[{"logprob": -log(50)}] * n for n in (1, 3, 2)]))
    np.testing.assert_allclose(found[:3], 50, rtol=1e-6)  # float32 columns
