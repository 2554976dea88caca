import numpy as np
import pytest

from tests.evaluate.cases import FULL, answers
from tests.evaluate.tables import random_answers, table
from tests.reference import memorization as slow
from workbench.core.errors import DataError, InputError, UnknownNameError
from workbench.evaluate.logs import read_logs
from workbench.evaluate.nll import nll
from workbench.evaluate.probability import probability


def test_by_hand():
    # (1 + 3 + 0.5) / 3 with the end-of-text token, (1 + 3) / 2 without
    given = table([[{"logprob": -1.0}, {"logprob": -3.0}, {"token": 7, "logprob": -0.5}]])
    np.testing.assert_array_equal(nll(given), [1.5])
    np.testing.assert_array_equal(nll(given, end=False), [2.0])


def test_reference():
    every = random_answers(30)
    np.testing.assert_allclose(nll(table(every)), [slow.nll(a) for a in every], rtol=1e-12)  # sums in another order


def test_a_table_and_its_answers_agree():
    given = table(random_answers(30), paraphrases=random_answers(30, seed=1))
    for variant in ("response", "paraphrase"):
        # rtol: bincount and reduceat add in another order
        np.testing.assert_allclose(nll(given.answers, variant=variant), nll(given, variant=variant), rtol=1e-14)


def test_of_a_log_it_is_minus_the_log_of_the_probability():
    read = read_logs(FULL)["forget"]
    np.testing.assert_allclose(nll(read), -np.log(probability(read)), rtol=1e-12)


def test_what_answers_cannot_say():
    with pytest.raises(InputError, match="nll: end=False needs the token table of 'rows'"):
        nll(answers([1.0]), end=False)
    with pytest.raises(DataError, match="the paraphrase of 1 of 2 rows of 'rows' has no NLL, first 'r1'"):
        nll(answers([1.0, 2.0], paraphrase=[1.0, float("nan")]), variant="paraphrase")
    with pytest.raises(UnknownNameError, match="unknown variant 'perturbed.1'"):
        nll(answers([1.0], perturbed=[[2.0]]), variant="perturbed.1")
    np.testing.assert_array_equal(nll(answers([1.0], perturbed=[[2.0]]), variant="perturbed.0"), [2.0])
