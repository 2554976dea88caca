import numpy as np

from tests.evaluate.tables import random_answers, table, tokens
from tests.reference import memorization as slow
from workbench.evaluate.extraction_strength import extraction_strength


def test_by_hand():
    given = table(
        [
            tokens([1, 0, 1, 1, 1]),  # two tokens must be told: 1 - 2/5; without the end 1 - 2/4
            tokens([1, 1, 1]),  # nothing must be told: 1
            tokens([1, 1, 0]),  # the end itself is wrong: 0, where some code gives 1/3; without it all is right
            tokens([0]),
            tokens([0, 1]),  # ends where the answer ends: 1/2
        ]
    )
    np.testing.assert_allclose(extraction_strength(given), [3 / 5, 1, 0, 0, 1 / 2], rtol=1e-15)
    np.testing.assert_allclose(extraction_strength(given.take([0, 2, 4]), end=False), [1 / 2, 1, 0], rtol=1e-15)


def test_reference():
    for seed in range(3):
        every = random_answers(60, seed=seed, longest=4)
        np.testing.assert_allclose(extraction_strength(table(every)), [slow.extraction_strength(a) for a in every], atol=1e-15)


def test_never_above_exact_memorization_and_only_the_last_wrong_token_counts():
    one, two = table([tokens([0, 1, 0, 1, 1])]), table([tokens([1, 1, 0, 1, 1])])
    np.testing.assert_array_equal(extraction_strength(one), extraction_strength(two))
