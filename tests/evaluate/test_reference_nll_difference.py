import numpy as np
import pytest

from tests.evaluate.tables import random_answers, table
from tests.reference import memorization as slow
from workbench.core.errors import DataError, InputError
from workbench.evaluate.reference_nll_difference import reference_nll_difference


def test_by_hand_and_by_id():
    mine = table([[{"logprob": -1.0}], [{"logprob": -2.0}]], ids=["a", "b"], truth=["x", "y"])
    theirs = table([[{"logprob": -5.0}], [{"logprob": -3.5}]], ids=["b", "a"], truth=["y", "x"])
    np.testing.assert_array_equal(reference_nll_difference(mine, theirs), [1 - 3.5, 2 - 5])


def test_reference_and_itself():
    one, two = random_answers(20), random_answers(20, seed=1)
    want = [slow.nll(a) - slow.nll(b) for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(reference_nll_difference(table(one), table(two)), want, rtol=1e-9)  # a difference of near numbers
    np.testing.assert_array_equal(reference_nll_difference(table(one), table(one)), np.zeros(20))
    order = [3, 0, 19]
    np.testing.assert_array_equal(
        reference_nll_difference(table(one).take(order), table(two).take(order)),
        reference_nll_difference(table(one), table(two))[order],
    )


def test_a_table_beside_a_log():
    given, other = table(random_answers(5)), table(random_answers(5, seed=1))
    # rtol: the means of Answers are added in another order
    np.testing.assert_allclose(reference_nll_difference(given, other.answers), reference_nll_difference(given, other), rtol=1e-12)


def test_refused():
    given = table(random_answers(3))
    with pytest.raises(InputError, match="reference_nll_difference compares with another model; pass reference="):
        reference_nll_difference(given)
    with pytest.raises(DataError, match="1 ids are missing there, first 'r2'"):
        reference_nll_difference(given, given.take([0, 1]))
    with pytest.raises(DataError, match="row 'r0' is 'the answer 0' here and 'another' in the reference"):
        reference_nll_difference(given, table(random_answers(3), truth=["another", "the answer 1", "the answer 2"]))
