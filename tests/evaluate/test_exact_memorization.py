import numpy as np

from tests.evaluate.cases import STORY
from tests.evaluate.tables import random_answers, table, tokens
from tests.reference import memorization as slow
from workbench.evaluate.exact_memorization import exact_memorization
from workbench.evaluate.tokens import tokens as read


def test_by_hand():
    # 3 of 4 with the end-of-text token, 2 of 3 without it; 0 of 2 and 0 of 1
    given = table([tokens([1, 0, 1, 1]), tokens([0, 0])])
    np.testing.assert_array_equal(exact_memorization(given), [3 / 4, 0])
    np.testing.assert_allclose(exact_memorization(given, end=False), [2 / 3, 0], rtol=1e-15)


def test_reference():
    every = random_answers(30)
    np.testing.assert_allclose(exact_memorization(table(every)), [slow.exact_memorization(a) for a in every], rtol=1e-12)


def test_a_tie_is_one_choice():
    # a uniform model: no token is likelier than the true one (rank 0), and the arg max is some other one
    given = table([[{"token": t, "top": 0, "rank": 0} for t in (3, 1, 0, 2)]])
    np.testing.assert_array_equal(exact_memorization(given), [1 / 4])


def test_of_a_model_it_is_the_greedy_choice(stories):
    given = read(stories, STORY)
    right = given.top == given.token
    one = (given.row == 1) & (given.variant == 0)
    assert exact_memorization(given)[1] == right[one].mean()
    assert 0 < exact_memorization(given)[1] < 1
