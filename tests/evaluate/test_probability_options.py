import numpy as np
import pytest

from tests.evaluate.cases import NAN, answers, random_answers
from tests.reference import tofu_metrics as slow
from workbench.core.errors import DataError
from workbench.evaluate.probability_options import probability_options

LN2, LN4 = np.log(2), np.log(4)


def test_by_hand():
    # (1/2) / (1/2 + 1/4 + 1/4) = 1/2, and with one false answer (1/4) / (1/4 + 1/2) = 1/3
    table = answers([LN2, LN4], perturbed=[[LN4, LN4], [LN2, NAN]])
    np.testing.assert_allclose(probability_options(table), [1 / 2, 1 / 3], rtol=1e-12)


def test_reference():
    table = random_answers(20)
    want = [slow.probability_options(x, list(f)) for x, f in zip(table.response, table.perturbed, strict=True)]
    np.testing.assert_allclose(probability_options(table), want, rtol=1e-12)


def test_chance_also_where_every_answer_underflows():
    # exp(-2000) is 0 in float64: with an epsilon in the denominator this would be 0, not 1/4
    np.testing.assert_allclose(probability_options(answers([2000.0], perturbed=[[2000.0] * 3])), [1 / 4], rtol=1e-12)


def test_permutes_rows_and_options():
    table = random_answers(5)
    np.testing.assert_array_equal(probability_options(table.take([4, 2, 0, 1, 3])), probability_options(table)[[4, 2, 0, 1, 3]])
    turned = answers(table.response, perturbed=table.perturbed[:, ::-1])
    np.testing.assert_allclose(probability_options(turned), probability_options(table), rtol=1e-14)


def test_rows_without_false_answers_say_which_to_use():
    with pytest.raises(DataError, match=r"1 of 2 rows have no perturbed answer, first 'r1'.*rows\[:1\]"):
        probability_options(answers([1.0, 1.0], perturbed=[[1.0], [NAN]]))
    with pytest.raises(DataError, match="2 of 2 rows have no perturbed answer"):
        probability_options(answers([1.0, 1.0]))
