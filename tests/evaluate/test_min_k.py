import numpy as np
import pytest

from tests.evaluate.tables import random_answers, table
from tests.reference import memorization as slow
from workbench.core.errors import InputError
from workbench.evaluate.min_k import min_k
from workbench.evaluate.nll import nll


def test_by_hand():
    # 40 % of 5 tokens are 2: (4 + 3) / 2; of 2 tokens 0.8, so one: 2
    given = table([[{"logprob": -x} for x in (1, 4, 2, 3, 0.5)], [{"logprob": -x} for x in (2, 1)]])
    np.testing.assert_array_equal(min_k(given), [3.5, 2])
    np.testing.assert_array_equal(min_k(given, k=0.2), [4, 2])
    np.testing.assert_array_equal(min_k(given, k=0.6), [3, 2])  # 0.6 * 5 is 3, exactly: 4, 3, 2


@pytest.mark.parametrize("k", [0.1, 0.2, 0.4, 0.75, 1])
def test_reference(k):
    every = random_answers(40)
    np.testing.assert_allclose(min_k(table(every), k=k), [slow.min_k(a, k) for a in every], rtol=1e-12)  # another order of sums


def test_all_of_the_tokens_are_the_loss_and_fewer_are_no_less():
    given = table(random_answers(40))
    np.testing.assert_allclose(min_k(given, k=1.0), nll(given), rtol=1e-14)
    assert (min_k(given, k=0.2) >= min_k(given, k=0.4) - 1e-12).all()


@pytest.mark.parametrize("k", [0.0, -0.1, 1.1, float("nan")])
def test_refused(k):
    with pytest.raises(InputError, match="min_k: k is .*, expected a share of the tokens above 0 and at most 1"):
        min_k(table(random_answers(2)), k=k)
